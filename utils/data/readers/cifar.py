"""CIFAR-10 and CIFAR-100 in their python version (Krizhevsky 2009): 60,000 images of 32x32 pixels.

The images lie in pickles that Python 2 wrote. `read10` and `read100` need only these; the pipeline
reads image files, so `prepare10` and `prepare100` unpack them once into `png/` of the data root.
"""

import io
import json
import os
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.console import progress_bar
from utils.data.readers.listing import Listing, clean_name, make_listing, read_bytes
from utils.errors import InputError, printable
from utils.files import sha256_file, write_json

IMAGE_FOLDER = "png"
MARKER_FILE = "pickles.json"  # in IMAGE_FOLDER: SHA-256 of the pickles it was made from
PIXELS = 3 * 32 * 32
REMEDY = "fetch the python version of the dataset again"


@dataclass(frozen=True)
class _Layout:
    """How the pickles of one of the two datasets are called, and the keys in them."""

    meta: str
    names_key: str
    labels_key: str
    train: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def entries(self) -> tuple[str, ...]:
        return (self.meta, *self.train, *self.test)


_CIFAR10 = _Layout(
    "batches.meta",
    "label_names",
    "labels",
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    ("test_batch",),
)
_CIFAR100 = _Layout("meta", "fine_label_names", "fine_labels", ("train",), ("test",))
ENTRIES10 = _CIFAR10.entries
ENTRIES100 = _CIFAR100.entries


def read10(root: Path, split: str) -> Listing:
    """The `train` or `test` split of CIFAR-10 below `root`, batch after batch.

    Its paths are those of the files that `prepare10` makes.

    Raises:
        InputError: a pickle is missing, damaged, would run code, or holds something else.
    """
    return _read(root, _CIFAR10, split)


def read100(root: Path, split: str) -> Listing:
    """The `train` or `test` split of CIFAR-100 below `root`; the parent of a class is the coarse.

    Its paths are those of the files that `prepare100` makes.

    Raises:
        InputError: a pickle is missing, damaged, would run code, or holds something else; a fine
            class has no coarse label or two.
    """
    return _read(root, _CIFAR100, split, _coarse_names(root))


def prepare10(root: Path) -> None:
    """Unpack the images of CIFAR-10 into `png/` of `root` unless they are there.

    Two runs that unpack at the same time do no harm; one that is killed leaves no half of `png/`.

    Raises:
        InputError: as `read10`, `root` cannot be written, or `png/` is of other pickles.
    """
    _prepare(root, _CIFAR10)


def prepare100(root: Path) -> None:
    """Unpack the images of CIFAR-100, as `prepare10` does.

    Raises:
        InputError: as `read100`, `root` cannot be written, or `png/` is of other pickles.
    """
    _prepare(root, _CIFAR100)


def _read(
    root: Path, layout: _Layout, split: str, parents: tuple[tuple[str, ...], ...] = ()
) -> Listing:
    classes = _names(root / layout.meta, layout.names_key)
    labels: list[int] = []
    for name in getattr(layout, split):
        path = root / name
        labels += _labels(path, _load(path), layout.labels_key, len(classes))
    return make_listing(
        root / getattr(layout, split)[0],
        classes,
        [f"{split}_{number:05d}" for number in range(len(labels))],
        [f"{IMAGE_FOLDER}/{split}/{number:05d}.png" for number in range(len(labels))],
        labels,
        parents,
    )


def _coarse_names(root: Path) -> tuple[tuple[str, ...], ...]:
    """For each fine class of CIFAR-100 the name of its coarse class."""
    meta, path = root / _CIFAR100.meta, root / "train"
    fine_names, coarse_names = _names(meta, "fine_label_names"), _names(meta, "coarse_label_names")
    batch = _load(path)
    fine = _labels(path, batch, "fine_labels", len(fine_names))
    coarse = _labels(path, batch, "coarse_labels", len(coarse_names))
    parents: dict[int, int] = {}
    for child, parent in zip(fine, coarse, strict=True):
        if parents.setdefault(child, parent) != parent:
            raise InputError(
                f"{path} puts {fine_names[child]!r} into two coarse classes, "
                f"{coarse_names[parents[child]]!r} and {coarse_names[parent]!r}; {REMEDY}"
            )
    for number, name in enumerate(fine_names):
        if number not in parents:
            raise InputError(f"{path} has no image of {name!r} to tell its coarse class; {REMEDY}")
    return tuple((coarse_names[parents[number]],) for number in range(len(fine_names)))


def _names(path: Path, key: str) -> list[str]:
    """The class names under `key` of the meta file at `path`, in index order."""
    names = _value(path, _load(path), key)
    is_text = isinstance(names, list) and all(isinstance(name, str) for name in names)
    clean = [clean_name(name) for name in names] if is_text else []
    if not clean or not all(clean) or len(set(clean)) < len(clean):
        raise InputError(f"{path}: {key!r} is no list of different class names; {REMEDY}")
    return clean


def _labels(path: Path, batch: dict, key: str, num_classes: int) -> list[int]:
    """The labels under `key`, one for each image of the batch of the file at `path`."""
    num_images = len(_pixels(path, batch))
    labels = _value(path, batch, key)
    if not isinstance(labels, list) or len(labels) != num_images:
        raise InputError(f"{path}: {key!r} is no list of {num_images} labels; {REMEDY}")
    for number, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < num_classes:
            raise InputError(
                f"{path}: {key!r} gives image {number} {label!r:.40}, not a whole number from 0 "
                f"to {num_classes - 1}; {REMEDY}"
            )
    return labels


