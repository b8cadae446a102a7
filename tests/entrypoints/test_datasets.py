"""Every data set in its official format through the real entrypoints."""

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers import REPO, TINY_EVAL, evaluate, read_json, rows_of, train
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_birds import write_cub, write_nabirds
from layouts_objects import write_cars, write_dogs, write_pet
from layouts_own import draw, write_csv, write_folder
from layouts_web import (
    write_aircraft,
    write_cifar10,
    write_cifar100,
    write_food101,
    write_inat,
)

from utils.data.catalog import SPECS, get_spec
from utils.data.readers.listing import TEXT
from utils.data.splits import PAIRS_AT_ONCE, Carving, Split, carve
from utils.data_utils import RunPaths
from utils.dataset import open_split
from utils.errors import InputError
from utils.files import canonical_json, sha256_text, write_json

TWO_STEPS = (
    "--model_type testing --img_size 32 --num_steps 2 --eval_every 2 --train_batch_size 4 "
    "--eval_batch_size 2 --num_workers 0 --device cpu"
)


class Layout(NamedTuple):
    """How a data set is written, and what its runs must say."""

    write: Callable[..., Path]
    eval_split: str  # by default
    classes: tuple[str, ...]  # official names in index order
    lacking: dict  # makes `write` leave a class out of the eval split


LAYOUTS = {
    "CUB_200_2011": Layout(
        write_cub,
        "test",
        ("Red crested Finch", "Blue winged Finch", "Green tailed Finch"),
        {"test_classes": [0, 2]},
    ),
    "nabirds": Layout(
        write_nabirds,
        "test",
        ("Stone Finch (Male)", "Stone Finch (Female/juvenile)", "Ring Gull"),
        {"test_classes": [0, 2]},
    ),
    "car": Layout(
        write_cars,
        "test",
        ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van 2012"),
        {"test_classes": [0, 2]},
    ),
    "dog": Layout(
        write_dogs,
        "test",
        ("Chihuahua", "black-and-tan coonhound", "Mexican hairless"),
        {"test_classes": [0, 2]},
    ),
    "pet": Layout(
        write_pet,
        "test",
        ("Abyssinian", "american bulldog", "British Shorthair"),
        {"test_classes": [0, 2]},
    ),
    "aircraft": Layout(
        write_aircraft,
        "val",
        ("707-320", "F-16A/B", "Hawk T1"),
        {},
    ),
    "food101": Layout(
        write_food101,
        "test",
        ("Apple pie", "Creme brulee", "Ramen"),
        {"test_classes": [0, 2]},
    ),
    "INat2017": Layout(
        write_inat,
        "val",
        ("Acris crepitans", "Ardea alba", "Abies alba"),
        {"val_classes": [0, 2]},
    ),
    "cifar10": Layout(
        write_cifar10,
        "test",
        ("airplane", "automobile", "bird"),
        {"test_classes": [0, 2]},
    ),
    "cifar100": Layout(
        write_cifar100,
        "test",
        ("apple", "aquarium fish", "baby"),
        {"test_classes": [0, 2]},
    ),
    "folder": Layout(
        write_folder,
        "val",
        ("oak leaf", "rose", "Épine noire"),
        {"val_classes": [0, 1]},
    ),
    "csv": Layout(write_csv, "val", ("oak leaf", "rose", "Épine noire"), {}),
}
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
def test_trains_evaluates_and_names_classes_as_officially(tmp_path, dataset):
    layout = LAYOUTS[dataset]
    root = layout.write(tmp_path / "data")
    paths = run(dataset, root, tmp_path / "out")
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
    for run_paths in (paths, again):
        assert read_json(run_paths.labelmap)["classes"] == list(layout.classes)
        stamp = read_json(run_paths.env_stamp)
        assert stamp["dataset"]["name"] == dataset
        assert stamp["selected_on"] == layout.eval_split == read_json(paths.metrics)["selected_on"]
        rows = rows_of(run_paths)
        assert len(rows) == read_json(run_paths.metrics)["samples"] == 6
        assert {row["ground_truth"]["label"] for row in rows} == set(layout.classes)
        assert {row["predictions"]["label"] for row in rows} <= set(layout.classes)
        assert all(Path(row["filepath"]).is_file() for row in rows)
        assert {tag for row in rows for tag in row["tags"]} == {layout.eval_split}


