"""Check before a run that its images exist and are whole.

No torch here: a missing or damaged image ends a run before torch is imported.
"""

import os
import struct
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from utils.console import progress_bar
from utils.data.image_files import MAX_PIXELS, TooLarge, decode_rgb, describe
from utils.data.splits import Split
from utils.data.threads import in_threads
from utils.errors import InputError, RunError

# Decoding every image would take minutes: only this many or fewer are decoded.
MAX_DECODED_IN_CHECK = 64
THREADS = 8  # waiting for the disk, mostly
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
JPEG_TAIL = 4096  # bytes at the end in which the closing marker is looked for: some cameras pad
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB`\x82"


def decodes(path: Path) -> bool:
    """Tell whether the whole image at `path` can be decoded."""
    try:
        decode_rgb(path)
    except RunError:
        return False
    return True


def _looks_whole(path: Path) -> bool:
    """Tell whether a file begins and ends as a JPEG or PNG does, or else decodes."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(len(PNG_START) + 8)
            file.seek(0, 2)
            file.seek(max(0, file.tell() - JPEG_TAIL))
            tail = file.read()
    except OSError:  # a file that may not be read is bad input as well
        return False
    if head.startswith(JPEG_START) and JPEG_END in tail:
        return True
    if head.startswith(PNG_START) and tail.endswith(PNG_END):
        width, height = struct.unpack_from(">II", head, len(PNG_START))
        return width * height <= MAX_PIXELS
    return decodes(path)


def _failing(split: Split, is_good: Callable[[Path], bool], what: str) -> list[Path]:
    """Return the images of `split` that are not good, in split order."""
    is_bad = np.zeros(len(split), dtype=bool)

    def check(position: int) -> None:
        is_bad[position] = not is_good(Path(split.path_of(position)))

    with progress_bar(len(split), f"{what} {split.name}", "img") as bar:
        in_threads(check, len(split), bar, THREADS)
    return [Path(split.path_of(position)) for position in np.flatnonzero(is_bad)]


def check_images(
    splits: Collection[Split], used: Collection[Split], may_be_damaged: int = 0
) -> None:
    """Raise an error if images are missing, empty or damaged.

    Every image of `splits` must exist, begin and end as a JPEG or PNG does, or else decode; the
    images of `used`, if they are at most `MAX_DECODED_IN_CHECK` in all, are decoded.

    Args:
        splits: whole splits.
        used: parts of them that a run uses.
        may_be_damaged: number of damaged images of the split named first that are let through.

    Raises:
        InputError: says how many of how many are bad, where, and names the first.
    """
    for number, split in enumerate(splits):
        missing = _failing(split, os.path.exists, "find")  # Path's raises for names too long
        if missing:
            raise InputError(
                f"{len(missing)} of {len(split)} images of split {split.name} are missing in "
                f"{missing[0].parent} (first: {missing[0].name}); fetch the whole archive, or "
                "choose another split"
            )
        damaged = _failing(split, _looks_whole, "check")
        _check_damaged(damaged, split, may_be_damaged if number == 0 else 0)
    if sum(map(len, used)) <= MAX_DECODED_IN_CHECK:
        for number, split in enumerate(used):
            damaged = _failing(split, decodes, "decode")
            _check_damaged(damaged, split, may_be_damaged if number == 0 else 0)


def _check_damaged(damaged: Sequence[Path], split: Split, allowed: int) -> None:
    if len(damaged) <= allowed:
        return
    counted = f"{len(damaged)} of {len(split)} images of split {split.name}"
    try:
        describe(damaged[0])
    except TooLarge as error:  # fetched again it would be as large
        raise InputError(f"{counted} are damaged or too large; first: {error}") from error
    except RunError:
        pass
    raise InputError(f"{counted} are empty or damaged (first: {damaged[0]}); fetch them again")
