"""Tell from the structure of an image file whether it is whole, without decoding it.

What is not certain is left to a decoder: `None` for a file says "decode it". Only a few kilobytes
of a file are read. No torch here.
"""

import io
import os
import re
import struct
import zlib
from typing import NamedTuple

from PIL import Image

from utils.data.digests import PIECE

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
PNG_START = b"\x89PNG\r\n\x1a\n"
# What Pillow raises for headers that are damaged.
ODDITIES = (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error)


class Damaged(Exception):
    """A file cannot be an image, or not a whole one; the message says why, to follow its path."""

    def __init__(self, message: str, kind: str = "damaged") -> None:
        super().__init__(message)
        self.kind = kind  # in a word


class Content:
    """The bytes of an open file: its ends are at hand, what lies between is read when asked for."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor, self.size = descriptor, size
        self.head = os.pread(descriptor, PIECE, 0)
        is_small = size <= PIECE
        self.tail = self.head if is_small else os.pread(descriptor, PIECE, size - PIECE)

    def at(self, start: int, count: int) -> bytes:
        """Return up to `count` bytes from `start` on."""
        if start + count <= len(self.head):
            return self.head[start : start + count]
        if start >= self.size - len(self.tail):
            start -= self.size - len(self.tail)
            return self.tail[start : start + count]
        return os.pread(self.descriptor, count, start)

    def all(self) -> bytes:
        """Return all bytes."""
        return self.head if self.size <= PIECE else os.pread(self.descriptor, self.size, 0)


# --- JPEG -----------------------------------------------------------------------------------------

# Markers (ITU T.81, table B.1): frame headers without DHT, JPG and DAC; those without a length.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
HUFFMAN_TABLES, QUANTIZATION_TABLES, START_OF_SCAN = 0xC4, 0xDB, 0xDA
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
# Sampling factors, horizontal and vertical in a byte each: what cameras and encoders write.
SAMPLING = frozenset(
    first + others
    for first in (b"\x11", b"\x12", b"\x21", b"\x22", b"\x41")
    for others in (b"", b"\x11\x11")
)


class Jpeg(NamedTuple):
    """What the headers of a JPEG say up to its first scan."""

    width: int
    height: int
    is_usual: bool  # 8 bits, grey or three components, Huffman tables: every decoder knows it
    scan: int  # where the first scan begins, in bytes


def read_jpeg(content: Content) -> Jpeg | None:
    """Read the headers of a JPEG; None if they are odd or do not lead to a scan."""
    at, frame, tables = 2, None, set()
    while len(start := content.at(at, 20)) >= 4 and start[0] == 0xFF:
        marker = start[1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in WITHOUT_LENGTH:
            at += 2
            continue
        if marker in (HUFFMAN_TABLES, QUANTIZATION_TABLES):
            tables.add(marker)
        elif marker in FRAMES:
            frame = start
        elif marker == START_OF_SCAN:
            return _jpeg(frame, tables, at)
        at += 2 + int.from_bytes(start[2:4], "big")
    return None


def _jpeg(frame: bytes | None, tables: set[int], scan: int) -> Jpeg | None:
    if frame is None or len(frame) < 19:
        return None
    bits, height, width, components = struct.unpack_from(">BHHB", frame, 4)
    is_usual = (
        frame[1] in (BASELINE, EXTENDED, PROGRESSIVE)
        and bits == 8
        and width * height > 0
        and components in (1, 3)
        and frame[11 : 11 + 3 * components : 3] in SAMPLING
        and len(tables) == 2
    )
    return Jpeg(width, height, is_usual, scan)


def has_jpeg_end(content: Content, jpeg: Jpeg) -> bool:
    """Tell whether the end marker follows the scan; what is appended after it does no harm.

    No pixels look like one: in a scan, 00 follows each FF. An embedded preview has one too, but
    that lies before the scan.
    """
    start = content.size - len(content.tail)
    if content.tail.find(JPEG_END, max(0, jpeg.scan - start)) >= 0:
        return True
    return content.all().find(JPEG_END, jpeg.scan) >= 0


# Bytes that stand for what is missing: a decoder makes other pixels of each.
FILLERS = (b"", b"\x55" * 4096, b"\xaa" * 4096)


def completed_jpeg(data: bytes) -> bytes | None:
    """Return a JPEG that lacks only its end marker with one; None if pixels are missing too.

    Decoders make up pixels that are missing from whatever follows. So the pixels are all there if
    they are the same with other bytes before the marker, and no scan of a progressive one lacks.
    """
    data = data.rstrip(b"\xff")  # half a marker
    if data.endswith(bytes(16)):  # a download that was cut; its place was reserved
        data = data.rstrip(b"\0")
    if not data.startswith(JPEG_START) or not _has_all_scans(data):
        return None
    pixels = set()
    for filler in FILLERS:
        try:
            with Image.open(io.BytesIO(data + filler + JPEG_END), formats=("JPEG",)) as image:
                pixels.add(zlib.crc32(image.tobytes()))
        except ODDITIES:
            return None
        if len(pixels) > 1:
            return None
    return data + JPEG_END


# A segment within or after a scan: no stuffed byte, restart marker or fill byte follows the FF.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)


def _has_all_scans(data: bytes) -> bool:
    """Tell whether all components have all their coefficients, to the last bit, and no end."""
    left: dict[int, list[int]] = {}  # by component, the bits that each coefficient lacks
    at, is_progressive = 2, False
    while found := _MARKER.search(data, at):
        marker, at = found[1][0], found.start()
        if marker == JPEG_END[1]:
            return False  # it is not the end that lacks
        segment = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        at += 4 + len(segment)
        if marker in FRAMES and len(segment) >= 6:
            is_progressive = marker == PROGRESSIVE
            left = {each: [99] * 64 for each in segment[6 : 6 + 3 * segment[5] : 3]}
        elif marker == START_OF_SCAN:
            count = segment[0] if segment else 0
            if len(segment) < 4 + 2 * count:
                return False
            first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
            if not is_progressive:
                first, last, bits = 0, 63, 0
            for component in segment[1 : 1 + 2 * count : 2]:
                if component in left:
                    left[component][first : last + 1] = [bits & 15] * (min(last, 63) + 1 - first)
    return bool(left) and not any(map(any, left.values()))


# --- PNG ------------------------------------------------------------------------------------------

# Bits of a sample by color type (PNG, table 11.1): grey, RGB, palette, grey and alpha, RGBA.
PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}  # those that a decoder must know


def read_png(content: Content) -> tuple[int, int]:
    """Return width and height of a PNG whose chunks follow each other to the end.

    Raises:
        Damaged: a chunk is missing, or the file ends before it should.
    """
    at, kinds, header = len(PNG_START), set(), b""
    while b"IEND" not in kinds:
        start = content.at(at, 8)
        if len(start) < 8:
            raise Damaged(f"is cut: a PNG that ends after {content.size:,} bytes", "cut")
        length, kind = struct.unpack(">I4s", start)
        if not kind.isalpha() or (kind[:1].isupper() and kind not in PNG_CHUNKS):
            raise Damaged(f"is a PNG with the unknown chunk {kind!r}")
        if kind in (b"IHDR", b"PLTE") and length <= 768:
            chunk = content.at(at + 4, length + 8)
            header = header or chunk[4:-4]
            if zlib.crc32(chunk[:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise Damaged(f"is a PNG whose {kind.decode()} has a wrong checksum")
        kinds.add(kind)
        at += 12 + length
    if at > content.size:
        raise Damaged("is cut: a PNG that lacks its last bytes", "cut")
    return _check_png(header, kinds)


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
# Tags of a TIFF (TIFF 6.0): compression; where pixels lie and their bytes, of strips and of tiles.
COMPRESSION, PLACES = 259, ((273, 279), (324, 325))


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
    if head[:4] in (b"II*\0", b"MM\0*"):
        return _read_tiff(content)
    return Other(False, is_raw=head[:2] in (b"P1", b"P2", b"P3", b"P4"))


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
                is_raw = tags.get(COMPRESSION, 1) == 1
        except ODDITIES:
            return Other(False)
    ends = [at + n for of, counts in places for at, n in zip(of, counts, strict=False)]
    return Other(bool(ends) and max(ends) <= content.size, is_raw)
