"""Open image files with Pillow: formats, size limit, range of values, decoding.

No torch here. `utils/data/decode.py` is faster; what it cannot decode comes here.
"""

import io
import logging
import os
import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from utils.data.images.headers import (
    JPEG_MAGIC,
    JpegHeader,
    jpeg_without_notes,
    read_header,
)
from utils.data.images.openers import (
    IMAGE_ERRORS,
    BadImage,
    Opened,
    open_file,
    open_image,
    read_image_file,
    undecodable,
)
from utils.data.images.pixels import NO_PROFILE, Profile, read_profile, to_rgb, to_srgb
from utils.data.presets import Size
from utils.data.structure.jpeg import completed_jpeg

# Larger images are refused: a few kilobytes can unpack to gigabytes (a decompression bomb). This is
# where Pillow begins to warn: a quarter of a gigabyte in RGB. Its own limits are off. A larger JPEG
# is decoded at a half, a quarter or an eighth of its sides; one whose coefficients are all kept in
# memory (2 bytes each, up to 6 a pixel: 1.1 GB), if it has at most twice as many pixels.
MAX_PIXELS = 89_478_485
MAX_COEFFICIENT_PIXELS = 2 * MAX_PIXELS
Image.MAX_IMAGE_PIXELS = None

# Pillow's warnings (of tags that are cut, of odd palettes) are no concern of the user's. For the
# whole process: `catch_warnings` would have threads decode one after another.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# What turns an image upright, by EXIF orientation. Not ImageOps.exif_transpose: it writes the EXIF
# anew and fails on tags of odd types.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A JPEG is reduced by so much if that leaves its shorter side at least so many times that of the
# resized one, and divides both sides: libjpeg rounds up, and what it adds would shift the picture.
# Photographs of 12 megapixels with noise of sigma 5 then differ from whole ones by 0.45 of 255.
MARGINS = {2: 2.0, 4: 1.45, 8: 2.5}
JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # by components
HIERARCHICAL = (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF)  # frames that no decoder at hand decodes
HEAD = 1 << 16  # bytes in which the header of most JPEGs ends


class TooLarge(BadImage):
    """An image of more pixels than can be decoded."""


def check_image_size(path: str | Path, width: int, height: int, limit: int | None = None) -> None:
    """Raise `TooLarge` for an image of more than `limit` pixels, by default `MAX_PIXELS`."""
    limit = MAX_PIXELS if limit is None else limit
    if width * height > limit:
        raise TooLarge(
            f"image {path} is {width}x{height} pixels, over the limit of {limit}: scale it "
            "down or leave it out"
        )


def check_resized_size(path: str | Path, size: Size, resized: Size) -> None:
    """Raise `TooLarge` for an image that is too large once it is resized: a line one pixel high."""
    if resized.width * resized.height > MAX_PIXELS:
        raise TooLarge(
            f"image {path} is {size.width}x{size.height} pixels: resized for this run it would be "
            f"{resized.width}x{resized.height}, over the limit of {MAX_PIXELS}; crop it or leave "
            "it out"
        )


