"""List the datasets by name, with their readers and the splits that they offer.

No torch here. To add a dataset, write a reader in `utils/data/readers/` and add an entry to
`SPECS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.data.readers import (
    aircraft,
    cars,
    cifar,
    csv_list,
    cub,
    dogs,
    flowers,
    folder,
    food101,
    inat,
    nabirds,
    pet,
    synthetic,
)
from utils.data.readers.listing import Listing
from utils.errors import InputError, near_miss, os_errors_are_input_errors

TRAIN_TEST = ("train", "test")


@os_errors_are_input_errors()
def _existing(spec: "DatasetSpec", data_root: Path) -> Path:
    if not data_root.exists():
        hint = ""
        if data_root.parent == Path("/") and data_root.name in spec.folders:
            # `DATA_ROOT=/x cmd "$DATA_ROOT"/flower102` expands the variable before it is set.
            hint = "; DATA_ROOT was empty when the shell read it: `export DATA_ROOT=...` first"
        raise InputError(f"--data_root {data_root} does not exist{hint}")
    return data_root


@os_errors_are_input_errors()
def _holding_the_entries(spec: "DatasetSpec", data_root: Path) -> Path:
    """Return `data_root` or the folder in it that has the dataset's entries.

    Archives are often unpacked into a folder of the name that they bring along themselves, so that
    a parent of all datasets has it two levels down.
    """
    if not _existing(spec, data_root).is_dir():
        raise InputError(
            f"--data_root {data_root} is a file, not the folder of {spec.name}; "
            "a list of your own images is --dataset csv"
        )
    below = [data_root / folder for folder in spec.folders]
    nested = [outer / folder for outer in below for folder in spec.folders]
    candidates = (data_root, *below, *nested)
    missing = {
        root: [
            entry
            for entry in spec.entries
            if not any((root / name).exists() for name in entry.split("|"))
        ]
        for root in candidates
    }
    best = min(candidates, key=lambda root: len(missing[root]))
    if not missing[best]:
        return best
    remedy = f"; {spec.remedy}" if spec.remedy else ""
    if len(missing[best]) < len(spec.entries):
        raise InputError(f"{best} lacks {_listed(missing[best])} of {spec.name}{remedy}")
    raise InputError(
        f"--data_root {data_root} holds no {_listed(spec.entries)}, nor does a "
        f"{'/ or '.join(spec.folders)}/ in it{remedy}; your own images are --dataset folder"
    )


def _listed(names: Sequence[str]) -> str:
    *most, last = (name.replace("|", " or ") for name in names)
    return f"{', '.join(most)} and {last}" if most else last


@dataclass(frozen=True)
class DatasetSpec:
    """How a dataset is found and read."""

    name: str
    read: Callable[[Path, str], Listing]  # of (root, official split)
    # The official splits; a function of the root where the user's own data decide.
    splits: tuple[str, ...] | Callable[[Path], tuple[str, ...]]
    aliases: tuple[str, ...] = ()
    folder: str = ""  # what its archive unpacks to, if that is not one of its names
    entries: tuple[str, ...] = ()  # what its root must hold; of `a|b` either
    remedy: str = ""  # what to do if they are missing
    absent: Mapping[str, str] = field(default_factory=dict)  # why a split may be missing
    find_root: Callable[["DatasetSpec", Path], Path] = _holding_the_entries
    prepare: Callable[[Path], None] | None = None  # makes images that are not there yet
    # What `read` takes besides: `class_depth`, and whether the split is only evaluated.
    options: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the name and the aliases."""
        return (self.name, *self.aliases)

    @property
    def folders(self) -> tuple[str, ...]:
        """Return the names that the data's folder may have in a parent of all datasets."""
        return (self.folder, *self.names) if self.folder else self.names

    def check_split(self, split: str, offered: Sequence[str], flag: str = "") -> None:
        """Raise an error unless a split is `offered`.

        Raises:
            InputError: says which are, and what the split lacks.
        """
        if split in offered:
            return
        asked = f"--{flag} {split}: " if flag else ""
        reason = f"; {self.absent[split]}" if split in self.absent else ""
        raise InputError(
            f"{asked}{self.name} has no split {split!r}{near_miss(split, offered)}; it has "
            f"{', '.join(offered)}{reason}"
        )

    @os_errors_are_input_errors()
    def official_splits(self, root: Path) -> tuple[str, ...]:
        """Return the splits that the data itself has."""
        return self.splits(root) if callable(self.splits) else self.splits


