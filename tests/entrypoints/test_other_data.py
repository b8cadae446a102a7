"""Evaluate and resume on data that are not quite those of the run: classes, splits, content.

Photographs are a few, of noise, so that no two have the same bytes.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY_EVAL, TINY_TRAIN, evaluate, read_json, rows_of, train, write_checkpoint
from PIL import Image

from utils.data_utils import RunPaths
from utils.run.checkpoint import load_checkpoint
from utils.run.snapshot import load_newest

CLASSES = ("1", "2", "10")
PHOTOS = 10  # of each class
HELD_OUT = 6  # a fifth of them


def photo(path: Path, seed: int) -> Path:
    """Write a photo that is the same wherever its seed is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_heap(root: Path, classes=CLASSES, photos: int = PHOTOS, seed: int = 0) -> Path:
    """Class folders of photos, without splits."""
    for name in classes:
        for number in range(photos):
            seed += 1
            photo(root / name / f"{number}.jpg", seed)
    return root


def write_list(path: Path, rows: list[str], header: str = "path,label") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def heap(tmp_path_factory) -> Path:
    """The photos that were trained on. Read only: copy what you change."""
    return write_heap(tmp_path_factory.mktemp("heap") / "photos")


@pytest.fixture(scope="module")
def run(heap, tmp_path_factory) -> RunPaths:
    """A run on them. Read only."""
    output = tmp_path_factory.mktemp("run")
    flags = f"--name run --dataset folder {TINY_TRAIN}"
    assert train(flags, "--data_root", heap, "--output_dir", output) == 0
    return RunPaths(output, "run")


@pytest.fixture
def look(run, tmp_path, capsys):
    """Evaluates the run's checkpoint; returns exit code, what was said, and where it wrote."""

    def call(root: Path, *more, dataset="folder", checkpoint=None) -> tuple[int, str, RunPaths]:
        where = ("--data_root", root, "--output_dir", tmp_path / "out", "--dataset", dataset)
        checkpoint = checkpoint or run.checkpoint
        capsys.readouterr()
        code = evaluate(f"--name look {TINY_EVAL}", "--checkpoint", checkpoint, *where, *more)
        said = capsys.readouterr()
        return code, said.out + said.err, RunPaths(tmp_path / "out", "look")

    return call


@pytest.fixture
def copied(heap, tmp_path) -> Path:
    return shutil.copytree(heap, tmp_path / "copied")


# --- Classes --------------------------------------------------------------------------------------


def test_classes_match_by_name_whatever_reader_and_order(heap, run, look):
    """Numbers sort as numbers in a folder and in a CSV; and a CSV of another order is the same."""
    assert read_json(run.labelmap)["classes"] == [*CLASSES]
    names = [
        f"{label}/{number}.jpg,{label}" for label in ("10", "2", "1") for number in range(PHOTOS)
    ]
    listed = write_list(heap.parent / "listed.csv", [f"photos/{name}" for name in names])
    code, said, paths = look(listed, dataset="csv")
    assert code == 0
    assert "3 classes: 1, 2, 10\n" in said
    assert f"found by content: {HELD_OUT} of {3 * PHOTOS} images; 0 are in neither" in said
    assert read_json(paths.labelmap)["classes"] == [*CLASSES]
    own, found = (
        {Path(row["filepath"]).resolve(): row["predictions"]["logits"] for row in rows_of(each)}
        for each in (run, paths)
    )
    assert found.keys() == own.keys()
    for path, logits in own.items():
        np.testing.assert_allclose(found[path], logits, atol=1e-6)
    metrics, before = (read_json(each.metrics) for each in (paths, run))
    assert metrics["accuracy"] == before["accuracy"]
    assert metrics["trained_on_images"] == before["trained_on_images"] == 0


@pytest.mark.parametrize("is_there", [False, True])
def test_a_class_without_images_has_support_0(tmp_path, look, is_there):
    """Its folder is not there, or empty."""
    root = write_heap(tmp_path / "new", ("10", "1"), 3, seed=500)
    if is_there:
        (root / "2").mkdir()
    code, said, paths = look(root)
    assert code == 0
    assert "1 of the classes have no image" in said
    table = [line.split(",") for line in paths.per_class.read_text().splitlines()[1:]]
    assert [(row[1], row[2]) for row in table] == [("1", "3"), ("2", "0"), ("10", "3")]
    recalls = [int(row[4]) / 3 for row in table if row[2] == "3"]
    assert read_json(paths.metrics)["mean_per_class_accuracy"] == pytest.approx(np.mean(recalls))