def _pixels(path: Path, batch: dict) -> np.ndarray:
    """The images of the batch of the file at `path`, (N, 3072) uint8."""
    array = _value(path, batch, "data")
    data = array.value if isinstance(array, _Array) else None
    if data is None or data.dtype != np.uint8 or data.shape[1:] != (PIXELS,):
        raise InputError(f"{path}: 'data' is no array of N x {PIXELS} bytes; {REMEDY}")
    return data


def _value(path: Path, batch: dict, key: str) -> Any:  # noqa: ANN401 - whatever was pickled
    if key not in batch:
        raise InputError(f"{path} lacks {key!r}; {REMEDY}")
    return batch[key]


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, which would look up any codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the codec {encoding}")
    return text.encode("latin1")


class _Dtype:
    """Stands in for `numpy.dtype`: whole numbers only."""

    def __init__(self, text: str, *flags: object) -> None:
        if not re.fullmatch(r"[<>=|]?[bui][1248]", text):
            raise pickle.UnpicklingError(f"the array type {text}")
        self.value = np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        self.value = self.value.newbyteorder(state[1])

    def numbers(self, raw: str | bytes) -> np.ndarray:
        """The numbers whose bytes are `raw`, one-dimensional."""
        return np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, self.value)


class _Array:
    """Stands in for `numpy.ndarray`, whose own `__setstate__` crashes on damaged pickles."""

    value: np.ndarray | None = None

    def __init__(self, kind: str, shape: tuple, dtype: object) -> None:
        pass  # numpy pickles an array as an empty one, then its state

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.value = dtype.numbers(raw).reshape(shape, order="F" if is_fortran else "C")


class _Unpickler(pickle.Unpickler):
    """Unpickles plain values and numpy arrays of whole numbers; anything else could run code."""

    def find_class(self, module: str, name: str) -> object:
        """What stands in for `name` of `module`; an UnpicklingError if it is not needed."""
        known = {
            ("numpy.multiarray", "_reconstruct"): _Array,
            ("numpy.multiarray", "scalar"): lambda dtype, raw: dtype.numbers(raw).item(),
            ("numpy", "ndarray"): "ndarray",
            ("numpy", "dtype"): _Dtype,
            ("_codecs", "encode"): _encode,
        }
        # Called numpy.core by numpy 1, numpy._core since.
        key = (re.sub(r"^numpy\._?core\.", "numpy.", module), name)
        if key not in known:
            raise pickle.UnpicklingError(f"the pickle wants {module}.{name}")
        return known[key]


def _load(path: Path) -> dict:
    """The dict in the pickle at `path`, text of Python 2 as str.

    Raises:
        InputError: the file is missing, unreadable, no pickle of a dict, or would run code.
    """
    data = read_bytes(path, REMEDY)
    try:
        value = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    # What files raise that are empty, cut, damaged, no pickle, or want more than is allowed.
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        ImportError,
        OverflowError,
        MemoryError,
        RecursionError,
        SystemError,
    ) as error:
        reason = printable(re.sub(r"\s+", " ", str(error))[:100]) or type(error).__name__
        raise InputError(f"{path} is not an official pickle ({reason}); {REMEDY}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not an official pickle (it holds no dict); {REMEDY}")
    return value


def _is_prepared(root: Path, checksums: dict[str, str]) -> bool:
    """Whether `png/` is there, which a rename made whole; looks at one file of it.

    Raises:
        InputError: it was made from other pickles than those of these `checksums`.
    """
    folder = root / IMAGE_FOLDER
    if not folder.exists():
        return False
    try:
        made_from = json.loads((folder / MARKER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made_from = None
    if made_from != checksums:
        raise InputError(
            f"{folder} was not made from the pickles beside it, or by an older version; delete it "
            "to have it made again"
        )
    return True


def _prepare(root: Path, layout: _Layout) -> None:
    try:
        checksums = {name: sha256_file(root / name) for name in layout.entries}
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror})") from error
    if _is_prepared(root, checksums):
        return
    splits = {
        split: [_pixels(root / name, _load(root / name)) for name in getattr(layout, split)]
        for split in ("train", "test")
    }
    beside = root / f"{IMAGE_FOLDER}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(beside, ignore_errors=True)  # of a killed run that had our process id
        _unpack(beside, splits)
        write_json(beside / MARKER_FILE, checksums)
        try:
            beside.rename(root / IMAGE_FOLDER)
        except OSError:
            if not _is_prepared(root, checksums):  # else another run was faster
                raise
    except OSError as error:
        raise InputError(
            f"{root} cannot be written ({error.strerror}); the images are unpacked there once, "
            f"about 250 MB in {IMAGE_FOLDER}/: copy the dataset to a folder that can be written"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _unpack(folder: Path, splits: dict[str, list[np.ndarray]]) -> None:
    """Write each row of the `splits` as a PNG below `folder`, lossless."""
    total = sum(len(rows) for batches in splits.values() for rows in batches)
    with progress_bar(total, "unpack images", "image") as bar:
        for split, batches in splits.items():
            (folder / split).mkdir(parents=True)
            images = np.concatenate(batches).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for number, pixels in enumerate(images):
                encoded = io.BytesIO()
                Image.fromarray(pixels).save(encoded, "PNG", compress_level=1)
                # Not straight to the file: Pillow says nothing of a write a full disk cut short.
                (folder / split / f"{number:05d}.png").write_bytes(encoded.getbuffer())
                bar.update()
