"""FGVC-Aircraft 2013b (Maji et al. 2013, arXiv:1306.5151): 10,000 photos of 100 variants.

Of the three levels of its hierarchy this is the finest, the variant. `images_variant_<split>.txt`
gives each image number a variant (`1025794 707-320`), whose names hold blanks and slashes
(`Hawk T1`, `F-16A/B`); `variants.txt` lists them in class order.
"""

from pathlib import Path

from utils.data.readers.listing import (
    Listing,
    check_not_shared,
    clean_name,
    make_listing,
    read_lines,
    read_pairs,
    to_int,
)
from utils.errors import InputError

IMAGE_FOLDER = "data/images"
CLASSES_FILE = "data/variants.txt"
ENTRIES = (IMAGE_FOLDER, CLASSES_FILE)  # many a folder has a `data/`

# For each split those that share no image with it: an image that is trained on is not tested on.
APART = {
    "train": ("val", "test"),
    "val": ("train", "test"),
    "trainval": ("test",),
    "test": ("trainval",),
}


def read(root: Path, split: str) -> Listing:
    """The `train`, `val`, `trainval` or `test` split of the official layout below `root`.

    Classes have the order of variants.txt, samples that of the split's list.

    Raises:
        InputError: a list file is missing, damaged or contradicts another.
    """
    source = _list_file(root, split)
    variants = _read_variants(root / CLASSES_FILE)
    index = {variant: number for number, variant in enumerate(variants)}
    images = _read_images(source, index, root / CLASSES_FILE)
    keys = {key for key, _ in images}
    for other in APART[split]:
        for _, key, _ in read_pairs(_list_file(root, other)):
            if key in keys:
                raise InputError(f"{source} has the image {key}, and so has the {other} split")
    return make_listing(
        source,
        [clean_name(variant) for variant in variants],
        [key for key, _ in images],
        [f"{IMAGE_FOLDER}/{key}.jpg" for key, _ in images],
        [label for _, label in images],
    )


def _list_file(root: Path, split: str) -> Path:
    return root / "data" / f"images_variant_{split}.txt"


def _read_variants(path: Path) -> list[str]:
    """The names of the variants as they stand there, in class order."""
    lines = read_lines(path)
    names = {f"line {number}": clean_name(line) for number, line in lines}
    for line, name in names.items():
        if not name:
            raise InputError(f"{path} {line} has no name")
    check_not_shared(path, "class name", names)
    return [line for _, line in lines]


def _read_images(path: Path, index: dict[str, int], known: Path) -> list[tuple[str, int]]:
    """(image number, label) of each line of the list file at `path`; `known` has the variants."""
    images: list[tuple[str, int]] = []
    for number, key, variant in read_pairs(path):
        to_int(path, "an image number", key)
        if variant not in index:
            raise InputError(f"{path} line {number}: {known} lacks the variant {variant!r}")
        images.append((key, index[variant]))
    return images
