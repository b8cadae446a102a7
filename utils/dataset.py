"""Open the data of a run, check its images, write its labelmap.

No torch here: a wrong path or a damaged list is refused before torch is imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from utils.console import log
from utils.data.catalog import DatasetSpec, get_spec, offered_splits, os_errors_are_input_errors
from utils.data.image_checks import check_images
from utils.data.splits import Carving, Split, carve, check_same_classes
from utils.data.subsets import Subset, select_subset
from utils.errors import InputError, check_utf8
from utils.files import canonical_json, sha256_text


@os_errors_are_input_errors()
def open_split(
    spec: DatasetSpec, data_root: Path, split: str, carving: Carving | None = None
) -> Split:
    """Read the list of samples of `split`; no image is opened.

    Args:
        spec: of the dataset.
        data_root: from the user.
        split: an official one, or `val` where one is carved from train.
        carving: how, if at all.

    Raises:
        InputError: the data root, a list file or the split is missing, malformed or not to be read,
            or there is a single class, or the root's path is not UTF-8.
    """
    check_utf8(str(data_root))
    root = spec.find_root(spec, data_root)
    offered = offered_splits(spec, root, carving)
    spec.check_split(split, offered)
    is_carved = carving is not None and split in ("train", "val")
    listing = spec.read(root, "train" if is_carved else split)
    if len(listing.classes) < 2:
        raise InputError(f"{root} has a single class, {listing.classes[0]!r}; there must be two")
    images = (root if not root.is_file() else root.parent).resolve()
    check_utf8(str(images))  # links may lead anywhere
    whole = Split(
        spec.name,
        split,
        images,
        listing.classes,
        listing.ids,
        listing.paths,
        listing.labels,
        listing.parents,
    )
    if not is_carved:
        return whole
    train, val = carve(whole, carving)
    return train if split == "train" else val


def labelmap(
    dataset: str, classes: Sequence[str], parents: Sequence[Sequence[str]] = ()
) -> dict[str, Any]:
    """The labelmap: class names in index order and the SHA-256 of their compact UTF-8 JSON.

    Where the dataset has a hierarchy, `parents` names for each class what is above it.
    """
    return {
        "dataset": dataset,
        "num_classes": len(classes),
        "classes": list(classes),
        "checksum": sha256_text(canonical_json(list(classes))),
        **({"parents": [list(names) for names in parents]} if parents else {}),
    }


def carving_of(config: FrozenConfigDict) -> Carving | None:
    """How the val split of a run is carved from train, or None where it is not."""
    if config.val_fraction is None:
        return None
    return Carving(config.val_fraction, config.split_seed)


def _why_absent(spec: DatasetSpec, config: FrozenConfigDict) -> list[tuple[str, str]]:
    """The splits that the dataset could have and the data has not, and why."""
    if not spec.absent:  # to ask a CSV for its splits is to read it all
        return []
    there = spec.official_splits(spec.find_root(spec, Path(config.data_root)))
    return [(split, why) for split, why in spec.absent.items() if split not in there]


def open_subset(config: FrozenConfigDict, phase: str) -> tuple[Split, Subset]:
    """The whole split of a phase and the part of it that the run uses; no image is opened.

    Args:
        config: with dataset, data root, splits, carving, subsets and batch sizes.
        phase: `train` or `eval`.

    Raises:
        InputError: data root, list files, split or subset are missing or malformed.
    """
    flag = {"train": "tiny_train_subset", "eval": "tiny_infer_subset"}[phase]
    spec, carving = get_spec(config.dataset), carving_of(config)
    split = open_split(spec, Path(config.data_root), config[f"{phase}_split"], carving)
    if phase == "eval" and carving is not None and split.name == "val":
        log.info(
            "val is carved out of train: %d images, a share of %g of each class, seed %d%s",
            len(split),
            carving.fraction,
            carving.seed,
            "".join(f"; no {name}: {why}" for name, why in _why_absent(spec, config)),
        )
    batch_size = config[f"{phase}_batch_size"]
    return split, select_subset(split, config[flag], batch_size, f"--{flag}")


def prepare_images(
    config: FrozenConfigDict,
    splits: Sequence[Split],
    used: Sequence[Split],
    may_be_damaged: int = 0,
) -> None:
    """Make the images of a data set that has none yet, then check the images of a run.

    The last of all checks, since making images writes.

    Args:
        config: with dataset and data root.
        splits: whole splits.
        used: the parts of them that the run uses.
        may_be_damaged: how many damaged images of the first split are let through.

    Raises:
        InputError: images are missing, empty or damaged.
    """
    spec = get_spec(config.dataset)
    if spec.prepare is not None:
        spec.prepare(spec.find_root(spec, Path(config.data_root)))
    check_images(splits, used, may_be_damaged)


@dataclass(frozen=True)
class Data:
    """The splits of a training run and the parts of them that it uses."""

    train_split: Split
    eval_split: Split
    train: Subset
    eval: Subset

    def facts(self, config: FrozenConfigDict) -> dict[str, Any]:
        """What the env stamp says of the data."""
        carving = carving_of(config)
        evaluated = {f"eval_{k}": v for k, v in self.eval_split.identity().items() if k != "name"}
        return {
            "dataset": {**self.train_split.identity(), **evaluated},
            "carving": None if carving is None else carving._asdict(),
            "selected_on": self.eval_split.name,
            "tiny_train_subset": self.train.identity,
            "tiny_infer_subset": self.eval.identity,
        }


def open_data(config: FrozenConfigDict) -> Data:
    """Read the lists of both splits; no image is opened."""
    train_split, train = open_subset(config, "train")
    eval_split, evaluated = open_subset(config, "eval")
    check_same_classes(train_split, eval_split)
    shared = len(set(train.split.ids) & set(evaluated.split.ids))
    if shared:
        log.warning("warning: %d evaluated samples are also trained on", shared)
    return Data(train_split, eval_split, train, evaluated)
