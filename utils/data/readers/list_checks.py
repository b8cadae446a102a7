"""Compare the lists of a dataset: same samples, no value shared, splits apart."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.errors import InputError


def check_same_keys(
    path: Path | str, table: Mapping[Any, object], other: Path | str, keys: Mapping[Any, object]
) -> None:
    """Raise an error unless two lists speak of the same samples.

    Raises:
        InputError: `table` in `path` lacks one of the `keys` in `other`, or has one more.
    """
    for key in keys:
        if key not in table:
            raise InputError(f"{path} lacks {key}, which {other} has")
    for key in table:
        if key not in keys:
            raise InputError(f"{path} has {key}, which {other} lacks")


def check_not_shared(path: Path, what: str, table: Mapping[str, str]) -> None:
    """Raise an error if a list file gives one value to two keys.

    Raises:
        InputError: names `path`, both keys, and `what` they share.
    """
    if len(set(table.values())) == len(table):
        return
    owners: dict[str, str] = {}
    for key, value in table.items():
        if value in owners:
            raise InputError(f"{path} gives {owners[value]} and {key} the same {what} {value!r}")
        owners[value] = key


def check_apart(path: Path, ids: Iterable[str], other: Path, other_ids: Iterable[str]) -> None:
    """Raise an error if two splits share an image: what is trained on must not be tested on.

    Raises:
        InputError: names the image and both list files.
    """
    known = set(ids)
    for sample_id in other_ids:
        if sample_id in known:
            raise InputError(f"{path} has the image {sample_id!r}, and so has {other}")
