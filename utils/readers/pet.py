"""Oxford-IIIT Pet (Parkhi et al., CVPR 2012): 7,349 photos of 37 breeds of cats and dogs.

A line of `annotations/trainval.txt`, our train split, or `annotations/test.txt` is `Abyssinian_100
1 1 1`: the name of the photo, its class id from 1, its species and the number of the breed within
the species. Only the names of the photos name the breeds.
"""

import re
from pathlib import Path

from utils.errors import InputError
from utils.readers.listing import (
    Listing,
    make_listing,
    read_lines,
    to_int,
)
from utils.readers.named import Sample, name_classes

IMAGE_FOLDER = "images"
LIST_FOLDER = "annotations"
ENTRIES = (IMAGE_FOLDER, LIST_FOLDER)
LIST_FILES = {"train": f"{LIST_FOLDER}/trainval.txt", "test": f"{LIST_FOLDER}/test.txt"}


def read(root: Path, split: str) -> Listing:
    """The `train` or `test` split of the official layout below `root`, in its list's order.

    Raises:
        InputError: a list file is missing, damaged or contradicts the other.
    """
    lists = {name: _read_samples(root / path) for name, path in LIST_FILES.items()}
    classes = name_classes({root / LIST_FILES[name]: lists[name] for name in lists})
    samples = lists[split]
    return make_listing(
        root / LIST_FILES[split],
        classes,
        [sample.id for sample in samples],
        [f"{IMAGE_FOLDER}/{sample.id}.jpg" for sample in samples],
        [sample.class_id - 1 for sample in samples],
    )


def _read_samples(path: Path) -> list[Sample]:
    samples = []
    for number, line in read_lines(path):
        columns = line.split()
        if len(columns) != 4:
            raise InputError(
                f"{path} line {number}: {line!r} is no name, class id, species and breed id"
            )
        match = re.fullmatch(r"([^/\\]+)_[0-9]+", columns[0])
        if match is None:
            raise InputError(f"{path} line {number}: {columns[0]!r} is no breed, `_` and number")
        class_id, _, _ = (
            to_int(path, f"the {what} of line {number}", column)
            for what, column in zip(("class id", "species", "breed id"), columns[1:], strict=True)
        )
        samples.append(Sample(columns[0], class_id, match[1]))
    return samples
