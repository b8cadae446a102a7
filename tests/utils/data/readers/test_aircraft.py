"""utils/data/readers/aircraft.py: the official lists, read exactly or refused in one line."""

import pytest
from layouts import edit_lines
from layouts_web import AIRCRAFT_VARIANTS, write_aircraft

from utils.data.readers import aircraft
from utils.errors import InputError

SPLITS = ("train", "val", "trainval", "test")


@pytest.fixture
def data(tmp_path):
    """The folder of the lists of 12 train, 6 val and 6 test images, which are not there."""
    return write_aircraft(tmp_path / "fgvc-aircraft-2013b", photos=False) / "data"


def test_gives_each_split_in_the_order_of_its_list(data):
    listings = {split: aircraft.read(data.parent, split) for split in SPLITS}
    for split, count in (("train", 4), ("val", 2), ("trainval", 6), ("test", 2)):
        listing = listings[split]
        assert listing.classes == ("707-320", "F-16A/B", "Hawk T1") == AIRCRAFT_VARIANTS
        assert listing.parents == ()
        assert listing.labels.tolist() == [0] * count + [1] * count + [2] * count
        lines = (data / f"images_variant_{split}.txt").read_text().splitlines()
        assert listing.ids.tolist() == [line.split()[0] for line in lines]
        assert listing.paths.tolist() == [f"data/images/{key}.jpg" for key in listing.ids]
    parts = [set(listings[split].ids.tolist()) for split in SPLITS]
    assert parts[0] | parts[1] == parts[2]
    assert not parts[2] & parts[3]


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
