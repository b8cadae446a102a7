"""utils/data/readers/aircraft.py: the official lists, read exactly or refused in one line."""

import pytest
from layouts import edit_lines
from layouts_web import write_aircraft

from utils.data.readers import aircraft
from utils.errors import InputError


@pytest.fixture
def data(tmp_path):
    """The folder of the lists of 12 train, 6 val and 6 test images, which are not there."""
    return write_aircraft(tmp_path / "fgvc-aircraft-2013b", photos=False) / "data"


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("variants", lambda lines: [*lines, "_"], r"variants.txt gives line 4 no name"),
        ("variants", lambda lines: lines[:2], r"the variant 'Hawk T1', which .*variants.txt lacks"),
        (
            "images_variant_train",
            lambda lines: ["../1 707-320", *lines],
            r"images_variant_train.txt: 'data/images/../1.jpg' is not a path below the data root",
        ),
    ],
)
def test_refuses_a_damaged_list(data, name, edit, message):
    edit_lines(data / f"{name}.txt", edit)
    with pytest.raises(InputError, match=message):
        aircraft.read(data.parent, "train")
