"""Tiny Stanford Cars, Stanford Dogs and Oxford-IIIT Pet in the official formats."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from layouts_birds import _official_lists, draw_bird
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


def write_cars(
    root: Path,
    train_images: int = 4,
    test_images: int = 2,
    test_classes: Collection[int] | None = None,
    labelled: bool = True,
    photos: bool = True,
) -> Path:
    """Stanford Cars with the three CAR_CLASSES; `root` becomes the dataset folder.

    Args:
        root: made where it is missing.
        train_images: of each class.
        test_images: of each class that is in the test split.
        test_classes: class indices, from 0, of the test split; None: every class.
        labelled: False leaves out the labels of the test split, as the devkit does.
        photos: False leaves the folders of images empty, which is all a reader needs.
    """
    (root / "devkit").mkdir(parents=True, exist_ok=True)
    write_mat(root / "devkit" / "cars_meta.mat", class_names=cells(CAR_CLASSES)[None])
    for split, seed, images, classes in (
        ("train", 0, train_images, None),
        ("test", 10**4, test_images, test_classes),
    ):
        # Official order: the classes are mixed.
        labels = _mixed(_plan(images, classes), seed)
        names = [f"{number:05d}.jpg" for number in range(1, len(labels) + 1)]
        folder = root / f"cars_{split}"
        folder.mkdir(exist_ok=True)
        for number, (name, label) in enumerate(zip(names, labels, strict=True)):
            if photos:
                draw_bird(label, seed + number).save(folder / name, "JPEG", quality=90)
        annotations = car_annotations(names, [label + 1 for label in labels])
        if split == "train":
            write_mat(root / "devkit" / "cars_train_annos.mat", annotations=annotations)
            continue
        if labelled:
            write_mat(root / CAR_LABELS_FILE, annotations=annotations)
        unlabelled = np.empty(annotations.shape, [(name, "O") for name in (*BOX, "fname")])
        for name in unlabelled.dtype.names:
            unlabelled[name] = annotations[name]
        write_mat(root / "devkit" / "cars_test_annos.mat", annotations=unlabelled)
    return root


def car_annotations(names: Sequence[object], labels: Sequence[object]) -> np.ndarray:
    """The (1, N) struct array of file names and classes from 1, every box the same."""
    structs = np.empty((1, len(names)), [(name, "O") for name in (*BOX, "class", "fname")])
    for field, value in zip(BOX, (3, 4, 40, 36), strict=True):
        structs[field] = value
    structs["class"], structs["fname"] = cells(labels), cells(names)
    return structs


def write_dogs(
    root: Path,
    train_images: int = 4,
    test_images: int = 2,
    test_classes: Collection[int] | None = None,
    photos: bool = True,
    lists_folder: str = "",
) -> Path:
    """Stanford Dogs with the three DOG_FOLDERS; `root` becomes the dataset folder.

    Args:
        root: made where it is missing.
        train_images: of each class.
        test_images: of each class that is in the test split.
        test_classes: class indices, from 0, of the test split; None: every class.
        photos: False leaves the folder of images empty, which is all a reader needs.
        lists_folder: where below `root` the lists go, "" or "lists".
    """
    (root / "Images").mkdir(parents=True, exist_ok=True)
    (root / lists_folder).mkdir(exist_ok=True)
    seed = 0
    for split, images, classes in (
        ("train", train_images, None),
        ("test", test_images, test_classes),
    ):
        labels = _plan(images, classes)
        files = []
        for label in labels:
            folder = DOG_FOLDERS[label]
            files.append(f"{folder}/{folder.partition('-')[0]}_{10074 - 7 * seed}.jpg")
            if photos:
                path = root / "Images" / files[-1]
                path.parent.mkdir(exist_ok=True)
                draw_bird(label, seed).save(path, "JPEG", quality=90)
            seed += 1
        write_dog_list(
            root / lists_folder / f"{split}_list.mat", files, [label + 1 for label in labels]
        )
    return root


def write_dog_list(path: Path, files: Sequence[object], labels: Sequence[object]) -> None:
    """A list of paths below `Images/` and labels from 1."""
    write_mat(
        path,
        file_list=cells(files)[:, None],
        annotation_list=cells([str(file).removesuffix(".jpg") for file in files])[:, None],
        labels=np.array(labels, dtype=np.uint8)[:, None],
    )


def write_pet(
    root: Path,
    train_images: int = 4,
    test_images: int = 2,
    test_classes: Collection[int] | None = None,
    photos: bool = True,
) -> Path:
    """Oxford-IIIT Pet with the three PET_CLASSES; `root` becomes the dataset folder.

    Args:
        root: made where it is missing.
        train_images: of each class.
        test_images: of each class that is in the test split.
        test_classes: class indices, from 0, of the test split; None: every class.
        photos: False leaves the folder of images empty, which is all a reader needs.
    """
    for folder in ("images", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    seed = 0
    for split, images, classes in (
        ("trainval", train_images, None),
        ("test", test_images, test_classes),
    ):
        lines = []
        for label in _plan(images, classes):
            breed, species, number = PET_CLASSES[label]
            name = f"{breed}_{100 + seed}"
            lines.append(f"{name} {label + 1} {species} {number}\n")
            if photos:
                draw_bird(label, seed).save(root / "images" / f"{name}.jpg", "JPEG", quality=90)
            seed += 1
        (root / "annotations" / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
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


def _plan(images: int, classes: Collection[int] | None) -> list[int]:
    """The class index of each image of one split, class by class."""
    return [index for index in (range(3) if classes is None else classes) for _ in range(images)]


def _mixed(labels: Sequence[int], seed: int) -> list[int]:
    return [labels[at] for at in np.random.default_rng(seed).permutation(len(labels))]


# The official annotations without the photos; None where they are not at hand.
REAL_CARS = _official_lists("stanford_cars")
