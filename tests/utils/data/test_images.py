"""utils/data/image_files.py: Pillow's decoding, EXIF, and the checks of images before a run."""

import io
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import REPO
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.data import image_checks, image_files
from utils.data.decode import decode
from utils.data.image_checks import MAX_DECODED_IN_CHECK, check_images
from utils.data.image_files import decode_rgb, describe
from utils.data.splits import Split
from utils.errors import InputError, RunError


def pixels(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def jpeg_bytes(size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(5, 4)).resize(size).save(buffer, "JPEG")
    return buffer.getvalue()


def with_exif(jpeg: bytes, entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """`jpeg` with an EXIF block of (tag, type, count, value) entries, spelled byte by byte."""
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in sorted(entries):
        tiff += struct.pack("<HHI", tag, kind, count) + value
    payload = b"Exif\0\0" + tiff + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


class TestDecodeRgb:
    @pytest.mark.parametrize(
        "entry",
        [
            (0x0132, 12, 1, b"\x08\0\0\0"),  # date as a double
            (0x010F, 5, 1, b"\x08\0\0\0"),  # maker as a fraction
            (0x0100, 2, 1, b"x\0\0\0"),  # width as a letter
            (0x0102, 9, 1, b"\xff\xff\xff\xff"),  # bits per sample -1
        ],
        ids=["date", "maker", "width", "bits"],
    )
    def test_reads_photos_whose_exif_is_odd(self, tmp_path, save_photo, entry):
        """Odd notes in the margin do not make the pixels damaged."""
        plain = save_photo(tmp_path / "plain.jpg", seed=3)
        odd = tmp_path / "odd.jpg"
        odd.write_bytes(with_exif(plain.read_bytes(), [(0x0112, 3, 1, b"\x06\0\0\0"), entry]))
        upright = np.rot90(np.asarray(decode_rgb(plain)), -1)
        assert np.array_equal(np.asarray(decode_rgb(odd)), upright)

    def test_says_nothing_of_exif_that_is_cut(self, tmp_path, save_photo):
        plain = save_photo(tmp_path / "plain.jpg", seed=3)
        cut = tmp_path / "cut.jpg"
        cut.write_bytes(with_exif(plain.read_bytes(), [(0x010F, 2, 4000, b"\x08\0\0\0")]))
        # pytest has filters of its own.
        with pytest.warns(UserWarning, match="Corrupt EXIF data|Tag data larger than file"):
            assert np.array_equal(np.asarray(decode_rgb(cut)), np.asarray(decode_rgb(plain)))
        code = f"from utils.data.image_files import decode_rgb; decode_rgb({str(cut)!r})"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""

    @pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "YCbCr", "I;16"])
    def test_makes_every_mode_rgb(self, tmp_path, mode):
        path = tmp_path / "image"
        source = Image.fromarray(np.full((8, 10, 3), (200, 40, 90), dtype=np.uint8))
        format_ = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
        image = source.convert("L").convert(mode) if mode == "I;16" else source.convert(mode)
        image.save(path, format_)
        decoded = decode_rgb(path)
        assert (decoded.mode, decoded.size) == ("RGB", (10, 8))
        if mode in ("CMYK", "RGBA", "YCbCr"):
            assert np.abs(np.asarray(decoded).astype(int) - (200, 40, 90)).max() < 8

    def test_scales_16_bits_to_8(self, tmp_path):
        path = tmp_path / "grey.png"
        values = np.arange(0, 65536, 331, dtype=np.uint16).reshape(2, -1)
        Image.fromarray(values).save(path)
        assert np.array_equal(np.asarray(decode_rgb(path))[..., 0], values >> 8)

    @pytest.mark.parametrize("has_exif", [False, True])
    def test_names_a_png_with_damaged_pixels(self, tmp_path, has_exif):
        """Pillow loads the pixels when it looks for EXIF, and does not fail a second time."""
        path = tmp_path / "damaged.png"
        exif = Image.Exif()
        exif[0x0112] = 1
        Image.fromarray(pixels(40, 60)).save(path, exif=exif if has_exif else None)
        whole = path.read_bytes()
        start = whole.index(b"IDAT") + 4
        for at in range(start, len(whole) - 20, 97):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
            with pytest.raises(RunError, match=r"damaged.png cannot be decoded"):
                decode_rgb(path)
            path.write_bytes(whole[:at])
            with pytest.raises(RunError, match=r"damaged.png cannot be decoded"):
                decode_rgb(path)

    def test_turns_a_png_whose_exif_follows_the_pixels(self, tmp_path):
        path = tmp_path / "turned.png"
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels()).save(path, exif=exif)
        content = path.read_bytes()
        start = content.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        closing = content.index(b"IEND") - 4
        path.write_bytes(
            content[:start] + content[end:closing] + content[start:end] + content[closing:]
        )
        assert np.array_equal(np.asarray(decode_rgb(path)), np.rot90(pixels(), -1))
        assert describe(path)[:4] == ("PNG RGB", 6, 9, 6)

    @pytest.mark.filterwarnings("ignore")  # Pillow warns of EXIF that is damaged
    @pytest.mark.parametrize(
        "format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "DDS"]
    )
    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_decodes_or_names_whatever_is_damaged(self, tmp_path_factory, data, format_):
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "maker"
        extra = {"exif": exif} if format_ in ("JPEG", "PNG", "WEBP") else {}
        Image.fromarray(pixels()).save(buffer, format_, **extra)
        content = bytearray(buffer.getvalue())
        for _ in range(data.draw(st.integers(1, 6))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path_factory.getbasetemp() / "damaged.jpg"
        path.write_bytes(content)
        try:
            assert decode(str(path)).shape[0] == 3
        except RunError as error:
            assert "damaged.jpg" in str(error)  # noqa: PT017 - both endings are well


class TestCheckImages:
    @pytest.fixture
    def split(self, tmp_path, make_split):
        return make_split(tmp_path, [0, 1, 0, 1, 0])

    def path(self, split: Split, i: int) -> Path:
        return split.root / split.paths[i]

    def test_missing_images_are_counted_once_for_all(self, split):
        for i in (1, 3, 4):
            self.path(split, i).unlink()
        message = r"3 of 5 images of split val are missing in .*jpg \(first: photo_001.jpg\)"
        with pytest.raises(InputError, match=message):
            check_images([split], [split.select([0])])  # those that are not used too
        check_images([split.select([0, 2])], [])

    def test_a_name_that_no_file_can_have_is_missing(self, split):
        paths = split.paths.astype(object)
        paths[2] = "jpg/" + "x" * 300 + ".jpg"
        with pytest.raises(InputError, match=r"1 of 5 images of split val are missing"):
            check_images([replace(split, paths=paths.astype(str))], [])

    @pytest.mark.parametrize("used", [True, False])
    @pytest.mark.parametrize("content", [b"", b"a text file\n" * 50, bytes(5000), b"\xff\xd8\xff"])
    def test_empty_and_foreign_files_are_damage(self, split, content, used):
        for i in (2, 4):
            self.path(split, i).write_bytes(content)
        message = r"2 of 5 images of split val are empty or damaged \(first: .*photo_002.jpg\)"
        with pytest.raises(InputError, match=message):
            check_images([split], [split] if used else [])

    @pytest.mark.parametrize("cut", [100, 2000])
    def test_a_png_that_is_cut_is_refused(self, split, save_photo, cut):
        path = self.path(split, 0)
        save_photo(path, format="PNG")
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(InputError, match=r"1 of 5 images .* empty or damaged"):
            check_images([split], [])

    def test_a_png_is_decoded_only_where_few_are_used(self, split, save_photo, monkeypatch):
        """Decoding takes milliseconds an image, and a folder may hold 50,000."""
        save_photo(self.path(split, 0), format="PNG")
        decoded = []
        monkeypatch.setattr(image_checks, "decodes", lambda path: not decoded.append(path))
        check_images([split], [])
        assert decoded == []
        check_images([split], [split])
        assert len(decoded) == len(split)

    @pytest.mark.parametrize("used", [True, False])
    @pytest.mark.parametrize("padding", [b"\x00" * 300, b"\x00" * 20_000, b"trailing words" * 30])
    def test_padding_after_the_end_passes(self, split, padding, used):
        with self.path(split, 0).open("ab") as file:
            file.write(padding)
        check_images([split], [split] if used else [])

    @pytest.mark.parametrize("used", [True, False])
    def test_a_cut_in_the_last_bytes_decodes_or_is_refused(self, split, used):
        path = self.path(split, 0)
        whole = path.read_bytes()
        refused = 0
        for cut in range(1, 40):
            path.write_bytes(whole[:-cut])
            try:
                check_images([split], [split] if used else [])
            except InputError:
                refused += 1
            else:
                assert decode_rgb(path).size == (24, 20)
        assert refused > 30

    def test_up_to_64_images_are_decoded_and_above_only_looked_at(self, tmp_path, make_split):
        count = MAX_DECODED_IN_CHECK + 1
        assert count == 65
        split = make_split(tmp_path, [0] * count, photos=False)
        (tmp_path / "jpg").mkdir()
        for path in split.paths:
            (tmp_path / path).write_bytes(jpeg_bytes((8, 8)))
        # Both markers are there, what lies between is no image.
        (tmp_path / split.paths[0]).write_bytes(b"\xff\xd8\xff" + b"x" * 100 + b"\xff\xd9")
        check_images([split], [split])
        check_images([split], [])
        with pytest.raises(InputError, match=r"1 of 64 images"):
            check_images([split], [split.select(range(64))])
        with pytest.raises(InputError, match=r"1 of 32 images"):
            check_images([split], [split.select(range(32, 64)), split.select(range(32))])
        check_images([split], [split.select(range(33, 65)), split.select(range(33))])

    @pytest.mark.parametrize(("kind", "used"), [("PNG", False), ("JPEG", True)])
    def test_an_image_of_too_many_pixels_is_said_to_be_that(
        self, split, save_photo, monkeypatch, kind, used
    ):
        """A PNG always; a JPEG where images are few enough to be decoded."""
        path = save_photo(self.path(split, 1), format=kind, size=(50, 40))
        for module in (image_checks, image_files):
            monkeypatch.setattr(module, "MAX_PIXELS", 50 * 40 - 1)
        message = (
            rf"1 of 5 images .* too large; first: image {path} is 50x40 pixels, over the limit"
        )
        with pytest.raises(InputError, match=message):
            check_images([split], [split] if used else [])
        check_images([split], [], may_be_damaged=1)

    def test_an_image_that_may_not_be_read_is_damage(self, split, monkeypatch):
        """Pretended: root may read every file, and tests may run as root."""
        open_file, path = Path.open, self.path(split, 0)

        def denied(self: Path, *args, **kwargs) -> object:
            if self == path:
                raise PermissionError(13, "Permission denied", str(self))
            return open_file(self, *args, **kwargs)

        monkeypatch.setattr(Path, "open", denied)
        with pytest.raises(InputError, match=rf"1 of 5 .* damaged \(first: {path}\)"):
            check_images([split], [])
