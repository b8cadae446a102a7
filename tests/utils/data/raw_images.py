"""Write image files byte by byte, of kinds that Pillow does not write."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ImageCms

SHORT, LONG = 3, 4  # types of a tag's values


def write_tiff(
    path: Path, values: np.ndarray, order: str = "<", is_packed: bool = False, **tags: int | tuple
) -> Path:
    """Write (H, W) or (H, W, C) values of any type as a TIFF of one strip, with further tags.

    Args:
        path: file.
        values: samples; their type decides BitsPerSample and SampleFormat.
        order: `<` little or `>` big endian.
        is_packed: whether the pixels are compressed (Deflate).
        tags: by name; they replace those that `values` decide.
    """
    numbers = {"bits": 258, "photometric": 262, "largest": 281, "format": 339, "planar": 284}
    numbers |= {"orientation": 274, "extra": 338, "samples": 277, "colors": 320}
    height, width, channels = (*values.shape, 1)[:3]
    tags = {
        "bits": (8 * values.itemsize,) * channels,
        "photometric": 1 if channels == 1 else 2,
        "samples": channels,
        "format": ({"u": 1, "i": 2, "f": 3}[values.dtype.kind],) * channels,
    } | tags
    pixels = np.moveaxis(values, -1, 0) if tags.get("planar") == 2 else values
    planes = pixels if tags.get("planar") == 2 else pixels[None]
    strips = [plane.astype(values.dtype.newbyteorder(order)).tobytes() for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if is_packed else strips
    data, sizes = b"".join(strips), tuple(map(len, strips))
    entries = {numbers[name]: (SHORT, value) for name, value in tags.items()}
    entries |= {256: (LONG, width), 257: (LONG, height), 278: (LONG, height)}
    offsets = tuple(8 + sum(sizes[:i]) for i in range(len(sizes)))
    entries |= {259: (SHORT, 8 if is_packed else 1), 273: (LONG, offsets), 279: (LONG, sizes)}
    ifd, extra, at = b"", b"", 8 + len(data) + 2 + 12 * len(entries) + 4
    for tag, (kind, value) in sorted(entries.items()):
        each = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"{order}{len(each)}{'H' if kind == SHORT else 'I'}", *each)
        if len(packed) > 4:
            extra, packed = extra + packed, struct.pack(f"{order}I", at + len(extra))
        ifd += struct.pack(f"{order}HHI", tag, kind, len(each)) + packed.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(f"{order}I", 8 + len(data))
    ifd = struct.pack(f"{order}H", len(entries)) + ifd + bytes(4)
    path.write_bytes(head + data + ifd + extra)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def write_png(path: Path, values: np.ndarray, *chunks: bytes) -> Path:
    """Write (H, W) or (H, W, C) uint8 or uint16 as a PNG, with `chunks` before the pixels."""
    height, width, channels = (*values.shape, 1)[:3]
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, color, 0, 0, 0)
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def display_p3() -> bytes:
    """Return an ICC profile of Display P3: that of sRGB with other primaries."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for number in range(int.from_bytes(profile[128:132], "big")):
        tag, offset = struct.unpack_from(">4sI", profile, 132 + 12 * number)
        if tag in primaries:
            values = [round(value * 65536) for value in primaries[tag]]
            struct.pack_into(">3i", profile, offset + 8, *values)
    return bytes(profile)