@pytest.mark.parametrize("dataset", [name for name in LAYOUTS if LAYOUTS[name].lacking])
def test_an_eval_split_may_lack_a_class(tmp_path, dataset):
    layout = LAYOUTS[dataset]
    root = layout.write(tmp_path / "data", **layout.lacking)
    paths = run(dataset, root, tmp_path / "out")
    assert read_json(paths.labelmap)["classes"] == list(layout.classes)
    rows = rows_of(paths)
    assert len(rows) == 4
    assert {row["ground_truth"]["label"] for row in rows} == {layout.classes[0], layout.classes[2]}
    with paths.per_class.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == list(layout.classes)
    assert (table[1]["samples"], table[1]["accuracy"]) == ("0", "")


@of_every_layout
def test_has_tiny_subsets(tmp_path, dataset):
    root = LAYOUTS[dataset].write(tmp_path / "data")
    tiny = f"{dataset}_tiny"
    paths = run(
        dataset, root, tmp_path / "out", "--tiny_train_subset", tiny, "--tiny_infer_subset", tiny
    )
    assert len(rows_of(paths)) == 4  # two batches of two
    stamp = read_json(paths.env_stamp)
    assert stamp["tiny_train_subset"]["name"] == stamp["tiny_infer_subset"]["name"] == tiny
    assert stamp["tiny_train_subset"]["count"] == 8


@pytest.mark.parametrize("dataset", [name for name in LAYOUTS if get_spec(name).folders])
def test_is_found_below_a_parent_of_all_data_sets(tmp_path, dataset, monkeypatch):
    for folder in get_spec(dataset).folders:
        root = LAYOUTS[dataset].write(tmp_path / "all" / folder)
        monkeypatch.setenv("DATA_ROOT", str(tmp_path / "all"))
        output = tmp_path / folder
        assert train(f"--name a --dataset {dataset} {TWO_STEPS}", "--output_dir", output) == 0
        (row, *_) = rows_of(RunPaths(output, "a"))
        assert Path(row["filepath"]).is_relative_to(root)
        root.rename(tmp_path / f"{folder} is done")


@pytest.mark.parametrize("dataset", [name for name in LAYOUTS if get_spec(name).folders])
def test_is_found_where_its_archive_brought_a_folder_along(tmp_path, dataset):
    spec = get_spec(dataset)
    outer, inner = spec.folders[-1], spec.folders[0]
    root = LAYOUTS[dataset].write(tmp_path / outer / inner)
    (tmp_path / "data").mkdir()  # of something else
    for given_root in (tmp_path, tmp_path / outer, root):
        assert spec.find_root(spec, given_root) == root


def test_folders_are_found_where_their_archive_brought_a_folder_along(tmp_path):
    root = write_folder(tmp_path / "flowers" / "flowers")
    (root.parent / "__MACOSX").mkdir()
    for given_root in (root.parent, root):
        split = open_split(get_spec("folder"), given_root, "val")
        assert (len(split), split.root) == (6, root)


class TestChecksum:
    def test_is_that_of_the_whole_list(self):
        count = 3 * PAIRS_AT_ONCE + 1
        ids = [f"é{number}" for number in range(count)]
        for size in (1, PAIRS_AT_ONCE, PAIRS_AT_ONCE + 1, count):
            split = split_of(ids[:size], [number % 7 for number in range(size)])
            pairs = [[sample_id, number % 7] for number, sample_id in enumerate(ids[:size])]
            assert split.checksum() == sha256_text(canonical_json(pairs))


def split_of(ids: list[str], labels: list[int]) -> Split:
    """A train split of images that are not there, with 7 classes."""
    classes = tuple(f"class {number}" for number in range(7))
    texts = np.array(ids, dtype=TEXT)
    return Split("toy", "train", Path("unused"), classes, texts, texts, np.array(labels, np.int64))


