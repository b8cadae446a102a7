"""Image files: which are whole, how they are turned, and decoding with Pillow.

No torch here: a missing or damaged image is refused before torch is imported. `utils/decode.py` is
the quick way to pixels; what it cannot decode comes here.
"""

import os
import struct
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from utils.console import progress
from utils.errors import InputError, RunError
from utils.parallel import in_threads
from utils.splits import Split

# Decoding every image would take minutes; this many are decoded, the rest are looked at.
MAX_DECODED_IN_CHECK = 64
THREADS = 8  # waiting for the disk, mostly
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
JPEG_TAIL = 4096  # bytes at the end in which the closing marker is looked for: some cameras pad
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB`\x82"

# Larger images are refused: a few kilobytes can unpack to gigabytes (a decompression bomb). This is
# where Pillow begins to warn: a quarter of a gigabyte in RGB. Its own limits are off, since ours is
# looked at whenever an image is opened, and names the image.
MAX_PIXELS = 89_478_485
Image.MAX_IMAGE_PIXELS = None

# Pillow's warnings (of tags that are cut, of odd palettes) are no concern of the user's. For the
# whole process: `catch_warnings` would have threads decode one after another.
warnings.filterwarnings("ignore", module="PIL")

# What Pillow raises for files that are cut, damaged or no images; RuntimeError: of AVIF and DDS.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, RuntimeError)
# What Pillow raises for EXIF that is damaged, in images that are whole.
EXIF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error)
# What turns an image upright, by EXIF orientation (TIFF 6.0, tag 274). Not ImageOps.exif_transpose:
# it writes the EXIF anew and fails on tags of odd types.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def exif_orientation(read_exif: Callable[[], Image.Exif]) -> int:
    """The orientation that EXIF asks for, 1 to 8; 1, upright, where it is absent or damaged."""
    try:
        orientation = read_exif().get(ExifTags.Base.Orientation)
    except EXIF_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) and orientation in UPRIGHT else 1


class TooLarge(RunError):
    """An image of more than `MAX_PIXELS`."""


def refuse_bomb(path: str | Path, width: int, height: int) -> None:
    """Refuse to decode an image of more than `MAX_PIXELS`.

    Raises:
        TooLarge: names the image, its size and the limit.
    """
    if width * height > MAX_PIXELS:
        raise TooLarge(
            f"image {path} is {width}x{height} pixels, over the limit of {MAX_PIXELS}: scale it "
            "down or leave it out"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode; 16 bits are scaled to 8, where Pillow would clip them to white."""
    if image.mode.startswith("I"):  # 16-bit grey, as "I;16" or widened to "I"
        values = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        image = Image.fromarray(values.astype(np.uint8))
    return image.convert("RGB")


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Image.Image, int]]:
    """The image at `path`, not decoded yet, and its EXIF orientation."""
    try:
        with Image.open(path) as image:
            refuse_bomb(path, *image.size)
            if image.format == "PNG" and "exif" not in image.info:
                # EXIF may follow the pixels. `getexif` would load them too, but there an error is
                # taken for one of EXIF; and what failed once does not fail again.
                image.load()
            if image.format != "TIFF":
                yield image, exif_orientation(image.getexif)
                return
            # Pillow turns a TIFF itself when it loads it, and gives the size that it has then. But
            # a file with a name it may map into memory, with sides of that size: garbled pixels.
            image.filename = ""
            yield image, 1
    except IMAGE_ERRORS as error:
        raise RunError(f"image {path} cannot be decoded ({str(error) or 'damaged'})") from error


def decode_rgb(path: str | Path) -> Image.Image:
    """The image at `path` as RGB, turned upright as its EXIF orientation says.

    Of a file with several frames (GIF, WebP) the first.

    Raises:
        RunError: the file is missing, cut, damaged, too large or no image; the message names it.
    """
    with _opened(path) as (image, orientation):
        rgb = _to_rgb(image)
        return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


class Description(NamedTuple):
    """What the header of an image file says."""

    kind: str  # format and mode as Pillow names them: `JPEG RGB`
    width: int  # pixels, once it is turned upright
    height: int
    orientation: int  # EXIF, 1 to 8


def describe(path: str | Path) -> Description:
    """What the image at `path` is; reads the header only, of a PNG without EXIF there everything.

    Raises:
        RunError: the file is missing, no image, or too large.
    """
    with _opened(path) as (image, orientation):
        width, height = image.size
        if orientation >= 5:
            width, height = height, width
        return Description(f"{image.format} {image.mode}", width, height, orientation)


# --- Checks before a run --------------------------------------------------------------------------


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

    with progress(len(split), f"{what} {split.name}", "img") as bar:
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
        _refuse_damaged(_failing(split, _looks_whole, "check"), split, allowed)
    if sum(map(len, used)) <= MAX_DECODED_IN_CHECK:
        for split, allowed in zip(used, _allowances(used, may_be_damaged), strict=True):
            _refuse_damaged(_failing(split, decodes, "decode"), split, allowed)


def _allowances(splits: Collection[Split], of_first: int) -> list[int]:
    return [of_first if number == 0 else 0 for number in range(len(splits))]


def _refuse_damaged(damaged: Sequence[Path], split: Split, allowed: int) -> None:
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
