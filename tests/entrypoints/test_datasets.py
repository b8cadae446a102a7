"""Every data set in its official format through the real entrypoints."""

import csv
import os
from pathlib import Path

import pytest
from helpers import REPO, TINY_EVAL, evaluate, read_json, rows_of, train
from layouts import LAYOUTS, draw
from layouts_birds import write_cub
from layouts_objects import write_cars, write_pet
from layouts_own import write_csv, write_folder
from layouts_web import write_inat

from utils.data.catalog import SPECS, get_spec
from utils.data_utils import RunPaths
from utils.dataset import open_split
from utils.files import write_json

TWO_STEPS = (
    "--model_type testing --img_size 32 --num_steps 2 --eval_every 2 --train_batch_size 4 "
    "--eval_batch_size 2 --num_workers 0 --device cpu"
)


of_every_layout = pytest.mark.parametrize("dataset", LAYOUTS)


def test_every_dataset_has_a_layout_here():
    assert LAYOUTS.keys() | {"flower102", "synthetic"} == {spec.name for spec in SPECS}


def run(dataset: str, root: Path, output: Path, *flags: str, name: str = "run") -> RunPaths:
    code = train(
        f"--name {name} --dataset {dataset} {TWO_STEPS}",
        "--data_root",
        root,
        "--output_dir",
        output,
        *flags,
    )
    assert code == 0
    return RunPaths(output, name)


@of_every_layout
def test_trains_evaluates_and_names_classes_as_officially(tmp_path, dataset, capsys):
    layout = LAYOUTS[dataset]
    root = layout.write(tmp_path / "data")
    paths = run(dataset, root, tmp_path / "out")
    assert ("selected on test" in capsys.readouterr().out) is (layout.eval_split == "test")
    code = evaluate(
        f"--name again {TINY_EVAL}",
        "--checkpoint",
        paths.checkpoint,
        "--data_root",
        root,
        "--output_dir",
        tmp_path / "out",
    )
    assert code == 0
    again = RunPaths(tmp_path / "out", "again")
    assert again.metrics.read_bytes() == paths.metrics.read_bytes()
    split = open_split(get_spec(dataset), root, layout.eval_split)
    assert split.parents or dataset != "nabirds"
    for run_paths in (paths, again):
        labelmap = read_json(run_paths.labelmap)
        assert labelmap["classes"] == list(layout.classes)
        assert labelmap.get("parents", []) == [list(names) for names in split.parents]
        stamp = read_json(run_paths.env_stamp)
        assert stamp["dataset"]["name"] == dataset
        assert stamp["selected_on"] == layout.eval_split == read_json(paths.metrics)["selected_on"]
        rows = rows_of(run_paths)
        assert len(rows) == read_json(run_paths.metrics)["samples"] == 6
        assert {row["ground_truth"]["label"] for row in rows} == set(layout.classes)
        assert {row["predictions"]["label"] for row in rows} <= set(layout.classes)
        assert all(Path(row["filepath"]).is_file() for row in rows)
        assert {tag for row in rows for tag in row["tags"]} == {layout.eval_split}


def test_an_eval_split_may_lack_a_class(tmp_path):
    classes = LAYOUTS["CUB_200_2011"].classes
    paths = run("CUB_200_2011", write_cub(tmp_path / "data", test_classes=[0, 2]), tmp_path / "out")
    assert read_json(paths.labelmap)["classes"] == list(classes)
    rows = rows_of(paths)
    assert len(rows) == 4
    assert {row["ground_truth"]["label"] for row in rows} == {classes[0], classes[2]}
    with paths.per_class.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == list(classes)
    assert (table[1]["samples"], table[1]["accuracy"]) == ("0", "")


OFFICIAL = [name for name in LAYOUTS if get_spec(name).entries]


