"""Read NABirds (Van Horn et al., CVPR 2015): 48,562 photos of 555 North American birds.

The 1,011 entries of `classes.txt` are the nodes of a tree, which `hierarchy.txt` gives as `child
parent` lines; only its 555 leaves have images. A leaf and nodes above it often bear the same name
(267 of 555); no two leaves do.
"""

from collections.abc import Mapping
from pathlib import Path

from utils.data.readers import birds
from utils.data.readers.list_files import read_table
from utils.data.readers.listing import Listing, clean_name
from utils.errors import InputError

HIERARCHY_FILE = "hierarchy.txt"
ENTRIES = (*birds.ENTRIES, HIERARCHY_FILE)


def read(root: Path, split: str) -> Listing:
    """Read the `train` or `test` split of the official layout below `root`.

    Its classes are those that an image of either split has, by class id. The parents of a class
    end with the root of the tree.
    """
    lists = birds.read_lists(root)
    names = {key: clean_name(name) for key, name in lists.classes.items()}
    used = set(lists.labels.values())
    classes = {key: name for key, name in names.items() if key in used}
    parent_of = read_table(root / HIERARCHY_FILE)
    for key in (*parent_of, *parent_of.values()):
        if key not in names:
            raise InputError(
                f"{root / HIERARCHY_FILE} has the class {key!r}, which {root / birds.CLASSES_FILE} "
                "lacks"
            )
    above = {key: _ancestors(root / HIERARCHY_FILE, key, parent_of) for key in classes}
    inner = used.intersection(parent_of.values())
    if inner:
        raise InputError(
            f"{root / birds.LABELS_FILE} gives an image the class {min(inner)}, which has classes "
            f"below it in {HIERARCHY_FILE}; only the others have images"
        )
    parents = [[names[key] for key in keys] for keys in above.values()]
    return lists.listing(split, classes, {key: key for key in lists.paths}, parents)


def _ancestors(path: Path, start: str, parent_of: Mapping[str, str]) -> list[str]:
    """Return the class ids above `start`, nearest first, up to the root."""
    above: list[str] = []
    key = start
    while key in parent_of:
        key = parent_of[key]
        above.append(key)
        if len(above) > len(parent_of):
            raise InputError(f"{path}: the parents of class {start} go round in a circle")
    return above
