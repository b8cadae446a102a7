"""NABirds (Van Horn et al., CVPR 2015): 48,562 photos of 555 North American birds.

The 1,011 entries of `classes.txt` are the nodes of a tree, which `hierarchy.txt` gives as `child
parent` lines; only its 555 leaves have images. A leaf and nodes above it often bear the same name
(267 of 555); no two leaves do.
"""

from collections.abc import Mapping
from pathlib import Path

from utils.data.readers import birds
from utils.data.readers.listing import Listing, read_table
from utils.errors import InputError

HIERARCHY_FILE = "hierarchy.txt"
ENTRIES = (*birds.ENTRIES, HIERARCHY_FILE)


def read(root: Path, split: str) -> Listing:
    """The `train` or `test` split of the official layout below `root`.

    Its classes are those that an image of either split has, by class id. The parents of a class
    end with the root of the tree.

    Raises:
        InputError: a list file is missing, damaged or contradicts another.
    """
    lists = birds.read_lists(root)
    names = birds.clean_names(lists.classes)
    used = set(lists.labels.values())
    classes = {key: name for key, name in names.items() if key in used}
    above = _ancestors(root / HIERARCHY_FILE, names)
    inner = used & {key for keys in above.values() for key in keys}
    if inner:
        raise InputError(
            f"{root / birds.LABELS_FILE} gives an image the class {min(inner)}, which has classes "
            f"below it in {HIERARCHY_FILE}; only the others have images"
        )
    parents = [[names[key] for key in above[leaf]] for leaf in classes]
    return lists.listing(split, classes, {key: key for key in lists.paths}, parents)


def _ancestors(path: Path, nodes: Mapping[str, str]) -> dict[str, list[str]]:
    """For each of `nodes` the class ids above it, nearest first, up to the root of the tree.

    Raises:
        InputError: the file at `path` is damaged, names a class that is none of `nodes`, or has
            several roots or a cycle.
    """
    parent_of = read_table(path)
    for key in (*parent_of, *parent_of.values()):
        if key not in nodes:
            known = path.with_name(birds.CLASSES_FILE)
            raise InputError(f"{path} has the class {key!r}, which {known} lacks")
    roots = [key for key in nodes if key not in parent_of]
    if len(roots) > 1:
        raise InputError(
            f"{path} gives no parent to {len(roots)} classes, {roots[0]} and {roots[1]} among "
            "them; only the root has none"
        )
    return {key: _walk_up(path, key, parent_of) for key in nodes}


def _walk_up(path: Path, start: str, parent_of: Mapping[str, str]) -> list[str]:
    above: list[str] = []
    key = start
    while key in parent_of:
        key = parent_of[key]
        above.append(key)
        if len(above) > len(parent_of):
            raise InputError(f"{path}: the parents of class {start} go round in a circle")
    return above
