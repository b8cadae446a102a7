"""utils/decode.py: the quick decoder gives what Pillow gives, and hands over what it cannot."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg

from utils import images
from utils.dataset import get_spec, open_split
from utils.decode import decode, read_header
from utils.errors import RunError
from utils.images import decode_rgb, describe


def photo(mode: str = "RGB", size: tuple[int, int] = (53, 37)) -> Image.Image:
    """Of smooth colors, so that a JPEG keeps them."""
    coarse = np.random.default_rng(3).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(grey)
    return image.convert(mode)


# Mode, format, whether torchvision decodes it.
KINDS = [
    ("RGB", "JPEG", True),
    ("L", "JPEG", True),
    ("CMYK", "JPEG", False),
    ("RGB", "PNG", False),
    ("RGBA", "PNG", False),
    ("L", "PNG", False),
    ("LA", "PNG", False),
    ("P", "PNG", False),
    ("1", "PNG", False),
    ("I;16", "PNG", False),
    ("RGB", "GIF", False),
    ("RGB", "WEBP", False),
    ("RGB", "BMP", False),
    ("RGB", "TIFF", False),
    ("RGB", "PPM", False),
]


def with_orientation(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return image


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


class TestDecode:
    @pytest.mark.parametrize(("mode", "kind", "is_quick"), KINDS)
    def test_gives_pillows_pixels_of_every_kind(self, tmp_path, mode, kind, is_quick):
        path = tmp_path / "photo.jpg"  # the name says nothing
        photo(mode).save(path, kind)
        image = decode(str(path))
        assert (image.shape, image.dtype) == ((3, 37, 53), torch.uint8)
        assert image.permute(1, 2, 0).is_contiguous()
        assert np.array_equal(as_array(image), np.asarray(decode_rgb(path)))
        header = read_header(path.read_bytes())
        assert (header is not None) is is_quick
        if header is not None:
            assert (header.width, header.height, header.orientation) == (53, 37, 1)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_turns_upright_as_pillow_does(self, tmp_path, kind, orientation):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = tmp_path / "photo"
        photo().save(path, kind, exif=exif)
        image = decode(str(path))
        assert image.permute(1, 2, 0).is_contiguous()
        width, height = (37, 53) if orientation >= 5 else (53, 37)
        assert image.shape == (3, height, width)
        assert np.array_equal(as_array(image), np.asarray(decode_rgb(path)))
        assert describe(path)[1:3] == (width, height)  # what a cache is planned by
        if kind in ("PNG", "TIFF"):  # lossless
            upright = ImageOps.exif_transpose(with_orientation(photo(), orientation))
            assert np.array_equal(as_array(image), np.asarray(upright))

    def test_turns_a_tiff_that_pillow_would_map_into_memory(self, tmp_path):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        photo("L").save(tmp_path / "photo", "TIFF", exif=exif)
        upright = ImageOps.exif_transpose(with_orientation(photo("L"), 6)).convert("RGB")
        assert np.array_equal(as_array(decode(str(tmp_path / "photo"))), np.asarray(upright))

    def test_turns_by_xmp_where_there_is_no_exif(self, tmp_path):
        path = tmp_path / "photo.jpg"
        xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
        photo().save(path, "JPEG", xmp=xmp)
        assert read_header(path.read_bytes()) == (53, 37, 6)
        assert np.array_equal(as_array(decode(str(path))), np.asarray(decode_rgb(path)))

    def test_turns_by_exif_of_two_segments(self, tmp_path):
        path = tmp_path / "photo.jpg"
        photo().save(path, "JPEG")
        content = path.read_bytes()
        ifd = struct.pack("<H", 2) + struct.pack("<HHI4s", 0x010F, 2, 1, b"x")
        ifd += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
        exif = b"II*\0" + struct.pack("<I", 8) + ifd
        parts = (b"Exif\0\0" + part for part in (exif[:20], exif[20:]))
        segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(p) + 2) + p for p in parts)
        path.write_bytes(content[:2] + segments + content[2:])
        assert read_header(path.read_bytes()) == (53, 37, 6)
        assert np.array_equal(as_array(decode(str(path))), np.asarray(decode_rgb(path)))

    @pytest.mark.parametrize("extra", [b"\xff\xff", b"\xff\xff\xff\xff", b"\xff\xd0", b"\xff\x01"])
    def test_reads_headers_with_fill_bytes_and_lone_markers(self, tmp_path, extra):
        path = tmp_path / "photo.jpg"
        photo().save(path, "JPEG")
        content = path.read_bytes()
        at = content.index(b"\xff\xc0")
        fill = extra[:-1] if set(extra) == {0xFF} else extra
        assert read_header(content[:at] + fill + content[at:]) == (53, 37, 1)

    @pytest.mark.parametrize(
        ("at", "value"),
        [(4, b"\x0c"), (5, b"\0\0"), (7, b"\0\0"), (9, b"\x02"), (2, b"\0\x05")],
        ids=["12 bits", "no height", "no width", "two components", "short"],
    )
    def test_leaves_other_headers_to_pillow(self, tmp_path, at, value):
        path = tmp_path / "photo.jpg"
        photo().save(path, "JPEG")
        content = bytearray(path.read_bytes())
        at += content.index(b"\xff\xc0")
        content[at : at + len(value)] = value
        assert read_header(bytes(content)) is None

    @pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"quality": 5}])
    def test_gives_pillows_pixels_of_every_jpeg(self, tmp_path, options):
        path = tmp_path / "photo.jpg"
        photo(size=(301, 207)).save(path, "JPEG", **options)
        assert read_header(path.read_bytes()) == (301, 207, 1)
        assert np.array_equal(as_array(decode(str(path))), np.asarray(decode_rgb(path)))

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_of_damaged_files_decodes_or_names_them(self, tmp_path_factory, data):
        buffer = io.BytesIO()
        kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF"]))
        photo().save(buffer, kind, **({"exif": b"Exif\0\0MM\0*"} if kind == "JPEG" else {}))
        content = bytearray(buffer.getvalue())
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        content = content[: data.draw(st.integers(0, len(content)))]
        path = tmp_path_factory.getbasetemp() / "damaged.bin"
        path.write_bytes(content)
        try:
            image = decode(str(path))
        except RunError as error:
            assert "damaged.bin" in str(error)  # noqa: PT017 - both endings are well
        else:
            assert image.shape[0] == 3

    @pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(900)])
    def test_names_what_is_no_image(self, tmp_path, content):
        path = tmp_path / "photo.jpg"
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"image .*photo.jpg cannot be decoded \("):
            decode(str(path))

    def test_names_what_is_not_there_or_a_folder(self, tmp_path):
        for path in (tmp_path / "absent.jpg", tmp_path):
            with pytest.raises(RunError, match=rf"image {path} cannot be decoded \("):
                decode(str(path))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
    def test_refuses_more_pixels_than_the_limit(self, tmp_path, monkeypatch, kind):
        path = tmp_path / "photo"
        photo(size=(50, 40)).save(path, kind)
        monkeypatch.setattr(images, "MAX_PIXELS", 50 * 40)
        assert decode(str(path)).shape == (3, 40, 50)
        monkeypatch.setattr(images, "MAX_PIXELS", 50 * 40 - 1)
        with pytest.raises(RunError, match=r"photo is 50x40 pixels, over the limit of 1999"):
            decode(str(path))

    def test_refuses_a_bomb_before_it_unpacks(self, tmp_path):
        """A PNG of 4 kilobytes that says 30,000 x 30,000 pixels, and would unpack to 2.7 GB."""

        def chunk(kind: bytes, body: bytes) -> bytes:
            checksum = struct.pack(">I", zlib.crc32(kind + body))
            return struct.pack(">I", len(body)) + kind + body + checksum

        header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
        body = zlib.compress(bytes(4_000_000))
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body)
        path = tmp_path / "bomb.png"
        path.write_bytes(png + chunk(b"IEND", b""))
        with pytest.raises(RunError, match=r"bomb.png is 30000x30000 pixels, over the limit"):
            decode(str(path))

    def test_of_the_real_flowers_is_torchvisions_own(self, real_flowers):
        split = open_split(get_spec("flower102"), real_flowers, "train")
        for position in range(0, 60, 7):
            path = Path(split.path_of(position))
            data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
            image = decode(str(path))
            assert torch.equal(image, decode_jpeg(data, ImageReadMode.RGB))
            assert np.array_equal(as_array(image), np.asarray(decode_rgb(path)))