class TestCarving:
    """A val split cut out of train."""

    @settings(max_examples=100, deadline=None)
    @given(
        labels=st.lists(st.integers(0, 6), min_size=2, max_size=60),
        fraction=st.floats(0.01, 0.99),
        seed=st.integers(0, 3),
        drawn=st.data(),
    )
    def test_gives_each_class_its_share(self, labels, fraction, seed, drawn):
        ids = [f"image {number}" for number in range(len(labels))]
        counts = np.bincount(labels, minlength=7)
        able = np.maximum(counts - 1, 0)  # one of each class stays to train on
        carving = Carving(fraction, seed)
        try:
            train, val = carve(split_of(ids, labels), carving)
        except InputError as error:
            assert "carves none; give more" in str(error)  # noqa: PT017 - either will do
            assert (np.minimum(np.floor(counts * fraction), able) == 0).all()
            return
        assert (train.name, val.name) == ("train", "val")
        assert sorted([*train.ids, *val.ids]) == sorted(ids)
        for part in (train, val):  # in the order of the whole
            places = [ids.index(sample_id) for sample_id in part.ids]
            assert places == sorted(places)
            assert part.labels.tolist() == [labels[place] for place in places]
        carved = np.bincount(val.labels, minlength=7)
        assert (carved <= able).all()
        assert (carved <= np.ceil(counts * fraction)).all()
        assert (carved >= np.minimum(np.floor(counts * fraction), able)).all()
        asked = round(len(labels) * fraction)
        assert len(val) <= max(asked, 1)
        if (able >= np.ceil(counts * fraction)).all():
            assert len(val) == asked
        # Which ones does not depend on the order of the list.
        order = drawn.draw(st.permutations(range(len(ids))))
        again = split_of([ids[place] for place in order], [labels[place] for place in order])
        assert set(carve(again, carving)[1].ids) == set(val.ids)

    def test_rounds_up_where_most_is_left_over(self):
        labels = [0] * 7 + [1] * 8 + [2] * 9
        _, val = carve(split_of([f"{number}" for number in range(24)], labels), Carving(0.1, 1))
        assert np.bincount(val.labels).tolist() == [0, 1, 1]  # of 0.7, 0.8 and 0.9

    def test_is_the_same_on_every_machine(self):
        ids = [f"image_{number:05d}" for number in range(20)]
        _, val = carve(split_of(ids, [number % 2 for number in range(20)]), Carving(0.3, 42))
        assert [int(sample_id[6:]) for sample_id in val.ids] == [5, 6, 7, 12, 13, 14]

    def test_of_one_image_a_class_is_refused(self):
        with pytest.raises(InputError, match=r"--val_fraction 0.9 of 3 samples of toy in 3 class"):
            carve(split_of(["a", "b", "c"], [0, 1, 2]), Carving(0.9, 1))

    def test_is_recorded_stratified_and_repeated_by_eval(self, tmp_path):
        root = write_cub(tmp_path / "data", train_images=8)
        paths = run("CUB_200_2011", root, tmp_path, "--val_fraction", "0.25")
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
        """A heap was trained on; photos that are split are evaluated as they are."""
        paths = run("folder", write_folder(tmp_path / "heap", split_folders=False), tmp_path)
        root = write_folder(tmp_path / "split")
        flags = ("--checkpoint", paths.checkpoint, "--data_root", root, "--output_dir", tmp_path)
        assert evaluate(f"--name again {TINY_EVAL}", *flags) == 0
        again = RunPaths(tmp_path, "again")
        assert {Path(row["filepath"]).parent.parent for row in rows_of(again)} == {root / "val"}
        assert read_json(again.metrics)["samples"] == 6
        assert read_json(again.env_stamp)["carving"] == "none"

    def test_of_another_seed_is_another(self, tmp_path):
        root = write_cub(tmp_path / "data", train_images=8)
        ids = []
        for seed in ("1", "2", "1"):
            flags = ["--val_fraction", "0.25", "--split_seed", seed]
            paths = run("CUB_200_2011", root, tmp_path, *flags, name=f"seed{len(ids)}")
            ids.append([row["sample_id"] for row in rows_of(paths)])
        assert ids[0] == ids[2] != ids[1]

    @pytest.mark.parametrize("dataset", ["folder", "csv"])
    def test_is_what_happens_to_a_heap(self, tmp_path, dataset):
        if dataset == "folder":
            root = write_folder(tmp_path / "data", split_folders=False)
        else:
            root = write_csv(tmp_path / "data", with_split=False)
        paths = run(dataset, root, tmp_path / "out")
        stamp = read_json(paths.env_stamp)
        assert stamp["carving"] == {"fraction": 0.2, "seed": 42}
        assert (stamp["dataset"]["samples"], stamp["dataset"]["eval_samples"]) == (14, 4)

    def test_needs_a_data_set_without_val(self, tmp_path, refused):
        flags = f"--name a --dataset aircraft {TWO_STEPS}"
        root = write_aircraft(tmp_path / "data")
        error = refused(train, flags, "--data_root", root, "--val_fraction", "0.5")
        assert "--val_fraction: aircraft has a val split of its own" in error
        error = refused(train, flags, "--data_root", root, "--split_seed", "5")
        assert "--split_seed means nothing without --val_fraction" in error


