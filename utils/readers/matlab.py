"""MATLAB 5 files: load one, and take texts and whole numbers out of what scipy makes of it.

No torch here.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.errors import InputError


def load_mat(path: Path, remedy: str) -> Mapping[str, np.ndarray]:
    """The variables of a MATLAB 5 file.

    Args:
        path: the file.
        remedy: what to do about a bad one, the end of the error message.

    Raises:
        InputError: the file is missing, a folder, damaged or of another format.
    """
    from scipy.io import loadmat  # 0.3 s to import: only once a file is there to be read
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        state = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {state}; {remedy}")
    try:
        return loadmat(path)
    # What scipy raises for files that are empty, cut, damaged, not .mat or HDF5-based.
    except (
        MatReadError, OSError, ValueError, TypeError, KeyError, IndexError, EOFError,
        NotImplementedError, zlib.error, OverflowError, MemoryError, UnboundLocalError,
    ) as error:  # fmt: skip
        raise InputError(
            f"{path} is not a readable MATLAB 5 file ({type(error).__name__}); {remedy}"
        ) from error


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
