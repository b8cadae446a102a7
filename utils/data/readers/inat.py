"""iNaturalist 2017 (Van Horn et al., CVPR 2018): 675,170 photos of 5,089 species, train and val.

`train2017.json` and `val2017.json` are COCO style: `images` with a path below the data root,
`annotations` that give each image one category, `categories` with a name and a supercategory.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from utils.data.readers.listing import Listing, clean_name, make_listing, read_text, without_ending
from utils.errors import InputError

ENTRIES = ("train2017.json", "val2017.json", "train_val_images")
REMEDY = "fetch it again"
# All that is read of the documents. The rest, the rights holders above all, would fill memory.
_KEYS = frozenset(
    (
        "images",
        "annotations",
        "categories",
        "id",
        "file_name",
        "image_id",
        "category_id",
        "name",
        "supercategory",
    )
)


def read(root: Path, split: str) -> Listing:
    """The `train` or `val` split of the official layout below `root`, in the order of `images`.

    Classes are the categories of the split's file by their id; the parent of a class is its
    supercategory. The sample id is the file name without its ending, or, where two images of the
    split share one, the path without the ending for all of them.

    Raises:
        InputError: the split's file is missing, damaged or contradicts itself.
    """
    path = root / f"{split}2017.json"
    # Whoever reads both splits compares their categories. To look into the other file here, all of
    # it would have to be parsed, and reading val would take as long as reading train.
    document = _parse(path)
    index, names, parents = _read_categories(path, document)
    labels = _read_annotations(path, document, index)
    ids, paths = _read_images(path, document)
    chosen = _labels_of_images(path, ids, labels)
    stems = [without_ending(name).rpartition("/")[2] for name in paths]
    if len(set(stems)) < len(stems):
        stems = [without_ending(name) for name in paths]
    return make_listing(path, names, stems, paths, chosen, parents)


def _parse(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`, of it and of the objects in it only `_KEYS`."""
    try:
        document = json.loads(read_text(path, REMEDY), object_pairs_hook=_needed)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} line {error.lineno} column {error.colno} is not JSON ({error.msg}); {REMEDY}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep nesting
        raise InputError(f"{path} is not JSON of this dataset ({error}); {REMEDY}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no JSON object; {REMEDY}")
    return document


def _needed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if key in _KEYS}


def _entries(
    path: Path, document: dict[str, Any], section: str, kinds: dict[str, type]
) -> Iterator[tuple]:
    """The values of the keys in `kinds` of each entry of a section, which is freed afterwards.

    Raises:
        InputError: the section is missing or no list, an entry no object, a value missing or not
            of its kind.
    """
    entries = document.pop(section, None)  # the sections together are most of the memory
    if not isinstance(entries, list):
        raise InputError(f"{path} has no list {section!r}; {REMEDY}")
    try:  # by columns: a loop over a million entries that looks at each takes seconds more
        columns = [[entry[key] for entry in entries] for key in kinds]
    except (KeyError, TypeError, IndexError):
        columns = []
    kinds_there = [set(map(type, column)) for column in columns]  # True is no 1
    if kinds_there != [{kind} if entries else set() for kind in kinds.values()]:
        _check_first(path, section, entries, kinds)
    return zip(*columns, strict=True)


def _check_first(path: Path, section: str, entries: list, kinds: dict[str, type]) -> NoReturn:
    """Refuse the first entry that does not have what it needs; there is one."""
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {section}[{number}] is no object; {REMEDY}")
        for key, kind in kinds.items():
            if key not in entry:
                raise InputError(f"{path}: {section}[{number}] lacks {key!r}; {REMEDY}")
            if type(entry[key]) is not kind:
                what = "whole number" if kind is int else "text"
                raise InputError(f"{path}: {section}[{number}] {key!r} is no {what}; {REMEDY}")
    raise AssertionError("no entry is wrong")


def _read_categories(
    path: Path, document: dict[str, Any]
) -> tuple[dict[int, int], list[str], list[tuple[str]]]:
    """Category id to class index, and for each class its name and its parents."""
    kinds = {"id": int, "name": str, "supercategory": str}
    rows = list(_entries(path, document, "categories", kinds))
    rows = sorted((key, clean_name(name), clean_name(above)) for key, name, above in rows)
    index: dict[int, int] = {}
    for key, name, above in rows:
        if key in index:
            raise InputError(f"{path} has the category {key} more than once; {REMEDY}")
        for text in (name, above):
            if not text or not text.isprintable():
                raise InputError(f"{path}: {text!r} is no name, in category {key}; {REMEDY}")
        index[key] = len(index)
    names = [name for _, name, _ in rows]
    owners: dict[str, int] = {}
    for name in names:
        owners[name] = owners.get(name, 0) + 1
    # The same genus name may stand for an animal and a plant.
    unique = [f"{name} ({above})" if owners[name] > 1 else name for _, name, above in rows]
    return index, unique, [(above,) for _, _, above in rows]


def _read_annotations(
    path: Path, document: dict[str, Any], index: dict[int, int]
) -> dict[int, int]:
    """Image id to label."""
    labels: dict[int, int] = {}
    kinds = {"image_id": int, "category_id": int}
    for image, category in _entries(path, document, "annotations", kinds):
        if category not in index:
            raise InputError(
                f"{path}: the annotation of image {image} has the category {category}, which "
                f"'categories' lacks; {REMEDY}"
            )
        if image in labels:
            raise InputError(f"{path} has two annotations of image {image}; {REMEDY}")
        labels[image] = index[category]
    return labels


def _read_images(path: Path, document: dict[str, Any]) -> tuple[list[int], list[str]]:
    """The id and the path of each image."""
    ids: list[int] = []
    paths: list[str] = []
    for key, name in _entries(path, document, "images", {"id": int, "file_name": str}):
        # Not printable: NUL, which no path can hold, and halves of characters.
        if name.endswith("/") or not name or not name.isprintable():
            raise InputError(f"{path}: image {key} has the file name {name!r}; {REMEDY}")
        ids.append(key)
        paths.append(name)
    return ids, paths


def _labels_of_images(path: Path, ids: list[int], labels: dict[int, int]) -> list[int]:
    """The label of each image, in the order of `ids`; each has one, and each one an image."""
    chosen: list[int] = []
    for key in ids:
        if key not in labels:
            raise InputError(f"{path} has no annotation of image {key}; {REMEDY}")
        chosen.append(labels[key])
    known = set(ids)
    if len(known) < len(ids):
        raise InputError(f"{path} has an image id more than once; {REMEDY}")
    for key in labels:
        if key not in known:
            raise InputError(f"{path} annotates image {key}, which 'images' lacks; {REMEDY}")
    return chosen
