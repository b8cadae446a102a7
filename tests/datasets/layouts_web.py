"""Tiny FGVC-Aircraft, Food-101, iNaturalist 2017 and CIFAR in their official formats."""

import json
import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from layouts_birds import draw_bird
from PIL import Image

# Class names as the official files have them, in class order.
AIRCRAFT_VARIANTS = ("707-320", "F-16A/B", "Hawk T1")
FOOD101_CLASSES = {"apple_pie": "Apple pie", "creme_brulee": "Creme brulee", "ramen": "Ramen"}
INAT_CATEGORIES = {
    0: ("Acris crepitans", "Amphibia"),
    1: ("Ardea alba", "Aves"),
    2: ("Abies alba", "Plantae"),
}
CIFAR10_CLASSES = ("airplane", "automobile", "bird")
CIFAR100_CLASSES = ("apple", "aquarium_fish", "baby")
CIFAR100_COARSE = ("fish", "fruit_and_vegetables", "people")
CIFAR100_COARSE_OF = (1, 0, 2)  # of each fine class


def write_aircraft(
    root: Path,
    train_images: int = 4,
    val_images: int = 2,
    test_images: int = 2,
    test_classes: Collection[int] | None = None,
    photos: bool = True,
) -> Path:
    """FGVC-Aircraft with the three AIRCRAFT_VARIANTS; `root` becomes `fgvc-aircraft-2013b/`.

    Args:
        root: made where it is missing.
        train_images: of each class.
        val_images: of each class.
        test_images: of each class that is in the test split.
        test_classes: class indices, from 0, of the test split; None: every class.
        photos: False leaves the folder of images empty, which is all a reader needs.
    """
    data = root / "data"
    (data / "images").mkdir(parents=True, exist_ok=True)
    _write_lines(data / "variants.txt", AIRCRAFT_VARIANTS)
    plans = {
        "train": _plan(train_images),
        "val": _plan(val_images),
        "test": _plan(test_images, test_classes),
    }
    rows, count = {}, 0
    for split, labels in plans.items():
        # As the official ones: no order, and zeros in front.
        numbers = [f"{(7919 * (count + seed) + 34309) % 99991:07d}" for seed in range(len(labels))]
        rows[split] = list(zip(numbers, labels, strict=True))
        for seed, (number, label) in enumerate(rows[split]):
            if photos:
                _draw(data / "images" / f"{number}.jpg", label, count + seed)
        count += len(labels)
    # Official order: class by class.
    rows["trainval"] = sorted(rows["train"] + rows["val"], key=lambda row: row[1])
    for split, pairs in rows.items():
        lines = [f"{number} {AIRCRAFT_VARIANTS[label]}" for number, label in pairs]
        _write_lines(data / f"images_variant_{split}.txt", lines)
    return root


def write_food101(
    root: Path,
    train_images: int = 4,
    test_images: int = 2,
    test_classes: Collection[int] | None = None,
    photos: bool = True,
) -> Path:
    """Food-101 with the three FOOD101_CLASSES; `root` becomes `food-101/`.

    Args:
        root: made where it is missing.
        train_images: of each class.
        test_images: of each class that is in the test split.
        test_classes: class indices, from 0, of the test split; None: every class.
        photos: False leaves the folder of images empty, which is all a reader needs.
    """
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "meta").mkdir(exist_ok=True)
    _write_lines(root / "meta" / "classes.txt", FOOD101_CLASSES)
    _write_lines(root / "meta" / "labels.txt", FOOD101_CLASSES.values())
    count = 0
    for split, labels in (
        ("train", _plan(train_images)),
        ("test", _plan(test_images, test_classes)),
    ):
        images: dict[str, list[str]] = {}
        for label in labels:
            key = list(FOOD101_CLASSES)[label]
            images.setdefault(key, []).append(f"{key}/{1005649 - 31 * count}")
            if photos:
                _draw(root / "images" / f"{images[key][-1]}.jpg", label, count)
            count += 1
        lines = [line for of_class in images.values() for line in of_class]
        _write_lines(root / "meta" / f"{split}.txt", lines)
        (root / "meta" / f"{split}.json").write_text(json.dumps(images), encoding="utf-8")
    return root


def write_inat(
    root: Path,
    train_images: int = 4,
    val_images: int = 2,
    val_classes: Collection[int] | None = None,
    photos: bool = True,
) -> Path:
    """iNaturalist 2017 with the three INAT_CATEGORIES; `root` becomes the dataset folder.

    Args:
        root: made where it is missing.
        train_images: of each class.
        val_images: of each class that is in the val split.
        val_classes: class indices, from 0, of the val split; None: every class.
        photos: False leaves the folder of images empty, which is all a reader needs.
    """
    (root / "train_val_images").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(2017)
    count = 0
    for split, labels in (("train", _plan(train_images)), ("val", _plan(val_images, val_classes))):
        images, annotations = [], []
        for number, label in enumerate(generator.permutation(labels).tolist()):
            name, above = INAT_CATEGORIES[label]
            path = f"train_val_images/{above}/{name}/{generator.bytes(16).hex()}.jpg"
            images.append(
                {
                    "id": count,
                    "file_name": path,
                    "width": 48,
                    "height": 40,
                    "license": 3,
                    "rights_holder": f"Person {number}",
                }
            )
            annotations.append({"id": count, "image_id": count, "category_id": label})
            if photos:
                _draw(root / path, label, count)
            count += 1
        document = {
            "info": {"year": 2017},
            "licenses": [{"id": 3, "name": "CC"}],
            "images": images,
            "categories": [
                {"id": key, "name": name, "supercategory": above}
                for key, (name, above) in INAT_CATEGORIES.items()
            ],
            "annotations": annotations,
        }
        (root / f"{split}2017.json").write_text(json.dumps(document), encoding="utf-8")
    return root