@pytest.mark.parametrize("dataset", OFFICIAL)
def test_is_found_below_a_parent_of_all_data_sets(tmp_path, dataset):
    spec = get_spec(dataset)
    (tmp_path / "data").mkdir()  # of something else
    root = LAYOUTS[dataset].write(tmp_path / "written")
    for outer in spec.folders:
        root = root.rename(tmp_path / outer)
        assert spec.find_root(spec, tmp_path) == spec.find_root(spec, root) == root
    # An archive may bring a folder along.
    (tmp_path / "all" / spec.folders[-1]).mkdir(parents=True)
    nested = root.rename(tmp_path / "all" / spec.folders[-1] / spec.folders[0])
    for given_root in (tmp_path / "all", nested.parent, nested):
        assert spec.find_root(spec, given_root) == nested


class TestHeldOutVal:
    """A val split held out of train."""

    def test_is_recorded_stratified_and_repeated_by_eval(self, tmp_path, capsys):
        root = write_cub(tmp_path / "data", train_images=8)
        paths = run("CUB_200_2011", root, tmp_path, "--val_fraction", "0.25")
        assert "selected on test" not in capsys.readouterr().out
        rows = rows_of(paths)
        assert len(rows) == 6
        labels = [row["ground_truth"]["label"] for row in rows]
        assert {labels.count(label) for label in labels} == {2}
        stamp = read_json(paths.env_stamp)
        assert stamp["carving"] == {"fraction": 0.25, "seed": 42}
        assert (stamp["dataset"]["samples"], stamp["dataset"]["eval_samples"]) == (18, 6)
        assert stamp["selected_on"] == "val"
        evaluation = f"--name again {TINY_EVAL}"
        again = RunPaths(tmp_path, "again")
        flags = ["--checkpoint", paths.checkpoint, "--data_root", root, "--output_dir", tmp_path]
        assert evaluate(evaluation, *flags) == 0
        assert again.metrics.read_bytes() == paths.metrics.read_bytes()
        assert read_json(again.env_stamp)["carving"] == {"fraction": 0.25, "seed": 42}
        assert evaluate(evaluation, *flags, "--eval_split", "train") == 0
        assert not {row["sample_id"] for row in rows_of(again)} & {row["sample_id"] for row in rows}
        assert evaluate(evaluation, *flags, "--eval_split", "test") == 0
        metrics = read_json(again.metrics)
        assert (metrics["split"], metrics["selected_on"], metrics["samples"]) == ("test", "val", 6)

    def test_is_not_repeated_where_there_is_a_val_split(self, tmp_path):
        """Data without splits was trained on; photos that are split are evaluated as they are."""
        paths = run("folder", write_folder(tmp_path / "whole", split_folders=False), tmp_path)
        root = write_folder(tmp_path / "split")
        flags = ("--checkpoint", paths.checkpoint, "--data_root", root, "--output_dir", tmp_path)
        assert evaluate(f"--name again {TINY_EVAL}", *flags) == 0
        again = RunPaths(tmp_path, "again")
        assert {Path(row["filepath"]).parent.parent for row in rows_of(again)} == {root / "val"}
        assert read_json(again.metrics)["samples"] == 6
        assert read_json(again.env_stamp)["carving"] == "none"


@pytest.mark.parametrize("output", ["output", ".", "rose/of mine"])
def test_runs_among_the_photographs_are_no_classes(tmp_path, monkeypatch, output):
    root = write_folder(tmp_path / "photos", split_folders=False)
    monkeypatch.chdir(root)
    first = run("folder", Path(), Path(output))
    listing = open_split(get_spec("folder"), Path(), "train")
    assert listing.classes == LAYOUTS["folder"].classes
    assert len(listing) == 18
    assert len(listing.notes) == 1
    assert f"{output}/" in listing.notes[0] or "run/, tb/ (our own programs" in listing.notes[0]
    again = run("folder", Path(), Path(output), name="again")
    assert again.metrics.read_bytes() == first.metrics.read_bytes()


