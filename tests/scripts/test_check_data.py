"""Test scripts/check_data.py: what it finds in a dataset, and how it ends."""

import errno
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from forked import CONTEXT
from helpers import REPO, read_json
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_birds import write_cub
from PIL import Image, ImageEnhance

from scripts import check_data
from scripts.data_check import contact_sheet, duplicates
from scripts.data_check import report as data_report
from scripts.data_check import scan as image_scan
from scripts.data_check.scan import collect, is_union
from utils.data.catalog import get_spec
from utils.data.splits import Split
from utils.dataset import open_split
from utils.ownership import MARKER, is_ours

# What every process of a check does: before it opens a certain image, it waits until the other end
# of a pipe is closed.
WAITING = """
import os
import re
really = os.open
def waiting(path, *args, **options):
    if str(path).endswith("/6.jpg"):
        pipe = really("{pipe}", os.O_RDONLY)
        while os.read(pipe, 1):
            pass
    return really(path, *args, **options)
os.open = waiting
"""


def photo(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Smooth colors, other ones for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, kind: str = "JPEG", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, kind, **options)
    return path


def check(dataset: str, root: Path, output: Path, *flags: str) -> int:
    return check_data.main(
        [dataset, str(root), "--output", str(output), "--num_workers", "1", *flags]
    )


