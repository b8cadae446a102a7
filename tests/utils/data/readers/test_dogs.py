"""utils/data/readers/dogs.py: the official lists, read exactly or refused in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_objects import DOG_FOLDERS, cells, edit_mat, write_dog_list, write_dogs
from PIL import Image

from utils.data.catalog import get_spec
from utils.data.readers import dogs
from utils.dataset import open_split
from utils.errors import InputError

TRAIN, TEST = "train_list.mat", "test_list.mat"
NAMES = ("Chihuahua", "black-and-tan coonhound", "Mexican hairless")


@pytest.fixture
def root(tmp_path):
    """The lists of 12 training and 6 test images; the folder of images is empty."""
    return write_dogs(tmp_path / "dogs", photos=False)


class TestRead:
    def test_gives_the_split_in_the_order_of_its_list(self, root):
        train, test = dogs.read(root, "train"), dogs.read(root, "test")
        assert train.classes == test.classes == NAMES
        assert train.parents == test.parents == ()
        assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert test.labels.tolist() == [0] * 2 + [1] * 2 + [2] * 2
        assert train.ids[:2].tolist() == ["n02085620_10074", "n02085620_10067"]
        assert train.paths[0] == "Images/n02085620-Chihuahua/n02085620_10074.jpg"
        assert not set(train.ids.tolist()) & set(test.ids.tolist())

    @pytest.mark.parametrize("lists_folder", ["", "lists"])
    def test_names_photos_that_are_there(self, tmp_path, lists_folder):
        root = write_dogs(tmp_path / "dogs", lists_folder=lists_folder)
        assert (root / lists_folder / TRAIN).is_file()
        paths = [*dogs.read(root, "train").paths, *dogs.read(root, "test").paths]
        photos = {np.asarray(Image.open(root / path)).tobytes() for path in paths}
        assert len(photos) == len(paths) == 18
        assert {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")} == set(paths)
        assert (root / dogs.IMAGE_FOLDER).is_dir()

    def test_takes_images_that_lie_in_a_folder_named_after_their_archive(self, tmp_path):
        root = write_dogs(tmp_path / "dogs")
        (root / "Images").rename(root / "aside")
        (root / "images").mkdir()
        (root / "aside").rename(root / "images" / "Images")
        for split in ("train", "test"):
            found = open_split(get_spec("dog"), tmp_path, split)
            assert len(found) > 0
            assert all(Path(found.path_of(i)).is_file() for i in range(len(found)))

    def test_has_every_class_where_a_split_lacks_one(self, tmp_path):
        root = write_dogs(tmp_path / "dogs", test_classes=[0, 2], photos=False)
        assert dogs.read(root, "test").classes == NAMES
        assert dogs.read(root, "test").labels.tolist() == [0, 0, 2, 2]
        # And where it is the training split that lacks it.
        (root / TRAIN).rename(root / "other.mat")
        (root / TEST).rename(root / TRAIN)
        (root / "other.mat").rename(root / TEST)
        assert dogs.read(root, "train").classes == NAMES
        assert dogs.read(root, "train").labels.tolist() == [0, 0, 2, 2]

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_gives_back_what_was_written(self, tmp_path_factory, data):
        num_classes = data.draw(st.integers(1, 200))
        folders = [f"n{number:08d}-wire-haired_{number}" for number in range(num_classes)]
        draws = st.lists(st.integers(1, num_classes), min_size=1, max_size=8)
        train, test = data.draw(draws), data.draw(draws)
        train = data.draw(st.permutations([*train, *range(1, num_classes + 1)]))
        root = tmp_path_factory.getbasetemp() / "dogs_lists"
        root.mkdir(exist_ok=True)
        ids = {
            name: [f"{name}_{number}.v2" for number in range(len(labels))]
            for name, labels in (("train", train), ("test", test))
        }
        for name, labels in (("train", train), ("test", test)):
            files = [
                f"{folders[label - 1]}/{key}.jpg"
                for key, label in zip(ids[name], labels, strict=True)
            ]
            write_dog_list(root / f"{name}_list.mat", files, labels)
        for name, labels in (("train", train), ("test", test)):
            listing = dogs.read(root, name)
            assert listing.ids.tolist() == ids[name]
            assert (listing.labels + 1).tolist() == labels
            assert listing.classes == tuple(f"wire-haired {key}" for key in range(num_classes))
            assert listing.paths[0] == f"Images/{folders[labels[0] - 1]}/{ids[name][0]}.jpg"


def _file(value):
    """An edit of the second image, of class 1."""

    def edit(variables):
        variables["file_list"][1, 0] = value

    return edit


def _label(value):
    def edit(variables):
        labels = variables["labels"].astype(np.result_type(type(value), np.int64))
        labels[1, 0] = value
        variables["labels"] = labels

    return edit


def _without(name):
    def edit(variables):
        del variables[name]

    return edit


def _put(**variables):
    return lambda old: old.update(variables)


def _twice(variables):
    variables["file_list"][1, 0] = variables["file_list"][0, 0]


def _pair(file, label):
    def edit(variables):
        _file(file)(variables)
        _label(label)(variables)

    return edit


DAMAGES = [
    *((_without(name), rf" has no '{name}' made of ") for name in ("file_list", "labels")),
    *(
        (_put(file_list=bad), r" has no 'file_list' made of texts; fetch")
        for bad in (np.ones((3, 1)), "text")
    ),
    *(
        (_put(labels=bad), r" has no 'labels' made of whole numbers; fetch")
        for bad in ("text", cells([1, 2]), np.ones((3, 1)) * 1j)
    ),
    *(
        (_label(bad), r" has no 'labels' made of whole numbers; fetch")
        for bad in (1.5, np.nan, np.inf, 1e300)
    ),
    *(
        (_put(labels=np.ones((number, 1))), rf" has \d+ files, but {number} labels; fetch")
        for number in (1, 99)
    ),
    *(
        (_file(bad), r": file_list 2 is empty or no text; fetch")
        for bad in ("", 7, cells(["n1-A/1.jpg"]), np.array(["n1-A/1.jpg", "n1-A/2.jpg"]))
    ),
    *(
        (_file(bad), rf": {re.escape(repr(bad))} is no `id-breed/file`; fetch")
        for bad in (
            "1.jpg",
            "n1/1.jpg",
            "n1-/1.jpg",
            "-A/1.jpg",
            "n1-A/",
            "n1-A/b/1.jpg",
            "/n1-A/1.jpg",
            "../1.jpg",
            "n1-A/../1.jpg",
            r"n1-A\1.jpg",
            "../n1-A/1.jpg",
        )
    ),
    (_twice, r" has the image 'n02085620_\d+' more than once$"),
    *(
        (_label(bad), rf" gives 'n02085620_\d+' the class id {bad}, not 1 or more$")
        for bad in (0, -1)
    ),
    (_label(2), r" gives .* the class id (1|2), which is that of '.*'$"),
    (_file("n02085620-Pug/1.jpg"), r" gives '.*' the class id 1, which is that of '.*'$"),
    (_pair("n1-Pug/1.jpg", 5), r" and .*test_list.mat have images of class id 5, but none of 4$"),
    (_pair("n1-_/1.jpg", 4), r" and .*test_list.mat give class id 4 no name$"),
    (
        _pair("n1-Mexican__hairless/1.jpg", 4),
        r" and .*test_list.mat gives class id 3 and class id 4 the same class name "
        r"'Mexican hairless",
    ),
]


class TestRefusals:
    @pytest.mark.parametrize("name", [TRAIN, TEST])
    @pytest.mark.parametrize(("edit", "message"), DAMAGES)
    def test_of_a_damaged_list(self, root, name, edit, message):
        """Of either list, whichever split is read."""
        edit_mat(root / name, edit)
        for split in ("train", "test"):
            with pytest.raises(InputError, match=rf"_list\.mat{message}") as refusal:
                dogs.read(root, split)
            assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("name", [TRAIN, TEST])
    def test_of_a_list_at_neither_place(self, root, name):
        (root / name).unlink()
        with pytest.raises(
            InputError, match=rf"{root}/{name} does not exist, nor does {root}/lists/{name}; unpack"
        ):
            dogs.read(root, "train")

    @pytest.mark.parametrize("name", [TRAIN, TEST])
    def test_of_a_file_that_cannot_be_read(self, root, name):
        (root / name).write_bytes((root / name).read_bytes()[:150])
        with pytest.raises(InputError, match=f"{name} is not a readable MATLAB 5 file"):
            dogs.read(root, "train")
        (root / name).unlink()
        (root / name).mkdir()
        with pytest.raises(InputError, match=f"{name} is a folder, not a file; fetch"):
            dogs.read(root, "train")

    @pytest.mark.parametrize("folder", [DOG_FOLDERS[0], DOG_FOLDERS[2]])
    def test_of_an_image_that_both_splits_have(self, root, folder):
        """Even in another folder: its file name is the sample id."""
        name = dogs.read(root, "train").ids[0]
        write_dog_list(root / TEST, [f"{folder}/{name}.jpg"], [DOG_FOLDERS.index(folder) + 1])
        for split in ("train", "test"):
            with pytest.raises(
                InputError, match=f"{TEST} has the image '{name}' and so has .*{TRAIN}$"
            ):
                dogs.read(root, split)

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_of_an_empty_split(self, root, split):
        write_dog_list(root / f"{split}_list.mat", [], [])
        with pytest.raises(InputError, match=f"{split}_list.mat"):
            dogs.read(root, split)

    @settings(max_examples=40, deadline=None)
    @given(data=st.data(), name=st.sampled_from([TRAIN, TEST]))
    def test_of_random_damage(self, tmp_path_factory, data, name):
        root = write_dogs(tmp_path_factory.getbasetemp() / "dogs_random", photos=False)
        content = bytearray((root / name).read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        (root / name).write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            assert len(dogs.read(root, "train").ids) == 12  # bytes that do not count
        except InputError as error:
            message = str(error)
        else:
            return
        assert name in message
        assert "\n" not in message
