"""Tell from the structure of a JPEG whether it is whole; complete one that lacks only its end.

Only a few kilobytes of a file are read, as long as it is whole. No torch here.
"""

import functools
import io
import re
import struct
import zlib
from typing import NamedTuple

from PIL import Image

from utils.data.images.headers import (
    APP2,
    ICC_MAGIC,
    JPEG_MAGIC,
    PROGRESSIVE,
    START_OF_FRAME,
    START_OF_SCAN,
    WITHOUT_LENGTH,
)
from utils.data.structure.content import ODDITIES, Content

JPEG_END = b"\xff\xd9"
BASELINE, EXTENDED = 0xC0, 0xC1  # frame headers (ITU T.81, table B.1)
MAX_SIDE = 65_500  # pixels; libjpeg refuses more
TABLES = HUFFMAN, QUANTIZATION = 0xC4, 0xDB


class Jpeg(NamedTuple):
    """What the headers of a JPEG say up to its first scan."""

    width: int
    height: int
    # 8 bits, Huffman coding, all tables there: every decoder knows it.
    is_usual: bool
    scan: int  # where the first scan begins, in bytes
    has_profile: bool = False  # ICC


def read_jpeg(content: Content) -> Jpeg | None:
    """Read the headers of a JPEG; None if they are odd or do not lead to a scan."""
    at, frame, tables, has_profile = 2, b"", set(), False
    while len(start := content.at(at, 24)) >= 4 and start[0] == 0xFF:
        marker, length = start[1], int.from_bytes(start[2:4], "big")
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in WITHOUT_LENGTH:
            at += 2
            continue
        if marker in TABLES:
            tables |= _tables(marker, content.at(at + 4, length - 2))
        elif marker in START_OF_FRAME:
            if frame:
                return None
            frame = start
        elif marker == START_OF_SCAN:
            jpeg = _jpeg(frame, tables, start, at)
            return jpeg._replace(has_profile=has_profile) if jpeg and has_profile else jpeg
        has_profile |= marker == APP2 and start[4:16] == ICC_MAGIC
        at += 2 + length
    return None


@functools.lru_cache(maxsize=1024)  # most files have the same ones
def _tables(marker: int, segment: bytes) -> frozenset[tuple[int, int]]:
    """Return marker and number of the tables that a segment defines, {} if it is damaged."""
    found, at = set(), 0
    while at < len(segment):
        found.add((marker, segment[at]))
        if marker == QUANTIZATION:
            at += 65 + 64 * (segment[at] >> 4)
            continue
        codes = segment[at + 1 : at + 17]
        # More codes than there can be (of each length in bits), or none.
        if not 0 < sum(count << 16 - bits for bits, count in enumerate(codes, 1)) <= 1 << 16:
            return frozenset()
        at += 17 + sum(codes)
    return frozenset(found) if at == len(segment) else frozenset()


def _jpeg(frame: bytes, tables: set[tuple[int, int]], scan: bytes, at: int) -> Jpeg | None:
    if len(frame) < 22:
        return None
    bits, height, width, components = struct.unpack_from(">BHHB", frame, 4)
    end = 10 + 3 * components
    is_usual = (
        frame[1] in (BASELINE, EXTENDED, PROGRESSIVE)
        and bits == 8
        and 0 < min(width, height) <= max(width, height) <= MAX_SIDE
        and components in (1, 3, 4)
        and _can_be_sampled(frame[11:end:3])
        and all((QUANTIZATION, number) in tables for number in frame[12:end:3])
        and _has_tables(scan, frame[10:end:3], frame[1] == PROGRESSIVE, tables)
    )
    return Jpeg(width, height, is_usual, at)


@functools.lru_cache(maxsize=1024)
def _can_be_sampled(factors: bytes) -> bool:
    """Tell whether libjpeg can: the largest factors are multiples of all, and blocks are few."""
    pairs = [divmod(each, 16) for each in factors]  # horizontal and vertical
    largest = [max(each) for each in zip(*pairs, strict=True)]
    return all(
        1 <= factor <= 4 and most % factor == 0
        for pair in pairs
        for factor, most in zip(pair, largest, strict=True)
    ) and (len(pairs) == 1 or sum(across * down for across, down in pairs) <= 10)


def _has_tables(
    scan: bytes, components: bytes, is_progressive: bool, tables: set[tuple[int, int]]
) -> bool:
    """Tell whether the first scan is of known components, and its Huffman tables are defined."""
    end = 5 + 2 * scan[4] if len(scan) > 4 else 0
    used = scan[6:end:2]  # of each component the numbers of two tables, 4 bits each
    return (
        0 < len(used) <= len(components)
        and set(scan[5:end:2]) <= set(components)
        and all((HUFFMAN, each >> 4) in tables for each in used)
        and (is_progressive or all((HUFFMAN, 16 | each & 15) in tables for each in used))
    )


def has_jpeg_end(content: Content, jpeg: Jpeg) -> bool:
    """Tell whether the end marker follows the scan; what is appended after it does no harm.

    No pixels look like one: in a scan, 00 follows each FF. An embedded preview has one too, but
    that lies before the scan.
    """
    start = content.size - len(content.tail)
    if content.tail.find(JPEG_END, max(0, jpeg.scan - start)) >= 0:
        return True
    return content.all().find(JPEG_END, jpeg.scan) >= 0


MAX_WHOLE = 1 << 26  # pixels; larger ones are compared at an eighth of their sides
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
    if not data.startswith(JPEG_MAGIC) or not _has_all_scans(data):
        return None
    pixels = set()
    for filler in FILLERS:
        try:
            with Image.open(io.BytesIO(data + filler + JPEG_END), formats=("JPEG",)) as image:
                if image.width * image.height > MAX_WHOLE:
                    image.draft(None, (image.width // 8, image.height // 8))
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
        if marker in START_OF_FRAME and len(segment) >= 6:
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
