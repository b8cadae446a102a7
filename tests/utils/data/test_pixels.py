"""utils/data/images/: range, transparency and color of every kind of image."""

import os
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from raw_images import chunk, display_p3, write_png, write_tiff

from utils.data.decode import decode
from utils.data.formats import MANY_HEIC, heic_note
from utils.data.image_checks import check_images
from utils.data.image_files import decode_rgb, describe
from utils.errors import RunError

RAMP = np.linspace(0, 1, 24).reshape(4, 6)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\nshowpage\n%%EOF\n"


def ramp(dtype: str, largest: float) -> np.ndarray:
    """Values from 0 to `largest`, (4, 6)."""
    return (RAMP * largest).astype(dtype)


def grey(path: os.PathLike) -> np.ndarray:
    """The decoded pixels, which must be grey, (H, W)."""
    pixels = decode(str(path)).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, np.asarray(decode_rgb(path)))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


class TestRange:
    @pytest.mark.parametrize("is_packed", [False, True])
    @pytest.mark.parametrize(
        ("dtype", "largest", "tags"),
        [
            ("u1", 255, {}),
            ("u2", 65535, {}),
            ("u2", 4095, {"largest": 4095}),
            ("u2", 1023, {"largest": 1023}),
            ("u2", 16383, {"largest": 16383, "photometric": 0}),  # 0 is white
            ("u2", 65535, {"photometric": 0}),
            ("i2", 32767, {"largest": 32767}),
            ("u4", 4095, {"largest": 4095}),
            ("f4", 1, {}),
            ("f4", 1, {"photometric": 0}),
        ],
    )
    def test_a_tiff_has_the_range_that_its_header_says(
        self, tmp_path, dtype, largest, tags, is_packed
    ):
        path = write_tiff(tmp_path / "grey.tif", ramp(dtype, largest), "<", is_packed, **tags)
        found = grey(path).astype(int)
        expected = 255 * (1 - RAMP if tags.get("photometric") == 0 else RAMP)
        assert np.abs(found - expected).max() <= 1
        assert {found.min(), found.max()} == {0, 255}
        assert describe(path).needs_decoding is (dtype == "f4")

    @pytest.mark.parametrize("largest", [3000, 255, 65535, ()])
    def test_a_largest_value_that_is_no_range_is_not_taken_for_one(self, tmp_path, largest):
        values = ramp("u2", 65535)
        path = write_tiff(tmp_path / "grey.tif", values, largest=largest)
        assert np.array_equal(grey(path), values >> 8)

    @pytest.mark.parametrize("scale", [1, 257])
    def test_a_palette_of_8_bits_in_a_tiff_is_not_black(self, tmp_path, scale):
        colors = np.arange(768, dtype=np.uint16) % 256
        values = ramp("u1", 255)
        tags = {"photometric": 3, "colors": tuple((colors * scale).tolist())}
        assert np.array_equal(grey(write_tiff(tmp_path / "a.tif", values, **tags)), values)

    def test_12_bits_in_a_png_stay_dark_and_the_depth_is_described(self, tmp_path):
        values = ramp("u2", 4095)
        path = write_png(tmp_path / "dark.png", values, chunk(b"sBIT", b"\x0c"))
        assert np.array_equal(grey(path), values >> 8)
        assert describe(path).bits == 16

    @pytest.mark.parametrize("channels", [3, 4])
    def test_16_bits_of_color_are_cut_to_their_high_bytes(self, tmp_path, channels):
        values = np.random.default_rng(2).integers(0, 65536, (4, 6, channels), dtype=np.uint16)
        values[..., 3:] = 65535
        for path in (
            write_png(tmp_path / "a.png", values),
            *(
                write_tiff(tmp_path / f"a{order == '<'}.tif", values, order, extra=(2,))
                for order in "<>"
                if channels == 4
            ),
        ):
            assert np.array_equal(np.asarray(decode_rgb(path)), values[..., :3] >> 8)
            assert describe(path).bits == 16

    @pytest.mark.parametrize("maxval", [1, 100, 1023, 4095, 65535])
    def test_a_pnm_has_the_range_of_its_maxval(self, tmp_path, maxval):
        path = tmp_path / "grey.pgm"
        values = ramp(">u2" if maxval > 255 else "u1", maxval)
        path.write_bytes(b"P5\n6 4\n%d\n" % maxval + values.tobytes())
        assert np.abs(grey(path) - 255 * (values / maxval)).max() <= 1

    @pytest.mark.parametrize(
        ("dtype", "tags", "words"),
        [
            ("i2", {}, r"SampleFormat 2 \(signed\), 16 bits: nothing says"),
            ("u4", {}, r"SampleFormat 1 \(unsigned\), 32 bits: nothing says"),
            ("i4", {"largest": 65535}, r"SampleFormat 2 \(signed\), 32 bits: nothing says"),
            ("i1", {}, r"SampleFormat 2 \(signed\), 8 bits: nothing says"),
            ("f8", {}, r"SampleFormat 3 \(float\), 64 bits, which is not read"),
            ("u2", {"bits": 14}, r"SampleFormat 1 \(unsigned\), 14 bits, which is not read"),
        ],
    )
    def test_values_of_unknown_range_are_refused_from_the_header(
        self, tmp_path, dtype, tags, words
    ):
        path = write_tiff(tmp_path / "grey.tif", ramp(dtype, 100), **tags)
        for read in (describe, decode_rgb):
            with pytest.raises(RunError, match=words):
                read(path)

    @pytest.mark.parametrize(
        "write",
        [
            lambda path: write_tiff(path, np.zeros((4, 6, 3), "u2"), planar=2),
            lambda path: write_tiff(path, ramp("f4", 1), ">", True),
        ],
        ids=["planes of 16 bits", "packed big-endian floats"],
    )
    def test_what_pillow_garbles_is_refused(self, tmp_path, write):
        with pytest.raises(RunError, match="planes, or big-endian and packed"):
            describe(write(tmp_path / "garbled.tif"))

    @pytest.mark.parametrize("value", [1.5, -0.1, 255.0, np.nan, np.inf])
    def test_floats_outside_0_to_1_are_refused_when_decoded(self, tmp_path, value):
        values = ramp("f4", 1)
        values[1, 1] = value
        path = write_tiff(tmp_path / "grey.tif", values)
        assert describe(path).needs_decoding
        with pytest.raises(RunError, match=r"SampleFormat 3 \(float\) of 32 bits, go from .* not"):
            decode_rgb(path)


