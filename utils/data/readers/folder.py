"""Read the user's own images: one folder a class, in `train/`, `val/` and `test/` or in the root.

As torchvision's `ImageFolder`, images may lie at any depth below their class. What is passed over
is said in the notes of the listing (`utils/data/readers/walk.py`). Only the split that is asked for
is looked at: of the others nothing counts but the names of their class folders.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from utils.console import log
from utils.data.formats import IMAGE_ENDINGS
from utils.data.readers.class_names import check_class_name, check_distinct
from utils.data.readers.listing import (
    Listing,
    clean_name,
    make_listing,
    sorted_classes,
)
from utils.data.readers.own import SPELLINGS, SPLITS, short_ids
from utils.data.readers.pairs import check_no_masks
from utils.data.readers.walk import PassedOver, composed, images_below, some_of, walk
from utils.errors import InputError


def find(root: Path) -> Path:
    """Return `root`, or its only folder if that holds folders: archives are often unpacked so.

    Read as it stands, such a root would be a single class, made of all splits.

    Raises:
        InputError: it is a file, or images beside such a folder would be lost.
    """
    if not root.is_dir():
        raise InputError(
            f"--data_root {root} is a file, not a folder of class folders; a list of images is "
            "--dataset csv"
        )
    passed = PassedOver()
    folders, images = _inside(root, passed)
    if len(folders) != 1 or folders[0].lower() in SPELLINGS or not _inside(root / folders[0])[0]:
        return root
    if images:
        raise InputError(
            f"{root} has images ({some_of(images)}) beside its only folder {folders[0]}/: give "
            f"--data_root {root / folders[0]}, or put them into class folders"
        )
    for note in _notes(root, passed):
        log.info("%s", note)
    return root / folders[0]


def splits(root: Path) -> tuple[str, ...]:
    """Return the splits that have a folder, or `train` if the root itself holds the classes.

    Raises:
        InputError: the root has split folders and others, or one that is misnamed.
        OSError: the root is not a folder, or may not be read.
    """
    return tuple(_split_folders(root, PassedOver()))


def read(
    root: Path, split: str, class_depth: int | None = None, for_evaluation: bool = False
) -> Listing:
    """Read a split, sorted by class and path; the sample id is the path below the root.

    Its classes are the class folders of the split and of train; without train, of every split.

    Args:
        root: folder that `find` returned.
        split: one of `splits(root)`.
        class_depth: number of levels of folders that name a class, 2 for `genus/species`; None:
            one, or none in doubt.
        for_evaluation: nothing is trained on. Otherwise train, or any split without train, must
            have an image of each class, and its depth must be beyond doubt.

    Raises:
        InputError: as `splits`; a class has no image; two folders are of one class; a name cannot
            be read; folders hold pictures and their masks; the depth is in doubt or wrong.
        OSError: a folder may not be read.
    """
    at_root, passed = PassedOver(), PassedOver()
    folders = _split_folders(root, at_root)
    here, depth = folders[split], class_depth or 1
    is_trained_on = not for_evaluation and (split == "train" or "train" not in folders)
    names = _class_folders(here, depth, passed, is_trained_on)
    images = _images(here, names, passed, is_trained_on)
    check_no_masks(here, images)
    if class_depth is None and is_trained_on:
        _check_depth(here, images)

    known = set(names.values())
    for other in {"train"} & {*folders} or {*folders}:
        if other == split:
            continue
        with suppress(InputError, OSError):  # said when that split is read, if it is
            known |= set(_class_folders(folders[other], depth, PassedOver(), False).values())
    classes = sorted_classes(known)
    index = {name: number for number, name in enumerate(classes)}
    prefix = "" if here == root else f"{split}/"
    paths, labels = [], []
    for folder, name in sorted(names.items(), key=lambda item: item[1]):
        paths += [f"{prefix}{folder}/{path}" for path in images[folder]]
        labels += [index[name]] * len(images[folder])
    # With the name of the split: `train/rose/1.jpg` and `val/rose/1.jpg` are two samples.
    ids = short_ids([composed(path) for path in paths])
    notes = [*([] if here == root else _notes(root, at_root)), *_notes(here, passed, images)]
    return replace(make_listing(here, classes, ids, paths, labels), notes=tuple(notes))


# --- Folders --------------------------------------------------------------------------------------


def _inside(folder: Path, passed: PassedOver | None = None) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the images that lie in `folder` itself."""
    _, folders, images = next(walk(folder, PassedOver() if passed is None else passed))
    return folders, sorted(images, key=composed)