class TestSelectedOnTest:
    def test_is_said_everywhere(self, tmp_path, capsys):
        root = write_dogs(tmp_path / "data")
        paths = run("dog", root, tmp_path / "out")
        assert "selected on test" in capsys.readouterr().out
        assert read_json(paths.metrics)["selected_on"] == "test"
        assert read_json(paths.env_stamp)["selected_on"] == "test"

    def test_is_not_said_of_val(self, tmp_path, capsys):
        root = write_dogs(tmp_path / "data")
        run("dog", root, tmp_path / "out", "--val_fraction", "0.25")
        assert "selected on test" not in capsys.readouterr().out


class TestCarsWithoutTestLabels:
    def test_train_on_a_carved_val_and_say_why(self, tmp_path, capsys):
        root = write_cars(tmp_path / "data", labelled=False)
        paths = run("car", root, tmp_path / "out")
        assert read_json(paths.metrics)["split"] == "val"
        out = capsys.readouterr().out
        assert re.search(
            r"^val is carved out of train: \d+ images, a share of 0\.2 of each class, seed \d+; no "
            r"test: the test split needs cars_test_annos_withlabels\.mat",
            out,
            re.MULTILINE,
        )

    def test_say_which_file_is_missing(self, tmp_path, refused):
        root = write_cars(tmp_path / "data", labelled=False)
        flags = f"--name a --dataset car {TWO_STEPS} --eval_split test"
        error = refused(train, flags, "--data_root", root)
        assert "needs cars_test_annos_withlabels.mat" in error
        paths = run("car", root, tmp_path / "trained")
        error = refused(
            evaluate,
            f"--name b {TINY_EVAL} --eval_split test",
            "--data_root",
            root,
            "--checkpoint",
            paths.checkpoint,
        )
        assert "needs cars_test_annos_withlabels.mat" in error

    def test_labels_may_lie_in_the_devkit(self, tmp_path):
        root = write_cars(tmp_path / "data")
        name = "cars_test_annos_withlabels.mat"
        (root / name).rename(root / "devkit" / name)
        assert read_json(run("car", root, tmp_path / "out").metrics)["split"] == "test"


def test_dogs_lists_may_lie_in_a_folder(tmp_path):
    root = write_dogs(tmp_path / "data", lists_folder="lists")
    assert read_json(run("dog", root, tmp_path / "out").metrics)["split"] == "test"


def test_nabirds_keep_their_hierarchy(tmp_path):
    root = write_nabirds(tmp_path / "data")
    labelmap = read_json(run("nabirds", root, tmp_path / "out").labelmap)
    assert labelmap["parents"] == [
        ["Finches, Sparrows, and Allies", "Birds"],
        ["Finches, Sparrows, and Allies", "Birds"],
        ["Ring Gull", "Gulls", "Birds"],
    ]


# --- Bad input ------------------------------------------------------------------------------------

GENERATED = ("cifar10", "cifar100", "folder")  # what is not there is not listed, or made
OFFICIAL = [name for name in LAYOUTS if name not in ("folder", "csv")]


def list_files(root: Path) -> list[Path]:
    """What a reader needs: every file that is no image; lists may be next to each other."""
    unneeded = {
        "cars_test_annos.mat",
        "cars_test_annos_withlabels.mat",
        "images_variant_trainval.txt",
        "train.json",
        "test.json",
    }
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.suffix.lower() not in (".jpg", ".png")
        and path.name not in unneeded
    ]


def refused_run(refused, dataset: str, root: Path) -> str:
    return refused(train, f"--name a --dataset {dataset} {TWO_STEPS}", "--data_root", root)


