"""Stanford Cars (Krause et al., 3dRR 2013): 16,185 photos of 196 cars by make, model and year.

`devkit/cars_meta.mat` holds the class names, one struct of `annotations` for each photo is in
`devkit/cars_train_annos.mat` and, for the test photos, in `cars_test_annos_withlabels.mat`: a file
of its own, which the devkit lacks and which people put beside it or into it. Both folders of
photos number them from 00001.jpg, so the sample id starts with the split.

The dataset's own site is gone; the copies that go round have `car_devkit/devkit/`,
`cars_train/cars_train/` and `cars_test/cars_test/`.
"""

from pathlib import Path, PurePosixPath

import numpy as np

from utils.data.readers.listing import Listing, check_not_shared, clean_name, make_listing, unpacked
from utils.data.readers.matlab import load_mat, text, whole_number
from utils.errors import InputError

DEVKIT = "devkit"
META_FILE, TRAIN_FILE = "cars_meta.mat", "cars_train_annos.mat"
LABELLED_FILE = "cars_test_annos_withlabels.mat"
IMAGE_FOLDERS = {"train": "cars_train", "test": "cars_test"}
ENTRIES = (IMAGE_FOLDERS["train"],)  # what all copies have; training needs no test photos
REMEDY = "fetch the annotations of Stanford Cars again"
# Why a root may lack a split.
ABSENT = {
    "test": f"the test split needs {LABELLED_FILE}, beside {DEVKIT}/ or in it, and "
    f"{IMAGE_FOLDERS['test']}/; training works without"
}


def splits(root: Path) -> tuple[str, ...]:
    """`train`, and `test` where its labels and photos are."""
    has_test = (root / IMAGE_FOLDERS["test"]).is_dir() and _labelled(root) is not None
    return ("train", "test") if has_test else ("train",)


def read(root: Path, split: str) -> Listing:
    """The `train` or `test` split of the official layout below `root`, in the file's order.

    Raises:
        InputError: a file is missing, damaged, lacks a variable or field, or an annotation holds
            no class of cars_meta.mat or no file name.
    """
    source = _devkit(root) / TRAIN_FILE if split == "train" else _find_labelled(root)
    classes = _read_classes(_devkit(root) / META_FILE)
    names, labels = _read_annotations(source)
    for name, label in zip(names, labels, strict=True):
        if not 1 <= label <= len(classes):
            raise InputError(f"{source}: the class of {name!r} is {label}, not 1 to {len(classes)}")
    folder = unpacked(root, IMAGE_FOLDERS[split])
    return make_listing(
        source,
        classes,
        [f"{split}_{PurePosixPath(name).stem}" for name in names],
        [f"{folder}/{name}" for name in names],
        [label - 1 for label in labels],
    )


def _devkit(root: Path) -> Path:
    return root / unpacked(root, DEVKIT, "car_devkit")


def _labelled(root: Path) -> Path | None:
    places = (root / LABELLED_FILE, _devkit(root) / LABELLED_FILE)
    return next((path for path in places if path.exists()), None)


def _find_labelled(root: Path) -> Path:
    """The annotations of the test split; refuses a root without them or the test photos."""
    path = _labelled(root)
    if path is None:
        raise InputError(
            f"{root / LABELLED_FILE} does not exist, nor does {_devkit(root) / LABELLED_FILE}; "
            "only it has the labels of the test split; training works without it"
        )
    if not (root / IMAGE_FOLDERS["test"]).is_dir():
        raise InputError(
            f"{root / IMAGE_FOLDERS['test']} is no folder; the test split needs it, training "
            "does not"
        )
    return path


def _read_classes(path: Path) -> list[str]:
    """The names of the classes in index order, clean."""
    names = _texts(path, "class_names", load_mat(path, REMEDY).get("class_names"))
    classes = {f"class {number}": clean_name(name) for number, name in enumerate(names, start=1)}
    for key, name in classes.items():
        if not name:
            raise InputError(f"{path} gives {key} no name; {REMEDY}")
    check_not_shared(path, "class name", classes)
    return list(classes.values())


def _read_annotations(path: Path) -> tuple[list[str], list[int]]:
    """The file name and the class, from 1, of each photo."""
    structs = load_mat(path, REMEDY).get("annotations")
    fields = structs.dtype.names if isinstance(structs, np.ndarray) else None
    for field in ("class", "fname"):
        if field not in (fields or ()):
            raise InputError(f"{path} has no 'annotations' with a field {field!r}; {REMEDY}")
    names = _texts(path, "fname", structs["fname"])
    for number, name in enumerate(names, start=1):
        if name == ".." or "\\" in name or PurePosixPath(name).name != name:
            raise InputError(f"{path}: fname {number} is {name!r}, not a file name; {REMEDY}")
    labels = [whole_number(cell) for cell in structs["class"].ravel()]
    for name, label in zip(names, labels, strict=True):
        if label is None:
            raise InputError(f"{path}: the class of {name!r} is not a whole number; {REMEDY}")
    return names, labels


def _texts(path: Path, what: str, cells: object) -> list[str]:
    """The texts of the cell array or struct field called `what`."""
    if not isinstance(cells, np.ndarray) or cells.dtype != object:
        raise InputError(f"{path} has no {what!r} made of texts; {REMEDY}")
    texts = [text(cell) for cell in cells.ravel()]
    if None in texts:
        raise InputError(f"{path}: {what} {texts.index(None) + 1} is empty or no text; {REMEDY}")
    return texts
