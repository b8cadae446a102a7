"""utils/data/image_checks.py: what is known of every image before a run, and what is said of it."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.data import image_checks
from utils.data.decode import decode
from utils.data.digests import whole_digest
from utils.data.image_checks import MAX_DECODED_IN_CHECK, check_images
from utils.data.image_files import decode_rgb
from utils.data.presets import PRESETS, Size
from utils.data.splits import Split
from utils.data.structure import jpeg as jpeg_structure
from utils.data.structure import looks
from utils.errors import InputError

NOISE = Image.fromarray(
    np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
).resize((180, 120))


def encoded(format_: str = "JPEG", image: Image.Image = NOISE, **options: object) -> bytes:
    buffer = io.BytesIO()
    if format_ == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


JPEG = encoded()
PROGRESSIVE = encoded(progressive=True)
GREY = encoded(image=NOISE.convert("L"))
PNG = encoded("PNG")


def path_of(split: Split, i: int) -> Path:
    return split.root / split.paths[i]


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def without(png: bytes, kind: bytes) -> bytes:
    """`png` without its chunks of a kind."""
    kept, at = png[:8], 8
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        kept += b"" if png[at + 4 : at + 8] == kind else png[at:end]
        at = end
    return kept


def with_app1(jpeg: bytes, payload: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def of_size(jpeg: bytes, width: int, height: int) -> bytes:
    """`jpeg` whose header says another size."""
    at = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


@pytest.fixture
def split(tmp_path, make_split) -> Split:
    return make_split(tmp_path, [0, 1, 0, 1, 0])


@pytest.fixture
def refusal(split) -> Callable[..., str]:
    """Checks a split, of which an image is replaced, by headers and structure; says the error."""

    def check(content: bytes, **options: object) -> str:
        path_of(split, 2).write_bytes(content)
        with pytest.raises(InputError) as caught:
            check_images([split], [], **options)
        said = str(caught.value)
        assert said.startswith(f"1 of 5 images of split val cannot be used (first: {split.root}")
        return said

    return check


@pytest.fixture
def no_decoding(monkeypatch):
    """Decoding every image would take minutes."""

    def decode(path: Path) -> None:
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr(looks, "decode_rgb", decode)


class TestStructure:
    """Of any number of images, none of them decoded."""

    @pytest.mark.parametrize(
        "content",
        [
            JPEG,
            PROGRESSIVE,
            GREY,
            encoded(subsampling="4:1:1"),
            encoded(image=NOISE.convert("CMYK")),
            JPEG + bytes(20_000),
            JPEG + b"trailing words" * 30,
            JPEG + encoded("GIF") * 30,  # an album of the camera's
            with_app1(JPEG, b"Exif\0\0" + bytes(9000)),  # the header does not end in 4 KB
            of_size(JPEG, 12_000, 9_000),  # 108 megapixels: decoded at a half of its sides
            encoded("MPO", save_all=True, append_images=[NOISE]),
            PNG,
            PNG[:-12] + chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000) + PNG[-12:],
            PNG + b"after its end",
            encoded("PNG", NOISE.convert("P")),
            encoded("PNG", Image.fromarray(np.zeros((9, 9), np.uint16))),
            encoded("GIF"),
            encoded("WEBP"),
            encoded("WEBP", lossless=True) + bytes(7),
            encoded("BMP"),
            encoded("TIFF"),
            encoded("TIFF", compression="tiff_lzw"),
            encoded("PPM"),
            encoded("PPM", NOISE.convert("L")),
            encoded("AVIF"),
            encoded("HEIF"),
        ],
    )
    @pytest.mark.usefixtures("no_decoding")
    def test_whole_images_are_used(self, split, content):
        path_of(split, 0).write_bytes(content)
        check_images([split], [])

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (b"", "is empty"),
            (b"a text file\n" * 50, "is not an image of a kind that is read"),
            (bytes(5000), "it holds zeros"),
            (b"\xff\xd8\xff", "cannot be decoded"),
            (b"<!DOCTYPE html><html>404", "HTML"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
            (b"%PDF-1.7", "PDF"),
            (JPEG[:-2000], "is cut"),
            (JPEG[:-2000] + bytes(8192), "is cut"),  # its place on the disk was reserved
            (JPEG[:-40], "is cut"),
            (PROGRESSIVE[:-2000], "is cut"),
            (PROGRESSIVE[: PROGRESSIVE.rfind(b"\xff\xda")], "is cut"),  # the last scan
            (GREY[:-40], "is cut"),
            # The preview in its notes has an end marker of its own.
            (with_app1(JPEG, b"Exif\0\0" + JPEG)[: len(JPEG) + 900], "is cut"),
            (JPEG.replace(b"\xff\xdb", b"\xff\xee"), "cannot be decoded"),  # no quantization tables
            (JPEG.replace(b"\xff\xc4\0\x1f\0", b"\xff\xc4\0\x1f\7"), "cannot be decoded"),
            (JPEG.replace(b"\xff\xc4\0\x1f\0\0", b"\xff\xc4\0\x1f\0\x99"), "cannot be decoded"),
            (JPEG.replace(b"\3\1\x22\0", b"\3\1\x35\0"), "cannot be decoded"),  # sampling
            (of_size(JPEG, 65_535, 100), "cannot be decoded"),  # libjpeg has a limit of its own
            (of_size(PROGRESSIVE, 20_000, 10_000), "is 20000x10000 pixels, over the limit"),
            (PNG[:-1], "is cut"),
            (PNG[:-12], "is cut"),
            (PNG[:2000], "is cut"),
            (PNG[:2000] + PNG[-12:], "is"),
            (without(PNG, b"IDAT"), "without pixels"),
            (without(encoded("PNG", NOISE.convert("P")), b"PLTE"), "without the palette"),
            (PNG[:16] + b"\xff" + PNG[17:], "wrong checksum"),
            (PNG[:8] + chunk(b"CgBI", b"\0\0\0\2") + PNG[8:], "unknown chunk"),
            (PNG[:8] + chunk(b"IHDR", b"\0\0\x30\0" * 2 + b"\x08\2\0\0\0") + PNG[33:], "limit"),
            *((encoded(each)[:-900], "cannot be decoded") for each in ("WEBP", "BMP", "PPM")),
            *((encoded(each)[:-900], "cannot be decoded") for each in ("TIFF", "AVIF", "HEIF")),
            (encoded("GIF")[:-9000], "cannot be decoded"),
            (encoded("TIFF", Image.fromarray(np.full((9, 9), 7.5, np.float32))), "cannot be"),
        ],
    )
    def test_others_are_refused_and_the_reason_is_said(self, refusal, content, what):
        assert what in refusal(content)

    @pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (65_000, 2)])
    @pytest.mark.parametrize("format_", ["JPEG", "PNG"])
    def test_a_strip_that_grows_over_the_limit_is_refused(self, refusal, split, size, format_):
        strip = encoded(format_, Image.new("RGB", size))
        preset = PRESETS["vit"]
        said = refusal(strip, sizes_of=[lambda size: preset.eval_size(224, size)])
        assert f"is {size[0]}x{size[1]} pixels: resized for this run it would be" in said
        assert "; shrink or crop them; --skip_bad_images 1 leaves them out" in said
        check_images([split], [], sizes_of=[lambda size: preset.train_size(224, size)])
        check_images([split], [], sizes_of=[lambda size: Size(256, 256)])

    @pytest.mark.parametrize(
        ("make", "what"),
        [
            (os.mkfifo, "is a FIFO, not an image"),
            (os.mkdir, "is a folder, not an image"),
            (lambda path: path.symlink_to("/dev/zero"), "is a device, not an image"),
        ],
    )
    def test_what_is_no_file_is_not_waited_for(self, split, make, what):
        path_of(split, 2).unlink()
        make(path_of(split, 2))
        with pytest.raises(InputError, match=rf"1 of 5 .* \(first: {path_of(split, 2)} {what}\)"):
            check_images([split], [])


class TestEndMarker:
    @pytest.mark.parametrize("content", [JPEG, PROGRESSIVE, GREY, encoded(image=NOISE, quality=30)])
    @pytest.mark.parametrize(
        "lacking", [lambda jpeg: jpeg[:-2], lambda jpeg: jpeg[:-1], lambda j: j[:-2] + bytes(999)]
    )
    def test_an_image_that_lacks_it_alone_is_used_and_named(self, split, caplog, content, lacking):
        path, pixels = path_of(split, 1), []
        for each in (content, lacking(content)):
            path.write_bytes(each)
            pixels.append(np.asarray(decode_rgb(path)))
        assert np.array_equal(*pixels)
        assert np.array_equal(decode(str(path)).permute(1, 2, 0).numpy(), pixels[0])
        for used in ([], [split]):
            caplog.clear()
            check_images([split], used)
            said = "JPEG files that lack only their end marker, and are used: 1"
            assert f"{said} (first: {path})" in caplog.text

    @pytest.mark.parametrize("content", [JPEG, PROGRESSIVE])
    def test_a_cut_in_the_last_bytes_is_refused_or_decodes_to_the_same(self, split, content):
        path, refused = path_of(split, 0), 0
        path.write_bytes(content)
        whole = np.asarray(decode_rgb(path))
        for cut in range(1, 40):
            path.write_bytes(content[:-cut])
            try:
                check_images([split], [])
            except InputError:
                refused += 1
                assert jpeg_structure.completed_jpeg(content[:-cut]) is None
            else:
                assert np.abs(np.asarray(decode_rgb(path)).astype(int) - whole).max() < 8
        assert refused > 30


class TestDecoding:
    def test_up_to_64_images_are_decoded_and_above_only_looked_at(self, tmp_path, make_split):
        count = MAX_DECODED_IN_CHECK + 1
        assert count == 65
        split = make_split(tmp_path, [0] * count, photos=False)
        (tmp_path / "jpg").mkdir()
        for path in split.paths:
            (tmp_path / path).write_bytes(encoded(image=NOISE.resize((8, 8))))
        # Its chunks follow each other, but what they hold is no picture.
        pixels = chunk(b"IDAT", zlib.compress(b"too few"))
        path_of(split, 0).write_bytes(without(PNG, b"IDAT")[:-12] + pixels + PNG[-12:])
        check_images([split], [split])
        check_images([split], [])
        with pytest.raises(InputError, match=r"1 of 65 images .* cannot be decoded"):
            check_images([split], [split.select(range(64))])
        with pytest.raises(InputError, match=r"1 of 65 images"):
            check_images([split], [split.select(range(32, 64)), split.select(range(32))])
        check_images([split], [split.select(range(33, 65)), split.select(range(33))])

    def test_each_file_is_decoded_once(self, split, monkeypatch):
        decoded = []
        monkeypatch.setattr(image_checks, "decode_rgb", decoded.append)
        check_images([split, split], [split, split.select([1, 2])])
        assert sorted(decoded) == [split.path_of(i) for i in range(5)]


class TestMessages:
    def test_missing_images_are_counted_once_for_all(self, split):
        for i in (1, 3, 4):
            path_of(split, i).unlink()
        message = r"3 of 5 images of split val are missing in .*jpg \(first: photo_001.jpg\); fetch"
        with pytest.raises(InputError, match=message):
            check_images([split], [split.select([0])])  # those that are not used too
        path_of(split, 1).symlink_to("nowhere.jpg")  # no name is near that is missing itself
        with pytest.raises(InputError, match=r"\(first: photo_001.jpg\); fetch"):
            check_images([split], [])
        check_images([split.select([0, 2])], [])
        own = replace(split, dataset="csv")
        with pytest.raises(InputError, match=r"photo_001.jpg\); put them there, or take them"):
            check_images([own], [], may_be_damaged=9)

    @pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "photo_001.jpg/x.jpg", "a\0b.jpg"])
    def test_a_name_that_no_file_can_have_is_missing(self, split, name):
        paths = split.paths.astype(object)
        paths[2] = f"jpg/{name}"
        with pytest.raises(InputError, match=r"1 of 5 images of split val are missing"):
            check_images([replace(split, paths=paths.astype(str))], [])

    def test_troubles_of_several_kinds_are_counted(self, split):
        for i, content in enumerate((b"", JPEG[:-2000], PNG[:-12], b"<html>")):
            path_of(split, i).write_bytes(content)
        message = (
            r"4 of 5 images of split val cannot be used \(2 cut, 1 empty, 1 of a kind that is not "
            rf"read; first: {path_of(split, 0)} is empty\); fetch the whole archive again; "
            "--skip_bad_images 4 leaves them out"
        )
        with pytest.raises(InputError, match=message):
            check_images([split], [split])

    @pytest.mark.parametrize(
        ("dataset", "remedy"),
        [
            ("folder", "replace or remove them"),
            ("csv", "replace or remove them"),
            ("flower102", "fetch the whole archive again"),
            ("synthetic", "remove .*, and they are drawn again"),
        ],
    )
    def test_the_remedy_depends_on_whose_images_they_are(self, split, dataset, remedy):
        path_of(split, 0).write_bytes(JPEG[:-2000])
        with pytest.raises(InputError, match=rf"\); {remedy}; --skip_bad_images 1 leaves"):
            check_images([replace(split, dataset=dataset)], [])

    def test_a_resumed_run_has_to_allow_what_changes(self, split):
        path_of(split, 0).write_bytes(JPEG[:-2000])
        remedy = (
            "replace or remove them, and add --allow_change data; --skip_bad_images 1 "
            "--allow_change skip_bad_images leaves them out"
        )
        with pytest.raises(InputError, match=rf"\); {remedy}$"):
            check_images([replace(split, dataset="folder")], [], is_resumed=True)

    @pytest.mark.parametrize("allowed", [0, 5, 99])
    def test_a_split_whose_images_are_all_bad_is_refused_whatever_is_allowed(self, split, allowed):
        for i in range(len(split)):
            path_of(split, i).write_bytes(b"<html>")
        message = r"5 of 5 images of split val cannot be used .*\); fetch the whole archive again$"
        with pytest.raises(InputError, match=message):
            check_images([split], [], allowed)

    def test_an_image_that_may_not_be_read_is_said_to_be_that(self, split, monkeypatch):
        """Pretended: root may read every file, and tests may run as root."""
        open_file, path = os.open, path_of(split, 0)

        def denied(name: str, *args) -> int:
            if str(name) == str(path):
                raise PermissionError(13, "Permission denied", name)
            return open_file(name, *args)

        monkeypatch.setattr(os, "open", denied)
        message = rf"\(first: {path} cannot be read \(Permission denied\)\); make them readable"
        with pytest.raises(InputError, match=message):
            check_images([split], [])

    def test_damaged_images_of_all_splits_are_let_through_together(
        self, split, tmp_path, make_split
    ):
        other = make_split(tmp_path / "other", [0, 1], name="train")
        path_of(split, 0).write_bytes(JPEG[:-2000])
        path_of(other, 1).write_bytes(b"")
        check_images([other, split, split], [other, split], may_be_damaged=2)
        message = "1 of 2 images of split train and 1 of 5 images of split val cannot be used"
        with pytest.raises(InputError, match=message):
            check_images([other, split], [], may_be_damaged=1)
        path_of(other, 0).write_bytes(b"")
        with pytest.raises(InputError, match=r"\); fetch the whole archive again$"):
            check_images([other, split], [])  # without them nothing would be left to train on


class TestDigests:
    def test_twins_are_read_whole_and_a_file_of_two_splits_is_none(self, split):
        # Two that differ between their first and last 4 KB only.
        one, two = (path_of(split, i) for i in (0, 1))
        content = with_app1(JPEG, b"x" * 30_000)
        one.write_bytes(content)
        two.write_bytes(content[:9000] + b"y" + content[9001:])
        first, second = check_images([split, split.select([0, 2])], [])
        assert first.short[0] == first.short[1]
        assert first.whole.tolist() == [whole_digest(one), whole_digest(two), 0, 0, 0]
        assert second.values.tolist() == first.values[[0, 2]].tolist()
        assert len(set(first.values.tolist())) == 5

    @pytest.mark.parametrize(
        ("format_", "options"),
        [("BMP", {}), ("PPM", {}), ("TIFF", {}), ("TIFF", {"big_tiff": True})],
    )
    def test_files_of_bare_pixels_are_read_whole(self, split, format_, options):
        path_of(split, 0).write_bytes(encoded(format_, **options))
        path_of(split, 1).write_bytes(encoded("TIFF", compression="tiff_lzw"))
        (digests,) = check_images([split], [])
        assert digests.whole.tolist() == [whole_digest(path_of(split, 0)), 0, 0, 0, 0]
        assert digests.short[0] == 0

    def test_an_image_that_is_let_through_has_none(self, split):
        path_of(split, 3).write_bytes(b"")
        (digests,) = check_images([split], [], may_be_damaged=1)
        assert (digests.values == 0).tolist() == [False, False, False, True, False]
