"""Turn decoded pixels of any kind into 8 bits of sRGB. No torch.

- Range: what the header of the file says, else that of the type (`utils.data.image_files`).
- Transparency: composed on white.
- Color: ICC profiles are converted to sRGB; a damaged profile counts as sRGB.
"""

import functools
import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from utils.data.images.headers import MAX_UNPACKED

# Colors as device values that tell whether a profile is sRGB: all of 0, 51, ..., 255.
_GRID = np.stack(np.meshgrid(*[np.arange(0, 256, 51, dtype=np.uint8)] * 3), -1).reshape(1, -1, 3)
SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}  # ICC's names of modes


class Profile(NamedTuple):
    """What an ICC profile does to the pixels of a mode."""

    to_srgb: ImageCms.ImageCmsTransform | None = None  # None: they are sRGB, or count as that
    mode: str = "RGB"  # mode of the pixels that it converts
    is_damaged: bool = False


NO_PROFILE = Profile()


@functools.lru_cache(maxsize=16)
def read_profile(profile: bytes, mode: str) -> Profile:
    """Read an ICC profile for pixels of `mode`: RGB, L, CMYK or LAB.

    Relative colorimetric with black point compensation. Grey images may have a profile of RGB.
    """
    if not profile:
        return NO_PROFILE
    try:
        if len(profile) > MAX_UNPACKED:
            raise ValueError("too large")
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "L" and opened.profile.xcolor_space == SPACES["RGB"]:
            mode = "RGB"
        if opened.profile.xcolor_space != SPACES[mode]:
            raise ValueError("of another color space")
        transform = ImageCms.buildTransform(
            opened,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return Profile(is_damaged=True)
    if mode in ("RGB", "L"):
        grid = _GRID if mode == "RGB" else np.repeat(np.unique(_GRID)[None, :, None], 3, 2)
        converted = Profile(transform, mode)
        if np.abs(to_srgb(grid, converted).astype(int) - grid).max() <= 1:
            return NO_PROFILE  # one of the many spellings of sRGB
    return Profile(transform, mode)


def to_srgb(pixels: np.ndarray, profile: Profile) -> np.ndarray:
    """Convert (H, W, 3) uint8; of a profile for grey, the three channels are equal."""
    if profile.to_srgb is None:
        return pixels
    device = np.ascontiguousarray(pixels[..., 0] if profile.mode == "L" else pixels)
    return np.asarray(ImageCms.applyTransform(Image.fromarray(device), profile.to_srgb))


def _scaled(image: Image.Image, bits: int, is_inverted: bool) -> Image.Image:
    """Scale grey of more than 8 bits, or floats in [0, 1], to 8 bits.

    Raises:
        ValueError: a float is not in [0, 1].
    """
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # not for NaN either
            raise ValueError(
                f"its values, SampleFormat 3 (float) of {bits} bits, go from {values.min():g} to "
                f"{values.max():g}, not from 0 to 1; save it with 8 or 16 bits"
            )
        grey = np.rint(values * 255)
    else:
        grey = np.clip(values.astype(np.int64) >> (bits - 8), 0, 255)
    grey = grey.astype(np.uint8)
    return Image.fromarray(255 - grey if is_inverted else grey)


def _on_white(image: Image.Image) -> Image.Image:
    """Compose an image with transparency on white."""
    if image.mode in ("RGBa", "La"):  # multiplied by alpha
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def to_rgb(image: Image.Image, profile: Profile, bits: int, is_inverted: bool) -> Image.Image:
    """Turn a decoded image of any mode into RGB; a profile is applied here if it is not for that.

    Args:
        image: decoded image; `info["transparency"]` is a color, or an alpha for each color.
        profile: its profile; those for RGB and grey are applied when the image is resized.
        bits: of a sample of modes I, I;16 and F: 16 means values up to 65535.
        is_inverted: whether 0 is white in those modes.

    Raises:
        ValueError: a float is not in [0, 1].
    """
    transparent = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        grey = _scaled(image, bits, is_inverted)
        if transparent is None or image.mode == "F":
            return grey.convert("RGB")
        opaque = Image.fromarray(np.where(np.asarray(image) == transparent, 0, 255).astype("u1"))
        image = Image.merge("LA", (grey, opaque))
    elif image.mode == "RGB" and bits == 16 and transparent is not None:
        # Pillow keeps the high bytes of the pixels, and both of the color.
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if image.has_transparency_data or image.mode in ("RGBa", "La"):
        return _on_white(image)
    if image.mode in ("CMYK", "LAB") and profile.to_srgb is not None:
        return ImageCms.applyTransform(image, profile.to_srgb)
    return image.convert("RGB")
