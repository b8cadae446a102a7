"""Read iNaturalist 2017 (Van Horn et al., CVPR 2018): 675,170 photos of 5,089 species.

`train2017.json` and `val2017.json` are COCO style: `images` with a path below the data root,
`annotations` that give each image one category, `categories` with a name and a supercategory.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.data.readers.list_files import check_same_keys, read_text
from utils.data.readers.listing import Listing, clean_name, make_listing, without_ending
from utils.errors import InputError

ENTRIES = ("train2017.json", "val2017.json", "train_val_images")
REMEDY = "fetch it again"
# What is read of each section. The rest, the rights holders above all, would fill memory.
_KINDS: dict[str, dict[str, type]] = {
    "categories": {"id": int, "name": str, "supercategory": str},
    "annotations": {"image_id": int, "category_id": int},
    "images": {"id": int, "file_name": str},
}
_KEYS = frozenset((*_KINDS, *(key for kinds in _KINDS.values() for key in kinds)))


def read(root: Path, split: str) -> Listing:
    """Read the `train` or `val` split of the official layout below `root`, in image order.

    Classes are the categories of the split's file by their id; the parent of a class is its
    supercategory. The sample id is the file name without its ending, or, if two images of the
    split share one, the path without the ending for all of them.
    """
    path = root / f"{split}2017.json"
    # Whoever reads both splits compares their categories. To look into the other file here, all of
    # it would have to be parsed, and reading val would take as long as reading train.
    document = _parse(path)
    index, names, parents = _read_categories(path, document)
    labels = _read_annotations(path, document, index)
    images = _read_images(path, document)
    check_same_keys(f"'annotations' of {path}", labels, "'images'", images)
    ids = [without_ending(name).rpartition("/")[2] for name in images.values()]
    if len(set(ids)) < len(ids):
        ids = [without_ending(name) for name in images.values()]
    chosen = [labels[key] for key in images]
    return make_listing(path, names, ids, list(images.values()), chosen, parents, root)


def _parse(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`, of it and of the objects in it only `_KEYS`."""
    try:
        document = json.loads(read_text(path, REMEDY), object_pairs_hook=_needed)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise InputError(f"{path} is not JSON of this dataset ({error}); {REMEDY}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no JSON object; {REMEDY}")
    return document


def _needed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if key in _KEYS}


def _entries(path: Path, document: dict[str, Any], section: str) -> Iterator[tuple]:
    """Return the values of the keys in `_KINDS` of each entry of a section, which is freed.

    Raises:
        InputError: the section is missing or not a list, or an entry lacks a value or has one of
            another kind.
    """
    kinds = _KINDS[section]
    entries = document.pop(section, None)  # the sections together are most of the memory
    if not isinstance(entries, list):
        raise InputError(f"{path} has no list {section!r}; {REMEDY}")
    try:  # by columns: a loop over a million entries that looks at each takes seconds more
        columns = [[entry[key] for entry in entries] for key in kinds]
    except (KeyError, TypeError, IndexError):
        columns = []
    if [set(map(type, column)) for column in columns] == [
        {kind} if entries else set() for kind in kinds.values()
    ]:
        return zip(*columns, strict=True)
    wrong = next(number for number, entry in enumerate(entries) if not _is_of(entry, kinds))
    needed = " and ".join(f"{kind.__name__} {key!r}" for key, kind in kinds.items())
    raise InputError(f"{path}: {section}[{wrong}] needs {needed}; {REMEDY}")


def _is_of(entry: object, kinds: dict[str, type]) -> bool:
    """Tell whether an entry has a value of each kind; True is not a number."""
    return isinstance(entry, dict) and all(type(entry.get(key)) is kinds[key] for key in kinds)


def _read_categories(
    path: Path, document: dict[str, Any]
) -> tuple[dict[int, int], list[str], list[tuple[str]]]:
    """Return category id to class index, and for each class its name and its parents."""
    rows = sorted(
        (key, clean_name(name), clean_name(above))
        for key, name, above in _entries(path, document, "categories")
    )
    for key, *texts in rows:
        for text in texts:
            if not text or not text.isprintable():
                raise InputError(f"{path}: {text!r} is not a name, in category {key}; {REMEDY}")
    index = {key: label for label, (key, _, _) in enumerate(rows)}
    if len(index) < len(rows):
        raise InputError(f"{path} has a category id more than once; {REMEDY}")
    counts = Counter(name for _, name, _ in rows)
    # The same genus name may stand for an animal and a plant.
    names = [f"{name} ({above})" if counts[name] > 1 else name for _, name, above in rows]
    return index, names, [(above,) for _, _, above in rows]


def _read_annotations(
    path: Path, document: dict[str, Any], index: dict[int, int]
) -> dict[int, int]:
    """Return image id to label."""
    labels: dict[int, int] = {}
    for image, category in _entries(path, document, "annotations"):
        if category not in index:
            raise InputError(
                f"{path}: the annotation of image {image} has the category {category}, which "
                f"'categories' lacks; {REMEDY}"
            )
        if image in labels:
            raise InputError(f"{path} has two annotations of image {image}; {REMEDY}")
        labels[image] = index[category]
    return labels


def _read_images(path: Path, document: dict[str, Any]) -> dict[int, str]:
    """Return image id to path."""
    images: dict[int, str] = {}
    for key, name in _entries(path, document, "images"):
        # Not printable: NUL, which no path can hold, and halves of characters.
        if name.endswith("/") or not name or not name.isprintable():
            raise InputError(f"{path}: image {key} has the file name {name!r}; {REMEDY}")
        if key in images:
            raise InputError(f"{path} has the image id {key} more than once; {REMEDY}")
        images[key] = name
    return images
