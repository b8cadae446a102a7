"""utils/ownership.py: what is ours is told by what it holds, never by its name alone."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from scripts.data_check.contact_sheet import save_picture
from utils.errors import InputError
from utils.files import write_json
from utils.ownership import (
    MARKER,
    SIGNATURE,
    check_output_file,
    is_ours,
    make_folder,
    new_folder,
    why_not_events,
    why_not_run,
)

EVENTS = "events.out.tfevents.1700000000.host.1.0"
# How an archive of torch begins, as far as it matters.
CHECKPOINT = b"PK\3\4" + bytes(40) + b"archive/data.pkl\x80\2}q\0(X\6\0\0\0formatq\1X\x13\0\0\0"


def fill(folder: Path, files: dict[str, bytes | str]) -> Path:
    """Make files below a folder, and folders for names that end in `/`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


STAMP = {"env_stamp.json": '{"run_id": "a1"}'}
RUN_AND_TB = {"demo/env_stamp.json": '{"run_id": "a1"}', f"tb/demo/{EVENTS}": b""}
OURS = {
    "a marked folder": {MARKER: "", "rose/1.jpg": b""},
    "a run": STAMP,
    "a run that lost its stamp": {"checkpoints/last~1.bin": CHECKPOINT + b"fine-vit state"},
    "an output folder": {**RUN_AND_TB, "notes.txt": ""},
    "an output folder of an evaluation alone": {**RUN_AND_TB, "tb/other/more/log": ""},
    "a cache": {"pixels.bin": b"1", "index.npz": b"", "about.json": ""},
}
NOT_OURS = {
    "an empty folder": {},
    "photos": {"1.jpg": b"", "2/3.jpg": b""},
    "photos of outputs": {"output/1.jpg": b"", "checkpoints/1.jpg": b"", "fiftyone/2.jpg": b""},
    "a stamp without id": {"env_stamp.json": '{"run_id": ""}'},
    "a stamp of others": {"env_stamp.json": '["run_id"]'},
    "a damaged stamp": {"env_stamp.json": b'{"run_id": "a\xff'},
    "weights of others": {"checkpoints/model.bin": CHECKPOINT + b"state_dict"},
    "a text about us": {"checkpoints/ckpt.bin": b"fine-vit checkpoint"},
    "a marker that is a folder": {f"{MARKER}/": ""},
    "tuberculosis beside a run": {"demo/env_stamp.json": '{"run_id": "a1"}', "tb/1.jpg": b""},
    "tb without a run": {"tb/demo/x": b"", "normal/1.jpg": b""},
    "more than a cache": {"pixels.bin": b"1", "mine.txt": ""},
}


class TestIsOurs:
    @pytest.mark.parametrize("files", OURS.values(), ids=OURS)
    def test_what_proves_itself(self, tmp_path, files):
        assert is_ours(fill(tmp_path / "x", files))

    @pytest.mark.parametrize("files", NOT_OURS.values(), ids=NOT_OURS)
    def test_everything_else_is_the_users(self, tmp_path, files):
        assert not is_ours(fill(tmp_path / "x", files))

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({f"demo/{EVENTS}": b"", "other/": "", ".DS_Store": b""}, True),
            ({f"demo/{EVENTS}": b"", "demo/1.jpg": b""}, False),
            ({f"demo/{EVENTS}": b"", "1.jpg": b""}, False),
            ({}, False),
        ],
    )
    def test_a_folder_tb_is_if_it_holds_nothing_but_events(self, tmp_path, files, expected):
        assert is_ours(fill(tmp_path / "tb", files)) is expected
        assert not is_ours(fill(tmp_path / "not_tb", files))

    def test_of_a_run_is_true_and_of_what_it_left_around_it(self, finished_run):
        assert all(map(is_ours, (finished_run.run, finished_run.output_dir)))
        assert is_ours(finished_run.tensorboard.parent)

    @pytest.mark.parametrize("name", ["env_stamp.json", "checkpoints"])
    def test_is_not_true_of_a_folder_that_only_links_to_a_run(self, tmp_path, finished_run, name):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / name).symlink_to(finished_run.run / name)
        assert (finished_run.run / name).exists()
        assert not is_ours(tmp_path / "mine")

    @pytest.mark.parametrize("name", [MARKER, "env_stamp.json", "pixels.bin", "tb"])
    def test_waits_for_no_pipe(self, tmp_path, name):
        os.mkfifo(tmp_path / name)
        assert not is_ours(tmp_path)


