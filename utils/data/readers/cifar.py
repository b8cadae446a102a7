"""Read CIFAR-10 and CIFAR-100, python version (Krizhevsky 2009): 60,000 images of 32x32 pixels.

The images lie in pickles that Python 2 wrote. `read` needs only these; the pipeline reads image
files, so `prepare` unpacks them once into `png/` of the data root.
"""

import io
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.console import progress_bar
from utils.data.readers.list_files import PARSER_ERRORS, read_bytes
from utils.data.readers.listing import Listing, clean_names, make_listing
from utils.errors import InputError, printable
from utils.files import read_regular, sha256_file, write_json
from utils.ownership import new_folder

IMAGE_FOLDER = "png"
MARKER_FILE = "pickles.json"  # in IMAGE_FOLDER: SHA-256 of the pickles it was made from
PIXELS = 3 * 32 * 32
REMEDY = "fetch the python version of the dataset again"


@dataclass(frozen=True)
class Cifar:
    """One of the two datasets: names of its pickles, and the keys in them."""

    meta: str
    names_key: str
    labels_key: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    coarse_names_key: str = ""
    coarse_labels_key: str = ""

    @property
    def entries(self) -> tuple[str, ...]:
        """Return the names of all pickles."""
        return (self.meta, *self.train, *self.test)

    def read(self, root: Path, split: str) -> Listing:
        """Read the `train` or `test` split below `root`, pickle after pickle.

        Its paths are those of the files that `prepare` makes; the parent of a class is its coarse
        class.
        """
        classes = _names(root / self.meta, self.names_key)
        labels: list[int] = []
        for name in getattr(self, split):
            labels += _labels(root / name, _load(root / name), self.labels_key, len(classes))
        return make_listing(
            root / getattr(self, split)[0],
            classes,
            [f"{split}_{number:05d}" for number in range(len(labels))],
            [f"{IMAGE_FOLDER}/{split}/{number:05d}.png" for number in range(len(labels))],
            labels,
            self._coarse_names(root, classes) if self.coarse_names_key else (),
        )

    def _coarse_names(self, root: Path, classes: list[str]) -> list[tuple[str, ...]]:
        """Return for each class the name of its coarse class, which its training images tell."""
        names, path = _names(root / self.meta, self.coarse_names_key), root / self.train[0]
        batch = _load(path)
        fine = _labels(path, batch, self.labels_key, len(classes))
        coarse = _labels(path, batch, self.coarse_labels_key, len(names))
        pairs = set(zip(fine, coarse, strict=True))
        parents = dict(pairs)
        for label, name in enumerate(classes):
            if label not in parents:
                raise InputError(f"{path} has no image of {name!r} to tell its coarse class")
        if len(pairs) > len(parents):
            raise InputError(f"{path} puts a class into two coarse classes; {REMEDY}")
        return [(names[parents[label]],) for label in range(len(classes))]

    def prepare(self, root: Path) -> None:
        """Unpack the images into `png/` of `root` unless they are there, all or none.

        Two runs that unpack at the same time do no harm.

        Raises:
            InputError: as `read`, `root` cannot be written, or `png/` is of other pickles.
        """
        try:
            checksums = {name: sha256_file(root / name) for name in self.entries}
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read ({error.strerror})") from error
        if _is_prepared(root, checksums):
            return
        splits = {
            split: [_pixels(root / name, _load(root / name)) for name in getattr(self, split)]
            for split in ("train", "test")
        }
        try:
            with new_folder(root / IMAGE_FOLDER) as beside:
                _unpack(beside, splits)
                write_json(beside / MARKER_FILE, checksums)
        except OSError as error:
            if _is_prepared(root, checksums):  # another run was faster
                return
            raise InputError(
                f"{root} cannot be written ({error.strerror}); the images are unpacked there once, "
                f"about 250 MB in {IMAGE_FOLDER}/: copy the dataset to a folder that can be written"
            ) from error


CIFAR10 = Cifar(
    "batches.meta",
    "label_names",
    "labels",
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    ("test_batch",),
)
CIFAR100 = Cifar(
    "meta",
    "fine_label_names",
    "fine_labels",
    ("train",),
    ("test",),
    "coarse_label_names",
    "coarse_labels",
)


