"""Food-101 (Bossard et al., ECCV 2014): 101,000 photos of 101 dishes.

A line of `meta/train.txt` or `meta/test.txt` is the path of an image below `images/` without its
ending (`apple_pie/1005649`), and so the class and the sample id. `meta/classes.txt` lists the
classes, `meta/labels.txt` in the same order their names for people (`Apple pie`).
"""

from pathlib import Path

from utils.data.readers.listing import (
    Listing,
    check_not_shared,
    clean_name,
    make_listing,
    read_lines,
)
from utils.errors import InputError

ENTRIES = ("images", "meta")
IMAGE_FOLDER = "images"
CLASSES_FILE = "meta/classes.txt"
LABELS_FILE = "meta/labels.txt"
OTHER_SPLIT = {"train": "test", "test": "train"}


def read(root: Path, split: str) -> Listing:
    """The `train` or `test` split of the official layout below `root`.

    Classes have the order of classes.txt, samples that of the split's list.

    Raises:
        InputError: a list file is missing, damaged or contradicts another.
    """
    source = _list_file(root, split)
    keys, names = _read_classes(root / CLASSES_FILE, root / LABELS_FILE)
    index = {key: number for number, key in enumerate(keys)}
    ids, labels = [], []
    for number, line in read_lines(source):
        key, _, image = line.partition("/")
        if not image or "/" in image:
            raise InputError(f"{source} line {number}: {line!r:.100} is no class/image")
        if key not in index:
            raise InputError(f"{source} line {number}: {root / CLASSES_FILE} lacks {key!r}")
        ids.append(line)
        labels.append(index[key])
    # An image that is trained on must not be tested on.
    known = set(ids)
    for _, line in read_lines(_list_file(root, OTHER_SPLIT[split])):
        if line in known:
            raise InputError(f"{source} has the image {line!r}, and so has the other split")
    return make_listing(source, names, ids, [f"{IMAGE_FOLDER}/{key}.jpg" for key in ids], labels)


def _list_file(root: Path, split: str) -> Path:
    return root / "meta" / f"{split}.txt"


def _read_classes(keys_path: Path, names_path: Path) -> tuple[list[str], list[str]]:
    """The folder and the name for people of each class, in class order."""
    keys, labels = read_lines(keys_path), read_lines(names_path)
    if len(labels) != len(keys):
        raise InputError(
            f"{names_path} has {len(labels)} lines, but {keys_path} has {len(keys)}; "
            "each class needs a line in both"
        )
    names = {f"line {number}": clean_name(line) for number, line in labels}
    for line, name in names.items():
        if not name:
            raise InputError(f"{names_path} {line} has no name")
    check_not_shared(keys_path, "class", {f"line {number}": line for number, line in keys})
    check_not_shared(names_path, "class name", names)
    return [line for _, line in keys], list(names.values())