def scale_of(path: str | Path, header: JpegHeader, wanted: int | None) -> int:
    """Return by how much a JPEG is reduced while it is decoded: 1, 2, 4 or 8.

    As much as leaves the shorter side enough for `wanted` pixels, or as much as the limit needs.

    Raises:
        TooLarge: it has more pixels than can be decoded.
    """
    width, height = header.width, header.height
    if wanted is not None and min(width, height) < 2 * MARGINS[2] * wanted:
        wanted = None  # as most
    if wanted is None and width * height <= MAX_PIXELS:
        return 1
    if not header.is_scalable:
        check_image_size(path, width, height)
        return 1
    if header.keeps_coefficients:
        check_image_size(path, width, height, MAX_COEFFICIENT_PIXELS)
    fits = [s for s in (1, 2, 4, 8) if -(-width // s) * -(-height // s) <= MAX_PIXELS]
    if wanted is None:
        return fits[0]
    shorter = min(width, height)
    enough = [s for s in fits if shorter >= s * MARGINS.get(s, 0) * wanted]
    return max([fits[0], *(s for s in enough if width % s == height % s == 0)])


# --- Decoding and describing ----------------------------------------------------------------------


class Stored(NamedTuple):
    """A decoded image as it is stored."""

    image: Image.Image  # RGB, not turned
    orientation: int  # EXIF, 1 to 8
    profile: Profile  # still to be applied
    size: tuple[int, int]  # width and height in the header; a JPEG may be decoded smaller


def _profile_mode(mode: str) -> str:
    """Return for which mode the profile of an image of `mode` must be."""
    if mode in ("CMYK", "LAB"):
        return mode
    return "L" if mode in ("1", "L", "LA", "La") or mode.startswith("I") else "RGB"


def decode_stored(
    path: str | Path, data: bytes, header: JpegHeader | None, scale: int = 1
) -> Stored:
    """Decode the content of an image file to RGB; of several frames (GIF, WebP) the first.

    Args:
        path: its name, for errors.
        data: its content.
        header: header of a JPEG.
        scale: by how much the JPEG is reduced.

    Raises:
        TooLarge: it has more pixels than can be decoded.
        IMAGE_ERRORS: it is damaged.
    """
    if header is None:
        opened = open_image(io.BytesIO(data), with_pixels=True)
        image = opened.image
        check_image_size(path, *image.size)
        size = image.size
    else:
        image = Image.open(io.BytesIO(jpeg_without_notes(data)), formats=("JPEG",))
        if scale > 1:
            image.draft(None, (header.width // scale, header.height // scale))
        opened = Opened(image, header.orientation, header.profile)
        size = header.width, header.height
    try:
        image.load()
    except OSError:
        if header is None or (completed := completed_jpeg(data)) is None:
            raise
        return decode_stored(path, completed, header, scale)
    profile = read_profile(opened.profile, _profile_mode(image.mode))
    rgb = to_rgb(image, profile, opened.range_bits, opened.is_white_zero)
    if image.mode in ("CMYK", "LAB"):
        profile = NO_PROFILE  # applied
    return Stored(rgb, opened.orientation, profile, size)


def decode_rgb(path: str | Path, wanted: int | None = None) -> Image.Image:
    """Decode the image at `path` to RGB, turned upright as its EXIF orientation says.

    Args:
        path: image file.
        wanted: pixels that the shorter side is to be resized to; None: it is not resized.

    Raises:
        RunError: the file is missing, cut, damaged, too large or not an image; names it.
    """
    try:
        data = read_image_file(path)
        header = read_header(data)
        scale = 1 if header is None else scale_of(path, header, wanted)
        stored = decode_stored(path, data, header, scale)
        rgb = Image.fromarray(to_srgb(np.asarray(stored.image), stored.profile))
        return rgb.transpose(UPRIGHT[stored.orientation]) if stored.orientation > 1 else rgb
    except IMAGE_ERRORS as error:
        raise undecodable(path, error) from error


class Description(NamedTuple):
    """What the header of an image file says."""

    kind: str  # format and mode as Pillow names them: `JPEG RGB`
    width: int  # pixels, after it is turned upright
    height: int
    orientation: int  # EXIF, 1 to 8
    bits: int = 8  # of a sample, if nothing says up to where the values go: 16
    needs_decoding: bool = False  # its values decide whether it can be used: floats
    has_damaged_profile: bool = False  # which counts as sRGB


def describe(path: str | Path) -> Description:
    """Describe the image at `path` from its header.

    Raises:
        RunError: the file is missing, not an image, too large, or of a kind that is not decoded.
    """
    try:
        with os.fdopen(open_file(path), "rb") as file:
            return _described(path, file)
    except IMAGE_ERRORS as error:
        raise undecodable(path, error) from error


def _described(path: str | Path, file: BinaryIO) -> Description:
    head = file.read(HEAD)
    header = read_header(head)
    if header is None and head.startswith(JPEG_MAGIC):
        header = read_header(head + file.read())
    if header is not None:
        return _describe_jpeg(path, header)
    file.seek(0)
    opened = open_image(file, with_pixels=False)
    image = opened.image
    check_image_size(path, *image.size)
    return Description(
        f"{image.format} {image.mode}",
        *_upright(image.size, opened.orientation),
        opened.orientation,
        opened.range_bits,
        image.mode == "F",
        read_profile(opened.profile, _profile_mode(image.mode)).is_damaged,
    )


def _describe_jpeg(path: str | Path, header: JpegHeader) -> Description:
    scale_of(path, header, None)
    if header.bits != 8 or header.components not in JPEG_MODES or header.frame in HIERARCHICAL:
        raise ValueError(
            f"a JPEG of {header.bits} bits and {header.components} components with frame header "
            f"SOF{header.frame - 0xC0} is not read"
        )
    mode = JPEG_MODES[header.components]
    size = _upright((header.width, header.height), header.orientation)
    is_damaged = read_profile(header.profile, mode).is_damaged
    return Description(f"JPEG {mode}", *size, header.orientation, has_damaged_profile=is_damaged)


def _upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size if orientation < 5 else size[::-1]
