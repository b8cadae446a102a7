"""Datasets: one table of specs, their splits, the checks of their images, the labelmap.

No torch here: a wrong path or a missing image is refused before torch is imported.
"""

import struct
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from utils import flowers, synthetic
from utils.errors import InputError, RunError
from utils.files import canonical_json, sha256_text, write_json

# Decoding every image would take minutes; this many are decoded, the rest are looked at.
MAX_DECODED_IN_CHECK = 64
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
JPEG_TAIL = 4096  # bytes at the end in which the closing marker is looked for: some cameras pad

# What Pillow raises for files that are cut, damaged or no images.
IMAGE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError,
)  # fmt: skip
# What Pillow raises for EXIF that is damaged, in images that are whole.
EXIF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error)
# What turns an image upright, by EXIF orientation (TIFF 6.0, tag 274). Not ImageOps.exif_transpose:
# it writes the EXIF anew and fails on tags of odd types.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Split:
    """The samples of one split in their official order, S of them."""

    dataset: str
    name: str
    root: Path
    classes: tuple[str, ...]  # of the whole dataset, in index order
    ids: np.ndarray  # (S,) str, stable names of the samples
    paths: np.ndarray  # (S,) str, relative to `root`, with forward slashes
    labels: np.ndarray  # (S,) int64, from 0

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, positions: Sequence[int] | np.ndarray) -> "Split":
        """The samples at `positions`, in split order whatever the order of `positions`."""
        keep = np.sort(np.asarray(positions, dtype=np.int64))
        return Split(
            self.dataset, self.name, self.root, self.classes,
            self.ids[keep], self.paths[keep], self.labels[keep],
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """Name, split, sample count and the SHA-256 over ids and labels, for the env stamp."""
        pairs = [[str(i), int(label)] for i, label in zip(self.ids, self.labels, strict=True)]
        return {
            "name": self.dataset,
            "split": self.name,
            "samples": len(self),
            "checksum": sha256_text(canonical_json(pairs)),
        }


@dataclass(frozen=True)
class DatasetSpec:
    """What the pipeline has to know of a dataset."""

    name: str
    aliases: tuple[str, ...]
    folders: tuple[str, ...]  # names under which the data lies in a parent of all datasets
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    find_root: Callable[["DatasetSpec", Path], Path]
    read: Callable[["DatasetSpec", Path, str], Split]
    prepare: Callable[[Path], None] | None = None  # makes the data where it is not there yet


def _find_flower_root(spec: DatasetSpec, data_root: Path) -> Path:
    if not data_root.exists():
        hint = ""
        if data_root.parent == Path("/") and data_root.name in spec.folders:
            # `DATA_ROOT=/x cmd "$DATA_ROOT"/flower102` expands the variable before it is set.
            hint = "; DATA_ROOT was empty when the shell read it: `export DATA_ROOT=...` first"
        raise InputError(f"--data_root {data_root} does not exist{hint}")
    for candidate in (data_root, *(data_root / folder for folder in spec.folders)):
        if flowers.is_layout(candidate):
            return candidate
    raise InputError(
        f"--data_root {data_root} holds no {flowers.IMAGE_FOLDER}/, {flowers.LABELS_FILE} and "
        f"{flowers.SPLITS_FILE}, nor does a {'/ or '.join(spec.folders)}/ in it; "
        "scripts/get_flowers.py fetches them"
    )


def _flower_split(
    spec: DatasetSpec, root: Path, split: str, layout: tuple[np.ndarray, dict[str, np.ndarray]]
) -> Split:
    labels, splits = layout
    numbers = splits[split]
    if not len(numbers):
        raise InputError(f"split {split} of {root} has no images")
    return Split(
        spec.name, split, root.resolve(), spec.classes,
        ids=np.array([flowers.image_id(number) for number in numbers]),
        paths=np.array([flowers.image_path(number) for number in numbers]),
        labels=labels[numbers - 1],
    )  # fmt: skip


def _read_flowers(spec: DatasetSpec, root: Path, split: str) -> Split:
    return _flower_split(spec, root, split, flowers.read_layout(root, len(spec.classes)))


def _find_synthetic_root(spec: DatasetSpec, data_root: Path) -> Path:
    synthetic.is_drawn(data_root)  # refuses a folder with something else in it
    return data_root


def _read_synthetic(spec: DatasetSpec, root: Path, split: str) -> Split:
    if synthetic.is_drawn(root):
        return _read_flowers(spec, root, split)
    return _flower_split(spec, root, split, synthetic.plan())


SPECS = (
    DatasetSpec(
        name="flower102",
        aliases=("flowers-102", "flowers102"),
        folders=("flowers-102", "flowers102", "flower102"),
        classes=flowers.FLOWER102_CLASSES,
        splits=tuple(flowers.SPLIT_VARIABLES),
        find_root=_find_flower_root,
        read=_read_flowers,
    ),
    DatasetSpec(
        name="synthetic",
        aliases=(),
        folders=(),
        classes=synthetic.SYNTHETIC_CLASSES,
        splits=tuple(flowers.SPLIT_VARIABLES),
        find_root=_find_synthetic_root,
        read=_read_synthetic,
        prepare=synthetic.draw,
    ),
)


def dataset_names() -> tuple[str, ...]:
    """Every name and alias that `--dataset` takes."""
    return tuple(name for spec in SPECS for name in (spec.name, *spec.aliases))


def get_spec(name: str) -> DatasetSpec:
    """The spec of a dataset by name or alias.

    Raises:
        InputError: there is no such dataset.
    """
    for spec in SPECS:
        if name in (spec.name, *spec.aliases):
            return spec
    raise InputError(f"unknown dataset {name!r}; known: {', '.join(dataset_names())}")


def open_split(spec: DatasetSpec, data_root: Path, split: str) -> Split:
    """Read the list of samples of `split`; no image is opened.

    Raises:
        InputError: the data root, a list file or the split is missing or malformed.
    """
    if split not in spec.splits:
        raise InputError(f"{spec.name} has no split {split!r}; it has {', '.join(spec.splits)}")
    return spec.read(spec, spec.find_root(spec, data_root), split)


def _exif_orientation(image: Image.Image) -> int | None:
    """The EXIF orientation of an opened image, None where it has none or its EXIF is damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except EXIF_ERRORS:
        return None


def decode_rgb(path: Path) -> Image.Image:
    """The image at `path` as RGB, turned upright as its EXIF orientation says.

    Raises:
        RunError: the file is missing, cut, damaged or no image; the message names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of tags that are cut: no concern of ours
            with Image.open(path) as image:
                turn = UPRIGHT.get(_exif_orientation(image))
                rgb = image.convert("RGB")
                return rgb if turn is None else rgb.transpose(turn)
    except IMAGE_ERRORS as error:
        raise RunError(f"image {path} cannot be decoded ({str(error) or 'damaged'})") from error


def _decodes(path: Path) -> bool:
    try:
        decode_rgb(path)
    except RunError:
        return False
    return True


def _looks_whole(path: Path) -> bool:
    """Whether a file is a JPEG with opening and closing markers, or anything that decodes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(len(JPEG_START))
        file.seek(0, 2)
        file.seek(max(0, file.tell() - JPEG_TAIL))
        tail = file.read()
    return (head == JPEG_START and JPEG_END in tail) or _decodes(path)


def check_images(splits: Collection[Split], used: Collection[Split]) -> None:
    """Refuse data with images that are missing, empty or damaged.

    Every image of `splits` must exist and be non-empty and have its header and closing marker; the
    images of `used`, if they are at most `MAX_DECODED_IN_CHECK` in all, are decoded.

    Raises:
        InputError: says how many of how many are bad, where, and names the first.
    """
    for split in splits:
        paths = [split.root / path for path in split.paths]
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(paths)} images of split {split.name} are missing in "
                f"{missing[0].parent} (first: {missing[0].name}); fetch the whole archive, or "
                "choose another split"
            )
        _refuse_damaged([path for path in paths if not _looks_whole(path)], split)
    if sum(map(len, used)) <= MAX_DECODED_IN_CHECK:
        for split in used:
            paths = [split.root / path for path in split.paths]
            _refuse_damaged([path for path in paths if not _decodes(path)], split)


def _refuse_damaged(damaged: Sequence[Path], split: Split) -> None:
    if damaged:
        raise InputError(
            f"{len(damaged)} of {len(split)} images of split {split.name} are empty or damaged "
            f"(first: {damaged[0]}); fetch them again"
        )


def labelmap(dataset: str, classes: Sequence[str]) -> dict[str, Any]:
    """The labelmap: class names in index order and the SHA-256 of their compact UTF-8 JSON."""
    return {
        "dataset": dataset,
        "num_classes": len(classes),
        "classes": list(classes),
        "checksum": sha256_text(canonical_json(list(classes))),
    }


def write_labelmap(path: Path, dataset: str, classes: Sequence[str]) -> None:
    """Write the labelmap of `classes` to `path`, replacing it as a whole."""
    write_json(path, labelmap(dataset, classes))