@pytest.mark.parametrize("others", [("rose",), ("11", "01")])
def test_images_of_other_classes_are_refused_or_left_out(tmp_path, look, others):
    root = write_heap(tmp_path / "new", (*CLASSES, *others), 2, seed=700)
    code, said, paths = look(root)
    counted = f"{2 * len(others)} of {2 * (3 + len(others))} images of split train are of classes"
    assert (code, paths.run.exists()) == (2, False)
    assert f"{counted} that the checkpoint does not have ({len(others)}): " in said
    assert all(f"{name!r} (2" in said for name in others)
    assert "--unknown_classes skip leaves them out" in said
    code, said, paths = look(root, "--unknown_classes", "skip")
    assert code == 0
    assert f"left out {counted.replace(' are', ', which are')}" in said
    assert len(rows_of(paths)) == 6


def test_data_of_other_classes_alone_are_refused(tmp_path, look):
    root = write_heap(tmp_path / "new", ("a", "b"), 2, seed=800)
    for more in ((), ("--unknown_classes", "skip")):
        code, said, _ = look(root, *more)
        assert code == 2
        assert "all 4 images of split train are of classes that the checkpoint does not" in said
        assert "skip leaves" not in said  # nothing would be left


# --- What was trained on --------------------------------------------------------------------------


def ids_of(paths: RunPaths) -> set[bytes]:
    """The contents of the evaluated images."""
    return {Path(row["filepath"]).read_bytes() for row in rows_of(paths)}


def rename(root: Path) -> None:
    for path in [*root.glob("*/*.jpg")]:
        path.rename(path.with_name(f"IMG {path.stem}.jpeg"))


def move_into_folders(root: Path) -> None:
    for path in [*root.glob("*/*.jpg")]:
        (path.parent / "new").mkdir(exist_ok=True)
        path.rename(path.parent / "new" / path.name)


def add(root: Path) -> None:
    for number in range(8):
        photo(root / CLASSES[number % 3] / f"added {number}.jpg", 900 + number)


@pytest.mark.parametrize("change", [rename, move_into_folders, add])
def test_the_val_of_the_run_is_found_by_content(run, copied, look, change):
    change(copied)
    code, said, paths = look(copied)
    assert code == 0
    assert ids_of(paths) == ids_of(run)
    assert f"; {8 if change is add else 0} are in neither its train split nor its val" in said
    assert {row["tags"][0] for row in rows_of(paths)} == {"val"}
    metrics = read_json(paths.metrics)
    assert (metrics["split"], metrics["trained_on_images"]) == ("val", 0)
    assert metrics["accuracy"] == read_json(run.metrics)["accuracy"]


