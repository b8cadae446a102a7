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
    if type(value) is int:  # not through a float, which has no place for large ones
        return abs(value) < 2**63
    return type(value) is float and math.isfinite(value)


def is_dict(value: object) -> bool:
    """Return whether `value` is a dict."""
    return isinstance(value, dict)


def is_json(value: object, depth: int = 20) -> bool:
    """Return whether `value` is what JSON can hold: finite numbers, text as keys, `depth` deep."""
    if isinstance(value, dict):
        return depth > 0 and all(
            isinstance(key, str) and is_json(item, depth - 1) for key, item in value.items()
        )
    if isinstance(value, list | tuple):
        return depth > 0 and all(is_json(item, depth - 1) for item in value)
    return value is None or type(value) in (bool, str) or is_finite(value)


def is_json_object(value: object) -> bool:
    """Return whether `value` is a dict that JSON can hold."""
    return is_dict(value) and is_json(value)


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
