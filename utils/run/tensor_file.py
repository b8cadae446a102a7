"""Save and load tensors and plain data in archives that notice damage.

`torch.load` does not notice flipped bits (381 of 400 tried loaded silently), so an archive ends
with the SHA-256 of all its bytes before, in the one place where a zip archive may carry text: its
comment. The comment survives copying.
"""

import hashlib
import os
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from utils.errors import InputError, is_out_of_memory
from utils.files import open_atomic, open_regular

COMMENT_BYTES = 64  # a SHA-256 in hex
BLOCK_BYTES = 1 << 20  # read at a time
# A zip archive ends with a record of 22 bytes, the last two being the length of the comment after.
END_RECORD_BYTES = 22
END_RECORD_SIGNATURE = b"PK\x05\x06"


def canonical(value: Any, seen: set[int] | None = None) -> Any:  # noqa: ANN401 - any plain data
    """Return a copy of plain data whose pickle depends on the values alone.

    pickle writes a reference where it meets an object again, so equal strings must be one object;
    and torch writes the whole memory that a tensor looks into, once: it must be the tensor's own.

    Args:
        value: tensors and plain data.
        seen: addresses of the memory of earlier tensors.
    """
    seen = set() if seen is None else seen
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, Mapping):
        return {canonical(key): canonical(item, seen) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item, seen) for item in value]
    if isinstance(value, Tensor):
        return _own(value.detach().cpu(), seen)
    return value


def _own(tensor: Tensor, seen: set[int]) -> Tensor:
    """Return the same numbers in memory of their own, with the strides of a new tensor."""
    memory = tensor.untyped_storage()
    is_own = memory.nbytes() == tensor.numel() * tensor.element_size()
    # Contiguous is not enough: the stride of a dimension of size 1 can be anything.
    is_usual = tensor.stride() == torch.empty(tensor.shape, device="meta").stride()
    if not (is_own and is_usual) or memory.data_ptr() in seen:
        return tensor.clone(memory_format=torch.contiguous_format)
    seen.add(memory.data_ptr())
    return tensor


class _SealingWriter:
    """Pass an archive on to a file, all but its last two bytes, and take its SHA-256.

    Not through memory: the state of a ViT-B_16 has 0.7 GB. Not by path: torch would write the
    file's name into the archive.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.held = b""
        self.failure: OSError | None = None

    def _put(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        try:
            self.file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def write(self, data: bytes | memoryview) -> int:
        """Take the next bytes of the archive."""
        view = memoryview(data).cast("B")
        if len(view) < 2:
            self.held += bytes(view)
            self._put(self.held[:-2])
            self.held = self.held[-2:]
        else:
            self._put(self.held)
            self._put(view[:-2])
            self.held = bytes(view[-2:])
        return len(view)

    def flush(self) -> None:
        """Asked for by torch; `open_atomic` flushes the file."""

    def seal(self) -> None:
        """Declare a comment in the archive's end record, and write it: the archive's SHA-256."""
        self._put(COMMENT_BYTES.to_bytes(2, "little"))
        self.file.write(self.digest.hexdigest().encode())


def write_archive(file: BinaryIO, payload: Mapping[str, Any]) -> None:
    """Write tensors and plain data to `file`; equal payloads give equal bytes."""
    writer = _SealingWriter(file)
    try:
        torch.save(canonical(payload), writer)
    except RuntimeError as error:
        if writer.failure is None:
            raise
        raise writer.failure from error  # torch closes the archive, and says that it has no end
    writer.seal()


def save_archive(path: Path, payload: Mapping[str, Any]) -> None:
    """Write `payload` to `path`, replacing it as a whole; equal payloads give equal files."""
    with open_atomic(path) as file:
        write_archive(file, payload)


def is_whole(file: BinaryIO) -> bool:
    """Return whether the bytes of an open archive are those that were once written.

    Raises:
        EOFError: there is no checksum: it is truncated, or not an archive of ours.
    """
    size = file.seek(0, os.SEEK_END) - COMMENT_BYTES
    file.seek(max(0, size - END_RECORD_BYTES))
    ending = file.read()
    end_record, comment = ending[:END_RECORD_BYTES], ending[END_RECORD_BYTES:]
    expected_end = END_RECORD_SIGNATURE, COMMENT_BYTES.to_bytes(2, "little")
    if size < END_RECORD_BYTES or (end_record[:4], end_record[-2:]) != expected_end:
        raise EOFError
    file.seek(0)
    digest = hashlib.sha256()
    while size:
        block = file.read(min(size, BLOCK_BYTES))
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode() == comment


MAX_DEPTH = 50  # of lists and dicts in each other
MAX_BITS = 256  # of an integer: longer ones cannot be printed in bounded time
_PLAIN = (bool, float, str, type(None))


def _is_plain(value: object) -> bool:
    """Return whether a value is what `canonical` gives: a tree, of which no part is shared.

    A dict that holds itself has no end, and lists that share lists have one that nobody lives to
    see, as has a tensor that shows few bytes as many.
    """
    seen: set[int] = set()
    level = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[object] = []
        for item in level:
            if isinstance(item, Tensor):
                is_dense = item.layout == torch.strided and not item.is_meta
                if not is_dense or item.nbytes > item.untyped_storage().nbytes():
                    return False
            elif isinstance(item, dict | list | tuple):
                if id(item) in seen and item != ():  # there is one empty tuple
                    return False
                seen.add(id(item))
                deeper += [*item.keys(), *item.values()] if isinstance(item, dict) else item
            elif type(item) is int:
                if item.bit_length() > MAX_BITS:
                    return False
            elif type(item) not in _PLAIN:
                return False
        if not deeper:
            return True
        level = deeper
    return False


# What torch.load raises for archives that hold anything but what torch.save makes of plain data.
_LOAD_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
    AssertionError,
    ImportError,
)


def load_archive(path: Path) -> Any:  # noqa: ANN401 - plain data of any shape
    """Return what was written to `path`, on the CPU, without running any code that it may hold.

    Raises:
        InputError: unreadable, not an archive of ours, damaged, or holding more than plain data.
    """
    try:
        with open_regular(path) as file:
            return _load(path, file)
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read ({error.strerror})") from error


def _load(path: Path, file: BinaryIO) -> Any:  # noqa: ANN401 - as above
    try:
        whole = is_whole(file)
    except EOFError as error:
        raise InputError(
            f"checkpoint {path} is truncated, damaged or not written by train.py: its checksum is "
            "missing; name a run's checkpoints/ckpt.bin, or copy it again"
        ) from error
    if not whole:
        raise InputError(
            f"checkpoint {path} is damaged: its bytes do not match its checksum; copy it again"
        )
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles, which are refused
            # map_location: one saved from MPS loads anywhere (pytorch #194584).
            payload = torch.load(file, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise _of_others(path) from error
    if not _is_plain(payload):
        raise _of_others(path)
    return payload


def _of_others(path: Path) -> InputError:
    return InputError(
        f"checkpoint {path} holds something other than tensors and plain data; it was not "
        "loaded. Use only checkpoints that train.py wrote"
    )
