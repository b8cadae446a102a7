"""utils/data/readers/pet.py and named.py: classes that only the names of images name."""

import pytest
from layouts import edit_lines, nest
from layouts_objects import write_pet

from utils.data.readers import pet
from utils.errors import InputError

TRAIN, TEST = "annotations/trainval.txt", "annotations/test.txt"
NAMES = ("Abyssinian", "american bulldog", "British Shorthair")


@pytest.fixture
def root(tmp_path):
    """The lists of 12 training and 6 test images; the folder of images is empty."""
    return write_pet(tmp_path / "oxford-iiit-pet", photos=False)


class TestRead:
    def test_names_a_class_that_only_the_other_list_has(self, root):
        edit_lines(root / TRAIN, lambda lines: [line for line in lines if "Abyss" not in line])
        assert pet.read(root, "train").classes == NAMES
        assert pet.read(root, "train").labels.tolist() == [1] * 4 + [2] * 4

    def test_takes_archives_that_lie_in_folders_of_their_names(self, tmp_path):
        root = write_pet(tmp_path / "pet")
        for name in pet.ENTRIES:
            nest(root, name)
        for split, count in (("train", 12), ("test", 6)):
            listing = pet.read(root, split)
            assert len(listing.paths) == count
            assert all((root / path).is_file() for path in listing.paths)


@pytest.mark.parametrize("name", [TRAIN, TEST])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        *(
            (line, r" line 1: .* is not a `breed_number`, class id, species and breed id$")
            for line in (
                *("Abyssinian_1", "Abyssinian_1 1 1", "Abyssinian_1 1 1 1 1", "Abyssinian 1 1 1"),
                *("_1 1 1 1", "Abyssinian_x 1 1 1", "a/Abyssinian_1 1 1 1", r"a\A_1 1 1 1"),
                *("A_\uff13 1 1 1", "A_1 x 1 1", "A_1 -1 1 1", "A_1 1_0 1 1", "A_1 1 cat 1"),
            )
        ),
        ("Abyssinian_1 0 1 1", r" have images of class id 0, but none of 1$"),
        ("Persian_1 1 1 1", r" gives .* the class id 1, which is that of '\w+'$"),
        ("Persian_1 5 1 1", r" and .*test.txt have images of class id 5, but none of 4$"),
        ("A_1 4 1 1\nA_2 5 1 1", r" and .*test.txt gives class id 4 and class id 5 the same class"),
        ("__1 4 1 1", r" and .*test.txt gives class id 4 no name$"),
        ("Abyssinian_1 1 1 1\nAbyssinian_1 1 1 1", r" has the image 'Abyssinian_1' more than once"),
    ],
)
def test_refuses_a_damaged_list(root, name, line, message):
    """Of either list: one of them alone does not name the classes."""
    edit_lines(root / name, lambda lines: [line, *lines[1:]])
    with pytest.raises(InputError, match=rf"\.txt{message}"):
        pet.read(root, {TRAIN: "train", TEST: "test"}[name])
