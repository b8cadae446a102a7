"""Open images with Pillow, not decoded yet: only the formats that are meant, each in its way.

No torch. JPEGs are opened by `utils.data.image_files`, if their header is whole.
"""

import functools
import io
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image, ImagePalette, TiffImagePlugin

from utils.data.formats import FORMATS, HEIF_BRANDS, what_it_is
from utils.data.images.headers import PNG_MAGIC, exif_orientation, read_png
from utils.errors import RunError, is_out_of_memory, remedy_of_shortage

# What Pillow raises for files that are cut, damaged or not images; RuntimeError for AVIF.
IMAGE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError),
    *(LookupError, TypeError, ArithmeticError, struct.error, zlib.error),
)

# --- Files ----------------------------------------------------------------------------------------


def open_file(path: str | Path) -> int:
    """Open a file to read, and return its descriptor.

    Raises:
        ValueError: it is a pipe, a socket or a device; those are never waited for.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise ValueError("it is not a regular file")


def read_image_file(path: str | Path) -> bytes:
    """Return the content of a file; raise errors as `open_file`."""
    descriptor, parts = open_file(path), []  # a file object would cost 10 us
    try:
        while part := os.read(descriptor, max(os.fstat(descriptor).st_size, 1)):
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(descriptor)


class BadImage(RunError):
    """An image that cannot be decoded."""


def undecodable(path: str | Path, error: Exception) -> BadImage:
    """Return what to raise for an error of `IMAGE_ERRORS`: it names the image, in one line.

    Raises:
        OSError: not the image is at fault, but memory or open files have run out.
    """
    if isinstance(error, OSError) and (is_out_of_memory(error) or remedy_of_shortage(error)):
        raise error
    why = (error.strerror if isinstance(error, OSError) else None) or str(error) or "damaged"
    return BadImage(f"image {path} cannot be decoded ({' '.join(why.split())})")


# --- TIFF -----------------------------------------------------------------------------------------

TIFF_MAGICS = tuple(TiffImagePlugin.PREFIXES)


class Tiff(TiffImagePlugin.TiffImageFile):
    """A TIFF that Pillow does not turn, and whose notes cannot hurt."""

    def _setup(self) -> None:
        for tag in (ExifTags.Base.XResolution, ExifTags.Base.YResolution):
            self.tag_v2.pop(tag, None)
        super()._setup()
        self._size = self._tile_size
        colors = self.tag_v2.get(ExifTags.Base.ColorMap, ())
        if self.mode in ("P", "PA") and max(colors, default=0) < 256:
            # Of 8 bits, not 16 as TIFF has it; Pillow would take their high bytes, all 0.
            self.palette = ImagePalette.raw("RGB;L", bytes(colors))

    def load_end(self) -> None:
        """Leave it as it is: Pillow would turn it, reading notes that may be damaged."""

    @property
    def orientation(self) -> int:
        """Return the orientation that its tag asks for, 1 to 8."""
        return exif_orientation(lambda: self.tag_v2)

    @property
    def bits(self) -> int:
        """Return the bits of its samples."""
        return self.tag_v2.get(ExifTags.Base.BitsPerSample, (1,))[0]

    @property
    def range_bits(self) -> int:
        """Return n if its values go up to 2^n - 1, as MaxSampleValue or else the bits say."""
        tag = self.tag_v2.get(ExifTags.Base.MaxSampleValue, ())
        largest = next((each for each in tag if isinstance(each, int)), 0)  # not if it is no number
        declared = largest.bit_length()
        is_declared = largest == 2**declared - 1 and 8 < declared < 16 and self.bits > 8
        return declared if is_declared and self.mode.startswith("I") else self.bits

    @property
    def is_white_zero(self) -> bool:
        """Return whether 0 is white in samples that Pillow does not invert: more than 8 bits."""
        photometric = self.tag_v2.get(ExifTags.Base.PhotometricInterpretation, 0)
        return photometric == 0 and self.bits > 8


def open_tiff(file: BinaryIO) -> Tiff:
    """Open a TIFF.

    Raises:
        ValueError: its samples are of a kind that cannot be decoded rightly.
    """
    try:
        image = Tiff(file)
    except SyntaxError as error:
        raise ValueError(f"TIFF {_samples(file)}, which is not read; {error}") from error
    except struct.error as error:
        raise ValueError(what_it_is(TIFF_MAGICS[0])) from error
    is_packed = image.tag_v2.get(ExifTags.Base.Compression, 1) != 1
    is_planar = image.tag_v2.get(ExifTags.Base.PlanarConfiguration, 1) == 2
    is_big_endian = image.tag_v2.prefix == b"MM"
    if image.bits > 8 and (
        (is_planar and not is_packed) or (is_big_endian and is_packed and image.mode in ("I", "F"))
    ):
        # Pillow garbles both.
        raise ValueError(f"TIFF {_samples(file)}: planes, or big-endian and packed; save it anew")
    sample_format = max(image.tag_v2.get(ExifTags.Base.SampleFormat, (1,)))
    is_whole_number = image.mode == "I" or sample_format == 2
    if is_whole_number and image.range_bits == image.bits:
        raise ValueError(
            f"TIFF {_samples(file)}: nothing says up to where its values go; save it with 8 bits, "
            "or with 16 unsigned ones"
        )
    return image


def _samples(file: BinaryIO) -> str:
    """Say of which kind the samples of a TIFF are."""
    file.seek(0)
    head = file.read(16)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if head[2] == 43 else 8])
    file.seek(tags.next)
    tags.load(file)
    kinds = {1: "unsigned", 2: "signed", 3: "float"}
    (sample_format, *_) = tags.get(ExifTags.Base.SampleFormat, (1,))
    bits = ", ".join(map(str, tags.get(ExifTags.Base.BitsPerSample, (1,))))
    return f"with SampleFormat {sample_format} ({kinds.get(sample_format, 'other')}), {bits} bits"


# --- All formats ----------------------------------------------------------------------------------


@functools.cache
def _register_heif() -> None:
    import pi_heif

    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


class Opened(NamedTuple):
    """An image, opened but not decoded."""

    image: Image.Image  # as stored, not turned
    orientation: int  # EXIF, 1 to 8
    profile: bytes = b""  # ICC
    range_bits: int = 8  # n if its values go up to 2^n - 1
    is_white_zero: bool = False


def open_image(file: BinaryIO, with_pixels: bool) -> Opened:
    """Open any image but a JPEG whose header is whole."""
    head = file.read(64)
    file.seek(0)
    if head.startswith(PNG_MAGIC):
        parts = read_png(file, with_pixels)
        image = Image.open(io.BytesIO(parts.content), formats=("PNG",))
        bits = parts.content[24]  # of its header
        if bits <= 8 and isinstance(image.info.get("transparency"), int) and image.mode in "1L":
            # Pillow scales the pixels to 8 bits, not the color that is transparent.
            most = 2**bits - 1
            image.info["transparency"] = (image.info["transparency"] & most) * (255 // most)
        return Opened(image, parts.orientation, parts.profile, max(bits, 8))
    if head.startswith(TIFF_MAGICS):
        image = open_tiff(file)
        about = image.range_bits, image.is_white_zero
        return Opened(image, image.orientation, _profile_of(image), *about)
    formats = FORMATS
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        _register_heif()
        formats = (*formats, "HEIF")
    try:
        image = Image.open(file, formats=formats)
    except Image.UnidentifiedImageError as error:
        raise ValueError(what_it_is(head)) from error
    except (ValueError, RuntimeError):
        # An AVIF whose EXIF is damaged: the item that holds it gets a type that no decoder knows.
        file.seek(0)
        items, mark, pixels = file.read().partition(b"mdat")
        if b"Exif" not in items:
            raise
        content = items.replace(b"Exif", b"none") + mark + pixels
        image = Image.open(io.BytesIO(content), formats=formats)
    bits = 16 if image.mode.startswith("I") else 32 if image.mode == "F" else 8  # PPM's
    # libheif turns images itself.
    orientation = 1 if image.format == "HEIF" else exif_orientation(image.getexif)
    return Opened(image, orientation, _profile_of(image), bits)


def _profile_of(image: Image.Image) -> bytes:
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) else b""
