"""utils/data/readers/cars.py: the official annotations, read exactly or refused in one line."""

import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_objects import (
    CAR_LABELS_FILE,
    REAL_CARS,
    car_annotations,
    cells,
    edit_mat,
    write_cars,
    write_mat,
)
from PIL import Image

from utils.data.readers import cars
from utils.errors import InputError

META, TRAIN = "devkit/cars_meta.mat", "devkit/cars_train_annos.mat"
NAMES = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van 2012")


@pytest.fixture
def root(tmp_path):
    """The annotations of 12 training and 6 test images; the folders of images are empty."""
    return write_cars(tmp_path / "stanford_cars", photos=False)


class TestRead:
    def test_gives_the_split_in_the_order_of_its_annotations(self, root):
        train, test = cars.read(root, "train"), cars.read(root, "test")
        assert train.classes == test.classes == NAMES
        assert train.parents == test.parents == ()
        assert train.labels.tolist() == [2, 0, 1, 1, 1, 2, 0, 0, 1, 2, 2, 0]
        assert np.bincount(test.labels).tolist() == [2, 2, 2]
        assert train.ids.tolist() == [f"train_{number:05d}" for number in range(1, 13)]
        assert test.ids.tolist() == [f"test_{number:05d}" for number in range(1, 7)]
        assert train.paths[11] == "cars_train/00012.jpg"
        assert test.paths[0] == "cars_test/00001.jpg"

    def test_names_photos_that_are_there(self, tmp_path):
        root = write_cars(tmp_path / "cars")
        paths = [*cars.read(root, "train").paths, *cars.read(root, "test").paths]
        photos = {np.asarray(Image.open(root / path)).tobytes() for path in paths}
        assert len(photos) == len(paths) == 18
        assert {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")} == set(paths)
        assert all((root / entry).is_dir() for entry in cars.ENTRIES)

    def test_has_every_class_where_a_split_lacks_one(self, tmp_path):
        test = cars.read(write_cars(tmp_path / "cars", test_classes=[0, 2], photos=False), "test")
        assert test.classes == NAMES
        assert sorted(test.labels) == [0, 0, 2, 2]

    def test_takes_the_labels_of_the_test_split_from_the_devkit_too(self, root):
        expected = cars.read(root, "test").labels.tolist()
        (root / CAR_LABELS_FILE).rename(root / "devkit" / CAR_LABELS_FILE)
        assert cars.read(root, "test").labels.tolist() == expected
        assert cars.splits(root) == ("train", "test")

    @pytest.mark.parametrize("place", [".", "car_devkit/devkit"])
    def test_takes_archives_that_lie_in_folders_of_their_names(self, tmp_path, place):
        root = write_cars(tmp_path / "cars")
        before = [cars.read(root, split) for split in ("train", "test")]
        for name in ("cars_train", "cars_test"):
            (root / name).rename(root / "aside")
            (root / name).mkdir()
            (root / "aside").rename(root / name / name)
        (root / "car_devkit").mkdir()
        (root / "devkit").rename(root / "car_devkit" / "devkit")
        (root / CAR_LABELS_FILE).rename(root / place / CAR_LABELS_FILE)
        assert cars.splits(root) == ("train", "test")
        for split, old in zip(("train", "test"), before, strict=True):
            new = cars.read(root, split)
            assert new.ids.tolist() == old.ids.tolist()
            assert new.labels.tolist() == old.labels.tolist()
            assert all((root / path).is_file() for path in new.paths)

    def test_trains_without_the_test_split(self, root):
        (root / CAR_LABELS_FILE).unlink()
        (root / "devkit" / "cars_test_annos.mat").unlink()
        (root / "cars_test").rmdir()
        assert cars.splits(root) == ("train",)
        assert len(cars.read(root, "train").ids) == 12

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_agrees_with_torchvision(self, root, split):
        from torchvision.datasets import StanfordCars

        theirs = StanfordCars(root.parent, split)
        ours = cars.read(root, split)
        paths = [str(root / path) for path in ours.paths]
        assert list(zip(paths, ours.labels.tolist(), strict=True)) == theirs._samples
        assert [" ".join(name.split()) for name in theirs.classes] == list(ours.classes)

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_gives_back_what_was_written(self, tmp_path_factory, data):
        classes = [f"Make_{number}  Coupé" for number in range(data.draw(st.integers(1, 300)))]
        numbers = data.draw(st.lists(st.integers(0, 99999), min_size=1, max_size=20, unique=True))
        labels = [data.draw(st.integers(1, len(classes))) for _ in numbers]
        root = tmp_path_factory.getbasetemp() / "cars_lists"
        (root / "devkit").mkdir(parents=True, exist_ok=True)
        names = [f"{number:05d}.v2.jpg" for number in numbers]
        write_mat(root / META, class_names=cells(classes)[None])
        write_mat(root / TRAIN, annotations=car_annotations(names, labels))
        train = cars.read(root, "train")
        assert train.classes == tuple(f"Make {number} Coupé" for number in range(len(classes)))
        assert train.ids.tolist() == [f"train_{number:05d}.v2" for number in numbers]
        assert train.paths.tolist() == [f"cars_train/{name}" for name in names]
        assert (train.labels + 1).tolist() == labels


def _set(field, value):
    """An edit of the second annotation."""

    def edit(variables):
        variables["annotations"][field][0, 1] = value

    return edit


def _without(field):
    def edit(variables):
        structs = variables["annotations"]
        kept = np.empty(
            structs.shape, [(name, "O") for name in structs.dtype.names if name != field]
        )
        for name in kept.dtype.names:
            kept[name] = structs[name]
        variables["annotations"] = kept

    return edit


def _put(**variables):
    return lambda old: old.update(variables)


DAMAGES = [
    *(
        (TRAIN, _without(field), rf"train_annos.mat has no 'annotations' with a field '{field}'; ")
        for field in ("class", "fname")
    ),
    *(
        (TRAIN, _put(annotations=bad), r"train_annos.mat has no 'annotations' with a field 'class'")
        for bad in (np.ones((1, 3)), "text", cells(["00001.jpg"]))
    ),
    (
        TRAIN,
        lambda old: (old.pop("annotations"), old.update(other=1)),
        r"train_annos.mat has no 'annotations' with a field 'class'",
    ),
    (TRAIN, _put(annotations=car_annotations([], [])), r"train_annos.mat"),
    *(
        (TRAIN, _set("fname", bad), r"train_annos.mat: fname 2 is empty or no text; fetch")
        for bad in ("", 7, cells(["00001.jpg"]), np.array(["00001.jpg", "00002.jpg"]))
    ),
    *(
        (
            TRAIN,
            _set("fname", bad),
            rf"train_annos.mat: fname 2 is {re.escape(repr(bad))}, not a fi",
        )
        for bad in ("a/2.jpg", "/2.jpg", "..", ".", "../2.jpg", "2.jpg/", r"a\2.jpg")
    ),
    (TRAIN, _set("fname", "00001.jpg"), r"has the image 'train_00001' more than once"),
    *(
        (
            TRAIN,
            _set("class", bad),
            r"annos.mat: the class of '00002.jpg' is not a whole number; fe",
        )
        for bad in ("1", 1.5, np.nan, np.inf, 1e300, np.array([1, 2]), np.zeros((0, 0)), 1j)
    ),
    *(
        (TRAIN, _set("class", bad), rf"annos.mat: the class of '00002.jpg' is {bad}, not 1 to 3$")
        for bad in (0, 4, -1, 70000)
    ),
    *(
        (META, _put(class_names=bad), r"cars_meta.mat has no 'class_names' made of texts; fetch")
        for bad in (np.ones((1, 3)), "text")
    ),
    (
        META,
        lambda old: (old.pop("class_names"), old.update(other=1)),
        r"cars_meta.mat has no 'class_names' made of texts",
    ),
    *(
        (
            META,
            _put(class_names=cells([NAMES[0], bad, NAMES[2]])[None]),
            r"cars_meta.mat: class_names 2 is empty or no text; fetch",
        )
        for bad in ("", 3)
    ),
    (
        META,
        _put(class_names=cells([NAMES[0], "_ ", NAMES[2]])[None]),
        r"cars_meta.mat gives class 2 no name; fetch",
    ),
    (
        META,
        _put(class_names=cells([NAMES[0], "Ram  C/V_Cargo Van 2012", NAMES[2]])[None]),
        r"cars_meta.mat gives class 2 and class 3 the same class name 'Ram C/V Cargo Van 2012'",
    ),
    (
        META,
        _put(class_names=cells(NAMES[:2])[None]),
        r"train_annos.mat: the class of '00001.jpg' is 3, not 1 to 2$",
    ),
]


class TestRefusals:
    @pytest.mark.parametrize(("name", "edit", "message"), DAMAGES)
    def test_of_damaged_annotations(self, root, name, edit, message):
        edit_mat(root / name, edit)
        with pytest.raises(InputError, match=message) as refusal:
            cars.read(root, "train")
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("name", [META, TRAIN])
    def test_of_a_file_that_cannot_be_read(self, root, name):
        (root / name).write_bytes((root / name).read_bytes()[:200])
        with pytest.raises(InputError, match=f"{name} is not a readable MATLAB 5 file"):
            cars.read(root, "train")
        (root / name).unlink()
        with pytest.raises(InputError, match=f"{name} does not exist; fetch the annotations"):
            cars.read(root, "train")
        (root / name).mkdir()
        with pytest.raises(InputError, match=f"{name} is a folder, not a file"):
            cars.read(root, "train")

    def test_of_a_test_split_without_labels(self, tmp_path):
        root = write_cars(tmp_path / "cars", labelled=False, photos=False)
        places = (
            rf"{root}/{CAR_LABELS_FILE} does not exist, nor does {root}/devkit/{CAR_LABELS_FILE}"
        )
        with pytest.raises(InputError, match=f"{places}; .* training works without it$"):
            cars.read(root, "test")
        assert cars.splits(root) == ("train",)
        assert CAR_LABELS_FILE in cars.ABSENT["test"]

    def test_of_the_unlabelled_annotations_under_the_name_of_the_labelled(self, root):
        shutil.copy(root / "devkit" / "cars_test_annos.mat", root / CAR_LABELS_FILE)
        with pytest.raises(
            InputError, match=f"{CAR_LABELS_FILE} has no 'annotations' with a field 'class'"
        ):
            cars.read(root, "test")

    def test_of_a_test_split_without_photos(self, root):
        (root / "cars_test").rmdir()
        with pytest.raises(InputError, match="cars_test is no folder; the test split needs it"):
            cars.read(root, "test")
        assert cars.splits(root) == ("train",)

    @settings(max_examples=40, deadline=None)
    @given(data=st.data(), name=st.sampled_from([META, TRAIN]))
    def test_of_random_damage(self, tmp_path_factory, data, name):
        root = write_cars(tmp_path_factory.getbasetemp() / "cars_random", photos=False)
        content = bytearray((root / name).read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        (root / name).write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            assert len(cars.read(root, "train").ids) == 12  # bytes that do not count
        except InputError as error:
            message = str(error)
        else:
            return
        assert name in message
        assert "\n" not in message


@pytest.mark.skipif(REAL_CARS is None, reason="the official devkit of Stanford Cars is not here")
class TestRealAnnotations:
    def test_have_the_official_samples(self):
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

    def test_have_no_labels_of_the_test_split(self):
        assert cars.splits(REAL_CARS) == ("train",)
        with pytest.raises(InputError, match=f"{CAR_LABELS_FILE} does not exist"):
            cars.read(REAL_CARS, "test")

    def test_are_what_the_tests_write(self, tmp_path):
        """Variables, shapes, fields and the kinds of their values."""
        from scipy.io import loadmat

        def structure(path):
            variables = {key: value for key, value in loadmat(path).items() if key[0] != "_"}
            (name, values), *more = variables.items()
            first = values[0, 0]
            kinds = (
                [(cell.ndim, cell.dtype.kind in "ui") for cell in first]
                if first.dtype.names
                else first.dtype.kind
            )
            return name, more, values.shape[0], values.dtype, kinds

        root = write_cars(tmp_path / "cars", photos=False)
        for name in (META, TRAIN, "devkit/cars_test_annos.mat"):
            assert structure(root / name) == structure(REAL_CARS / name)
