"""A person with the folder that a phone filled: check it, train on it, evaluate."""

from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from forked import CONTEXT
from helpers import evaluate, read_json, rows_of, train
from PIL import Image

import scripts.check_data as check_data
from scripts.data_check import scan as image_scan
from utils.data_utils import RunPaths

TINY = (
    "--dataset folder --model_type testing --img_size 64 --num_steps 4 --train_batch_size 2 "
    "--eval_batch_size 2 --num_workers 0 --device cpu"
)
SCREEN = 40  # lines of a terminal


def photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Smooth colors, other ones for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def heic(path: Path, image: Image.Image) -> None:
    pillow_heif.from_pillow(image).save(path, quality=90)


@pytest.fixture
def phone(tmp_path) -> Path:
    """Two kinds of flowers as a phone and its owner leave them."""
    root = tmp_path / "iPhone"
    for number, kind in enumerate(("daisy", "poppy")):
        folder = root / kind
        (folder / "from Anna").mkdir(parents=True)
        for i in range(4):
            heic(folder / f"IMG_00{number}{i}.HEIC", photo(10 * number + i))
            photo(10 * number + 4 + i).save(folder / f"IMG_01{number}{i}.JPG", "JPEG", quality=90)
        photo(10 * number + 8).save(folder / "from Anna" / "picture.jpeg", "JPEG")
        screenshot = photo(10 * number + 9).convert("RGBA")
        screenshot.putalpha(128)
        screenshot.save(folder / "Screenshot 1.png")
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "daisy" / "IMG_0099.MOV").write_bytes(b"\0\0\0\x14ftypqt  " + bytes(64))
    whole = (root / "poppy" / "IMG_0110.JPG").read_bytes()
    (root / "poppy" / "IMG_0666.JPG").write_bytes(whole[: len(whole) // 2])
    return root


def test_the_fifteen_minutes_of_a_person_with_a_phone(phone, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(image_scan, "START_METHOD", CONTEXT.get_start_method())
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in phone.rglob("*") if path.is_file()}

    assert check_data.main(["folder", str(phone), "--num_workers", "1"]) == 1
    said = capsys.readouterr()
    screen = said.out + said.err
    assert len(screen.splitlines()) <= SCREEN
    for finding in (
        "2 classes",
        "21",  # images, the cut one among them
        ".mov",
        "from Anna",
        "HEIF",
        "IMG_0666.JPG",
    ):
        assert finding in screen, finding

    flags = f"--name phone --data_root {phone} {TINY}"
    assert train(flags) == 2
    error = capsys.readouterr().err
    assert "IMG_0666.JPG" in error
    assert "--skip_bad_images 1" in error
    assert not (tmp_path / "output" / "phone").exists()

    assert train(f"{flags} --skip_bad_images 1") == 0
    said = capsys.readouterr().out
    assert "2 classes: daisy, poppy" in said
    assert ".mov" in said
    paths = RunPaths(Path("output"), "phone")
    stamp = read_json(paths.env_stamp)
    samples = stamp["dataset"]["samples"] + stamp["dataset"]["eval_samples"]
    assert samples == 21  # every image: HEIC, JPEG, PNG, the one in the sub-folder

    assert (
        evaluate(
            f"--name again --checkpoint {paths.checkpoint} --data_root {phone}"
            " --num_workers 0 --device cpu --skip_bad_images 1"
        )
        == 0
    )
    again = RunPaths(Path("output"), "again")
    assert [row["sample_id"] for row in rows_of(again)] == [
        row["sample_id"] for row in rows_of(paths)
    ]
    assert read_json(again.metrics)["accuracy"] == read_json(paths.metrics)["accuracy"]

    (phone / "poppy" / "IMG_0666.JPG").unlink()
    assert train(flags.replace("--name phone", "--name whole")) == 0
    del before[phone / "poppy" / "IMG_0666.JPG"]
    assert {path: path.read_bytes() for path in phone.rglob("*") if path.is_file()} == before