def _is_prepared(root: Path, checksums: dict[str, str]) -> bool:
    """Tell whether `png/` exists; only a rename makes it, so it is whole.

    Raises:
        InputError: it was made from other pickles than those of these `checksums`.
    """
    folder = root / IMAGE_FOLDER
    if not folder.exists():
        return False
    try:
        made_from = json.loads(read_regular(folder / MARKER_FILE))
    except (OSError, ValueError):
        made_from = None
    if made_from != checksums:
        raise InputError(
            f"{folder} was not made from the pickles beside it, or by an older version; delete it "
            "to have it made again"
        )
    return True


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


# --- What the pickles hold ------------------------------------------------------------------------


def _names(path: Path, key: str) -> list[str]:
    """Return the class names under `key` of the meta file at `path`, in index order."""
    names = _value(path, _load(path), key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: {key!r} is not a list of class names; {REMEDY}")
    return clean_names(path, dict(enumerate(names)))


def _labels(path: Path, batch: dict, key: str, num_classes: int) -> list[int]:
    """Return the labels under `key`, one for each image of the batch of the file at `path`."""
    num_images, labels = len(_pixels(path, batch)), _value(path, batch, key)
    if not isinstance(labels, list) or len(labels) != num_images:
        raise InputError(f"{path}: {key!r} is not a list of {num_images} labels; {REMEDY}")
    for label in labels:
        if type(label) is not int or not 0 <= label < num_classes:
            raise InputError(
                f"{path}: {key!r} holds {label!r:.40}, not a whole number from 0 to "
                f"{num_classes - 1}; {REMEDY}"
            )
    return labels


def _pixels(path: Path, batch: dict) -> np.ndarray:
    """Return the images of the batch of the file at `path`, (N, 3072) uint8."""
    array = _value(path, batch, "data")
    data = array.value if isinstance(array, _Array) else None
    if data is None or data.dtype != np.uint8 or data.shape[1:] != (PIXELS,):
        raise InputError(f"{path}: 'data' is not an array of N x {PIXELS} bytes; {REMEDY}")
    return data


def _value(path: Path, batch: dict, key: str) -> Any:  # noqa: ANN401 - whatever was pickled
    if key not in batch:
        raise InputError(f"{path} lacks {key!r}; {REMEDY}")
    return batch[key]


# --- Pickles that cannot run code -----------------------------------------------------------------


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, which would look up any codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the codec {encoding}")
    return text.encode("latin1")


class _Dtype:
    """Stand in for `numpy.dtype`: whole numbers only."""

    def __init__(self, text: str, *flags: object) -> None:
        if not re.fullmatch(r"[<>=|]?[bui][1248]", text):
            raise pickle.UnpicklingError(f"the array type {text}")
        self.value = np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        self.value = self.value.newbyteorder(state[1])

    def numbers(self, raw: str | bytes) -> np.ndarray:
        """Return the numbers whose bytes are `raw`, one-dimensional."""
        return np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, self.value)


class _Array:
    """Stand in for `numpy.ndarray`, whose own `__setstate__` crashes on damaged pickles."""

    value: np.ndarray | None = None

    def __init__(self, kind: str, shape: tuple, dtype: object) -> None:
        pass  # numpy pickles an array as an empty one, then its state

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.value = dtype.numbers(raw).reshape(shape, order="F" if is_fortran else "C")


class _Unpickler(pickle.Unpickler):
    """Unpickle plain values and numpy arrays of whole numbers; anything else could run code."""

    def find_class(self, module: str, name: str) -> object:
        """Return what stands in for `name` of `module`, or raise an UnpicklingError."""
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
    """Return the dict in the pickle at `path`, text of Python 2 as str.

    Raises:
        InputError: the file is missing, unreadable, not a pickle of a dict, or would run code.
    """
    data = read_bytes(path, REMEDY)
    try:
        value = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except (*PARSER_ERRORS, pickle.UnpicklingError) as error:
        reason = printable(re.sub(r"\s+", " ", str(error))[:100]) or type(error).__name__
        raise InputError(f"{path} is not an official pickle ({reason}); {REMEDY}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not an official pickle (not a dict); {REMEDY}")
    return value
