"""utils/data/readers/food101.py: the official lists, read exactly or refused in one line."""

import pytest
from layouts import edit_lines
from layouts_web import write_food101

from utils.data.readers import food101
from utils.errors import InputError

NAMES = ("Apple pie", "Creme brulee", "Ramen")


@pytest.fixture
def root(tmp_path):
    """The lists of 12 training and 6 test images; the folder of images is empty."""
    return write_food101(tmp_path / "food-101", photos=False)


def test_takes_the_order_of_classes_from_classes_txt(root):
    for name in ("classes.txt", "labels.txt"):
        edit_lines(root / "meta" / name, lambda lines: lines[::-1])
    train = food101.read(root, "train")
    assert train.classes == NAMES[::-1]
    assert train.labels.tolist() == [2] * 4 + [1] * 4 + [0] * 4


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        *(
            ("train", lambda lines, bad=bad: [lines[0], bad], r"train.txt line 2: '.*' is not a ")
            for bad in ("ramen", "ramen/", "ramen/a/b", "pho/1", "../1", "/1")
        ),
        ("labels", lambda lines: [*lines, "Pho"], r"labels.txt has 4 lines, but .* has 3 diff"),
        ("classes", lambda lines: [lines[0]] * 3, r"labels.txt has 3 lines, but .* has 1 diff"),
        ("labels", lambda lines: ["Pie", "_", "Pho"], r"labels.txt gives line 2 no name"),
    ],
)
def test_refuses_a_damaged_list(root, name, edit, message):
    edit_lines(root / "meta" / f"{name}.txt", edit)
    with pytest.raises(InputError, match=message):
        food101.read(root, "train")