class TestTransparency:
    @pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF", "GIF", "AVIF"])
    def test_a_drawing_on_transparent_black_is_on_white(self, tmp_path, format_):
        drawing = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
        drawing.paste((0, 0, 0, 255), (8, 8, 24, 24))
        drawing.save(tmp_path / "drawing", format_)
        pixels = np.asarray(decode_rgb(tmp_path / "drawing"))
        assert pixels[:6].min() > 250
        assert pixels[12:20, 12:20].max() < 5

    @pytest.mark.parametrize("alpha", [0, 64, 128, 255])
    @pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
    def test_half_transparent_pixels_are_mixed_with_white(self, tmp_path, mode, alpha):
        path = tmp_path / "half.png"
        if mode == "P":
            half = Image.new("P", (3, 3), 0)
            half.putpalette([40, 40, 40])
            half.save(path, transparency=bytes([alpha]))
        else:
            Image.new(mode, (3, 3), (40,) * (len(mode) - 1) + (alpha,)).save(path)
        assert np.abs(grey(path).astype(int) - (255 + (40 - 255) * alpha / 255)).max() <= 1

    @pytest.mark.parametrize(("dtype", "channels"), [("u1", 1), ("u2", 1), ("u1", 3), ("u2", 3)])
    def test_the_color_that_a_png_calls_transparent_is_white(self, tmp_path, dtype, channels):
        # In 16 bits of color Pillow has only the high bytes to compare.
        value, key = (90, 7) if dtype == "u1" else (90 << 8, 7 << 8 | 7)
        values = np.full((4, 6, channels), value, dtype)
        values[0, 0] = key
        key = chunk(b"tRNS", struct.pack(f">{channels}H", *[key] * channels))
        pixels = np.asarray(decode_rgb(write_png(tmp_path / "keyed.png", values, key)))
        assert (pixels[0, 0] == 255).all()
        assert (pixels[1:] == 90).all()

    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    def test_so_is_a_grey_of_few_bits(self, tmp_path, bits):
        header = struct.pack(">IIBBBBB", 8 // bits, 1, bits, 0, 0, 0, 0)
        row = zlib.compress(b"\0" + bytes([1 << (8 - bits)]))  # 1, 0, 0, ...
        path = write_png(tmp_path / "keyed.png", np.zeros((1, 1), "u1"))
        for key, expected in ((1, 0), (0, 255 // (2**bits - 1))):
            parts = (b"IHDR", header), (b"tRNS", struct.pack(">H", key)), (b"IDAT", row)
            content = b"".join(chunk(*part) for part in (*parts, (b"IEND", b"")))
            path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
            found = grey(path)[0]
            assert found[0] == (255 if key == 1 else expected)
            assert (found[1:] == (255 if key == 0 else 0)).all()


class TestProfiles:
    @pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_display_p3_becomes_srgb(self, tmp_path, format_):
        path = tmp_path / "p3"
        photo = Image.new("RGB", (16, 16), (200, 100, 50))
        extra = {"quality": 100} if format_ in ("JPEG", "WEBP") else {}
        photo.save(path, format_, icc_profile=display_p3(), **extra)
        pixels = decode(str(path)).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(pixels - (215, 93, 31)).max() <= 3
        assert not describe(path).has_damaged_profile

    def test_grey_and_cmyk_profiles_and_srgb_itself(self, tmp_path):
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        photo = Image.new("RGB", (16, 16), (200, 100, 50))
        photo.save(tmp_path / "plain.png", icc_profile=srgb)
        assert np.array_equal(np.asarray(decode_rgb(tmp_path / "plain.png")), np.asarray(photo))
        Image.new("L", (16, 16), 90).save(tmp_path / "grey.jpg", icc_profile=display_p3())
        assert np.abs(grey(tmp_path / "grey.jpg").astype(int) - 90).max() <= 1

    @pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF"])
    @pytest.mark.parametrize("profile", [b"no profile", display_p3()[:300], b"\0" * 5000])
    def test_a_damaged_one_counts_as_srgb_and_is_described(self, tmp_path, format_, profile):
        path = tmp_path / "odd"
        photo = Image.new("RGB", (16, 16), (200, 100, 50))
        photo.save(path, format_, icc_profile=profile)
        assert np.abs(np.asarray(decode_rgb(path)).astype(int) - (200, 100, 50)).max() <= 2
        assert describe(path).has_damaged_profile

    def test_damaged_ones_are_counted_in_one_line_before_a_run(self, tmp_path, make_split, caplog):
        split = make_split(tmp_path, [0, 1, 0, 1, 0])
        for number, (format_, profile) in enumerate(
            (("JPEG", b"odd"), ("PNG", b"odd"), ("TIFF", b"odd"), ("JPEG", display_p3()))
        ):
            path = split.path_of(number)
            Image.effect_noise((24, 20), 50).convert("RGB").save(path, format_, icc_profile=profile)
        check_images([split], [])
        line = "images whose color profile is damaged, and counts as sRGB: 3 (first: {})"
        assert caplog.text.count(line.format(split.path_of(0))) == 1

    def test_one_for_other_pixels_counts_as_damaged(self, tmp_path):
        Image.new("CMYK", (16, 16)).save(tmp_path / "cmyk.jpg", icc_profile=display_p3())
        assert describe(tmp_path / "cmyk.jpg").has_damaged_profile
        decode_rgb(tmp_path / "cmyk.jpg")


class TestNotes:
    def test_a_png_with_megabytes_of_text_is_read_and_nothing_large_is_unpacked(self, tmp_path):
        bomb = zlib.compress(bytes(300 << 20), 9)
        values = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        path = write_png(
            tmp_path / "notes.png",
            values,
            chunk(b"tEXt", b"a\0" + b"x" * 3_000_000),
            *[chunk(b"tEXt", b"b%d\0" % i + b"y" * 900_000) for i in range(80)],
            chunk(b"zTXt", b"c\0\0" + bomb),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
            chunk(b"iCCP", b"d\0\0" + bomb),
            b"\0\0\0\2eXIfMM\0\0\0\0",  # with a wrong checksum
            chunk(b"acTL", b"short"),
        )
        assert np.array_equal(np.asarray(decode_rgb(path)), values)
        assert describe(path).has_damaged_profile

    @pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
    def test_damaged_notes_do_not_matter(self, tmp_path, format_):
        path = tmp_path / "notes"
        photo = Image.new("RGB", (16, 16), (200, 100, 50))
        exif = Image.Exif()
        exif[0x010F] = "maker"
        extra = {"resolution": 72} if format_ == "TIFF" else {"exif": exif.tobytes()}
        photo.save(path, format_, **extra)
        if format_ == "TIFF":  # a resolution of another type
            content = path.read_bytes()
            tag = struct.pack("<HH", 282, 5)
            assert tag in content
            path.write_bytes(content.replace(tag, struct.pack("<HH", 282, 2)))
        else:
            content = path.read_bytes()
            assert b"MM\0*" in content
            path.write_bytes(content.replace(b"MM\0*", bytes(4)))
        assert describe(path)[1:4] == (16, 16, 1)
        assert np.abs(np.asarray(decode_rgb(path)).astype(int) - (200, 100, 50)).max() <= 3

    def test_an_unknown_chunk_that_a_decoder_must_know_is_named(self, tmp_path):
        path = write_png(tmp_path / "ios.png", np.zeros((4, 6), "u1"), chunk(b"CgBI", bytes(4)))
        for read in (describe, decode_rgb):
            with pytest.raises(RunError, match="unknown chunk CgBI"):
                read(path)


class TestFormats:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (EPS, "it is PostScript"),
            (b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIII", 30, len(EPS), 0, 0, 0, 0) + EPS, "Post"),
            (b"%PDF-1.4\n" + EPS, "it is PDF"),
            (b"\n<!DOCTYPE html><html></html>", "it is HTML"),
            (b"SIMPLE  =                    T", "not an image of a kind that is read"),  # FITS
            (b"\xd7\xcd\xc6\x9a" + bytes(60), "not an image of a kind that is read"),  # WMF
            (b"\0\0\0 ftypqt  " + bytes(40), "it is a video"),
            (b"\0\0\0 ftypheic" + bytes(40), "it is cut or damaged"),
            (b"", "it is empty"),
        ],
    )
    @pytest.mark.parametrize("name", ["photo.jpg", "photo.tif", "photo.eps"])
    def test_only_meant_formats_are_opened_and_nothing_runs(
        self, tmp_path, monkeypatch, content, words, name
    ):
        """A program that is called Ghostscript leaves a mark; none is found."""
        mark, programs = tmp_path / "mark", tmp_path / "bin"
        programs.mkdir()
        for program in ("gs", "gswin64c", "djpeg", "convert"):
            (programs / program).write_text(f"#!/bin/sh\ntouch {mark}\n")
            (programs / program).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        path = tmp_path / name
        path.write_bytes(content)
        for read in (describe, decode_rgb, lambda path: decode(str(path))):
            with pytest.raises(RunError, match=rf"image {path} cannot be decoded \(.*{words}"):
                read(path)
        assert not mark.exists()

    @pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a pipe", "folder"])
    def test_what_is_no_file_is_refused_and_not_waited_for(self, tmp_path, monkeypatch, kind):
        path = tmp_path / "photo.jpg"
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        if kind == "socket":
            socket.socket(socket.AF_UNIX).bind(path.name)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        else:
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to("pipe")
        for read in (describe, decode_rgb, lambda path: decode(str(path))):
            with pytest.raises(RunError, match=rf"image {path} cannot be decoded"):
                read(path)


class TestHeif:
    @pytest.fixture
    def save(self, tmp_path):
        pillow_heif = pytest.importorskip("pillow_heif")

        def save(image: Image.Image, **options: bytes) -> os.PathLike:
            path = tmp_path / "photo.HEIC"
            pillow_heif.from_pillow(image).save(path, quality=95, **options)
            return path

        return save

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_is_turned_once(self, tmp_path, save, orientation):
        """libheif turns it, and its EXIF, which says so too, does not turn it again."""
        corners = np.zeros((64, 96, 3), np.uint8)
        corners[:32, :48], corners[32:, :48], corners[:32, 48:] = (250, 0, 0), (0, 250, 0), 250
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo = Image.fromarray(corners)
        path = save(photo, exif=exif.tobytes())
        photo.save(tmp_path / "photo.png", exif=exif)
        expected = np.asarray(decode_rgb(tmp_path / "photo.png")).astype(int)
        found = np.asarray(decode_rgb(path)).astype(int)
        assert np.abs(found - expected).mean() < 4
        assert describe(path)[:3] == ("HEIF RGB", *expected.shape[1::-1])

    def test_alpha_is_on_white_and_display_p3_becomes_srgb(self, save):
        assert np.asarray(decode_rgb(save(Image.new("RGBA", (64, 64))))).min() > 250
        photo = Image.new("RGB", (64, 64), (200, 100, 50))
        photo.info["icc_profile"] = display_p3()
        pixels = np.asarray(decode_rgb(save(photo))).astype(int)
        assert np.abs(pixels - (215, 93, 31)).max() <= 6

    @pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
    def test_one_that_is_cut_is_named_in_one_line(self, save, share):
        path = save(Image.effect_noise((64, 64), 50).convert("RGB"))
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(RunError, match=r"photo.HEIC cannot be decoded \([^\n]+\)$"):
            decode(str(path))

    def test_a_run_on_many_says_what_a_cache_saves(self):
        assert heic_note(MANY_HEIC - 1) is None
        assert heic_note(2000) == (
            "2000 images are HEIC, which decodes six times as slowly as JPEG: at 12 megapixels "
            "about 14 minutes of one core in every epoch; --cache disk decodes them once"
        )
