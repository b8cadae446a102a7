"""Open image files with Pillow: orientation, size limit, decoding.

No torch here. `utils/data/decode.py` is faster; what it cannot decode comes here.
"""

import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from utils.errors import RunError

# Larger images are refused: a few kilobytes can unpack to gigabytes (a decompression bomb). This is
# where Pillow begins to warn: a quarter of a gigabyte in RGB. Its own limits are off, since ours is
# checked whenever an image is opened, and names the image.
MAX_PIXELS = 89_478_485
Image.MAX_IMAGE_PIXELS = None

# Pillow's warnings (of tags that are cut, of odd palettes) are no concern of the user's. For the
# whole process: `catch_warnings` would have threads decode one after another.
warnings.filterwarnings("ignore", module="PIL")

# What Pillow raises for files that are cut, damaged or not images; RuntimeError for AVIF and DDS.
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
    """Return the orientation that EXIF asks for, 1 to 8; 1, upright, if it is absent or damaged."""
    try:
        orientation = read_exif().get(ExifTags.Base.Orientation)
    except EXIF_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) and orientation in UPRIGHT else 1


class TooLarge(RunError):
    """An image of more than `MAX_PIXELS`."""


def check_image_size(path: str | Path, width: int, height: int) -> None:
    """Raise an error for an image of more than `MAX_PIXELS`.

    Raises:
        TooLarge: names the image, its size and the limit.
    """
    if width * height > MAX_PIXELS:
        raise TooLarge(
            f"image {path} is {width}x{height} pixels, over the limit of {MAX_PIXELS}: scale it "
            "down or leave it out"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; 16 bits are scaled to 8, where Pillow would clip them to white."""
    if image.mode.startswith("I"):  # 16-bit grey, as "I;16" or widened to "I"
        values = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        image = Image.fromarray(values.astype(np.uint8))
    return image.convert("RGB")


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Image.Image, int]]:
    """Yield the image at `path`, not decoded yet, and its EXIF orientation."""
    try:
        with Image.open(path) as image:
            check_image_size(path, *image.size)
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
    """Decode the image at `path` to RGB, turned upright as its EXIF orientation says.

    Of a file with several frames (GIF, WebP) the first is taken.

    Raises:
        RunError: the file is missing, cut, damaged, too large or not an image; names it.
    """
    with _opened(path) as (image, orientation):
        rgb = _to_rgb(image)
        return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


class Description(NamedTuple):
    """What the header of an image file says."""

    kind: str  # format and mode as Pillow names them: `JPEG RGB`
    width: int  # pixels, after it is turned upright
    height: int
    orientation: int  # EXIF, 1 to 8


def describe(path: str | Path) -> Description:
    """Describe the image at `path` from its header; a PNG without EXIF there is read as a whole.

    Raises:
        RunError: the file is missing, not an image, or too large.
    """
    with _opened(path) as (image, orientation):
        width, height = image.size
        if orientation >= 5:
            width, height = height, width
        return Description(f"{image.format} {image.mode}", width, height, orientation)
