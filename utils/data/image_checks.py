"""Check before a run that its images exist and are whole.

No torch here: a missing or damaged image is refused before torch is imported.
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

# Decoding every image would take minutes; this many are decoded, the rest are looked at.
MAX_DECODED_IN_CHECK = 64
THREADS = 8  # waiting for the disk, mostly
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
JPEG_TAIL = 4096  # bytes at the end in which the closing marker is looked for: some cameras pad
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB`\x82"


def decodes(path: str | Path) -> bool:
    """Whether the whole image at `path` can be decoded."""
    try:
        decode_rgb(path)
    except RunError:
        return False
    return True


def _looks_whole(path: Path) -> bool:
    """Whether a file is a JPEG or PNG that begins and ends as one, or anything that decodes."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(len(PNG_START) + 8)
            file.seek(0, 2)
            file.seek(max(0, file.tell() - JPEG_TAIL))
            tail = file.read()
    except OSError:  # not to be read: bad input as well
        return False
    if head.startswith(JPEG_START) and JPEG_END in tail:
        return True
    if head.startswith(PNG_START) and tail.endswith(PNG_END):
        width, height = struct.unpack_from(">II", head, len(PNG_START))
        return width * height <= MAX_PIXELS
    return decodes(path)


def _failing(split: Split, is_good: Callable[[Path], bool], what: str) -> list[Path]:
    """The images of `split` that are not good, in split order."""
    is_bad = np.zeros(len(split), dtype=bool)

    def check(position: int) -> None:
        is_bad[position] = not is_good(Path(split.path_of(position)))

    with progress_bar(len(split), f"{what} {split.name}", "img") as bar:
        in_threads(check, len(split), bar, THREADS)
    return [Path(split.path_of(position)) for position in np.flatnonzero(is_bad)]


def check_images(
    splits: Collection[Split], used: Collection[Split], may_be_damaged: int = 0
) -> None:
    """Refuse data with images that are missing, empty or damaged.

    Every image of `splits` must exist, begin and end as a JPEG or PNG does, or else decode; the
    images of `used`, if they are at most `MAX_DECODED_IN_CHECK` in all, are decoded.

    Args:
        splits: whole splits.
        used: the parts of them that a run uses.
        may_be_damaged: how many damaged images of the split named first are let through.

    Raises:
        InputError: says how many of how many are bad, where, and names the first.
    """
    for split, allowed in zip(splits, _allowances(splits, may_be_damaged), strict=True):
        missing = _failing(split, os.path.exists, "find")  # Path's raises for names too long
        if missing:
            raise InputError(
                f"{len(missing)} of {len(split)} images of split {split.name} are missing in "
                f"{missing[0].parent} (first: {missing[0].name}); fetch the whole archive, or "
                "choose another split"
            )
        _check_damaged(_failing(split, _looks_whole, "check"), split, allowed)
    if sum(map(len, used)) <= MAX_DECODED_IN_CHECK:
        for split, allowed in zip(used, _allowances(used, may_be_damaged), strict=True):
            _check_damaged(_failing(split, decodes, "decode"), split, allowed)


def _allowances(splits: Collection[Split], of_first: int) -> list[int]:
    return [of_first if number == 0 else 0 for number in range(len(splits))]


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