@pytest.fixture(scope="module", autouse=True)
def _forked():
    """Importing torch takes each spawned process seconds; how they end is tested with those."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_scan, "START_METHOD", CONTEXT.get_start_method())
        yield


@pytest.fixture(scope="module")
def troubled(tmp_path_factory) -> Path:
    """Class folders with everything in them that is to be found."""
    root = tmp_path_factory.mktemp("troubled")
    train, val = root / "train", root / "val"
    for i in range(3):
        save(train / "rose" / f"{i}.jpg", photo(i), quality=95)
        save(train / "fern" / f"{i}.jpg", photo(10 + i), quality=95)
    save(val / "rose" / "own.jpg", photo(20))
    save(val / "fern" / "own.png", photo(21).convert("L"), "PNG")
    # The same file in both splits, and the same pixels in another format, of another class.
    shutil.copy(train / "rose" / "0.jpg", val / "rose" / "copy.jpg")
    with Image.open(train / "fern" / "0.jpg") as same:
        save(val / "rose" / "same.png", same, "PNG")
    # The same picture, saved in another way.
    save(val / "rose" / "smaller.jpg", photo(1).resize((60, 45)), quality=60)
    save(val / "fern" / "brighter.jpg", ImageEnhance.Brightness(photo(11)).enhance(1.2))
    # Twice in one split.
    shutil.copy(train / "fern" / "2.jpg", train / "fern" / "2 again.jpg")
    # Damaged: cut, empty, no image, and with a hole that libjpeg bridges.
    whole = (train / "rose" / "2.jpg").read_bytes()
    (train / "rose" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (val / "fern" / "empty.jpg").touch()
    (val / "fern" / "text.jpg").write_text("no image")
    middle = save(train / "fern" / "hole.jpg", photo(30), quality=95)
    content = bytearray(middle.read_bytes())
    content[len(content) // 2 :] = bytes(30) + b"\xff\xd9"
    middle.write_bytes(content)
    # Other kinds.
    save(train / "fern" / "cmyk.jpg", photo(31).convert("CMYK"))
    exif = Image.Exif()
    exif[274] = 6
    save(train / "rose" / "turned.jpg", photo(32), exif=exif)
    # Not read.
    (train / "rose" / "clip.MOV").touch()
    (root / "cover.jpg").touch()
    return root


class Found(NamedTuple):
    """What a check of `troubled` leaves behind."""

    code: int
    stdout: str
    stderr: str
    output: Path
    report: dict


@pytest.fixture(scope="module")
def found(troubled, tmp_path_factory) -> Found:
    """One packet for each process, so that the second may come first."""
    patch = pytest.MonkeyPatch()
    patch.setattr(image_scan, "AT_A_TIME", 10)
    output = tmp_path_factory.mktemp("report") / "of it"
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        code = check("folder", troubled, output, "--num_workers", "2")
    patch.undo()
    report = read_json(output / "report.json")
    return Found(code, stdout.getvalue(), stderr.getvalue(), output, report)


def names(group: dict) -> list[str]:
    return sorted(image["path"] for image in group["images"])


class TestFindings:
    def test_end_with_1_and_one_line(self, found):
        assert found.code == 1
        assert found.stderr == (
            "error: 3 images are missing or damaged (first: train/rose/cut.jpg); replace them or "
            f"leave them out, {found.output / 'report.json'} names all\n"
        )
        assert "exact duplicates across splits: 2" in found.stdout

    def test_of_what_is_not_read(self, found, troubled):
        notes = [
            f"passed over in {troubled}: images in no class folder: 1 (cover.jpg)",
            f"passed over in {troubled / 'train'}: files that are not images by their ending: "
            ".mov 1",
        ]
        assert found.report["notes"] == notes
        assert found.stdout.splitlines()[1:3] == notes

    def test_of_damage(self, found):
        report = found.report
        assert {image["path"] for image in report["unreadable"]} == {
            "train/rose/cut.jpg",
            "val/fern/empty.jpg",
            "val/fern/text.jpg",
        }
        assert all(image["path"] in image["message"] for image in report["unreadable"])
        (hole,) = report["decoded_with_a_warning"]
        assert hole["path"] == "train/fern/hole.jpg"
        assert "Corrupt JPEG data" in hole["message"]

    def test_of_exact_duplicates(self, found):
        report = found.report
        across = [group for group in report["exact_duplicates"] if group["across_splits"]]
        assert sorted((names(group), group["labels_differ"]) for group in across) == [
            (["train/fern/0.jpg", "val/rose/same.png"], True),
            (["train/rose/0.jpg", "val/rose/copy.jpg"], False),
        ]
        (within,) = [group for group in report["exact_duplicates"] if not group["across_splits"]]
        assert names(within) == ["train/fern/2 again.jpg", "train/fern/2.jpg"]

    def test_of_near_duplicates(self, found):
        report = found.report
        assert sorted(names(pair) for pair in report["near_duplicates"]) == [
            ["train/fern/1.jpg", "val/fern/brighter.jpg"],
            ["train/rose/1.jpg", "val/rose/smaller.jpg"],
        ]

    def test_of_counts(self, found):
        report = found.report
        assert report["classes"] == [
            {"index": 0, "class": "fern", "train": 6, "val": 4},
            {"index": 1, "class": "rose", "train": 5, "val": 4},
        ]
        train, val = report["splits"]["train"], report["splits"]["val"]
        assert (train["samples"], train["unreadable"], train["missing"]) == (11, 1, 0)
        assert (val["samples"], val["unreadable"], val["classes"]) == (8, 2, 2)
        assert (train["smallest_class"], train["largest_class"]) == (5, 6)

    def test_of_sizes_and_kinds(self, found, troubled):
        report = found.report
        assert report["kinds"] == {"JPEG RGB": 13, "PNG L": 1, "PNG RGB": 1, "JPEG CMYK": 1}
        assert report["exif_orientations"] == {"1": 15, "6": 1}
        assert report["sizes"]["width"] == {"min": 60, "median": 120, "max": 120}
        assert report["sizes"]["height"] == {"min": 45, "median": 90, "max": 120}  # turned
        assert report["sizes"]["smallest"] == "val/rose/smaller.jpg"
        largest = max(path.stat().st_size for path in troubled.rglob("*") if path.is_file())
        assert report["sizes"]["kilobytes"]["max"] == pytest.approx(largest / 1e3, abs=1e-3)

    def test_are_a_readable_table(self, found):
        lines = (found.output / "report.txt").read_text("utf-8").splitlines()
        assert "train      11        0           1        2         5        6" in lines
        assert "    1  rose       5    4" in lines
        assert "  train train/fern/0.jpg = val val/rose/same.png; of different classes" in lines

    def test_have_a_contact_sheet(self, found, troubled):
        side = contact_sheet.SIDES[0][1]
        with Image.open(found.output / "contact_sheet.png") as sheet:
            assert sheet.size == (2 * side, side + contact_sheet.CAPTION_HEIGHT)
            centers = [sheet.getpixel((side // 2 + i * side, side // 2)) for i in range(2)]
        for center, path in zip(centers, ("fern/0.jpg", "rose/0.jpg"), strict=True):
            with Image.open(troubled / "train" / path) as image:
                expected = image.getpixel((60, 45))
            assert np.abs(np.subtract(center, expected)).max() < 12


def test_data_of_which_nothing_is_here_is_a_failure(tmp_path, capsys):
    """As where every path of a list has a wrong beginning."""
    root = write_cub(tmp_path / "data", photos=False)
    assert check("cub", root, tmp_path / "report") == 1
    captured = capsys.readouterr()
    assert "no image exists of: train, test" in captured.out
    assert f"error: {root} holds no image of CUB_200_2011; " in captured.err


def test_a_split_of_which_nothing_is_here_is_said_but_no_failure(tmp_path, capsys):
    """And the split that is here is not compared with itself."""
    root = write_cub(tmp_path / "data")
    train, test = (open_split(get_spec("cub"), root, name) for name in ("train", "test"))
    for position in range(len(test)):
        Path(test.path_of(position)).unlink()
    save(Path(train.path_of(0)), photo(1))
    save(Path(train.path_of(1)), photo(1), quality=50)
    assert check("cub", root, tmp_path / "report") == 0
    assert "no image exists of: test" in capsys.readouterr().out
    report = read_json(tmp_path / "report" / "report.json")
    assert (report["splits"]["test"]["missing"], report["missing"]) == (6, [])
    assert (report["near_duplicates_found"], report["near_duplicates"]) == (0, [])


def test_an_image_that_is_missing_is_a_failure(tmp_path, capsys):
    root = write_cub(tmp_path / "data")
    test = open_split(get_spec("CUB_200_2011"), root, "test")
    Path(test.path_of(2)).unlink()
    assert check("cub", root, tmp_path / "report") == 1
    assert f"first: {test.paths[2]}" in capsys.readouterr().err
    (missing,) = read_json(tmp_path / "report" / "report.json")["missing"]
    assert missing["split"] == "test"


def test_of_many_findings_the_text_names_the_first(tmp_path, monkeypatch):
    """And of near duplicates even the JSON has only the nearest; one heap is searched in itself."""
    monkeypatch.setattr(data_report, "LISTED", 2)
    monkeypatch.setattr(data_report, "SHOWN", 1)
    for quality in (95, 60, 50, 40):
        save(tmp_path / "data" / "a" / f"{quality}.jpg", photo(1), quality=quality)
    for i in range(4):
        save(tmp_path / "data" / "b" / f"{i}.jpg", photo(2))
    save(tmp_path / "data" / "a" / "near.jpg", photo(2), quality=50)  # of four equal ones, one pair
    assert check("folder", tmp_path / "data", tmp_path / "report") == 0
    report = read_json(tmp_path / "report" / "report.json")
    assert (report["near_duplicates_found"], len(report["near_duplicates"])) == (7, 2)
    lines = (tmp_path / "report" / "report.txt").read_text("utf-8").splitlines()
    assert "near duplicates: 7" in lines
    assert "  and 6 more; see report.json" in lines
    assert "  train b/0.jpg = 3 more" in lines


def test_what_a_run_would_refuse_is_unreadable(tmp_path, capsys):
    """Pillow decodes a PNG without its end."""
    for i, name in enumerate(("a", "b", "b")):
        path = save(tmp_path / "data" / name / f"{i}.png", photo(i))
    path.write_bytes(path.read_bytes()[:-12])
    assert check("folder", tmp_path / "data", tmp_path / "report") == 1
    assert "unreadable: 1\n  train b/2.png: image" in capsys.readouterr().out


def test_a_jpeg_that_lacks_only_its_end_marker_is_named(tmp_path, capsys):
    for i, name in enumerate(("a", "b", "b")):
        path = save(tmp_path / "data" / name / f"{i}.jpg", photo(i))
    path.write_bytes(path.read_bytes()[:-2])
    assert check("folder", tmp_path / "data", tmp_path / "report") == 0
    assert f"{image_scan.NO_END}: 1\n  train b/2.jpg\n" in capsys.readouterr().out
    assert read_json(tmp_path / "report" / "report.json")["decoded_with_a_warning"] == []


def test_nothing_that_decodes_is_reported_too(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "x.jpg").touch()
    assert check("folder", tmp_path / "data", tmp_path / "report") == 1
    assert read_json(tmp_path / "report" / "report.json")["sizes"] == {}
    assert (tmp_path / "report" / "contact_sheet.png").is_file()


class TestEndings:
    """With an image that is a named pipe: a process that reads it waits."""

    @pytest.fixture
    def pipe(self, tmp_path) -> Path:
        lines = ["path,label,split"]
        for i in range(40):
            split, label = ("train", "val")[i % 2], "ab"[i // 2 % 2]
            lines.append(f"{i}.jpg,{label},{split}")
            save(tmp_path / "data" / f"{i}.jpg", photo(i))
        (tmp_path / "data" / "images.csv").write_text("\n".join(lines) + "\n")
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "sitecustomize.py").write_text(WAITING.format(pipe=tmp_path / "pipe"))
        return tmp_path / "pipe"

    def start(self, pipe: Path) -> tuple[subprocess.Popen, int]:
        """A check in a session of its own, and the end of the pipe for writing."""
        script = REPO / "scripts" / "check_data.py"
        data, output = pipe.parent / "data", pipe.parent / "report"
        process = subprocess.Popen(
            [sys.executable, script, "csv", data, "--output", output, "--num_workers", "1"],
            env={**os.environ, "PYTHONPATH": str(pipe.parent)},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return process, os.open(pipe, os.O_WRONLY)  # waits for the reader

    def assert_no_reader(self, writable: int) -> None:
        for _ in range(4800):
            try:
                os.write(writable, b"x")
            except BrokenPipeError:
                os.close(writable)
                return
            time.sleep(0.05)
        pytest.fail("a process still waits for the image")

    @pytest.mark.parametrize(
        ("number", "code", "word"),
        [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    )
    def test_signals_end_all_processes_with_one_line(self, pipe, tmp_path, number, code, word):
        process, writable = self.start(pipe)
        os.killpg(process.pid, number)  # as a terminal does
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == code
        assert stderr.startswith(f"error: {word}")
        assert stderr.count("\n") == 1
        self.assert_no_reader(writable)
        assert not (tmp_path / "report").exists()

    def test_processes_do_not_hear_ctrl_c(self):
        """Else one that is importing torch prints a traceback."""
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            with image_scan._ctrl_c_is_not_for_children():
                blocked = pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ())
            assert signal.SIGINT in blocked.result()
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def test_of_a_killed_check_takes_its_processes_along(self, pipe, tmp_path):
        process, writable = self.start(pipe)
        process.kill()
        self.assert_no_reader(writable)
        process.communicate()

    def test_a_lost_process_is_one_line(self, pipe, tmp_path):
        process, writable = self.start(pipe)
        find = [
            "pgrep",
            "-P",
            str(process.pid),
            "-f",
            "spawn_main",
        ]  # not multiprocessing's tracker
        children = subprocess.run(find, capture_output=True, text=True)
        for child in children.stdout.split():
            os.kill(int(child), signal.SIGKILL)
        _, error = process.communicate(timeout=240)
        os.close(writable)
        assert process.returncode == 1
        assert error.count("\n") == 1
        assert "a process was lost that read " in error
        assert "while reading" in error
        assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["cub", "{root}/none"], "{root}/none does not exist"),
        (
            ["cub", "{root}", "--output", "{root}/images.txt/x"],
            "images.txt is a file, not a folder",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_cub(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    assert check_data.main([word.format(root=root) for word in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message.format(root=root) in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["report.json", "report.txt", "contact_sheet.png"])
def test_a_report_replaces_reports_and_nothing_else(name, tmp_path, capsys):
    root, output = tmp_path / "data", tmp_path / "mine"
    for path in ("a/1.jpg", "b/2.jpg"):
        save(root / path, photo(len(path)))
    output.mkdir()
    (output / name).write_text("precious")
    assert check("folder", root, output) == 2
    assert f"--output: {output / name} exists and is not one that" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in output.iterdir()} == {name: "precious"}
    (output / name).unlink()
    for _ in range(2):
        assert check("folder", root, output) == 0
    assert is_ours(output)
    (output / "mine.txt").touch()
    (output / MARKER).unlink()
    assert check("folder", root, output) == 0
    assert not is_ours(output)  # somebody uses it
    for place in (root, root / "a"):
        assert check("folder", root, place) == 2
        assert f"--output {place} is among the images" in capsys.readouterr().err
    assert check("folder", root, root / "output" / "check") == 0
    assert [path.name for path in root.iterdir() if is_ours(path)] == ["output"]
    assert check("folder", root / "a" / "..", root / "output") == 0  # passed over with all in it


def split_of(name: str, letters: str) -> Split:
    """A split whose images are called by letters."""
    paths = np.array([f"jpg/{letter}.jpg" for letter in letters])
    labels = np.zeros(len(letters), np.int64)
    return Split("toy", name, Path("/data"), ("x",), np.array(list(letters)), paths, labels)


class TestSplits:
    def test_that_are_made_of_others_are_left_out(self, drawn):
        names = ("train", "val", "test", "trainval")
        splits = [open_split(get_spec("flower102"), drawn, name) for name in names]
        assert [is_union(split, splits) for split in splits] == [False, False, False, True]
        files = collect(splits)
        assert [split.name for split in files.splits] == ["train", "val", "test"]
        assert len(files.paths) == len(set(files.paths)) == 400
        assert files.shared == []

    @pytest.mark.parametrize(
        ("train", "test", "paths", "split_of_each", "shared"),
        [
            ("ab", "bc", "abc", [0, 0, 1], "b"),
            ("ab", "ab", "ab", [0, 0], "ab"),  # equal splits are not a union
            ("aba", "c", "abc", [0, 0, 1], ""),  # one image twice in a list
        ],
    )
    def test_that_share_images_have_each_once(self, train, test, paths, split_of_each, shared):
        files = collect([split_of("train", train), split_of("test", test)])
        assert files.paths == [f"jpg/{letter}.jpg" for letter in paths]
        assert files.split_of.tolist() == split_of_each
        assert files.labels.tolist() == [0] * len(paths)
        assert files.shared == [(f"jpg/{letter}.jpg", "train", "test") for letter in shared]


class TestDuplicates:
    @settings(max_examples=30)
    @given(
        hashes=st.lists(st.integers(0, 2**12 - 1), min_size=2, max_size=12),
        cut=st.integers(1, 11),
        block=st.sampled_from([(1, 1), (2, 3), (5, 1), (16, 8192)]),
        is_same=st.booleans(),
    )
    def test_every_close_pair_is_found_once(self, hashes, cut, block, is_same):
        cut = min(cut, len(hashes) - 1)
        everyone = np.arange(len(hashes))
        values = np.array(hashes, dtype=np.uint64)
        same = np.broadcast_to(
            np.arange(256, dtype=np.uint8).reshape(16, 16), (len(hashes), 16, 16)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(duplicates, "BLOCK", block)
            patch.setattr(duplicates, "MAX_DISTANCE", 3)
            parts = [everyone] if is_same else [everyone[:cut], everyone[cut:]]
            pairs = duplicates.near_pairs(values, same, parts)
        expected = {
            (i, j): (hashes[i] ^ hashes[j]).bit_count()
            for i in range(len(hashes))
            for j in range(i + 1, len(hashes))
            if is_same or i < cut <= j
        }
        close = sorted((*both, distance) for both, distance in expected.items() if distance <= 3)
        assert sorted(pair[:3] for pair in pairs) == close

    def test_blank_images_are_only_exact_ones(self):
        blank = np.stack([np.zeros((16, 16), np.uint8), np.full((16, 16), 9, np.uint8)])
        parts = [np.array([0]), np.array([1])]
        assert duplicates.near_pairs(np.zeros(2, np.uint64), blank, parts) == []
        assert duplicates.exact_groups([b"a", b"", b"", b"a", b"b"]) == [[0, 3]]


class TestContactSheet:
    @pytest.mark.parametrize(("classes", "side"), [(3, 160), (300, 96), (1300, 64)])
    def test_has_a_tile_for_each_class_and_is_about_square(self, classes, side):
        sheet = contact_sheet.contact_sheet(["a name"] * classes, [None] * classes)
        columns, rest = divmod(sheet.width, side)
        rows = sheet.height // (side + contact_sheet.CAPTION_HEIGHT)
        assert rest == 0
        assert columns * rows >= classes > columns * (rows - 1)
        assert classes == 3 or 0.9 < sheet.width / sheet.height < 1.1


def test_the_report_is_plain_json(found):
    text = (found.output / "report.json").read_text("utf-8")
    assert json.loads(text, parse_constant=lambda constant: pytest.fail(constant)) == found.report


def test_images_of_one_color_dark_ones_and_odd_profiles_are_named(tmp_path, capsys):
    """But not a black drawing on transparent black, nor 12 bits that a TIFF declares."""
    root, values = tmp_path / "own", np.arange(0, 4096, 8, dtype=np.uint16).reshape(16, 32)
    rose, fern = root / "rose", root / "fern"
    save(rose / "plain.png", Image.new("RGB", (30, 20), (200, 0, 0)), "PNG")
    save(rose / "clear.png", Image.new("RGBA", (30, 20), (9, 9, 9, 0)), "PNG")
    drawing = Image.new("RGBA", (30, 20), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (5, 5, 15, 15))
    save(rose / "drawing.png", drawing, "PNG")
    save(fern / "dark.png", Image.fromarray(values), "PNG")
    save(fern / "bright.png", Image.fromarray(values * 16), "PNG")
    save(fern / "declared.tif", Image.fromarray(values), "TIFF", tiffinfo={281: 4095})
    save(fern / "profile.jpg", photo(1), icc_profile=b"odd")
    assert check("folder", root, tmp_path / "report") == 0
    doubtful = read_json(tmp_path / "report" / "report.json")["doubtful"]
    found = {note: [image["path"] for image in images] for note, images in doubtful.items()}
    assert {note: paths for note, paths in found.items() if paths} == {
        image_scan.ONE_COLOR: ["rose/clear.png", "rose/plain.png"],
        image_scan.DARK: ["fern/dark.png"],
        image_scan.NO_PROFILE: ["fern/profile.jpg"],
    }
    assert "of one color: 2\n  train rose/clear.png" in capsys.readouterr().out


def test_processes_that_cannot_be_started_are_one_line(drawn, tmp_path, capsys, monkeypatch):
    """As where /dev/shm has no room for a semaphore."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(image_scan, "ProcessPoolExecutor", refuse)
    assert check("synthetic", drawn, tmp_path / "report") == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: processes cannot be started .*--num_workers.*/dev/shm.*\n", error)