@os_errors_are_input_errors()
def _find_synthetic(spec: DatasetSpec, data_root: Path) -> Path:
    synthetic.is_drawn(data_root)  # raises if something else lies there
    return data_root


SPECS = (
    DatasetSpec(
        name="flower102",
        aliases=("flowers-102", "flowers102"),
        entries=flowers.ENTRIES,
        splits=flowers.SPLITS,
        read=flowers.read,
        remedy="scripts/get_flowers.py fetches them",
    ),
    DatasetSpec(
        name="CUB_200_2011",
        aliases=("cub", "cub200"),
        folder="cub_200_2011",
        entries=cub.ENTRIES,
        splits=TRAIN_TEST,
        read=cub.read,
    ),
    DatasetSpec(
        name="car",
        aliases=("cars", "stanford_cars"),
        entries=cars.ENTRIES,
        splits=cars.splits,
        read=cars.read,
        absent=cars.ABSENT,
    ),
    DatasetSpec(
        name="dog",
        aliases=("dogs", "stanford_dogs"),
        entries=dogs.ENTRIES,
        splits=TRAIN_TEST,
        read=dogs.read,
    ),
    DatasetSpec(
        name="nabirds",
        entries=nabirds.ENTRIES,
        splits=TRAIN_TEST,
        read=nabirds.read,
    ),
    DatasetSpec(
        name="INat2017",
        aliases=("inat2017", "inat"),
        entries=inat.ENTRIES,
        splits=("train", "val"),
        read=inat.read,
    ),
    DatasetSpec(
        name="pet",
        aliases=("pets", "oxford-iiit-pet"),
        entries=pet.ENTRIES,
        splits=TRAIN_TEST,
        read=pet.read,
    ),
    DatasetSpec(
        name="aircraft",
        aliases=("fgvc-aircraft",),
        folder="fgvc-aircraft-2013b",
        entries=aircraft.ENTRIES,
        splits=("train", "val", "trainval", "test"),
        read=aircraft.read,
    ),
    DatasetSpec(
        name="food101",
        aliases=("food-101",),
        entries=food101.ENTRIES,
        splits=TRAIN_TEST,
        read=food101.read,
    ),
    DatasetSpec(
        name="cifar10",
        folder="cifar-10-batches-py",
        entries=cifar.CIFAR10.entries,
        splits=TRAIN_TEST,
        read=cifar.CIFAR10.read,
        prepare=cifar.CIFAR10.prepare,
    ),
    DatasetSpec(
        name="cifar100",
        folder="cifar-100-python",
        entries=cifar.CIFAR100.entries,
        splits=TRAIN_TEST,
        read=cifar.CIFAR100.read,
        prepare=cifar.CIFAR100.prepare,
    ),
    DatasetSpec(
        name="folder",
        splits=folder.splits,
        read=folder.read,
        options=("class_depth", "for_evaluation"),
        absent={"train": "put what is to be trained on into train/<class>/"},
        find_root=os_errors_are_input_errors()(
            lambda spec, data_root: folder.find(_existing(spec, data_root))
        ),
    ),
    DatasetSpec(
        name="csv",
        splits=csv_list.splits,
        read=csv_list.read,
        find_root=os_errors_are_input_errors()(
            lambda spec, data_root: csv_list.find(_existing(spec, data_root))
        ),
    ),
    DatasetSpec(
        name="synthetic",
        splits=flowers.SPLITS,
        read=synthetic.read,
        find_root=_find_synthetic,
        prepare=synthetic.draw,
    ),
)


def dataset_names() -> dict[str, str]:
    """Return every name and alias that `--dataset` takes, with the name that it stands for."""
    return {name: spec.name for spec in SPECS for name in spec.names}


def get_spec(name: str) -> DatasetSpec:
    """Return the spec of a dataset by name or alias.

    Raises:
        InputError: there is no such dataset.
    """
    for spec in SPECS:
        if name in spec.names:
            return spec
    known = dataset_names()
    raise InputError(f"unknown dataset {name!r}; known: {', '.join(known)}{near_miss(name, known)}")
