"""Oxford-IIIT Pet (Parkhi et al., CVPR 2012): 7,349 photos of 37 breeds of cats and dogs.

A line of `annotations/trainval.txt`, our train split, or `annotations/test.txt` is `Abyssinian_100
1 1 1`: the name of the photo, its class id from 1, its species and the number of the breed within
the species. Only the names of the photos name the breeds.
"""

import re
from pathlib import Path

from utils.data.readers.listing import Listing, make_listing, read_lines, to_int, unpacked
from utils.data.readers.named import Sample, name_classes
from utils.errors import InputError

IMAGE_FOLDER = "images"
LIST_FOLDER = "annotations"
ENTRIES = (IMAGE_FOLDER, LIST_FOLDER)
LIST_FILES = {"train": "trainval.txt", "test": "test.txt"}


def read(root: Path, split: str) -> Listing:
    """The `train` or `test` split of the official layout below `root`, in its list's order.

    Raises:
        InputError: a list file is missing, damaged or contradicts the other.
    """
    lists = root / unpacked(root, LIST_FOLDER)
    sources = {name: lists / file for name, file in LIST_FILES.items()}
    of_source = {source: _read_samples(source) for source in sources.values()}
    classes = name_classes(of_source)
    samples = of_source[sources[split]]
    folder = unpacked(root, IMAGE_FOLDER)
    return make_listing(
        sources[split],
        classes,
        [sample.id for sample in samples],
        [f"{folder}/{sample.id}.jpg" for sample in samples],
        [sample.class_id - 1 for sample in samples],
    )


def _read_samples(path: Path) -> list[Sample]:
    samples = []
    for number, line in read_lines(path):
        columns = line.split()
        if len(columns) != 4:
            raise InputError(
                f"{path} line {number}: {line!r:.100} is no name, class id, species and breed id"
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
