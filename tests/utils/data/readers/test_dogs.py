"""utils/data/readers/dogs.py: the official lists, read exactly or refused in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
from layouts import nest
from layouts_objects import edit_mat, write_dogs

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
    @pytest.mark.parametrize("lists_folder", ["", "lists"])
    def test_gives_the_split_in_the_order_of_its_list(self, tmp_path, lists_folder):
        root = write_dogs(tmp_path / "dogs", photos=False, lists_folder=lists_folder)
        train, test = dogs.read(root, "train"), dogs.read(root, "test")
        assert train.classes == test.classes == NAMES
        assert train.parents == test.parents == ()
        assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert test.labels.tolist() == [0] * 2 + [1] * 2 + [2] * 2
        assert train.ids[:2].tolist() == ["n02085620_10074", "n02085620_10067"]
        assert train.paths[0] == "Images/n02085620-Chihuahua/n02085620_10074.jpg"

    def test_takes_images_that_lie_in_a_folder_named_after_their_archive(self, tmp_path):
        nest(write_dogs(tmp_path / "dogs"), "Images", "images")
        for split in ("train", "test"):
            found = open_split(get_spec("dog"), tmp_path, split)
            assert len(found) > 0
            assert all(Path(found.path_of(i)).is_file() for i in range(len(found)))


@pytest.mark.parametrize("name", [TRAIN, TEST])
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"labels": np.ones((99, 1))}, r" has \d+ files, but 99 labels; fetch"),
        *(
            ({"file_list": bad}, rf": {re.escape(repr(bad))} is not an `id-breed/file`; fetch")
            for bad in ("1.jpg", "n1/1.jpg", "n1-/1.jpg", "-A/1.jpg", "n1-A/", "n1-A/b/1.jpg")
        ),
        *(
            ({"file_list": bad}, rf": {re.escape(repr(bad))} is not an `id-breed/file`; fetch")
            for bad in ("/n1-A/1.jpg", "n1-A/../1.jpg", r"n1-A\1.jpg", "../n1-A/1.jpg")
        ),
        ({"file_list": "n02085620-Pug/1.jpg"}, r" gives '.*' the class id 1, which is that of '"),
    ],
)
def test_refuses_a_damaged_list(root, name, variables, message):
    """Of either list, whichever split is read; a path replaces that of the second image."""

    def edit(old: dict) -> None:
        if "file_list" in variables:
            old["file_list"][1, 0] = variables["file_list"]
        else:
            old.update(variables)

    edit_mat(root / name, edit)
    for split in ("train", "test"):
        with pytest.raises(InputError, match=rf"_list\.mat{message}"):
            dogs.read(root, split)


def test_refuses_a_list_at_neither_place(root):
    (root / TEST).unlink()
    with pytest.raises(
        InputError, match=rf"{root}/{TEST} does not exist, nor does {root}/lists/{TEST}; unpack"
    ):
        dogs.read(root, "train")
