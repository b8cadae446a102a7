"""The data of a run: the splits it opens, the parts of them that it uses, the checks of images.

No torch here: names are checked before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import FrozenConfigDict

from utils.console import log
from utils.dataset import DatasetSpec, get_spec, open_split
from utils.errors import InputError
from utils.files import canonical_json, sha256_text
from utils.images import check_images
from utils.splits import Carving, Split, check_same_classes, stable_keys

# --- Subsets --------------------------------------------------------------------------------------

TINY_SEED = 42
TINY_BATCHES = 2


class Subset(NamedTuple):
    """The samples a run uses of a split, and what the env stamp says of them."""

    split: Split
    identity: dict[str, Any] | str  # "none" where the whole split is used


def _tiny_positions(split: Split, batch_size: int) -> list[int]:
    keys = stable_keys(split.ids, TINY_SEED)
    order = sorted(range(len(split)), key=keys.__getitem__)
    chosen = order[: TINY_BATCHES * batch_size]
    first = split.labels[chosen[0]]
    if all(split.labels[position] == first for position in chosen):
        others = [position for position in order if split.labels[position] != first]
        chosen[-1:] = others[:1] or chosen[-1:]
    return chosen


def _listed_positions(split: Split, path: Path, flag: str) -> list[int]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path} is no readable UTF-8 text file ({error})") from error
    wanted = [line.strip() for line in lines if line.strip()]
    if not wanted:
        raise InputError(f"{flag} {path} lists no sample id")
    if len(set(wanted)) < len(wanted):
        twice = next(sample_id for sample_id in wanted if wanted.count(sample_id) > 1)
        raise InputError(f"{flag} {path} lists {twice} more than once")
    position_of = {str(sample_id): position for position, sample_id in enumerate(split.ids)}
    unknown = [sample_id for sample_id in wanted if sample_id not in position_of]
    if unknown:
        raise InputError(
            f"{flag} {path}: {len(unknown)} of {len(wanted)} ids are not in split {split.name} of "
            f"{split.dataset} (first: {unknown[0]!r})"
        )
    return [position_of[sample_id] for sample_id in wanted]


def select_subset(split: Split, wanted: str | None, batch_size: int, flag: str) -> Subset:
    """The subset of `split` that `wanted` names.

    Args:
        split: a whole split.
        wanted: None for the whole split, `<dataset>_tiny` for two batches, else the path of a text
            file with one sample id a line (`utils.config` has told the two apart).
        batch_size: of the loader that will read the subset.
        flag: what to call it in an error.

    Raises:
        InputError: unreadable file, empty list, unknown or repeated id.
    """
    if wanted is None:
        return Subset(split, "none")
    if wanted == f"{split.dataset}_tiny":
        positions = _tiny_positions(split, batch_size)
    else:
        positions = _listed_positions(split, Path(wanted), flag)
    chosen = split.select(positions)
    identity = {
        "name": Path(wanted).name,
        "sha256": sha256_text(canonical_json([str(sample_id) for sample_id in chosen.ids])),
        "count": len(chosen),
        "classes": len(np.unique(chosen.labels)),
    }
    return Subset(chosen, identity)


# --- Data of a run --------------------------------------------------------------------------------


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
