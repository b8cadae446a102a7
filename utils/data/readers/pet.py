"""Read Oxford-IIIT Pet (Parkhi et al., CVPR 2012): 7,349 photos of 37 breeds of cats and dogs.

A line of `annotations/trainval.txt`, our train split, or `annotations/test.txt` is `Abyssinian_100
1 1 1`: the name of the photo, its class id from 1, its species and the number of the breed within
the species. Only the names of the photos name the breeds.
"""

import re
from pathlib import Path

from utils.data.readers.list_files import read_lines
from utils.data.readers.listing import Listing, make_listing, unpacked
from utils.data.readers.named import Sample, name_classes
from utils.errors import InputError

IMAGE_FOLDER = "images"
LIST_FOLDER = "annotations"
ENTRIES = (IMAGE_FOLDER, LIST_FOLDER)
LIST_FILES = {"train": "trainval.txt", "test": "test.txt"}


def read(root: Path, split: str) -> Listing:
    """Read the `train` or `test` split of the official layout below `root`, in its list's order."""
    lists = root / unpacked(root, LIST_FOLDER)
    of_source = {lists / file: _read_samples(lists / file) for file in LIST_FILES.values()}
    source = lists / LIST_FILES[split]
    folder = unpacked(root, IMAGE_FOLDER)
    return make_listing(
        source,
        name_classes(of_source),
        [sample.id for sample in of_source[source]],
        [f"{folder}/{sample.id}.jpg" for sample in of_source[source]],
        [sample.class_id - 1 for sample in of_source[source]],
        root=root,
    )


def _read_samples(path: Path) -> list[Sample]:
    samples = []
    for number, line in read_lines(path):
        match = re.fullmatch(r"(([^/\\\s]+)_[0-9]+)\s+([0-9]{1,9})\s+[0-9]+\s+[0-9]+", line)
        if match is None:
            raise InputError(
                f"{path} line {number}: {line!r:.100} is not a `breed_number`, class id, species "
                "and breed id"
            )
        samples.append(Sample(match[1], int(match[3]), match[2]))
    return samples
