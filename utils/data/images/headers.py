"""Read the headers of JPEG and PNG, and leave out what a decoder need not see.

Notes (EXIF, text, comments, previews) may be damaged or huge in images that are whole: Pillow gets
the file without them, and what matters of them is read here. No torch.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from PIL import ExifTags, Image

# What Pillow raises for EXIF that is damaged, in images that are whole.
EXIF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error)
EXIF_MAGIC, XMP_MAGIC = b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00"
ICC_MAGIC = b"ICC_PROFILE\x00"
# Notes and profiles that unpack to more are left out: a kilobyte can unpack to a gigabyte.
MAX_UNPACKED = 4 << 20


def exif_orientation(read_exif: Callable[[], Mapping[int, Any]]) -> int:
    """Return the orientation that EXIF asks for, 1 to 8; 1, upright, if it is absent or damaged."""
    try:
        orientation = read_exif().get(ExifTags.Base.Orientation)
    except EXIF_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) and 2 <= orientation <= 8 else 1


def _orientation(notes: dict[str, bytes]) -> int:
    """Return the orientation that EXIF asks for or, if EXIF has none, XMP."""
    if not notes:
        return 1
    image = Image.Image()  # Pillow reads both, without a file
    image.info.update(notes)
    return exif_orientation(image.getexif)


# --- JPEG -----------------------------------------------------------------------------------------

JPEG_MAGIC = b"\xff\xd8\xff"
# JPEG markers (ITU T.81, table B.1): frame headers without DHT, JPG and DAC; application segments;
# comment; start of scan; markers without a length.
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
APP1, APP2, START_OF_SCAN = 0xE1, 0xE2, 0xDA
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
NOTES = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})  # all but JFIF's and Adobe's: those name colors
HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive; SOF0 to SOF2
PROGRESSIVE = 0xC2


class JpegHeader(NamedTuple):
    """What the header of a JPEG says."""

    width: int  # pixels, as stored
    height: int
    orientation: int  # EXIF, 1 to 8
    components: int  # 1 grey, 3 YCbCr or RGB, 4 CMYK
    bits: int  # of a sample
    frame: int  # marker of its frame header, 0xC0 to 0xCF
    keeps_coefficients: bool  # progressive or of several scans: a decoder keeps all in memory
    profile: bytes  # ICC; empty if there is none

    @property
    def is_plain(self) -> bool:
        """Return whether torchvision decodes it."""
        return self.is_scalable and self.components in (1, 3)

    @property
    def is_scalable(self) -> bool:
        """Return whether libjpeg can reduce it while it decodes."""
        return self.bits == 8 and self.frame in HUFFMAN


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, begin and end of each segment up to the first scan's; stop at what is odd."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in WITHOUT_LENGTH:
            at += 2
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            yield marker, at, at + 2 + length
            if marker == START_OF_SCAN:
                return
            at += 2 + length


def read_header(data: bytes) -> JpegHeader | None:
    """Read the header of a JPEG; None if `data`, perhaps only its beginning, has no whole one."""
    if not data.startswith(JPEG_MAGIC):
        return None
    frame, notes, profile = None, {}, []
    for marker, begin, end in _segments(data):
        if marker in START_OF_FRAME:
            if end - begin < 10 or end > len(data):
                return None
            frame = (marker, *struct.unpack_from(">BHHB", data, begin + 4))
        elif marker == APP1 and data.startswith(EXIF_MAGIC, begin + 4):
            # EXIF of more than 64 KB has several segments.
            exif = data[begin + 4 + len(EXIF_MAGIC) : end]
            notes["exif"] = notes.get("exif", EXIF_MAGIC) + exif
        elif marker == APP1 and data.startswith(XMP_MAGIC, begin + 4):
            notes["xmp"] = data[begin + 4 + len(XMP_MAGIC) : end]
        elif marker == APP2 and data.startswith(ICC_MAGIC, begin + 4):
            profile.append(data[begin + 4 + len(ICC_MAGIC) : end])
        elif marker == START_OF_SCAN:
            # Not at the frame header: notes may follow it.
            if frame is None or begin + 5 > len(data):
                return None
            kind, bits, height, width, components = frame
            if not width or not height:
                return None
            keeps = kind == PROGRESSIVE or data[begin + 4] < components
            return JpegHeader(
                *(width, height, _orientation(notes), components, bits, kind, keeps),
                _joined(profile),
            )
    return None


def _joined(parts: list[bytes]) -> bytes:
    """Join the parts of an ICC profile, each after its number and their count (ICC.1, B.4)."""
    return b"".join(part[2:] for part in sorted(parts, key=lambda part: part[:1]))


def jpeg_without_notes(data: bytes) -> bytes:
    """Return a JPEG without its notes."""
    kept, after = [data[:2]], 2
    for marker, begin, end in _segments(data):
        if marker not in NOTES:
            kept.append(data[begin:end])
        after = end
    return b"".join((*kept, memoryview(data)[after:]))


# --- PNG ------------------------------------------------------------------------------------------

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
NOTE_CHUNKS = (b"eXIf", b"iTXt", b"iCCP")


class PngParts(NamedTuple):
    """What matters of a PNG."""

    content: bytes  # the file without its notes
    orientation: int  # EXIF, 1 to 8
    profile: bytes  # ICC; empty if there is none


def read_png(file: BinaryIO, with_pixels: bool) -> PngParts:
    """Read a PNG without its notes and animation; without pixels it can be opened, not decoded.

    Raises:
        ValueError: a chunk that a decoder has to know is unknown, as in the PNG of iOS apps.
    """
    kept, notes, profile, has_idat = [file.read(len(PNG_MAGIC))], {}, b"", False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in PIXEL_CHUNKS and (with_pixels or kind != b"IDAT"):
            kept += head, file.read(length + 4)
        elif kind in NOTE_CHUNKS and length <= MAX_UNPACKED:
            chunk, checksum = file.read(length), file.read(4)
            is_whole = checksum == struct.pack(">I", zlib.crc32(kind + chunk))
            if kind == b"iCCP":
                name_end = chunk.find(b"\0")
                profile = _unpacked(chunk[name_end + 2 :]) if is_whole else b"damaged"
            elif is_whole:
                notes |= _png_note(kind, chunk)
        elif not kind.isalpha():  # no chunk: let Pillow say what is wrong
            kept.append(head)
            break
        else:
            if kind[:1].isupper() and kind != b"IDAT":
                raise ValueError(f"it has the unknown chunk {kind.decode()}")
            if kind == b"IDAT" and not has_idat:
                kept.append(head)  # Pillow opens a PNG up to here
                has_idat = True
            file.seek(length + 4, 1)
        if kind == b"IEND":
            break
    return PngParts(b"".join(kept), _orientation(notes), profile)


def _png_note(kind: bytes, chunk: bytes) -> dict[str, bytes]:
    """Return EXIF, or XMP (in a text chunk, perhaps compressed), under Pillow's names."""
    if kind == b"eXIf":
        return {"exif": EXIF_MAGIC + chunk}
    keyword, _, rest = chunk.partition(b"\0")
    if keyword != b"XML:com.adobe.xmp" or rest.count(b"\0", 2) < 2:
        return {}
    text = rest[2:].split(b"\0", 2)[2]
    return {"xmp": _unpacked(text) if rest[0] else text}


def _unpacked(packed: bytes) -> bytes:
    """Unpack at most `MAX_UNPACKED` bytes; what is damaged or larger becomes `damaged`."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(packed, MAX_UNPACKED)
    except zlib.error:
        return b"damaged"
    return content if unpacker.eof and content else b"damaged"
