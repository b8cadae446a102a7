"""utils/data/decode.py: the quick decoder gives what Pillow gives, and hands over what it
cannot.
"""

import functools
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
from utils.data.decode import decode, decode_resized
from utils.data.image_files import TooLarge, decode_rgb, describe, scale_of
from utils.data.images.headers import read_header
from utils.data.presets import PRESETS, Size, shorter_side_to
from utils.data.transforms import resize
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

    @settings(max_examples=100)
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


def noisy(size: tuple[int, int]) -> Image.Image:
    """A photograph with noise of sigma 5."""
    values = np.asarray(photo(size=size)).astype(float)
    values += np.random.default_rng(5).normal(0, 5, values.shape)
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def squash(size: Size) -> Size:
    return Size(60, 60)


class TestDecodeResized:
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
    @pytest.mark.parametrize("side", [30, 60, 100, 103, 145, 150])
    def test_a_reduced_jpeg_differs_by_less_than_half_a_level(self, tmp_path, side, options):
        path = str(tmp_path / "photo.jpg")
        noisy((800, 600)).save(path, "JPEG", quality=90, **options)
        image, original = decode_resized(path, lambda size: shorter_side_to(side, size))
        assert original == (600, 800)
        assert image.permute(1, 2, 0).is_contiguous()
        whole = resize(decode(path), shorter_side_to(side, original))
        assert image.shape == whole.shape
        difference = (image.float() - whole.float()).abs().mean()
        assert 0 < difference < 0.5

    @pytest.mark.parametrize("size", [(1024, 683), (1023, 681), (1001, 1003)])
    def test_one_is_not_shifted_whatever_its_sides(self, tmp_path, size):
        """A chessboard shows a shift by a fraction of a pixel; photographs hide it."""
        path = str(tmp_path / "photo.jpg")
        board = np.indices(size[::-1]).sum(0) // 24 % 2 * 200
        Image.fromarray(board.astype(np.uint8)).convert("RGB").save(path, "JPEG", quality=95)
        for side in (32, 64, 100):
            size_of = functools.partial(shorter_side_to, side)
            image, original = decode_resized(path, size_of)
            whole = resize(decode(path), size_of(original))
            assert (image.float() - whole.float()).abs().mean() < 0.5

    @pytest.mark.parametrize(
        ("size", "wanted", "expected"),
        [
            ((4000, 3000), 512, 4),  # a phone's photograph, for training at 224
            ((3000, 4000), 256, 4),  # for evaluation
            ((8000, 6000), 256, 8),
            ((6000, 4500), 1024, 2),
            ((4000, 3000), 1024, 1),
            ((4002, 3002), 512, 2),  # libjpeg would add half a pixel at a quarter
            ((1024, 683), 128, 1),
            ((500, 500), 256, 1),
            ((500, 332), 512, 1),
            ((1, 60_000), 256, 1),
            ((4000, 3000), None, 1),
            ((12_000, 9_000), None, 2),  # 108 megapixels
            ((65_000, 65_000), None, 8),
            ((12_000, 9_000), 5000, 2),  # no less, for the limit
            ((12_001, 9_001), 2000, 2),
        ],
    )
    def test_is_reduced_as_far_as_quality_allows_and_the_limit_needs(
        self, tmp_path, size, wanted, expected
    ):
        path = tmp_path / "photo.jpg"
        photo().save(path, "JPEG")
        header = read_header(path.read_bytes())._replace(width=size[0], height=size[1])
        assert scale_of(path, header, wanted) == expected

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("size_of", [squash, lambda size: shorter_side_to(50, size)])
    def test_is_shrunk_before_it_is_turned(self, tmp_path, kind, size_of):
        """Every pixel is then within 2 of 255 of what turning first gives: rounding."""
        for orientation in range(1, 9):
            path = str(tmp_path / "photo")
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            photo(size=(120, 90)).save(path, kind, exif=exif)
            upright = decode(path)
            image, original = decode_resized(path, size_of)
            assert original == upright.shape[1:]
            expected = resize(upright, size_of(original))
            assert image.shape == expected.shape
            assert (image.int() - expected.int()).abs().max() <= (orientation > 1) * 2

    @pytest.mark.parametrize("size", [(500, 375), (375, 500), (620, 500), (48, 31)])
    def test_photographs_from_the_web_are_what_they_were(self, tmp_path, size):
        path = str(tmp_path / "photo.jpg")
        photo(size=size).save(path, "JPEG")
        for preset in PRESETS.values():
            for size_of in (preset.train_size, preset.eval_size):
                image, original = decode_resized(path, lambda size, of=size_of: of(224, size))
                assert torch.equal(image, resize(decode(path), size_of(224, original)))

    def test_over_the_limit_a_jpeg_is_reduced_and_a_progressive_one_up_to_twice(
        self, tmp_path, monkeypatch
    ):
        paths = {name: tmp_path / f"{name}.jpg" for name in ("baseline", "progressive", "cmyk")}
        photo(size=(50, 40)).save(paths["baseline"], "JPEG")
        photo(size=(50, 40)).save(paths["progressive"], "JPEG", progressive=True)
        photo("CMYK", size=(50, 40)).save(paths["cmyk"], "JPEG")
        for pixels, refused in ((1999, set()), (999, {"progressive"})):
            monkeypatch.setattr(image_files, "MAX_PIXELS", pixels)
            monkeypatch.setattr(image_files, "MAX_COEFFICIENT_PIXELS", 2 * pixels)
            for name, path in paths.items():
                if name in refused:
                    for read in (describe, decode_rgb, lambda path: decode(str(path))):
                        with pytest.raises(TooLarge, match=r"is 50x40 pixels, over the limit"):
                            read(path)
                    continue
                assert describe(path)[1:3] == (50, 40)
                assert decode_rgb(path).size == (25, 20)
                assert decode(str(path)).shape == (3, 20, 25)
                image, original = decode_resized(str(path), lambda size: Size(20, 20))
                assert (image.shape, original) == ((3, 20, 20), (40, 50))

    def test_a_jpeg_of_several_scans_is_one_that_keeps_its_coefficients(self, tmp_path):
        path = tmp_path / "photo.jpg"
        for options, keeps in (({}, False), ({"progressive": True}, True)):
            photo().save(path, "JPEG", **options)
            assert read_header(path.read_bytes()).keeps_coefficients is keeps
        photo().save(path, "JPEG")
        content = bytearray(path.read_bytes())
        content[content.index(b"\xff\xda") + 4] = 1  # components in the first scan
        assert read_header(bytes(content)).keeps_coefficients

    def test_names_one_that_is_too_large_after_the_resize(self, tmp_path):
        path = str(tmp_path / "line.png")
        Image.new("RGB", (1, 60_000)).save(path)
        with pytest.raises(TooLarge, match=r"line.png is 1x60000 .* it would be 256x15360000"):
            decode_resized(path, lambda size: shorter_side_to(256, size))
