"""Tell from the structure of a JPEG whether it is whole; complete one that lacks only its end.

Only a few kilobytes of a file are read, as long as it is whole. No torch here.
"""

import io
import re
import struct
import zlib
from typing import NamedTuple

from PIL import Image

from utils.data.structure.content import ODDITIES, Content

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Markers (ITU T.81, table B.1): frame headers without DHT, JPG and DAC; those without a length.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
MAX_SIDE = 65_500  # pixels; libjpeg refuses more
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
        and 0 < min(width, height) <= max(width, height) <= MAX_SIDE
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