class TestBadInput:
    @of_every_layout
    def test_a_root_that_is_not_there(self, tmp_path, refused, dataset):
        assert "does not exist" in refused_run(refused, dataset, tmp_path / "absent")

    @of_every_layout
    def test_a_root_of_something_else(self, tmp_path, refused, dataset):
        (tmp_path / "empty").mkdir()
        error = refused_run(refused, dataset, tmp_path / "empty")
        assert str(tmp_path / "empty") in error

    @pytest.mark.parametrize("dataset", OFFICIAL)
    def test_a_missing_list_file(self, tmp_path, refused, dataset):
        root = LAYOUTS[dataset].write(tmp_path / "data")
        files = list_files(root)
        assert files
        for path in files:
            path.rename(tmp_path / "aside")
            assert path.name in refused_run(refused, dataset, root), path
            (tmp_path / "aside").rename(path)

    @pytest.mark.parametrize("dataset", OFFICIAL)
    def test_a_folder_where_a_list_file_should_be(self, tmp_path, refused, dataset):
        root = LAYOUTS[dataset].write(tmp_path / "data")
        for path in list_files(root):
            path.rename(tmp_path / "aside")
            path.mkdir()
            assert "is a folder" in refused_run(refused, dataset, root), path
            path.rmdir()
            (tmp_path / "aside").rename(path)

    @pytest.mark.parametrize("dataset", OFFICIAL)
    def test_a_list_file_that_is_not_utf8_or_of_another_kind(self, tmp_path, refused, dataset):
        root = LAYOUTS[dataset].write(tmp_path / "data")
        for path in list_files(root):
            content = path.read_bytes()
            path.write_bytes(b"1 Fl\xfcgel/\xe9.jpg\n")
            assert path.name in refused_run(refused, dataset, root), path
            path.write_bytes(content)

    @pytest.mark.parametrize("dataset", [name for name in LAYOUTS if name not in GENERATED])
    def test_a_missing_image(self, tmp_path, refused, dataset):
        root = LAYOUTS[dataset].write(tmp_path / "data")
        image = Path(open_split(get_spec(dataset), root, "train").path_of(3))
        image.unlink()
        error = refused_run(refused, dataset, root)
        assert "1 of 12 images of split train are missing" in error
        assert image.name in error

    def test_an_empty_class_folder(self, tmp_path, refused):
        root = write_folder(tmp_path / "data")
        (root / "train" / "empty").mkdir()
        error = refused_run(refused, "folder", root)
        assert f"{root}/train/empty has no image" in error

    @pytest.mark.parametrize("dataset", ["folder", "csv"])
    def test_a_single_class(self, tmp_path, refused, dataset):
        draw(tmp_path / "data" / "rose" / "a.jpg", 0, 0)
        (tmp_path / "data" / "a.csv").write_text("path,label\nrose/a.jpg,rose\n")
        assert "has a single class, 'rose'" in refused_run(refused, dataset, tmp_path / "data")

    @pytest.mark.parametrize("dataset", [*OFFICIAL, "folder", "csv"])
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
        assert "cannot be read (Operation not permitted)" in error
        assert str(folder) in error

    def test_a_class_that_is_not_trained(self, tmp_path, refused):
        root = write_folder(tmp_path / "data")
        (root / "val" / "extra").mkdir()
        assert "'extra' is not in train/" in refused_run(refused, "folder", root)

    @pytest.mark.parametrize("listed", [2, 4])
    def test_splits_whose_lists_name_other_classes(self, tmp_path, refused, listed):
        """Their labels would not be those of one another."""
        root = write_inat(tmp_path / "data")
        path = root / "val2017.json"
        document = read_json(path)
        first, second, *more = document["categories"]
        document["categories"] = [first, *more][:listed]
        if listed > 2:
            document["categories"] += [second, {**second, "id": 77, "name": "Another"}]
        else:
            lost = second["id"]
            kept = [each for each in document["annotations"] if each["category_id"] != lost]
            document["annotations"] = kept
            ids = {each["image_id"] for each in kept}
            document["images"] = [each for each in document["images"] if each["id"] in ids]
        write_json(path, document)
        error = refused_run(refused, "INat2017", root)
        assert "train and val list other classes: class " in error

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

    def test_a_file_name_that_is_not_utf8(self, tmp_path, refused):
        root = write_folder(tmp_path / "data")
        try:
            (Path(root) / "train" / "rose" / "caf\udce9.jpg").touch()
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
        error = refused_run(refused, "folder", root)
        assert r"rose/caf\xe9.jpg has a name that is not UTF-8" in error

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("path,label,splt", "has the column 'splt'; it may have path, label and perhaps split"),
            ("path,split", "has no column 'label'"),
            ("path,label,path", "has the column 'path' twice"),
        ],
    )
    def test_a_csv_with_other_columns(self, tmp_path, refused, line, message):
        path = write_csv(tmp_path / "data")
        lines = path.read_text("utf-8").splitlines()
        path.write_text("\n".join([line, *lines[1:]]), encoding="utf-8")
        assert message in refused_run(refused, "csv", path)

    def test_a_csv_with_an_unknown_split(self, tmp_path, refused):
        path = write_csv(tmp_path / "data")
        path.write_text(path.read_text("utf-8").replace(",train", ",training"), encoding="utf-8")
        assert "line 2: split 'training' is none of train, val, test" in refused_run(
            refused, "csv", path
        )


def test_the_docs_name_every_dataset():
    guide = (REPO / "specs/003-datasets-and-input/guide.md").read_text(encoding="utf-8")
    assert [spec.name for spec in SPECS if f"`{spec.name}`" not in guide] == []