def write_cifar10(
    root: Path,
    train_images: int = 5,
    test_images: int = 2,
    test_classes: Collection[int] | None = None,
) -> Path:
    """CIFAR-10 with the three CIFAR10_CLASSES; `root` becomes `cifar-10-batches-py/`.

    Args:
        root: made where it is missing.
        train_images: of each class, spread over the five batches.
        test_images: of each class that is in the test split.
        test_classes: class indices, from 0, of the test split; None: every class.
    """
    train, test = _cifar_images(train_images, test_images, test_classes)
    write_pickle(
        root / "batches.meta",
        {
            "num_cases_per_batch": -(-len(train) // 5),
            "label_names": list(CIFAR10_CLASSES),
            "num_vis": 3072,
        },
    )
    names = [f"data_batch_{number}" for number in range(1, 6)]
    parts = [
        train[number * len(train) // 5 : (number + 1) * len(train) // 5] for number in range(5)
    ]
    for name, rows in zip([*names, "test_batch"], [*parts, test], strict=True):
        write_pickle(
            root / name,
            {
                "batch_label": name,
                "labels": [label for label, _ in rows],
                "data": _stack(rows),
                "filenames": [f"{name}_{number:06d}.png" for number in range(len(rows))],
            },
        )
    return root


def write_cifar100(
    root: Path,
    train_images: int = 5,
    test_images: int = 2,
    test_classes: Collection[int] | None = None,
) -> Path:
    """CIFAR-100 with the three CIFAR100_CLASSES; `root` becomes `cifar-100-python/`.

    Args:
        root: made where it is missing.
        train_images: of each class.
        test_images: of each class that is in the test split.
        test_classes: class indices, from 0, of the test split; None: every class.
    """
    write_pickle(
        root / "meta",
        {"fine_label_names": list(CIFAR100_CLASSES), "coarse_label_names": list(CIFAR100_COARSE)},
    )
    splits = _cifar_images(train_images, test_images, test_classes)
    for name, rows in zip(("train", "test"), splits, strict=True):
        write_pickle(
            root / name,
            {
                "filenames": [f"{name}_s_{number:06d}.png" for number in range(len(rows))],
                "batch_label": name,
                "fine_labels": [label for label, _ in rows],
                "coarse_labels": [CIFAR100_COARSE_OF[label] for label, _ in rows],
                "data": _stack(rows),
            },
        )
    return root


def write_pickle(path: Path, value: object) -> None:
    """The pickle of `value` that Python 2 would write: byte strings, and numpy's old names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x80\x02" + _pickled(value) + b".")


def _pickled(value: object) -> bytes:
    """The protocol 2 opcodes that leave `value` on the stack."""
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str | bytes):
        data = value.encode("latin1") if isinstance(value, str) else value
        return b"T" + struct.pack("<i", len(data)) + data
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_pickled, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_pickled, value)) + b"e"
    if isinstance(value, Mapping):
        flat = (part for pair in value.items() for part in pair)
        return b"}(" + b"".join(map(_pickled, flat)) + b"u"
    assert isinstance(value, np.ndarray)
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _pickled((0,))
    made += _pickled("b") + b"tR"
    # Python 2's numpy gave align and copy as numbers.
    dtype = b"cnumpy\ndtype\n" + _pickled((value.dtype.str[1:], 0, 1)) + b"R"
    dtype += _pickled((3, value.dtype.str[0], None, None, None, -1, -1, 0)) + b"b"
    state = b"(" + _pickled(1) + _pickled(value.shape) + dtype + _pickled(False)
    return made + state + _pickled(value.tobytes()) + b"tb"


def _cifar_images(
    train_images: int, test_images: int, test_classes: Collection[int] | None
) -> list[list[tuple[int, np.ndarray]]]:
    """(label, row of 3072 bytes) of each training and of each test image, classes mixed."""
    generator = np.random.default_rng(32)
    splits: list[list[tuple[int, np.ndarray]]] = []
    for labels in (_plan(train_images), _plan(test_images, test_classes)):
        first = sum(map(len, splits))
        splits.append([])
        for seed, label in enumerate(generator.permutation(labels).tolist(), start=first):
            photo = draw_bird(label, seed).resize((32, 32), Image.Resampling.BILINEAR)
            splits[-1].append((label, np.asarray(photo).transpose(2, 0, 1).reshape(-1)))
    return splits


def _stack(rows: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    return np.array([pixels for _, pixels in rows], dtype=np.uint8).reshape(-1, 3072)


def _plan(images: int, classes: Collection[int] | None = None) -> list[int]:
    """The label of each image to write, class by class; None: of all three classes."""
    return [label for label in (range(3) if classes is None else classes) for _ in range(images)]


def _write_lines(path: Path, lines: Collection[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _draw(path: Path, label: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_bird(label, seed).save(path, "JPEG", quality=90)
