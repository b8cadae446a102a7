"""Understand what `--pretrained` names: a file, a name in the table, an address on the hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from utils.errors import InputError, near_miss, os_errors_are_input_errors
from utils.files import kind_of

HUB = "hf:"  # how the address of weights on the Hugging Face hub begins
FORMATS = (".safetensors", ".npz")  # files of numbers; a pickle could run code
_ADDRESS = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/(.+))?", re.ASCII)


class Source(NamedTuple):
    """Where weights lie on the hub, and what is known of them before they are fetched."""

    name: str  # in the table of weights, else that of the repository
    repository: str
    revision: str = "main"  # branch, tag or commit
    file: str | None = None  # None: the only weights of the repository
    sha256: str | None = None  # as it was published; None: not known
    licence: str | None = None  # None: the server says it


class Fetched(NamedTuple):
    """Weights on this machine."""

    path: Path  # what says how to use them lies beside it
    record: dict[str, str]  # for stamp and checkpoint: name, commit, hash, licence


def address_of(text: str, table: Mapping[str, Any]) -> Path | str:
    """Return the path that `--pretrained` names, or else the address of weights on the hub.

    Args:
        text: an existing path, a name in the table, or `hf:owner/repository[@revision][/file]`.
        table: public weights by name; a row has the fields of `Source`.

    Raises:
        InputError: it is none of these.
    """
    with os_errors_are_input_errors({"--pretrained": text}):
        if kind_of(Path(text)) is not None:
            return Path(text).absolute() if text.startswith(HUB) else Path(text)
    if text in table:
        return HUB + text
    if text.startswith(HUB):
        source_of(text, table)
        return text
    if "/" in text:
        return Path(text)  # that it does not exist is said with the other paths
    raise InputError(
        f"--pretrained {text} does not exist; name a file, hf:owner/repository, or one of "
        f"`scripts/get_weights.py --list`{near_miss(text, table)}"
    )


def is_address(value: object) -> bool:
    """Return whether a value of `--pretrained` is an address on the hub, not a path."""
    return isinstance(value, str) and value.startswith(HUB)


def source_of(address: str, table: Mapping[str, Any]) -> Source:
    """Return what an address means.

    Raises:
        InputError: it means nothing, or a file of a format that is not fetched.
    """
    name = address.removeprefix(HUB)
    if name in table:
        row = table[name]
        return Source(name, *(getattr(row, field) for field in Source._fields[1:]))
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InputError(
            f"--pretrained {address} is not hf:owner/repository[@revision][/file] (in a revision "
            f"write %2F for /) and no name of the table{near_miss(name, table)}"
        )
    repository, revision, file = match[1], unquote(match[2] or "main"), match[3]
    parts = "/".join(filter(None, (repository, revision, file))).split("/")
    odd = {"", ".", ".."} & {*parts}
    if odd or (file and not file.endswith(FORMATS)):
        what = "has an empty part or dots" if odd else f"is not one of {', '.join(FORMATS)}"
        raise InputError(f"--pretrained {address} {what}; only files of numbers are fetched")
    return Source(repository, repository, revision, file)