def test_cars_without_test_labels_train_on_a_val_split_held_out(tmp_path, refused, capsys):
    root = write_cars(tmp_path / "data", labelled=False)
    flags = f"--name a --dataset car {TWO_STEPS} --eval_split test"
    error = refused(train, flags, "--data_root", root)
    assert "needs cars_test_annos_withlabels.mat" in error
    paths = run("car", root, tmp_path / "out")
    assert read_json(paths.metrics)["split"] == "val"
    out = capsys.readouterr().out
    assert "a share of 0.2 of each class" in out
    assert "; no test: the test split needs cars_test_annos_withlabels.mat" in out


# --- Bad input ------------------------------------------------------------------------------------


def refused_run(refused, dataset: str, root: Path) -> str:
    return refused(train, f"--name a --dataset {dataset} {TWO_STEPS}", "--data_root", root)


class TestBadInput:
    """The texts of what readers refuse are in the tests of the readers."""

    @pytest.mark.parametrize("dataset", ["pet", "folder", "csv"])
    def test_a_root_that_is_not_there_or_of_something_else(self, tmp_path, refused, dataset):
        assert "does not exist" in refused_run(refused, dataset, tmp_path / "absent")
        (tmp_path / "empty").mkdir()
        assert str(tmp_path / "empty") in refused_run(refused, dataset, tmp_path / "empty")

    def test_a_list_file_that_is_damaged(self, tmp_path, refused):
        path = write_pet(tmp_path / "data") / "annotations" / "test.txt"
        path.write_bytes(b"1 Fl\xfcgel/\xe9.jpg\n")
        assert f"{path} is not " in refused_run(refused, "pet", tmp_path / "data")

    def test_a_single_class(self, tmp_path, refused):
        draw(tmp_path / "data" / "rose" / "a.jpg", 0, 0)
        assert "has a single class, 'rose'" in refused_run(refused, "folder", tmp_path / "data")

    @pytest.mark.parametrize("dataset", ["pet", "folder", "csv"])
    def test_a_root_that_may_not_be_entered(self, tmp_path, refused, dataset, monkeypatch):
        """Pretended: root may enter every folder, and tests may run as root."""
        root = LAYOUTS[dataset].write(tmp_path / "data")
        folder = root if root.is_dir() else root.parent
        stat, scandir = os.stat, os.scandir

        def refusing(call):
            def refuse(path=".", *args, **more):
                if folder in (Path(os.fsdecode(path)), *Path(os.fsdecode(path)).parents):
                    raise PermissionError(1, "Operation not permitted", os.fspath(path))
                return call(path, *args, **more)

            return refuse

        monkeypatch.setattr(os, "stat", refusing(stat))
        monkeypatch.setattr(os, "scandir", refusing(scandir))
        error = refused_run(refused, dataset, root)
        assert ": Operation not permitted; let the terminal in: System Settings" in error
        assert str(folder) in error

    def test_an_image_to_evaluate_of_a_class_that_is_not_trained(self, tmp_path, refused):
        root = write_inat(tmp_path / "data")
        document = read_json(root / "val2017.json")
        second = document["categories"][1]
        document["categories"].append({**second, "id": 77, "name": "Another"})
        document["annotations"][0]["category_id"] = 77
        write_json(root / "val2017.json", document)
        error = refused_run(refused, "INat2017", root)
        assert (
            "1 of 6 images of split val are of classes that split train does not have (1): 'Ano"
            in error
        )

    def test_a_root_that_is_not_utf8(self, tmp_path, refused, monkeypatch):
        """Stamps and predictions could not quote it. However it is given."""
        root = tmp_path / "caf\udce9"
        try:
            write_folder(root)
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
        assert r"caf\xe9 is not UTF-8" in refused_run(refused, "folder", root)
        (tmp_path / "link").symlink_to(root)
        assert r"caf\xe9 is not UTF-8" in refused_run(refused, "folder", tmp_path / "link")
        monkeypatch.setenv("DATA_ROOT", str(root))
        error = refused(train, f"--name a --dataset folder {TWO_STEPS}")
        assert r"caf\xe9 is not UTF-8" in error
        monkeypatch.delenv("DATA_ROOT")
        where = ("--data_root", write_folder(tmp_path / "data"))
        assert r"o\xe9 is not UTF-8" in refused(
            train, f"--name a --dataset folder {TWO_STEPS}", *where, "--output_dir", "o\udce9"
        )


