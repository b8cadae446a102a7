"""Tell from the structure of an image file that is not a JPEG whether it is whole.

What is not certain is left to a decoder. Only a few kilobytes of a file are read. No torch here.
"""

import re
import struct
import zlib
from typing import NamedTuple

from PIL import Image

from utils.data.images.headers import PNG_MAGIC
from utils.data.images.openers import TIFF_MAGICS
from utils.data.structure.content import CUT, ODDITIES, Content, Damaged

# --- PNG ------------------------------------------------------------------------------------------

# Bits of a sample by color type (PNG, table 11.1): grey, RGB, palette, grey and alpha, RGBA.
PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}  # those that a decoder must know


def read_png(content: Content) -> tuple[int, int, bool]:
    """Return width and height of a PNG that has all its chunks, and whether it has an ICC profile.

    Raises:
        Damaged: a chunk is missing, or the file ends before it should.
    """
    at, kinds, header = len(PNG_MAGIC), set(), b""
    while b"IEND" not in kinds:
        start = content.at(at, 8)
        if len(start) < 8:
            raise Damaged(f"is cut: a PNG that ends after {content.size:,} bytes", CUT)
        length, kind = struct.unpack(">I4s", start)
        if not kind.isalpha() or (kind[:1].isupper() and kind not in PNG_CHUNKS):
            raise Damaged(f"is a PNG with the unknown chunk {kind!r}")
        if kind in (b"IHDR", b"PLTE", b"tRNS") and length <= 768:
            chunk = content.at(at + 4, length + 8)
            header = header or chunk[4:-4]
            if zlib.crc32(chunk[:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise Damaged(f"is a PNG whose {kind.decode()} has a wrong checksum")
        kinds.add(kind)
        at += 12 + length
    if at > content.size:
        raise Damaged("is cut: a PNG that lacks its last bytes", CUT)
    return *_check_png(header, kinds), b"iCCP" in kinds


def _check_png(header: bytes, kinds: set[bytes]) -> tuple[int, int]:
    if len(header) != 13:
        raise Damaged("is a PNG without a header")
    width, height, bits, color, compression, filters, interlace = struct.unpack(">IIBBBBB", header)
    if bits not in PNG_BITS.get(color, ()) or not width * height or compression or filters:
        raise Damaged("is a PNG whose header names pixels that do not exist")
    if interlace > 1 or b"IDAT" not in kinds or (color == 3 and b"PLTE" not in kinds):
        raise Damaged("is a PNG without pixels or without the palette that they need")
    return width, height


# --- The other formats ----------------------------------------------------------------------------

_PNM = re.compile(rb"P([56])%b%b%b\s" % ((rb"(?:\s|#[^\n]*\n)+(\d+)",) * 3))
# Tags of a TIFF (TIFF 6.0): bits of each sample; compression; where pixels lie and how many bytes
# they have, of strips and of tiles. And compressions: none, LZW, deflate (twice), PackBits.
BITS, COMPRESSION, PLACES = 258, 259, ((273, 279), (324, 325))
RAW, COMPRESSIONS = 1, (1, 5, 8, 32946, 32773)


class Other(NamedTuple):
    """What is certain of a file that is neither JPEG nor PNG."""

    is_whole: bool  # otherwise a decoder has to say
    is_raw: bool = False  # its pixels lie in it as they are


def read_other(content: Content) -> Other:
    """Tell whether the file is long enough for what its header announces."""
    head, size = content.head, content.size
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Other(size >= 8 + int.from_bytes(head[4:8], "little"))
    if head[:4] == b"GIF8":
        return Other(content.tail.rstrip(b"\0").endswith(b";"))
    if head[4:8] == b"ftyp":
        return Other(_has_all_boxes(content))
    if head[:2] == b"BM" and len(head) >= 54:
        return Other(_has_all_rows(head, size), is_raw=True)
    if found := _PNM.match(head):
        return Other(_has_all_samples(found, size), is_raw=True)
    if head.startswith(TIFF_MAGICS):
        return _read_tiff(content)
    return Other(False, is_raw=head[:1] == b"P")  # PNM of other kinds


def _has_all_samples(header: re.Match, size: int) -> bool:
    """Tell whether a PNM in bytes has all its samples."""
    width, height, largest = map(int, header.groups()[1:])
    sample = (3 if header[1] == b"6" else 1) * (2 if largest > 255 else 1)
    return header.end() + width * height * sample <= size


def _has_all_rows(head: bytes, size: int) -> bool:
    """Tell whether a BMP has all its rows; not of one that is compressed."""
    start, header, width, height, _, bits, packed = struct.unpack_from("<IIiiHHI", head, 10)
    row = (abs(width) * bits + 31) // 32 * 4
    return header >= 40 and packed in (0, 3) and start + row * abs(height) <= size


def _has_all_boxes(content: Content) -> bool:
    """Tell whether the boxes of a HEIC or AVIF (ISO 14496-12) end where the file does."""
    at, kinds = 0, set()
    while at < content.size and len(start := content.at(at, 16)) >= 8:
        length, kind = struct.unpack_from(">I4s", start)
        if length == 1 and len(start) == 16:
            (length,) = struct.unpack_from(">Q", start, 8)
        if length == 0:
            length = content.size - at
        if length < 8:
            return False
        kinds.add(kind)
        at += length
    return at == content.size and {b"meta", b"mdat"} <= kinds


def _read_tiff(content: Content) -> Other:
    with open(content.descriptor, "rb", closefd=False) as file:
        file.seek(0)
        try:
            with Image.open(file, formats=("TIFF",)) as image:
                tags = image.tag_v2
                places = [(tags[at], tags[count]) for at, count in PLACES if at in tags]
                compression = tags.get(COMPRESSION, RAW)
                size = image.width * image.height * sum(tags.get(BITS, (1,))) // 8
        except ODDITIES:
            return Other(False)
    ends = [at + n for of, counts in places for at, n in zip(of, counts, strict=False)]
    is_whole = bool(ends) and max(ends) <= content.size and compression in COMPRESSIONS
    if compression == RAW:
        is_whole &= sum(n for _, counts in places for n in counts) >= size
    return Other(is_whole, compression == RAW)