def _split_folders(root: Path, passed: PassedOver) -> dict[str, Path]:
    """Return the folder that holds the classes of each split; the root if it holds them itself."""
    folders, images = _inside(root, passed)
    passed.loose += images
    found = [split for split in SPLITS if split in folders]
    for name in folders:
        meant = SPELLINGS.get(name.lower(), name)
        if meant != name:
            raise InputError(
                f"{root} has {name}/: splits are called train, val and test; rename it to {meant}/"
            )
    if not found:
        return {"train": root}
    others = [name for name in folders if name not in SPLITS]
    if others:
        raise InputError(
            f"{root} has {found[0]}/ and {others[0]}/: put either splits or classes into it"
        )
    return {split: root / split for split in found}


def _class_folders(
    here: Path, depth: int, passed: PassedOver, is_trained_on: bool
) -> dict[str, str]:
    """Return the class name of each folder that lies `depth` levels below `here`."""
    level = [""]
    for levels in range(depth):
        below = []
        for above in level:
            folders, images = _inside(here / above, passed)
            prefix = f"{above}/" if above else ""
            passed.loose += [prefix + name for name in images]
            below += [prefix + name for name in folders]
            if above and not folders and is_trained_on:
                raise InputError(
                    f"{here / above} has no folder in it: with --class_depth {depth} images lie "
                    f"in {here / above}{'/<class>' * (depth - levels)}/, with --class_depth "
                    f"{levels} where they are"
                )
        level = below
    if not level:
        what = passed.described(here)
        levels = f" {depth} levels down (--class_depth {depth})" if depth > 1 else ""
        is_split = not is_trained_on and here.name in SPLITS
        raise InputError(
            f"{here} has no class folder{levels}{_beside(what)}: put images into "
            f"{here}{'/<class>' * depth}/{', or move it away' if is_split else ''}"
        )
    names = {folder: _class_name(here, folder) for folder in level}
    check_distinct(here, level, clean=_clean_path)
    return names


def _class_name(here: Path, folder: str) -> str:
    return "/".join(check_class_name(here / folder, part) for part in folder.split("/"))


def _clean_path(folder: str) -> str:
    return "/".join(map(clean_name, folder.split("/")))


def _images(
    here: Path, folders: Iterable[str], passed: PassedOver, is_trained_on: bool
) -> dict[str, list[str]]:
    """Return the images of each class folder, as paths relative to it."""
    images = {}
    for folder in folders:
        inside = PassedOver()
        images[folder] = images_below(here / folder, inside)
        if not images[folder] and is_trained_on:
            what = inside.described(here / folder)
            raise InputError(
                f"{here / folder} has no image{_beside(what)}: put images "
                f"({' '.join(IMAGE_ENDINGS)}) into it, or move it away if it is not a class"
            )
        passed.add(inside)
    if not any(images.values()):
        what = passed.described(here)
        raise InputError(f"{here} has no image in its class folders{_beside(what)}")
    return images


def _check_depth(here: Path, images: Mapping[str, Sequence[str]]) -> None:
    """Raise an error if no class has an image in its own folder: which level names the classes?

    Raises:
        InputError: says what each --class_depth would read.
    """
    levels = min(path.count("/") for paths in images.values() for path in paths)
    if not levels:
        return
    folder = min(images)
    parts = f"{folder}/{images[folder][0]}".split("/")
    choices = ", ".join(
        f"--class_depth {depth} reads {'/'.join(parts[:depth])!r} as a class"
        for depth in range(levels + 1, 0, -1)
    )
    raise InputError(
        f"{here}: no class has an image in its own folder, all lie in folders below it such as "
        f"{'/'.join(parts[:-1])}/; {choices} with all that lies below it"
    )


def _notes(
    here: Path, passed: PassedOver, images: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Return the lines to be said about a folder."""
    what = passed.described(here)
    notes = [f"passed over in {here}: {what}"] if what else []
    if images is None:
        return notes
    below = [
        f"{folder}/{path.rpartition('/')[0]}/"
        for folder, paths in images.items()
        for path in paths
        if "/" in path
    ]
    if below:
        notes.append(
            f"images in folders below their class folder, which count as that class: {len(below)} "
            f"in {here} ({some_of([*dict.fromkeys(below)])})"
        )
    empty = [folder for folder, paths in images.items() if not paths]
    if empty:
        notes.append(f"class folders without an image in {here}: {some_of(empty)}")
    return notes


def _beside(what: str) -> str:
    return f" (what is there: {what})" if what else ""
