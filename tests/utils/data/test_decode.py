"""utils/data/decode.py: the quick decoder gives what Pillow gives, and hands over what it
cannot.
"""

import io
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from utils.data import image_files
from utils.data.decode import decode
from utils.data.headers import read_header
from utils.data.image_files import decode_rgb, describe
from utils.errors import RunError


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


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def xmp_note() -> PngInfo:
    note = PngInfo()
    note.add_itxt("XML:com.adobe.xmp", XMP.decode())
    return note


def segment(payload: bytes) -> bytes:
    """An application segment 1 of a JPEG."""
    return b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload


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
        assert (header is not None and header.is_plain) is is_quick
        if header is not None:
            assert header[:3] == (53, 37, 1)

    @settings(max_examples=100, deadline=None)
    @given(
        kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "MPO"]),
        mode=st.sampled_from(["RGB", "L"]),
        orientation=st.integers(0, 9),
        has_xmp=st.booleans(),
        size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    )
    def test_turns_upright_as_pillow_does(
        self, tmp_path_factory, kind, mode, orientation, has_xmp, size
    ):
        """And to the size that `describe` reads in the header, by which a cache is planned."""
        note = {"pnginfo": xmp_note()} if kind == "PNG" else {"xmp": XMP}
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        notes = {"exif": exif} if orientation else {}
        notes |= note if has_xmp and kind != "TIFF" else {}
        buffer = io.BytesIO()
        photo(mode, size).save(buffer, kind, **notes)
        path = tmp_path_factory.getbasetemp() / "any.jpg"
        path.write_bytes(buffer.getvalue())
        image = decode(str(path))
        assert image.permute(1, 2, 0).is_contiguous()
        described = describe(path)
        assert (described.height, described.width) == image.shape[1:]
        # Not by the path: Pillow garbles some TIFFs that it maps into memory.
        expected = ImageOps.exif_transpose(Image.open(buffer)).convert("RGB")
        assert np.array_equal(as_array(image), np.asarray(expected))

    @pytest.mark.parametrize("is_late", [False, True])
    def test_turns_by_exif_of_two_segments(self, tmp_path, is_late):
        """Before the frame header, or after it."""
        path = tmp_path / "photo.jpg"
        photo().save(path, "JPEG")
        content = path.read_bytes()
        ifd = struct.pack("<H", 2) + struct.pack("<HHI4s", 0x010F, 2, 1, b"x")
        ifd += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
        exif = b"II*\0" + struct.pack("<I", 8) + ifd
        segments = b"".join(segment(b"Exif\0\0" + part) for part in (exif[:20], exif[20:]))
        frame = content.index(b"\xff\xc0")
        at = frame + 2 + struct.unpack_from(">H", content, frame + 2)[0] if is_late else 2
        path.write_bytes(content[:at] + segments + content[at:])
        assert read_header(path.read_bytes())[:3] == (53, 37, 6)
        assert np.array_equal(as_array(decode(str(path))), np.asarray(decode_rgb(path)))

    @pytest.mark.parametrize("note", [b"Exif\0\0MM\0*", b"Exif\0\0nonsense"])
    def test_of_broken_exif_is_left_as_it_is(self, tmp_path, note):
        path = tmp_path / "photo.jpg"
        photo().save(path, "JPEG")
        content = path.read_bytes()
        path.write_bytes(content[:2] + segment(note) + content[2:])
        assert read_header(path.read_bytes())[:3] == (53, 37, 1)
        assert decode(str(path)).shape == (3, 37, 53)

    @pytest.mark.parametrize("extra", [b"\xff\xff", b"\xff\xd0", b"\xff\x01"])
    def test_reads_headers_with_fill_bytes_and_lone_markers(self, tmp_path, extra):
        path = tmp_path / "photo.jpg"
        photo().save(path, "JPEG")
        content = path.read_bytes()
        at = content.index(b"\xff\xc0")
        fill = extra[:-1] if set(extra) == {0xFF} else extra
        assert read_header(content[:at] + fill + content[at:])[:3] == (53, 37, 1)

    @pytest.mark.parametrize(
        ("at", "value"),
        [(4, b"\x0c"), (5, b"\0\0"), (7, b"\0\0"), (9, b"\x02"), (2, b"\0\x05")],
        ids=["12 bits", "no height", "no width", "two components", "short"],
    )
    def test_leaves_odd_headers_to_pillow(self, tmp_path, at, value):
        path = tmp_path / "photo.jpg"
        photo().save(path, "JPEG")
        content = bytearray(path.read_bytes())
        at += content.index(b"\xff\xc0")
        content[at : at + len(value)] = value
        header = read_header(bytes(content))
        assert header is None or not header.is_plain

    @pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"quality": 5}])
    def test_gives_pillows_pixels_of_every_jpeg(self, tmp_path, options):
        path = tmp_path / "photo.jpg"
        photo(size=(301, 207)).save(path, "JPEG", **options)
        assert read_header(path.read_bytes())[:3] == (301, 207, 1)
        assert np.array_equal(as_array(decode(str(path))), np.asarray(decode_rgb(path)))

    def test_names_what_is_not_an_image(self, tmp_path):
        paths = [tmp_path / "absent.jpg", tmp_path]
        for number, content in enumerate((b"", b"\xff\xd8\xff", bytes(900))):
            paths.append(tmp_path / f"{number}.jpg")
            paths[-1].write_bytes(content)
        for path in paths:
            with pytest.raises(RunError, match=rf"image {path} cannot be decoded \("):
                decode(str(path))

    @pytest.mark.parametrize("kind", ["TIFF", "PNG", "GIF"])
    def test_refuses_more_pixels_than_the_limit(self, tmp_path, monkeypatch, kind):
        path = tmp_path / "photo"
        photo(size=(50, 40)).save(path, kind)
        monkeypatch.setattr(image_files, "MAX_PIXELS", 50 * 40)
        assert decode(str(path)).shape == (3, 40, 50)
        monkeypatch.setattr(image_files, "MAX_PIXELS", 50 * 40 - 1)
        with pytest.raises(RunError, match=r"photo is 50x40 pixels, over the limit of 1999"):
            decode(str(path))