def test_the_docs_name_every_dataset():
    guide = (REPO / "specs/003-datasets-and-input/guide.md").read_text(encoding="utf-8")
    assert [spec.name for spec in SPECS if f"`{spec.name}`" not in guide] == []


class TestSpreadsheet:
    @pytest.fixture
    def lists(self, tmp_path) -> tuple[Path, Path]:
        """A list as we write it, and one of the same images as Excel and pandas would."""
        plain = write_csv(tmp_path / "own")
        rows = [line.split(",") for line in plain.read_text("utf-8").splitlines()[1:]]
        lines = [
            f"{number};40;{Path(path).with_suffix('')};{label};{split.title()};;"
            for number, (path, label, split) in enumerate(rows)
        ]
        foreign = tmp_path / "own" / "excel.csv"
        text = "\r\n".join(["\ufeff;Width;Image;Breed;Set;;", *lines[:3], ";;;;;;", *lines[3:]])
        foreign.write_bytes(text.encode())
        return plain, foreign

    def test_is_the_data_that_its_plain_list_is(self, tmp_path, lists, capsys):
        runs = [run("csv", path, tmp_path / path.stem) for path in lists]
        out = capsys.readouterr().out
        assert out.count("excel.csv is read as: path from column 'Image', label from column") == 1
        assert out.count("excel.csv: 12 of 12 names differ from their files") == 1
        assert "images.csv is read as" not in out
        plain, foreign = [read_json(paths.env_stamp)["dataset"] for paths in runs]
        assert plain == foreign
        assert runs[0].checkpoint.read_bytes() == runs[1].checkpoint.read_bytes()

    def test_of_rows_to_evaluate_only_is_enough(self, tmp_path, lists, capsys):
        paths = run("csv", lists[0], tmp_path / "out")
        lines = [
            line for line in lists[1].read_text("utf-8-sig").splitlines() if "Train" not in line
        ]
        lists[1].write_text("\n".join(lines).replace(";Val;", ";test;"), "utf-8")
        (tmp_path / "ids.txt").write_text(f"{lines[-1].split(';')[2]}.jpg\n", "utf-8")
        arguments = ["--checkpoint", paths.checkpoint, "--output_dir", tmp_path / "out"]
        arguments += ["--dataset", "csv", "--data_root", lists[1]]
        assert evaluate(f"--name every {TINY_EVAL}", *arguments) == 0
        assert len(rows_of(RunPaths(tmp_path / "out", "every"))) == 6
        subset = ["--tiny_infer_subset", tmp_path / "ids.txt"]
        assert evaluate(f"--name one {TINY_EVAL}", *arguments, *subset) == 0
        assert len(rows_of(RunPaths(tmp_path / "out", "one"))) == 1
        assert "1 of 1 lines are not the ids themselves" in capsys.readouterr().out
        code = train(f"--name no --dataset csv {TWO_STEPS} --data_root", lists[1])
        assert code == 2
        assert "no split 'train'; it has test" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("plain", "unclear", "message"),
        [
            (
                "path,label",
                "image,class,breed",
                "line 1 has two columns that may be the label: 'cl",
            ),
            ("IMG 0001", "IMG_0001", "(first: IMG_0001.jpg, did you mean 'IMG 0001.jpg'"),
            ("rose", "ro\u200bse", "'ro\\u200bse' has the invisible character U+200B (zero width"),
        ],
    )
    def test_that_is_unclear_is_refused(self, lists, refused, plain, unclear, message):
        lists[0].write_text(lists[0].read_text("utf-8").replace(plain, unclear), "utf-8")
        assert message in refused_run(refused, "csv", lists[0])
