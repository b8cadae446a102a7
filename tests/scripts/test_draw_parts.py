"""Draw selected parts onto images."""

import json
import os
from pathlib import Path

import pytest
from helpers import TINY_TRAIN, rows_of, train
from PIL import Image

from scripts import draw_parts
from utils.data_utils import RunPaths


@pytest.fixture(scope="module")
def part_run(tmp_path_factory, drawn) -> RunPaths:
    output = tmp_path_factory.mktemp("parts")
    code = train(
        f"--name run --dataset synthetic --head parts {TINY_TRAIN} "
        "--tiny_train_subset synthetic_tiny --tiny_infer_subset synthetic_tiny",
        "--data_root",
        drawn,
        "--output_dir",
        output,
    )
    assert code == 0
    return RunPaths(output, "run")


def test_a_picture_of_all_rows(part_run, tmp_path):
    out = tmp_path / "parts.png"
    flags = ["--predictions", str(part_run.predictions), "--out", str(out), "--count", "3"]
    assert draw_parts.main(flags) == 0
    with Image.open(out) as picture:
        assert picture.size == (3 * draw_parts.TILE, draw_parts.TILE + draw_parts.CAPTION)


def test_the_dot_of_a_head_is_where_its_keypoint_is(part_run):
    row = rows_of(part_run)[0]
    row["parts"]["keypoints"] = [{"_cls": "Keypoint", "label": "head 0", "points": [[0.25, 0.75]]}]
    tile = draw_parts.draw(row)
    with Image.open(row["filepath"]) as image:
        scale = draw_parts.TILE / max(image.size)
        shown = [round(side * scale) for side in image.size]
    at = tuple(
        (draw_parts.TILE - side) // 2 + round(share * side)
        for side, share in zip(shown, (0.25, 0.75), strict=True)
    )
    assert tile.getpixel(at) == draw_parts.color_of(0, 1)


@pytest.mark.parametrize(
    ("text", "message"), [("", "has no parts"), ("{}\n", "has no parts"), ("{", "cannot be read")]
)
def test_rows_without_parts_are_refused(text, message, tmp_path, capsys):
    path = tmp_path / "predictions.jsonl"
    path.write_text(text)
    out = tmp_path / "out.png"
    assert draw_parts.main(["--predictions", str(path), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_picture_that_is_not_ours_stays(part_run, tmp_path, capsys):
    holiday = tmp_path / "holiday.jpg"
    Image.new("RGB", (8, 8)).save(holiday)
    before = holiday.read_bytes()
    flags = ["--predictions", str(part_run.predictions), "--count", "1", "--out"]
    assert draw_parts.main([*flags, str(holiday)]) == 2
    assert "holiday.jpg exists and is not one that this program wrote" in capsys.readouterr().err
    assert holiday.read_bytes() == before
    for _ in range(2):  # the second replaces the first
        assert draw_parts.main([*flags, str(tmp_path / "own.jpg")]) == 0


def test_a_picture_does_not_become_one_of_the_images(part_run, tmp_path, capsys):
    images = Path(rows_of(part_run)[0]["filepath"]).parent
    (tmp_path / "link").symlink_to(images)
    for folder in (images, tmp_path / "link"):
        flags = ["--predictions", str(part_run.predictions), "--out", str(folder / "parts.png")]
        assert draw_parts.main(flags) == 2
        assert "parts.png is among the images, and would become one" in capsys.readouterr().err
    assert not (images / "parts.png").exists()


def test_a_pipe_in_place_of_the_rows_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "rows.jsonl")
    flags = ["--predictions", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "x.png")]
    assert draw_parts.main(flags) == 2
    assert "it is a pipe, not a file" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["parts.gif", "none/parts.png"])
def test_a_wrong_target_is_refused(out, capsys, tmp_path):
    assert draw_parts.main(["--predictions", "rows.jsonl", "--out", str(tmp_path / out)]) == 2
    assert "is not a .png or .jpg in an existing folder" in capsys.readouterr().err


def test_a_damaged_image_ends_it(part_run, tmp_path, capsys):
    row = {**rows_of(part_run)[0], "filepath": str(tmp_path / "jpg" / "none.jpg")}
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert draw_parts.main(["--predictions", str(path), "--out", str(tmp_path / "o.png")]) == 1
    assert "none.jpg cannot be decoded" in capsys.readouterr().err
