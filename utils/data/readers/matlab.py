"""MATLAB 5 files: load one, and take texts and whole numbers out of what scipy makes of it.

No torch here.
"""

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.data.readers.listing import read_bytes
from utils.errors import InputError

HEADER = 128  # bytes, the last two of which tell the byte order
BYTE_ORDERS = {b"IM": "<", b"MI": ">"}
MATRIX, COMPRESSED = 14, 15
# Types of the elements that a file consists of (MAT-File Format, table 1-1).
TYPES = frozenset((1, 2, 3, 4, 5, 6, 7, 9, 12, 13, MATRIX, COMPRESSED, 16, 17, 18))


def load_mat(path: Path, remedy: str) -> Mapping[str, np.ndarray]:
    """The variables of a MATLAB 5 file.

    Args:
        path: the file.
        remedy: what to do about a bad one, the end of the error message.

    Raises:
        InputError: the file is missing, a folder, unreadable, damaged or of another format.
    """
    data = read_bytes(path, remedy)

    from scipy.io import loadmat  # 0.3 s to import: only once a file is there to be read
    from scipy.io.matlab import MatReadError

    try:
        _check_damaged(data)
        return loadmat(io.BytesIO(data))
    # What scipy raises for files that are empty, cut, damaged, not .mat or HDF5-based.
    except (
        MatReadError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        EOFError,
        struct.error,
        NotImplementedError,
        zlib.error,
        ArithmeticError,
        MemoryError,
        UnboundLocalError,
    ) as error:
        raise InputError(
            f"{path} is not a readable MATLAB 5 file ({type(error).__name__}); {remedy}"
        ) from error


def _check_damaged(data: bytes) -> None:
    """Look at the type and size of each element: scipy crashes Python over those it does not know.

    Raises:
        ValueError: this is no MATLAB 5 file, or an element is cut or of no known type; or a
            `struct.error` or `zlib.error`.
    """
    order = BYTE_ORDERS.get(data[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("no header")
    blocks = [memoryview(data)[HEADER:]]
    while blocks:
        block = blocks.pop()
        while block:
            kind, size = struct.unpack_from(f"{order}II", block)
            start = 8
            if kind >> 16:  # up to 4 bytes of content stand in the place of the size
                kind, size, start = kind & 0xFFFF, kind >> 16, 4
            content = block[start : start + size]
            if kind not in TYPES or len(content) < size:
                raise ValueError(f"an element of type {kind} and {size} bytes")
            if kind == COMPRESSED:  # what its checksum vouches for needs no closer look
                stream = zlib.decompressobj()
                stream.decompress(content)
                if not stream.eof:
                    raise ValueError("a compressed element is cut")
            elif kind == MATRIX:
                blocks.append(content)
            padding = 0 if kind == COMPRESSED else -(start + size) % 8
            block = block[start + size + padding :]


def whole_numbers(values: object) -> np.ndarray | None:
    """(N,) int64 of a numeric matrix, in memory order; None if it is none or holds fractions."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        return None
    is_whole = np.isfinite(values) & (np.abs(values) < 2**31) & (values == np.round(values))
    return values.ravel().astype(np.int64) if is_whole.all() else None


def whole_number(value: object) -> int | None:
    """The number in a 1 x 1 matrix, or None."""
    numbers = whole_numbers(value)
    return int(numbers[0]) if numbers is not None and len(numbers) == 1 else None


def text(value: object) -> str | None:
    """The string in what scipy makes of a char array, or None if it is none or empty."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.size == 1:
        value = value.item()
    return value if isinstance(value, str) and value else None
