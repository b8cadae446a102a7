"""Tiny Stanford Cars, Stanford Dogs and Oxford-IIIT Pet in the official formats."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from layouts import draw, layout, mixed, official_lists, plan, write_lines
from scipy.io import loadmat, savemat

# In index order, as the official files have them.
CAR_CLASSES = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van  2012")
DOG_FOLDERS = (
    "n02085620-Chihuahua",
    "n02089078-black-and-tan_coonhound",
    "n02113978-Mexican_hairless",
)
# With species (1 cat, 2 dog) and the number of the breed within the species.
PET_CLASSES = (("Abyssinian", 1, 1), ("american_bulldog", 2, 1), ("British_Shorthair", 1, 2))

BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
CAR_LABELS_FILE = "cars_test_annos_withlabels.mat"
REAL_CARS = official_lists("stanford_cars")


@layout(
    "car",
    "test",
    ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van 2012"),
    files=("devkit/cars_meta.mat", "devkit/cars_train_annos.mat"),
)
def write_cars(root: Path, photos: bool = True, labelled: bool = True, **counts: Any) -> Path:
    """Without labels of the test split unless `labelled`, as the devkit is."""
    (root / "devkit").mkdir(parents=True, exist_ok=True)
    write_mat(root / "devkit" / "cars_meta.mat", class_names=cells(CAR_CLASSES)[None])
    planned = plan(**counts)
    for seed, (split, indices) in enumerate(planned.items()):
        labels = mixed(indices, 10**4 * seed)  # official order: the classes are mixed
        names = [f"{number:05d}.jpg" for number in range(1, len(labels) + 1)]
        (root / f"cars_{split}").mkdir(exist_ok=True)
        for number, (name, label) in enumerate(zip(names, labels, strict=True)):
            draw(root / f"cars_{split}" / name, label, 10**4 * seed + number, photos)
        annotations = car_annotations(names, [label + 1 for label in labels])
        if split == "test" and labelled:
            write_mat(root / CAR_LABELS_FILE, annotations=annotations)
        if split == "test":
            annotations = without_field(annotations, "class")
        write_mat(root / "devkit" / f"cars_{split}_annos.mat", annotations=annotations)
    return root


def car_annotations(names: Sequence[object], labels: Sequence[object]) -> np.ndarray:
    """The (1, N) struct array of file names and classes from 1, every box the same."""
    structs = np.empty((1, len(names)), [(name, "O") for name in (*BOX, "class", "fname")])
    for field, value in zip(BOX, (3, 4, 40, 36), strict=True):
        structs[field] = value
    structs["class"], structs["fname"] = cells(labels), cells(names)
    return structs


def without_field(structs: np.ndarray, field: str) -> np.ndarray:
    """A struct array without one of its fields."""
    kept = np.empty(structs.shape, [(name, "O") for name in structs.dtype.names if name != field])
    for name in kept.dtype.names:
        kept[name] = structs[name]
    return kept


@layout(
    "dog",
    "test",
    ("Chihuahua", "black-and-tan coonhound", "Mexican hairless"),
    files=("train_list.mat", "test_list.mat"),
)
def write_dogs(root: Path, photos: bool = True, lists_folder: str = "", **counts: Any) -> Path:
    """With the lists in the folder `lists_folder` of `root`."""
    (root / "Images").mkdir(parents=True, exist_ok=True)
    (root / lists_folder).mkdir(exist_ok=True)
    seed = 0
    for split, labels in plan(**counts).items():
        files = []
        for label in labels:
            folder = DOG_FOLDERS[label]
            files.append(f"{folder}/{folder.partition('-')[0]}_{10074 - 7 * seed}.jpg")
            draw(root / "Images" / files[-1], label, seed, photos)
            seed += 1
        path = root / lists_folder / f"{split}_list.mat"
        write_dog_list(path, files, [label + 1 for label in labels])
    return root


def write_dog_list(path: Path, files: Sequence[object], labels: Sequence[object]) -> None:
    """A list of paths below `Images/` and labels from 1."""
    write_mat(
        path,
        file_list=cells(files)[:, None],
        annotation_list=cells([str(file).removesuffix(".jpg") for file in files])[:, None],
        labels=np.array(labels, dtype=np.uint8)[:, None],
    )


@layout(
    "pet",
    "test",
    ("Abyssinian", "american bulldog", "British Shorthair"),
    files=("annotations/trainval.txt", "annotations/test.txt"),
    lists={"train": "annotations/trainval.txt", "test": "annotations/test.txt"},
)
def write_pet(root: Path, photos: bool = True, **counts: Any) -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    seed = 0
    for split, labels in plan(**counts).items():
        lines = []
        for label in labels:
            breed, species, number = PET_CLASSES[label]
            name = f"{breed}_{100 + seed}"
            lines.append(f"{name} {label + 1} {species} {number}")
            draw(root / "images" / f"{name}.jpg", label, seed, photos)
            seed += 1
        file = "trainval" if split == "train" else split
        write_lines(root / "annotations" / f"{file}.txt", lines)
    return root


def write_mat(path: Path, **variables: object) -> None:
    """A MATLAB 5 file, compressed as the official ones are."""
    savemat(path, variables, do_compression=True)


def edit_mat(path: Path, edit: Callable[[dict], object]) -> None:
    """Let `edit` change the variables of a MATLAB file in place."""
    variables = {key: value for key, value in loadmat(path).items() if not key.startswith("_")}
    edit(variables)
    write_mat(path, **variables)


def cells(values: Sequence[object]) -> np.ndarray:
    """(N,) object array, MATLAB's cell array, with one of `values` in each element."""
    array = np.empty(len(values), object)
    array[:] = list(values)
    return array
