"""utils/data/image_files.py: Pillow's decoding, EXIF, and the checks of images before a run."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from helpers import REPO
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.data.decode import decode
from utils.data.image_files import decode_rgb, describe
from utils.errors import RunError


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
    @settings(max_examples=25)
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
