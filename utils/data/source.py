"""Find the data of a dataset on the disk, and read the lists of its splits.

No torch here: a wrong path or a damaged list is refused before torch is imported.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utils.data.catalog import DatasetSpec, get_spec
from utils.data.splits import HeldOut, Split, hold_out, match_classes, united
from utils.data_utils import SYNTHETIC_FOLDER, with_home
from utils.errors import InputError, check_utf8, os_errors_are_input_errors


@dataclass(frozen=True)
class Source:
    """The data of one dataset, found on the disk."""

    spec: DatasetSpec
    data_root: str  # from the user
    root: Path  # in it
    official: tuple[str, ...]  # splits that the data itself has
    held_out: HeldOut | None = None  # how val is held out of train, where the data has none
    class_depth: int | None = None  # folders that make a class name
    classes: tuple[str, ...] | None = None  # of the checkpoint to evaluate; None: the data's own
    skip_unknown: bool = False  # whether images of other classes than these are left out

    @property
    def offered(self) -> tuple[str, ...]:
        """The splits that a run can use: the official ones and a held-out val."""
        return (*self.official, *(("val",) if self.held_out is not None else ()))

    @property
    def is_heap(self) -> bool:
        """Whether the data are one heap of images, which nobody divided into splits."""
        return self.official == ("train",)

    @os_errors_are_input_errors()
    def read(self, splits: Sequence[str]) -> dict[str, Split]:
        """Read the lists of samples of `splits`, each list once; no image is opened."""
        from_train = {"train", "val"} if self.held_out is not None else set()
        lists = dict.fromkeys("train" if name in from_train else name for name in splits)
        read = {name: self._read_list(name) for name in lists}
        if from_train & set(splits):
            read["train"], read["val"] = hold_out(read["train"], self.held_out)
        return {name: read[name] for name in splits}

    def read_heap(self) -> Split:
        """Read the train split undivided, of which a val is held out."""
        return replace(self, held_out=None).read(["train"])["train"]

    def read_all(self) -> Split:
        """Read every sample that there is, as the split `all`; its tags name the splits."""
        return united(list(self.read(self.offered).values()), "all")

    def _read_list(self, split: str) -> Split:
        options = {"class_depth": self.class_depth, "for_evaluation": self.classes is not None}
        taken = {name: options[name] for name in self.spec.options}
        listing = self.spec.read(self.root, split, **taken)
        images = (self.root.parent if self.root.is_file() else self.root).resolve()
        check_utf8(str(images))  # links may lead anywhere
        found = Split(
            self.spec.name,
            split,
            images,
            listing.classes,
            listing.ids,
            listing.paths,
            listing.labels,
            listing.parents,
            notes=listing.notes,
        )
        if self.classes is None:
            if len(found.classes) < 2:
                raise InputError(
                    f"{self.root} has a single class, {found.classes[0]!r}; there must be two"
                )
            return found
        remedy = "--unknown_classes skip leaves them out"
        return match_classes(found, self.classes, "the checkpoint", remedy, self.skip_unknown)


@os_errors_are_input_errors()
def find_source(spec: DatasetSpec, data_root: str) -> Source:
    """Find the data of a dataset.

    Raises:
        InputError: the data root is missing, malformed or not UTF-8.
    """
    check_utf8(data_root)
    root = spec.find_root(spec, Path(data_root))
    return Source(spec, data_root, root, spec.official_splits(root))


def open_split(
    spec: DatasetSpec, data_root: Path, split: str, class_depth: int | None = None
) -> Split:
    """Read the list of samples of one official split; no image is opened.

    Raises:
        InputError: data root, list file or split is missing or malformed, or there is one class.
    """
    source = replace(find_source(spec, str(data_root)), class_depth=class_depth)
    spec.check_split(split, source.official)
    return source.read([split])[split]


def resolve_data_root(dataset: str, data_root: str | None, output_dir: str) -> str:
    """Return where the data of `dataset` lies: the flag, else the default.

    Raises:
        InputError: neither the flag nor the environment says where.
    """
    if data_root is not None:
        return data_root
    if dataset == "synthetic":  # not $DATA_ROOT: that is where somebody's photos are
        return str(Path(output_dir) / SYNTHETIC_FOLDER)
    from_environment = os.environ.get("DATA_ROOT", "")
    if from_environment:
        return with_home(from_environment, "$DATA_ROOT: ")
    ways = "give --data_root PATH or `export DATA_ROOT=PATH`"
    if remedy := get_spec(dataset).remedy:  # of the default, which nobody may have meant
        ways += f"; {remedy}; your own images are --dataset folder, --dataset synthetic needs none"
    raise InputError(f"no data for {dataset}: {ways}")
