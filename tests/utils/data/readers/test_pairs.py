"""utils/data/readers/pairs.py: pictures with their masks are not classes."""

from pathlib import Path

import pytest

from utils.data.readers.pairs import check_no_masks
from utils.errors import InputError

ROOT = Path("/data")
NUMBERS = [f"{i:03}" for i in range(10)]


def names(*patterns: str) -> list[str]:
    """Ten file names of each pattern."""
    return [pattern.format(number) for pattern in patterns for number in NUMBERS]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("images", "{}.jpg"), ("masks", "{}.png")),
        (("Image", "{}.jpg"), ("Mask", "{}.PNG")),
        (("img", "img{}.jpg"), ("label", "label{}.png")),
        (("imgs", "a/{}.jpg"), ("annotations", "{}_annotation.png")),
        (("input", "IMG_{}.jpg"), ("target", "img_{}_gt.tif")),
        (("photos", "{}.jpg"), ("Ground_Truth", "{}.bmp")),
        (("JPEGImages", "2007_{}.jpg"), ("SegmentationClass", "2007_{}.png")),
        (("train images", "{}.jpg"), ("train-masks", "{}.png")),
        (("site1/images", "{}.jpg"), ("site1/masks", "{}.png")),
        (("rose", "images/{}.jpg"), ("rose", "masks/{}.png")),
        (("frames", "{}.jpg"), ("alpha", "{}.png")),
        (("rgb", "{}.png"), ("depth", "{}.png")),
    ],
)
def test_known_pairs_are_refused(one, other):
    images = {"daisy": names("{}.jpg")}
    for folder, pattern in (one, other):
        images.setdefault(folder, []).extend(names(pattern))
    with pytest.raises(InputError, match=r"^/data: .*/ and .*/ look like .* 10 of 10 file names"):
        check_no_masks(ROOT, images)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("images", "{}.jpg"), ("masks", "other {}1.png")),
        (("images", "{}.jpg"), ("flowers", "{}.jpg")),
        (("cats", "{}.jpg"), ("dogs", "{}.jpg")),
        (("a/images", "{}.jpg"), ("b/masks", "{}.jpg")),
        (("label", "{}.jpg"), ("mask", "{}.jpg")),
        (("imagery", "{}.jpg"), ("gasmask", "{}.jpg")),
    ],
)
def test_other_classes_are_not(one, other):
    check_no_masks(ROOT, {folder: names(pattern) for folder, pattern in (one, other)})


@pytest.mark.parametrize(("shared", "is_refused"), [(10, True), (9, True), (8, False), (0, False)])
def test_nine_tenths_of_the_names_must_be_the_same(shared, is_refused):
    masks = [*names("{}.png")[:shared], *names("x{}.png")[shared:]]
    images = {"images": names("{}.jpg", "more {}1.jpg"), "masks": masks}
    if not is_refused:
        check_no_masks(ROOT, images)
        return
    with pytest.raises(InputError, match=rf"images/ and masks/ look .* {shared} of 10"):
        check_no_masks(ROOT, images)