def test_of_copies_those_are_val_that_were(tmp_path, look):
    root = write_heap(tmp_path / "photos")
    for path in sorted(root.rglob("*.jpg")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    flags = f"--name twice --dataset folder {TINY_TRAIN} --output_dir {tmp_path}"
    assert train(flags, "--data_root", root) == 0
    trained = RunPaths(tmp_path, "twice")
    code, said, paths = look(root, checkpoint=trained.checkpoint)
    assert (code, ids_of(paths)) == (0, ids_of(trained)), said
    metrics = [read_json(each.metrics) for each in (paths, trained)]
    assert metrics[0]["trained_on_images"] == metrics[1]["trained_on_images"] > 0


def test_what_a_given_val_has_of_train_is_counted(run, copied, look):
    """It is held out anew, by names that are others now."""
    rename(copied)
    code, said, paths = look(copied, "--eval_split", "val")
    trained = len(ids_of(paths) - ids_of(run))
    assert (code, trained > 0) == (0, True)
    assert f"{trained} of the {HELD_OUT} images to evaluate were trained on" in said
    assert read_json(paths.metrics)["trained_on_images"] == trained


def test_a_val_that_is_not_here_whole_is_said(run, copied, look):
    for row in rows_of(run)[:2]:
        (copied / row["relative_path"]).unlink()
    code, said, _ = look(copied)
    assert code == 0
    assert f"{HELD_OUT - 2} of {3 * PHOTOS - 2} images, 2 more are not here; 0 are in" in said


def test_a_heap_of_which_none_was_trained_on_is_evaluated_whole(tmp_path, look):
    code, said, paths = look(write_heap(tmp_path / "new", photos=4, seed=1000))
    assert code == 0
    assert "none of the 12 images was trained on: all of them are evaluated" in said
    metrics = read_json(paths.metrics)
    assert (metrics["split"], metrics["samples"]) == ("all", 12)
    assert metrics["trained_on_images"] == 0


def test_a_heap_of_trained_images_alone_is_refused_with_the_way_out(run, copied, look):
    for row in rows_of(run):
        (copied / row["relative_path"]).unlink()
    code, said, _ = look(copied)
    assert code == 2
    assert "24 of 24 images were trained on, and none is of the val" in said
    code, said, paths = look(copied, "--eval_split", "all")
    assert code == 0
    assert "24 of the 24 images to evaluate were trained on" in said
    assert read_json(paths.metrics)["trained_on_images"] == 24


def test_all_is_everything_and_each_row_says_its_split(run, copied, look):
    add(copied)
    code, _, paths = look(copied, "--eval_split", "all")
    assert code == 0
    tags = [row["tags"][0] for row in rows_of(paths)]
    assert {tag: tags.count(tag) for tag in tags} == {"train": 24, "val": HELD_OUT, "new": 8}
    assert read_json(paths.metrics)["trained_on_images"] == 24


@pytest.mark.parametrize("dataset", ["folder", "csv"])
def test_given_splits_stay_what_they_are(tmp_path, heap, look, dataset):
    """Copies of trained images in a test split: they are evaluated, and counted."""
    root = tmp_path / "own"
    for label in CLASSES:
        shutil.copytree(heap / label, root / "test" / label)
    add(root / "test")
    data = root
    if dataset == "csv":
        paths = sorted(root.glob("test/*/*.jpg"))
        rows = [f"{path.relative_to(root)},{path.parent.name},test" for path in paths]
        data = write_list(root / "own.csv", rows, "path,label,split")
    code, said, paths = look(data, dataset=dataset)
    assert code == 0
    metrics = read_json(paths.metrics)
    assert [metrics[key] for key in ("split", "samples", "trained_on_images")] == ["test", 38, 24]
    assert "24 of the 38 images to evaluate were trained on" in said
    for path in (root / "test").rglob("added*"):
        photo(root / "val" / path.parent.name / path.name, 2000 + len(path.name))
    if dataset == "folder":
        code, _, paths = look(root, "--eval_split", "all")
        tags = [row["tags"][0] for row in rows_of(paths)]
        assert (code, tags.count("val"), tags.count("test")) == (0, 8, 38)


def test_what_was_trained_on_is_handed_on(heap, run, tmp_path, look, capsys):
    """Through `--pretrained`, and from there again."""
    checkpoint = run.checkpoint
    val = {row["relative_path"] for row in rows_of(run)}
    trained = next(path for path in heap.glob("1/*") if f"1/{path.name}" not in val)
    for number in range(2):
        root = tmp_path / f"new {number}"
        write_heap(root / "train", photos=4, seed=3000 + 100 * number)
        write_heap(root / "val", photos=2, seed=4000 + 100 * number)
        shutil.copy(trained, root / "val" / "1" / "trained.jpg")
        flags = f"--name next{number} --dataset folder {TINY_TRAIN} --pretrained {checkpoint}"
        assert train(flags, "--data_root", root, "--output_dir", tmp_path / "out") == 0
        said = capsys.readouterr().out
        assert "1 of the 7 images to evaluate were trained on (1 of them by the run of" in said
        paths = RunPaths(tmp_path / "out", f"next{number}")
        assert read_json(paths.metrics)["trained_on_images"] == 1
        checkpoint = paths.checkpoint
    assert len(load_checkpoint(checkpoint).known_images.trained) == 24 + 12 + 12
    code, said, _ = look(heap, "--eval_split", "all", checkpoint=checkpoint)
    assert code == 0
    assert "24 of the 30 images to evaluate were trained on" in said


def test_an_older_checkpoint_says_what_differs(run, heap, look, tmp_path):
    nothing = torch.empty(0, dtype=torch.int64)
    older = load_checkpoint(run.checkpoint)._replace(
        data_rules=1, trained_images=nothing, val_images=nothing
    )
    write_checkpoint(tmp_path / "older.bin", older)
    code, said, paths = look(heap, checkpoint=tmp_path / "older.bin")
    assert code == 0
    assert "was trained by version 1 of the rules for data, this code has version 2" in said
    metrics = read_json(paths.metrics)
    assert (metrics["split"], metrics["trained_on_images"]) == ("val", "unknown")
    assert ids_of(paths) == ids_of(run)  # held out by name, as then


# --- Resuming -------------------------------------------------------------------------------------


@pytest.fixture
def resume(run, copied, tmp_path, capsys):
    """Resumes the run on the copied photos; returns exit code, what was said, and its paths."""
    paths = RunPaths(shutil.copytree(run.output_dir, tmp_path / "resumed"), "run")
    flags = f"--name run --dataset folder {TINY_TRAIN} --num_steps 6 --resume"

    def call(*more, allow: str = "num_steps") -> tuple[int, str, RunPaths]:
        where = ("--data_root", copied, "--output_dir", paths.output_dir)
        capsys.readouterr()
        code = train(f"{flags} --allow_change {allow}", *where, *more)
        said = capsys.readouterr()
        return code, said.out + said.err, paths

    return call


def replace(root: Path, val: list[str]) -> dict[str, list[str]]:
    """Other pixels under the same names; one of them in val."""
    names = [val[0], next(f"1/{n}" for n in range(PHOTOS) if f"1/{n}" not in val)]
    for name in names:
        photo(root / f"{name}.jpg", 5000)
    return {"replaced": sorted(names)}


def remove(root: Path, val: list[str]) -> dict[str, list[str]]:
    names = [val[0], next(f"2/{n}" for n in range(PHOTOS) if f"2/{n}" not in val)]
    for name in names:
        (root / f"{name}.jpg").unlink()
    return {"removed": sorted(names)}


def exchange(root: Path, val: list[str]) -> dict[str, list[str]]:
    """A file of val has another name now, and there is one more."""
    (root / f"{val[0]}.jpg").rename(root / f"{val[0]} copy.jpg")
    photo(root / "1" / "more.jpg", 6000)
    return {"removed": [val[0]], "added": sorted([f"{val[0]} copy", "1/more"])}


def swap(root: Path, val: list[str]) -> dict[str, list[str]]:
    """A photo of val and one that is trained on exchange their names."""
    held_out, trained = val[0], next(f"1/{n}" for n in range(PHOTOS) if f"1/{n}" not in val)
    first, second, between = root / f"{held_out}.jpg", root / f"{trained}.jpg", root / "x"
    first.rename(between)
    second.rename(first)
    between.rename(second)
    return {"removed": sorted([held_out, trained]), "added": sorted([held_out, trained])}


@pytest.mark.parametrize("change", [replace, remove, exchange, swap])
def test_other_images_are_other_data_unless_that_is_allowed(run, copied, resume, change):
    val = [row["sample_id"] for row in rows_of(run)]
    changes = change(copied, val)
    code, said, paths = resume()
    assert code == 2
    for kind, names in changes.items():
        assert f"{len(names)} images {kind} (first: " in said
    assert "bring them back, or resume with these by --allow_change data" in said
    code, said, paths = resume(allow="num_steps,data")
    assert code == 0
    newest = load_newest(paths)
    now = newest.parts["images"]["eval_ids"].numpy().tobytes().decode().split("\n")
    expected = {
        replace: set(val),
        remove: set(val[1:]),
        exchange: {*val[1:], f"{val[0]} copy"},
        swap: {*val[1:], *set(changes.get("added", [])) - {val[0]}},
    }[change]
    assert set(now) == expected
    listed = read_json(paths.env_stamp)["sessions"][-1]["data_changes"]
    assert {kind: sorted(listed[kind]["ids"]) for kind in listed} == changes
    assert newest.header.step == 6
    # From here on these are the data of the run.
    code, said, _ = resume()
    assert code == 0, said


def test_other_classes_are_another_run(copied, resume):
    (copied / "2").rename(copied / "two")
    for allow in ("num_steps", "num_steps,data"):
        code, said, _ = resume(allow=allow)
        assert code == 2
        assert "3 classes, the data now have 3 (first that differs: '2'); start another run" in said


def damage(path: Path) -> None:
    """Damage an image inside its data, which no check before a run sees."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\xff\xd8" * 40 + content[-2:])


def put_another(path: Path) -> None:
    photo(path, 7000)


@pytest.mark.parametrize("mend", [put_another, Path.unlink])
def test_a_run_that_a_bad_image_ended_goes_on_as_its_message_says(tmp_path, capsys, mend):
    """More images than are decoded in the check."""
    root = write_heap(tmp_path / "photos", photos=30)
    flags = f"--name run --dataset folder {TINY_TRAIN} --num_steps 30 --save_every 1 --log_every 1"
    where = ("--data_root", root, "--output_dir", tmp_path / "out")
    bad = root / "1" / "7.jpg"
    damage(bad)
    assert train(flags, *where) == 1
    error = capsys.readouterr().err
    assert f"image {bad} cannot be decoded" in error
    remedy = "replace or remove it and resume with --allow_change data, or leave it out by "
    assert f"; {remedy}--skip_bad_images 1 --allow_change skip_bad_images; after step" in error
    paths = RunPaths(tmp_path / "out", "run")
    skipped = shutil.copytree(paths.output_dir, tmp_path / "skipped")
    again = f"{flags} --resume"
    leave_out = "--skip_bad_images 1 --allow_change skip_bad_images"
    assert train(f"{again} {leave_out}", "--data_root", root, "--output_dir", skipped) == 0
    mend(bad)
    assert train(again, *where) == 2
    assert "--allow_change data" in capsys.readouterr().err
    assert train(f"{again} --allow_change data", *where) == 0
    assert load_newest(paths).header.step == 30
    (changes,) = read_json(paths.env_stamp)["sessions"][-1]["data_changes"].values()
    assert changes == {"count": 1, "ids": ["1/7"]}


# --- The depth of classes -------------------------------------------------------------------------


def test_the_depth_of_classes_is_the_runs(tmp_path, capsys):
    root = write_heap(tmp_path / "plants", ("rosa/alba", "rosa/gallica", "viola/odorata"), 5)
    where = ("--data_root", root, "--output_dir", tmp_path / "out")
    flags = f"--dataset folder {TINY_TRAIN}"
    assert train(f"--name run {flags}", *where) == 2
    assert "--class_depth 2" in capsys.readouterr().err
    assert train(f"--name run {flags} --class_depth 2", *where) == 0
    assert "3 classes: rosa/alba, rosa/gallica, viola/odorata\n" in capsys.readouterr().out
    assert train(f"--name genera {flags} --class_depth 1", *where) == 0
    run, genera = (RunPaths(tmp_path / "out", name) for name in ("run", "genera"))
    stamps = [read_json(each.env_stamp) for each in (run, genera)]
    assert [stamp["config"]["class_depth"] for stamp in stamps] == [2, 1]
    assert stamps[0]["config_hash"] != stamps[1]["config_hash"]
    assert load_checkpoint(run.checkpoint).class_depth == 2
    again = f"--name run {flags} --num_steps 6 --resume --allow_change num_steps,data"
    assert train(f"{again} --class_depth 1", *where) == 2
    assert "otherwise: --class_depth 1 (the run's: 2); leave it" in capsys.readouterr().err
    look = f"--name look {TINY_EVAL} --checkpoint {run.checkpoint}"
    assert evaluate(look, *where) == 0
    assert (
        read_json(RunPaths(tmp_path / "out", "look").metrics)["accuracy"]
        == (read_json(run.metrics)["accuracy"])
    )
    assert evaluate(f"{look} --class_depth 1", *where) == 2
    assert "--class_depth 1 contradicts the checkpoint, which has 2" in capsys.readouterr().err


def test_the_depth_of_classes_means_nothing_for_other_data(drawn, refused):
    flags = f"--name run --dataset synthetic {TINY_TRAIN} --class_depth 2 --data_root {drawn}"
    error = refused(train, flags)
    assert "--class_depth 2 means nothing without --dataset folder" in error
