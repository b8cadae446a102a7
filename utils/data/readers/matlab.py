"""Load MATLAB 5 files, and take texts and whole numbers out of what scipy makes of them.

No torch here.
"""

import io
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.data.readers.list_files import PARSER_ERRORS, read_bytes
from utils.errors import InputError

HEADER = 128  # bytes, the last two of which tell the byte order
BYTE_ORDERS = {b"IM": "<", b"MI": ">"}
MATRIX, COMPRESSED = 14, 15
FLAGS = 6  # type of the first element of a matrix, whose first byte is the class
SPARSE, OPAQUE = 5, 17  # classes: of a matrix with fewer items than its size, and without a size
MAX_UNPACKED = 1 << 26  # bytes of a file; the largest of the official ones has 10 million
# Types of the elements that a file consists of (MAT-File Format, table 1-1).
TYPES = frozenset((1, 2, 3, 4, 5, 6, 7, 9, 12, 13, MATRIX, COMPRESSED, 16, 17, 18))


def load_mat(path: Path, remedy: str) -> Mapping[str, np.ndarray]:
    """Return the variables of a MATLAB 5 file.

    Args:
        path: the file.
        remedy: what to do if it is missing or damaged, the end of the error message.

    Raises:
        InputError: the file is missing, a folder, unreadable, damaged or of another format.
    """
    data = read_bytes(path, remedy)

    from scipy.io import loadmat  # 0.3 s to import: only once a file is there to be read
    from scipy.io.matlab import MatReadError

    try:
        _check_elements(data)
        return loadmat(io.BytesIO(data))
    except (*PARSER_ERRORS, MatReadError, struct.error, zlib.error) as error:
        raise InputError(
            f"{path} is not a readable MATLAB 5 file ({type(error).__name__}); {remedy}"
        ) from error


def _check_elements(data: bytes) -> None:
    """Check type and size of each element: scipy crashes Python over those it does not know.

    It also takes memory for as many cells as a matrix says that it has, and unpacks any length.

    Raises:
        ValueError: this is not a MATLAB 5 file; an element is cut, of an unknown type, or says that
            it has more items than bytes; or it unpacks to too much. Or a `struct.error` or
            `zlib.error`.
    """
    order = BYTE_ORDERS.get(data[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("no header")
    tag, room = struct.Struct(f"{order}II"), MAX_UNPACKED
    blocks = [memoryview(data)[HEADER:]]
    while blocks:
        block = blocks.pop()
        while block:
            kind, size = tag.unpack_from(block)
            start = 8
            if kind >> 16:  # up to 4 bytes of content stand in the place of the size
                kind, size, start = kind & 0xFFFF, kind >> 16, 4
            content = block[start : start + size]
            if kind not in TYPES or len(content) < size:
                raise ValueError(f"an element of type {kind} and {size} bytes")
            if kind == COMPRESSED:
                blocks.append(memoryview(_unpacked(content, room)))
                room -= len(blocks[-1])
            elif kind == MATRIX and content:
                _check_count(content, order)
                blocks.append(content)
            padding = 0 if kind == COMPRESSED else -(start + size) % 8
            block = block[start + size + padding :]


def _unpacked(content: memoryview, room: int) -> bytes:
    """Return what a compressed element unpacks to, at most `room` bytes."""
    stream = zlib.decompressobj()
    unpacked = stream.decompress(content, room + 1)
    if len(unpacked) > room:
        raise ValueError(f"it unpacks to over {MAX_UNPACKED} bytes")
    if not stream.eof:
        raise ValueError("a compressed element is cut")
    return unpacked


def _check_count(matrix: memoryview, order: str) -> None:
    """Check that a matrix has no more items than bytes."""
    kind, _, flags, _, _, size = struct.unpack_from(f"{order}6I", matrix)
    sizes = struct.unpack_from(f"{order}{size // 4}i", matrix, 24)
    is_full = kind == FLAGS and flags & 0xFF not in (SPARSE, OPAQUE)
    if is_full and math.prod(sizes) > len(matrix):
        raise ValueError(f"a matrix of {' x '.join(map(str, sizes))} in {len(matrix)} bytes")


def whole_numbers(values: object) -> np.ndarray | None:
    """Return a numeric matrix as (N,) int64, in memory order; None if it is not whole numbers."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        return None
    is_whole = np.isfinite(values) & (np.abs(values) < 2**31) & (values == np.round(values))
    return values.ravel().astype(np.int64) if is_whole.all() else None


def read_numbers(path: Path, name: str, values: object, remedy: str) -> np.ndarray:
    """Return the whole numbers of a variable as (N,) int64.

    Raises:
        InputError: it is missing or holds something else.
    """
    numbers = whole_numbers(values)
    if numbers is None:
        raise InputError(f"{path} has no {name!r} made of whole numbers; {remedy}")
    return numbers


def read_texts(path: Path, name: str, cells: object, remedy: str) -> list[str]:
    """Return the texts of a variable or field, a MATLAB cell array.

    Raises:
        InputError: it is missing or holds something else, or a text is empty.
    """
    if not isinstance(cells, np.ndarray) or cells.dtype != object:
        raise InputError(f"{path} has no {name!r} made of texts; {remedy}")
    texts = [_text(cell) for cell in cells.ravel()]
    if None in texts:
        number = texts.index(None) + 1
        raise InputError(f"{path}: {name} {number} is empty or not a text; {remedy}")
    return texts


def _text(value: object) -> str | None:
    """Return the string in what scipy makes of a char array; None if it is another or empty."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.size == 1:
        value = value.item()
    return value if isinstance(value, str) and value else None
