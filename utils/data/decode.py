"""Decode image files to uint8 tensors: whole JPEGs by torchvision, everything else by Pillow.

Pixels are laid out channels last in memory, as decoders write them: torch's uint8 resize is twice
as fast on that layout. Shapes: H height, W width, pixels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from utils.data.image_files import (
    check_resized_size,
    decode_stored,
    scale_of,
)
from utils.data.images.headers import read_header
from utils.data.images.openers import IMAGE_ERRORS, read_image_file, undecodable
from utils.data.images.pixels import Profile, read_profile, to_srgb
from utils.data.presets import Size, SizeOf
from utils.data.transforms import resize

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


class _Stored(NamedTuple):
    """A decoded image as it is stored: not turned, not in sRGB, perhaps smaller than original."""

    image: Tensor  # (3, H, W) uint8, channels last in memory
    orientation: int  # EXIF, 1 to 8
    profile: Profile
    original: Size  # as stored, of the whole image

    def turned(self, size: Size) -> Size:
        """Return a size as stored as that of the upright image, or the other way round."""
        return size if self.orientation < 5 else Size(size.width, size.height)


def _channels_last(image: Tensor) -> Tensor:
    """Lay out (3, H, W) in memory in the order H, W, 3."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _decode_quickly(data: bytes) -> Tensor | None:
    # A bytearray, since torch warns of memory that is read-only.
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        return decode_jpeg(encoded, ImageReadMode.RGB)
    except RuntimeError:  # cut or damaged: Pillow says how, or can decode it
        return None


def _decode_stored(path: str, size_of: SizeOf | None) -> _Stored:
    try:
        data = read_image_file(path)
        header, scale = read_header(data), 1
        if header is not None:
            original = Size(header.height, header.width)
            upright = original if header.orientation < 5 else Size(header.width, header.height)
            scale = scale_of(path, header, None if size_of is None else min(size_of(upright)))
            image = _decode_quickly(data) if header.is_plain and scale == 1 else None
            if image is not None:
                profile = read_profile(header.profile, "L" if header.components == 1 else "RGB")
                return _Stored(image, header.orientation, profile, original)
        stored = decode_stored(path, data, header, scale)
    except IMAGE_ERRORS as error:
        raise undecodable(path, error) from error
    image = torch.from_numpy(np.array(stored.image)).permute(2, 0, 1)
    width, height = stored.size
    return _Stored(image, stored.orientation, stored.profile, Size(height, width))


def _finished(stored: _Stored, image: Tensor) -> Tensor:
    """Convert an image to sRGB and turn it upright."""
    if stored.profile.to_srgb is not None:
        pixels = to_srgb(image.permute(1, 2, 0).numpy(), stored.profile)
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    turn = _TURN.get(stored.orientation)
    return image if turn is None else _channels_last(turn(image))


def decode(path: str) -> Tensor:
    """Decode an image to (3, H, W) uint8 sRGB, channels last in memory, and turn it upright.

    torchvision decodes JPEG (grey or YCbCr, 8 bits), Pillow everything else: CMYK, PNG, GIF, WebP,
    and what torchvision cannot decode. PNG is not left to torchvision: its decoder crashes the
    process on damaged files (segmentation fault in 3 of 3 runs over damaged PNG). What is
    transparent is white. A JPEG over the limit of pixels is decoded at a half or less of its sides.

    Raises:
        RunError: the file is missing, cut, damaged, too large or not an image; the message names
            it.
    """
    stored = _decode_stored(path, None)
    return _finished(stored, stored.image)


def decode_resized(path: str, size_of: SizeOf) -> tuple[Tensor, Size]:
    """Decode and resize an image as `decode` and `resize` would, in less time.

    A large JPEG is reduced while it is decoded (libjpeg's DCT scaling). An image is resized first,
    then converted to sRGB and turned: a photograph of a phone has 12 megapixels.

    Args:
        path: image file.
        size_of: size of the original image to that of the resized image.

    Returns:
        (3, H, W) uint8 sRGB, channels last in memory, and the size of the original image, upright.

    Raises:
        RunError: as `decode`, or the image is too large after the resize.
    """
    stored = _decode_stored(path, size_of)
    original = stored.turned(stored.original)
    size = size_of(original)
    check_resized_size(path, original, size)
    return _finished(stored, resize(stored.image, stored.turned(size))), original