class TestMakeFolder:
    def test_marks_all_that_it_makes_and_nothing_else(self, tmp_path):
        fill(tmp_path, {"photos/rose/1.jpg": b"", "empty/": ""})
        for folder in ("photos", "empty", "photos/out/deep", "."):
            make_folder(tmp_path / folder)
        marked = {path.parent.relative_to(tmp_path) for path in tmp_path.rglob(MARKER)}
        assert marked == {Path("photos/out"), Path("photos/out/deep")}
        assert is_ours(tmp_path / "photos" / "out")
        assert not is_ours(tmp_path / "photos")

    def test_marks_one_in_which_images_were_drawn_before(self, tmp_path):
        make_folder(fill(tmp_path / "drawn_in", {".synthetic/1.jpg": b""}))
        make_folder(fill(tmp_path / "mine", {".synthetic/1.jpg": b"", "1.jpg": b""}))
        assert is_ours(tmp_path / "drawn_in")
        assert not is_ours(tmp_path / "mine")

    def test_a_folder_beside_replaces_only_what_a_killed_process_left(self, tmp_path):
        target = tmp_path / "x"
        left = fill(tmp_path / "x.1.tmp", {MARKER: "", "half": ""})
        others = fill(tmp_path / "x.2.tmp", {"mine": "precious"})
        with new_folder(target) as beside:
            assert not left.exists()
            (beside / "whole").touch()
        assert (others / "mine").read_text() == "precious"
        assert {path.name for path in target.iterdir()} == {MARKER, "whole"}
        assert {path.name for path in tmp_path.iterdir()} == {"x", "x.2.tmp"}
        with pytest.raises(OSError, match="x"), new_folder(target):
            pass
        assert (target / "whole").exists()
        assert {path.name for path in tmp_path.iterdir()} == {"x", "x.2.tmp"}


FOREIGN = {
    "photos": ({"rose/1.jpg": b""}, "holds rose and is not"),
    "a hidden file": ({".git/config": ""}, "holds [.]git and"),
    "photos in checkpoints": ({"checkpoints/1.jpg": b""}, "holds 1.jpg and"),
    "a stamp without id": ({"env_stamp.json": "{}"}, "holds env_stamp.json and"),
    "a temporary file of others": ({".1.jpg.tmp": b""}, "holds .1.jpg.tmp and"),
}


class TestWhyNotARun:
    @pytest.mark.parametrize(("files", "why"), FOREIGN.values(), ids=FOREIGN)
    def test_names_what_somebody_would_miss(self, tmp_path, files, why):
        with pytest.raises(AssertionError, match=why):
            assert why_not_run(fill(tmp_path / "x", files)) == ""

    @pytest.mark.parametrize(
        "files", [{}, STAMP, {".labelmap.json.12.tmp": b"", "checkpoints/.last.bin.3.tmp": b""}]
    )
    def test_is_nothing_of_a_run_or_of_what_nobody_would_miss(self, tmp_path, files):
        assert why_not_run(tmp_path / "absent") == ""
        assert why_not_run(fill(tmp_path / "x", files)) == ""

    def test_of_events_names_any_other_file(self, tmp_path):
        assert why_not_events(fill(tmp_path / "a", {EVENTS: b"", ".DS_Store": b""})) == ""
        for name in ("1.jpg", "plugins/x", f"{EVENTS}/x"):
            why = why_not_events(fill(tmp_path / name[:3], {name: b""}))
            assert why == f"holds {name.split('/')[0]}, which TensorBoard did not write"


def picture(path: Path) -> None:
    save_picture(Image.new("RGB", (2, 2)), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.json": lambda path: write_json(path, {"about": SIGNATURE, "x": 1}),
    "a.txt": lambda path: path.write_text(f"{SIGNATURE}\n"),
    "a.png": picture,
    "a.jpg": picture,
}
OTHERS: dict[str, Callable[[Path], object]] = {
    "exists and is not one that": lambda path: path.write_bytes(bytes(5000) + SIGNATURE.encode()),
    "exists and": lambda path: Image.new("RGB", (2, 2)).save(path, "PNG"),
    "is a folder": lambda path: path.mkdir(),
    "is a pipe": os.mkfifo,
    "is a symbolic link": lambda path: path.symlink_to("a.json"),
}


class TestOutputFile:
    @pytest.mark.parametrize("name", WRITERS)
    def test_one_that_says_it_is_ours_may_be_replaced(self, tmp_path, name):
        check_output_file(tmp_path / name, "--out")
        WRITERS[name](tmp_path / name)
        check_output_file(tmp_path / name, "--out")

    @pytest.mark.parametrize("what", OTHERS)
    def test_anything_else_may_not(self, tmp_path, what):
        WRITERS["a.json"](tmp_path / "a.json")
        OTHERS[what](tmp_path / "x.png")
        with pytest.raises(InputError, match=rf"^--out: .*x\.png {what}.*; move it away, or give"):
            check_output_file(tmp_path / "x.png", "--out")
