"""Decode image files to uint8 tensors: JPEG by torchvision, everything else by Pillow.

Pixels are laid out channels last in memory, as decoders write them: torch's uint8 resize is twice
as fast on that layout. Shapes: H height, W width, pixels.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from utils.data.image_files import check_image_size, decode_rgb, exif_orientation
from utils.errors import RunError

JPEG_MAGIC = b"\xff\xd8\xff"
EXIF_MAGIC, XMP_MAGIC = b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00"
# JPEG markers (ITU T.81, table B.1): frame headers without DHT, JPG and DAC; application segment 1;
# start of scan; markers without a length.
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
APP1, START_OF_SCAN = 0xE1, 0xDA
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


class Header(NamedTuple):
    """Size and orientation in the header of a JPEG."""

    width: int
    height: int
    orientation: int  # EXIF, 1 to 8


def read_header(data: bytes) -> Header | None:
    """Read the header of a JPEG; None for a file that Pillow decodes.

    Pillow decodes every other format, CMYK, 12 bits, and files without frame header or scan.
    """
    if not data.startswith(JPEG_MAGIC):
        return None
    size, notes, at = None, {}, 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in WITHOUT_LENGTH:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at + 4 : at + 2 + length]
        if marker in START_OF_FRAME:
            if len(segment) < 6:
                return None
            bits, height, width, components = struct.unpack_from(">BHHB", segment)
            if bits != 8 or components not in (1, 3) or not width or not height:
                return None
            size = width, height
        if marker == APP1 and segment.startswith(EXIF_MAGIC):
            # EXIF of more than 64 KB has several segments.
            notes["exif"] = notes.get("exif", EXIF_MAGIC) + segment[len(EXIF_MAGIC) :]
        if marker == APP1 and segment.startswith(XMP_MAGIC):
            notes["xmp"] = segment[len(XMP_MAGIC) :]
        if marker == START_OF_SCAN:
            # Not at the frame header: notes may follow it.
            return None if size is None else Header(*size, _orientation(notes))
        at += 2 + length
    return None


def _orientation(notes: dict[str, bytes]) -> int:
    """Return the orientation that EXIF asks for or, if EXIF has none, XMP."""
    if not notes:
        return 1
    # Pillow reads both, without opening the file: read otherwise, an image would be turned one way
    # here and its size in `utils.data.image_files` another.
    image = Image.Image()
    image.info.update(notes)
    return exif_orientation(image.getexif)


# How to turn (3, H, W) upright, by EXIF orientation (TIFF 6.0, tag 274).
_TURN: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda image: image.flip(2),
    3: lambda image: image.flip(1, 2),
    4: lambda image: image.flip(1),
    5: lambda image: image.transpose(1, 2),
    6: lambda image: image.transpose(1, 2).flip(2),
    7: lambda image: image.transpose(1, 2).flip(1, 2),
    8: lambda image: image.transpose(1, 2).flip(1),
}


def _channels_last(image: Tensor) -> Tensor:
    """Lay out (3, H, W) in memory in the order H, W, 3."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _decode_quickly(data: bytes, path: str) -> Tensor | None:
    header = read_header(data)
    if header is None:
        return None
    check_image_size(path, header.width, header.height)
    # A bytearray, since torch warns of memory that is read-only.
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        image = decode_jpeg(encoded, ImageReadMode.RGB)
    except RuntimeError:  # cut or damaged: Pillow says how, or can decode it
        return None
    turn = _TURN.get(header.orientation)
    return image if turn is None else _channels_last(turn(image))


def decode(path: str) -> Tensor:
    """Decode an image to (3, H, W) uint8 RGB, channels last in memory, and turn it upright.

    torchvision decodes JPEG (grey or YCbCr, 8 bits), Pillow everything else: CMYK, PNG, GIF, WebP,
    and what torchvision cannot decode. PNG is not left to torchvision: its decoder crashes the
    process on damaged files (segmentation fault in 3 of 3 runs over damaged PNG). Alpha is dropped.

    Raises:
        RunError: the file is missing, cut, damaged, too large or not an image; the message names
            it.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a Path costs 10 us an image
            data = file.read()
    except OSError as error:
        raise RunError(f"image {path} cannot be decoded ({error.strerror})") from error
    image = _decode_quickly(data, path)
    if image is None:
        image = torch.from_numpy(np.array(decode_rgb(path))).permute(2, 0, 1)
    return image
