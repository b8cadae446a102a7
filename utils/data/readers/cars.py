"""Read Stanford Cars (Krause et al., 3dRR 2013): 16,185 photos of 196 cars by make, model and year.

`devkit/cars_meta.mat` holds the class names, one struct of `annotations` for each photo is in
`devkit/cars_train_annos.mat` and, for the test photos, in `cars_test_annos_withlabels.mat`: a file
of its own, which the devkit lacks and which people put beside it or into it. Both folders of
photos number them from 00001.jpg, so the sample id starts with the split.

The dataset's own site is gone; the copies that go round have `car_devkit/devkit/`,
`cars_train/cars_train/` and `cars_test/cars_test/`.
"""

from pathlib import Path, PurePosixPath

import numpy as np

from utils.data.readers.listing import Listing, clean_names, make_listing, unpacked
from utils.data.readers.matlab import load_mat, read_texts, whole_numbers
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
    """Return `train`, and `test` if its labels and photos are there."""
    has_test = (root / IMAGE_FOLDERS["test"]).is_dir() and _labelled(root).exists()
    return ("train", "test") if has_test else ("train",)


def read(root: Path, split: str) -> Listing:
    """Read the `train` or `test` split of the official layout below `root`, in the file's order."""
    source = _devkit(root) / TRAIN_FILE if split == "train" else _labelled(root)
    meta = _devkit(root) / META_FILE
    cells = load_mat(meta, REMEDY).get("class_names")
    raw = read_texts(meta, "class_names", cells, REMEDY)
    names, labels = _read_annotations(source)
    folder = unpacked(root, IMAGE_FOLDERS[split])
    return make_listing(
        source,
        clean_names(meta, dict(enumerate(raw, start=1))),
        [f"{split}_{PurePosixPath(name).stem}" for name in names],
        [f"{folder}/{name}" for name in names],
        [label - 1 for label in labels],
        root=root,
    )


def _devkit(root: Path) -> Path:
    return root / unpacked(root, DEVKIT, "car_devkit")


def _labelled(root: Path) -> Path:
    """Return where the annotations of the test split lie, or should."""
    places = (_devkit(root) / LABELLED_FILE, root / LABELLED_FILE)
    return next((path for path in places if path.exists()), places[-1])


def _read_annotations(path: Path) -> tuple[list[str], list[int]]:
    """Return the file name and the class, from 1, of each photo."""
    structs = load_mat(path, REMEDY).get("annotations")
    fields = structs.dtype.names if isinstance(structs, np.ndarray) else None
    for field in ("class", "fname"):
        if field not in (fields or ()):
            raise InputError(f"{path} has no 'annotations' with a field {field!r}; {REMEDY}")
    names = read_texts(path, "fname", structs["fname"], REMEDY)
    labels = []
    for name, cell in zip(names, structs["class"].ravel(), strict=True):
        numbers = whole_numbers(cell)
        if numbers is None or len(numbers) != 1:
            raise InputError(f"{path}: the class of {name!r} is not a whole number; {REMEDY}")
        labels.append(int(numbers[0]))
    return names, labels
