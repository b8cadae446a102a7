"""Check the values that a file brings in: keys, types, ranges. Imports no torch."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]


def is_text(value: object) -> bool:
    """Return whether `value` is a string."""
    return isinstance(value, str)


def is_count(value: object) -> bool:
    """Return whether `value` is a whole number, 0 or above, that fits 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def is_positive(value: object) -> bool:
    """Return whether `value` is a whole number above 0 that fits 64 bits."""
    return is_count(value) and value > 0


def is_finite(value: object) -> bool:
    """Return whether `value` is a number, neither NaN nor infinite."""
    return type(value) in (int, float) and math.isfinite(value)


def is_dict(value: object) -> bool:
    """Return whether `value` is a dict."""
    return isinstance(value, dict)


def list_of(is_item: Check) -> Check:
    """Return a check for a list in which every item passes `is_item`."""
    return lambda value: isinstance(value, list) and all(map(is_item, value))


def dict_of(is_item: Check) -> Check:
    """Return a check for a dict with strings as keys in which every value passes `is_item`."""
    return lambda value: (
        is_dict(value)
        and all(isinstance(key, str) and is_item(item) for key, item in value.items())
    )


def fields(schema: Mapping[str, Check]) -> Check:
    """Return a check for a dict whose fields pass `schema`."""
    return lambda value: is_dict(value) and not wrong_fields(value, schema)


def wrong_fields(value: Mapping[str, Any], schema: Mapping[str, Check]) -> list[str]:
    """Return the fields of `schema` that `value` lacks or that fail their check."""
    return [key for key, is_right in schema.items() if key not in value or not is_right(value[key])]
