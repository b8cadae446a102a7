"""Read Food-101 (Bossard et al., ECCV 2014): 101,000 photos of 101 dishes.

A line of `meta/train.txt` or `meta/test.txt` is the path of an image below `images/` without its
ending (`apple_pie/1005649`), and so the class and the sample id. `meta/classes.txt` lists the
classes, `meta/labels.txt` in the same order their names for people (`Apple pie`).
"""

from pathlib import Path

from utils.data.readers.list_files import check_apart, read_lines
from utils.data.readers.listing import Listing, clean_names, make_listing
from utils.errors import InputError

ENTRIES = ("images", "meta")
IMAGE_FOLDER = "images"
CLASSES_FILE = "meta/classes.txt"
LABELS_FILE = "meta/labels.txt"
OTHER_SPLIT = {"train": "test", "test": "train"}


def read(root: Path, split: str) -> Listing:
    """Read the `train` or `test` split of the official layout below `root`.

    Classes have the order of classes.txt, samples that of the split's list.
    """
    source, other = (root / "meta" / f"{name}.txt" for name in (split, OTHER_SPLIT[split]))
    keys, names = read_lines(root / CLASSES_FILE), read_lines(root / LABELS_FILE)
    index = {key: label for label, (_, key) in enumerate(keys)}
    if not len(index) == len(keys) == len(names):
        raise InputError(
            f"{root / LABELS_FILE} has {len(names)} lines, but {root / CLASSES_FILE} has "
            f"{len(index)} different ones; each class needs a line in both"
        )
    ids, labels = [], []
    for number, line in read_lines(source):
        key, _, image = line.partition("/")
        if key not in index or not image or "/" in image:
            raise InputError(
                f"{source} line {number}: {line!r:.100} is not a class of {root / CLASSES_FILE}, "
                "a slash and an image"
            )
        ids.append(line)
        labels.append(index[key])
    check_apart(source, ids, other, [line for _, line in read_lines(other)])
    paths = [f"{IMAGE_FOLDER}/{sample_id}.jpg" for sample_id in ids]
    classes = clean_names(root / LABELS_FILE, dict(names), "line")
    return make_listing(source, classes, ids, paths, labels, root=root)
