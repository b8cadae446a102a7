"""Tiny FGVC-Aircraft, Food-101, iNaturalist 2017 and CIFAR in their official formats."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from layouts import draw, layout, mixed, picture, plan, write_lines
from PIL import Image

# Class names as the official files have them, in class order.
AIRCRAFT_VARIANTS = ("707-320", "F-16A/B", "Hawk T1")
AIRCRAFT_LISTS = {split: f"data/images_variant_{split}.txt" for split in ("train", "val")}
FOOD101_CLASSES = {"apple_pie": "Apple pie", "creme_brulee": "Creme brulee", "ramen": "Ramen"}
INAT_CATEGORIES = (
    ("Acris crepitans", "Amphibia"),
    ("Ardea alba", "Aves"),
    ("Abies alba", "Plantae"),
)
CIFAR10_CLASSES = ("airplane", "automobile", "bird")
CIFAR100_CLASSES = ("apple", "aquarium_fish", "baby")
CIFAR100_COARSE = ("fish", "fruit_and_vegetables", "people")
CIFAR100_COARSE_OF = (1, 0, 2)  # of each fine class


@layout(
    "aircraft",
    "val",
    ("707-320", "F-16A/B", "Hawk T1"),
    files=("data/variants.txt", *AIRCRAFT_LISTS.values(), "data/images_variant_test.txt"),
    lists=AIRCRAFT_LISTS,
)
def write_aircraft(root: Path, photos: bool = True, **counts: Any) -> Path:
    """With a val split that is planned as the test split."""
    data = root / "data"
    (data / "images").mkdir(parents=True, exist_ok=True)
    write_lines(data / "variants.txt", AIRCRAFT_VARIANTS)
    planned = plan(**counts)
    rows: dict[str, list[tuple[str, int]]] = {}
    seed = 0
    for split, labels in (planned | {"val": planned["test"]}).items():
        rows[split] = []
        for label in labels:
            number = f"{(7919 * seed + 34309) % 99991:07d}"  # no order, and zeros in front
            rows[split].append((number, label))
            draw(data / "images" / f"{number}.jpg", label, seed, photos)
            seed += 1
    # Official order: class by class.
    rows["trainval"] = sorted(rows["train"] + rows["val"], key=lambda row: row[1])
    for split, pairs in rows.items():
        lines = [f"{number} {AIRCRAFT_VARIANTS[label]}" for number, label in pairs]
        write_lines(data / f"images_variant_{split}.txt", lines)
    return root


@layout(
    "food101",
    "test",
    ("Apple pie", "Creme brulee", "Ramen"),
    files=("meta/classes.txt", "meta/labels.txt", "meta/train.txt", "meta/test.txt"),
    lists={"train": "meta/train.txt", "test": "meta/test.txt"},
)
def write_food101(root: Path, photos: bool = True, **counts: Any) -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    write_lines(root / "meta" / "classes.txt", FOOD101_CLASSES)
    write_lines(root / "meta" / "labels.txt", FOOD101_CLASSES.values())
    seed = 0
    for split, labels in plan(**counts).items():
        lines = []
        for label in labels:
            lines.append(f"{list(FOOD101_CLASSES)[label]}/{1005649 - 31 * seed}")
            draw(root / "images" / f"{lines[-1]}.jpg", label, seed, photos)
            seed += 1
        write_lines(root / "meta" / f"{split}.txt", lines)
        of_class = {key: [i for i in lines if i.startswith(f"{key}/")] for key in FOOD101_CLASSES}
        (root / "meta" / f"{split}.json").write_text(json.dumps(of_class), encoding="utf-8")
    return root


@layout(
    "INat2017", "val", ("Acris crepitans", "Ardea alba", "Abies alba"), files=("train2017.json",)
)
def write_inat(root: Path, photos: bool = True, **counts: Any) -> Path:
    (root / "train_val_images").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(2017)
    categories = [
        {"id": key, "name": name, "supercategory": above}
        for key, (name, above) in enumerate(INAT_CATEGORIES)
    ]
    count = 0
    for split, labels in plan(**counts).items():
        images, annotations = [], []
        for number, label in enumerate(mixed(labels, 2017)):
            name, above = INAT_CATEGORIES[label]
            path = f"train_val_images/{above}/{name}/{generator.bytes(16).hex()}.jpg"
            more = {"width": 48, "height": 40, "license": 3, "rights_holder": f"Person {number}"}
            images.append({"id": count, "file_name": path, **more})
            annotations.append({"id": count, "image_id": count, "category_id": label})
            draw(root / path, label, count, photos)
            count += 1
        document = {
            "info": {"year": 2017},
            "licenses": [{"id": 3, "name": "CC"}],
            "images": images,
            "categories": categories,
            "annotations": annotations,
        }
        file = {"train": "train2017.json", "test": "val2017.json"}[split]
        (root / file).write_text(json.dumps(document), encoding="utf-8")
    return root


@layout(
    "cifar10",
    "test",
    ("airplane", "automobile", "bird"),
    files=("batches.meta", "data_batch_1", "data_batch_5"),
)
def write_cifar10(root: Path, **counts: Any) -> Path:
    """With the training images spread over the five batches."""
    train, test = _cifar_images(counts)
    meta = {"num_cases_per_batch": -(-len(train) // 5), "num_vis": 3072}
    write_pickle(root / "batches.meta", {**meta, "label_names": list(CIFAR10_CLASSES)})
    batches = {
        f"data_batch_{number + 1}": train[number * len(train) // 5 : (number + 1) * len(train) // 5]
        for number in range(5)
    }
    for name, rows in {**batches, "test_batch": test}.items():
        values = {"labels": [label for label, _ in rows], "data": _stack(rows)}
        names = [f"{name}_{number:06d}.png" for number in range(len(rows))]
        write_pickle(root / name, {"batch_label": name, **values, "filenames": names})
    return root


@layout("cifar100", "test", ("apple", "aquarium fish", "baby"), files=("meta", "train"))
def write_cifar100(root: Path, **counts: Any) -> Path:
    names = {"fine_label_names": CIFAR100_CLASSES, "coarse_label_names": CIFAR100_COARSE}
    write_pickle(root / "meta", {key: list(values) for key, values in names.items()})
    splits = _cifar_images(counts)
    for name, rows in zip(("train", "test"), splits, strict=True):
        labels = [label for label, _ in rows]
        coarse = [CIFAR100_COARSE_OF[label] for label in labels]
        values = {"fine_labels": labels, "coarse_labels": coarse, "data": _stack(rows)}
        write_pickle(root / name, {"batch_label": name, **values})
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


def _cifar_images(counts: dict[str, Any]) -> list[list[tuple[int, np.ndarray]]]:
    """(label, row of 3072 bytes) of each training and of each test image, classes mixed."""
    splits: list[list[tuple[int, np.ndarray]]] = []
    for labels in plan(**{"train_images": 5, **counts}).values():
        first = sum(map(len, splits))
        splits.append([])
        for seed, label in enumerate(mixed(labels, 32), start=first):
            photo = picture(label, seed).resize((32, 32), Image.Resampling.BILINEAR)
            splits[-1].append((label, np.asarray(photo).transpose(2, 0, 1).reshape(-1)))
    return splits


def _stack(rows: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    return np.array([pixels for _, pixels in rows], dtype=np.uint8).reshape(-1, 3072)
