"""utils/data/readers/cars.py: the official annotations, read exactly or refused in one line."""

import numpy as np
import pytest
from layouts import nest
from layouts_objects import (
    CAR_LABELS_FILE,
    REAL_CARS,
    cells,
    edit_mat,
    without_field,
    write_cars,
)

from utils.data.readers import cars
from utils.errors import InputError

META, TRAIN = "devkit/cars_meta.mat", "devkit/cars_train_annos.mat"
NAMES = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van 2012")


@pytest.fixture
def root(tmp_path):
    """The annotations of 12 training and 6 test images; the folders of images are empty."""
    return write_cars(tmp_path / "stanford_cars", photos=False)


class TestRead:
    @pytest.mark.parametrize("place", [".", "car_devkit/devkit"])
    def test_takes_archives_that_lie_in_folders_of_their_names(self, tmp_path, place):
        root = write_cars(tmp_path / "cars")
        before = [cars.read(root, split) for split in ("train", "test")]
        nest(root, "cars_train")
        nest(root, "cars_test")
        nest(root, "devkit", "car_devkit")
        (root / CAR_LABELS_FILE).rename(root / place / CAR_LABELS_FILE)
        assert cars.splits(root) == ("train", "test")
        for split, old in zip(("train", "test"), before, strict=True):
            new = cars.read(root, split)
            assert new.ids.tolist() == old.ids.tolist()
            assert new.labels.tolist() == old.labels.tolist()
            assert all((root / path).is_file() for path in new.paths)

    @pytest.mark.parametrize("missing", [CAR_LABELS_FILE, "cars_test"])
    def test_trains_without_the_test_split(self, root, missing):
        assert cars.splits(root) == ("train", "test")
        (root / missing).rename(root / "aside")
        assert cars.splits(root) == ("train",)
        assert missing in cars.ABSENT["test"]
        assert len(cars.read(root, "train").ids) == 12


def _set(field, value):
    """An edit of the second annotation."""

    def edit(variables):
        variables["annotations"][field][0, 1] = value

    return edit


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        *(
            (
                TRAIN,
                lambda old, field=field: old.update(
                    annotations=without_field(old["annotations"], field)
                ),
                rf"train_annos.mat has no 'annotations' with a field '{field}'; ",
            )
            for field in ("class", "fname")
        ),
        (
            TRAIN,
            lambda old: old.update(annotations=cells(["00001.jpg"])),
            r"train_annos.mat has no 'annotations' with a field 'class'",
        ),
        (TRAIN, _set("fname", "00001.jpg"), r"has the image 'train_00001' more than once"),
        (TRAIN, _set("fname", "../2.jpg"), r"annos.mat: 'cars_train/../2.jpg' is not a path below"),
        *(
            (TRAIN, _set("class", bad), r"annos.mat: the class of '00002.jpg' is not a whole num")
            for bad in (1.5, np.array([1, 2]), np.zeros((0, 0)))
        ),
        (TRAIN, _set("class", 4), r"annos.mat: the label of train_00002 is 3 counted from 0, but"),
        (META, lambda old: old["class_names"].put(1, "_ "), r"cars_meta.mat gives class 2 no name"),
    ],
)
def test_refuses_damaged_annotations(root, name, edit, message):
    edit_mat(root / name, edit)
    with pytest.raises(InputError, match=message):
        cars.read(root, "train")


@pytest.mark.skipif(REAL_CARS is None, reason="the official devkit of Stanford Cars is not here")
class TestRealAnnotations:
    def test_have_the_official_samples(self):
        assert cars.splits(REAL_CARS) == ("train",)
        train = cars.read(REAL_CARS, "train")
        assert len(train.ids) == len(train.paths) == len(train.labels) == 8144
        assert len(set(train.classes)) == 196
        per_class = np.bincount(train.labels)
        assert (len(per_class), per_class.min(), per_class.max()) == (196, 24, 68)
        assert train.classes[0] == "AM General Hummer SUV 2000"
        assert train.classes[195] == "smart fortwo Convertible 2012"
        assert (train.ids[0], train.paths[0]) == ("train_00001", "cars_train/00001.jpg")
        assert train.labels[:3].tolist() == [13, 2, 90]
        assert train.classes[13] == "Audi TTS Coupe 2012"
