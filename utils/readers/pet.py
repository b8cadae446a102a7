"""Oxford-IIIT Pet (Parkhi et al., CVPR 2012): 7,349 photos of 37 breeds of cats and dogs.

A line of `annotations/trainval.txt`, our train split, or `annotations/test.txt` is `Abyssinian_100
1 1 1`: the name of the photo, its class id from 1, its species and the number of the breed within
the species. Only the names of the photos name the breeds.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError
from utils.readers.listing import (
    Listing,
    clean_name,
    make_listing,
    read_lines,
    refuse_shared,
    to_int,
)

IMAGE_FOLDER = "images"
LIST_FOLDER = "annotations"
ENTRIES = (IMAGE_FOLDER, LIST_FOLDER)
LIST_FILES = {"train": f"{LIST_FOLDER}/trainval.txt", "test": f"{LIST_FOLDER}/test.txt"}


class Sample(NamedTuple):
    """An image of a list that names its classes only through their images."""

    id: str
    class_id: int  # from 1
    class_name: str  # as it stands in the list


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


def name_classes(lists: Mapping[Path, Sequence[Sample]]) -> list[str]:
    """The names for people of the classes of a dataset, by class id.

    Args:
        lists: the samples of each list file of the dataset; all of them, as one may lack a class.

    Raises:
        InputError: an image comes twice, a class id has two names or none, two have the same, or
            they are not 1, 2, 3 and so on.
    """
    _refuse_repeats(lists)
    names: dict[int, str] = {}
    for path, samples in lists.items():
        for sample in samples:
            if sample.class_id < 1:
                raise InputError(
                    f"{path} gives {sample.id!r} the class id {sample.class_id}, not 1 or more"
                )
            name = names.setdefault(sample.class_id, sample.class_name)
            if name != sample.class_name:
                raise InputError(
                    f"{path} gives {sample.id!r} the class id {sample.class_id}, which is that of "
                    f"{name!r}"
                )
    files = Path(" and ".join(str(path) for path in lists))
    for number, class_id in enumerate(sorted(names), start=1):
        if number != class_id:
            raise InputError(f"{files} have images of class id {class_id}, but none of {number}")
    classes = {f"class id {key}": clean_name(names[key]) for key in sorted(names)}
    for key, name in classes.items():
        if not name:
            raise InputError(f"{files} give {key} no name")
    refuse_shared(files, "class name", classes)
    return list(classes.values())


def _refuse_repeats(lists: Mapping[Path, Sequence[Sample]]) -> None:
    """Refuse an image that comes twice: what is trained on must not be tested on."""
    owners: dict[str, Path] = {}
    for path, samples in lists.items():
        for sample in samples:
            owner = owners.get(sample.id)
            if owner is not None:
                again = "more than once" if owner == path else f"and so has {owner}"
                raise InputError(f"{path} has the image {sample.id!r} {again}")
            owners[sample.id] = path
