"""Open the data of a run, check its images, write its labelmap.

No torch here: a wrong path or a damaged list is refused before torch is imported.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from utils.console import log
from utils.data.catalog import DatasetSpec, get_spec
from utils.data.catalog import dataset_names as dataset_names
from utils.data.image_checks import check_images
from utils.data.splits import HeldOut, Split, check_same_classes, hold_out
from utils.data.subsets import select_subset
from utils.data_utils import DEFAULT_SPLIT_SEED, DEFAULT_VAL_FRACTION, SYNTHETIC_FOLDER, with_home
from utils.errors import InputError, check_utf8, os_errors_are_input_errors
from utils.files import canonical_json, sha256_text

SUBSET_FLAGS = {"train": "tiny_train_subset", "eval": "tiny_infer_subset"}

# --- Where the data lies and which splits it has --------------------------------------------------


@dataclass(frozen=True)
class Source:
    """The data of one dataset, found on the disk."""

    spec: DatasetSpec
    data_root: str  # from the user
    root: Path  # in it
    official: tuple[str, ...]  # splits that the data itself has
    held_out: HeldOut | None = None  # how val is held out of train, where the data has none

    @property
    def offered(self) -> tuple[str, ...]:
        """The splits that a run can use: the official ones and a held-out val."""
        return (*self.official, *(("val",) if self.held_out is not None else ()))

    @os_errors_are_input_errors()
    def read(self, splits: Sequence[str]) -> dict[str, Split]:
        """Read the lists of samples of `splits`, each list once; no image is opened."""
        from_train = {"train", "val"} if self.held_out is not None else set()
        lists = dict.fromkeys("train" if name in from_train else name for name in splits)
        read = {name: self._read_list(name) for name in lists}
        if from_train & set(splits):
            read["train"], read["val"] = hold_out(read["train"], self.held_out)
        return {name: read[name] for name in splits}

    def _read_list(self, split: str) -> Split:
        listing = self.spec.read(self.root, split)
        if len(listing.classes) < 2:
            raise InputError(
                f"{self.root} has a single class, {listing.classes[0]!r}; there must be two"
            )
        images = (self.root.parent if self.root.is_file() else self.root).resolve()
        check_utf8(str(images))  # links may lead anywhere
        return Split(
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


@os_errors_are_input_errors()
def find_source(spec: DatasetSpec, data_root: str) -> Source:
    """Find the data of a dataset.

    Raises:
        InputError: the data root is missing, malformed or not UTF-8.
    """
    check_utf8(data_root)
    root = spec.find_root(spec, Path(data_root))
    return Source(spec, data_root, root, spec.official_splits(root))


def open_split(spec: DatasetSpec, data_root: Path, split: str) -> Split:
    """Read the list of samples of one official split; no image is opened.

    Raises:
        InputError: data root, list file or split is missing or malformed, or there is one class.
    """
    source = find_source(spec, str(data_root))
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
    raise InputError(
        f"no data for {dataset}: give --data_root PATH or `export DATA_ROOT=PATH`; "
        "scripts/get_flowers.py fetches the flowers, --dataset synthetic needs none"
    )


# --- The data of a run ----------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalData:
    """The data of an evaluation."""

    source: Source
    decided: dict[str, Any]  # values of the flags that name data, for the config
    full_eval: Split
    eval: Split  # what is evaluated of it

    def facts(self) -> dict[str, Any]:
        """Return what the env stamp says of the data."""
        held_out = self.source.held_out
        return {
            "dataset": self.full_eval.identity(),
            "carving": None if held_out is None else held_out._asdict(),
            "tiny_train_subset": "none",
            "tiny_infer_subset": self.eval.subset,
        }


@dataclass(frozen=True)
class Data(EvalData):
    """The data of a training run."""

    full_train: Split
    train: Split  # what is trained on of it

    def facts(self) -> dict[str, Any]:
        """Return what the env stamp says of the data."""
        evaluated = {f"eval_{k}": v for k, v in self.full_eval.identity().items() if k != "name"}
        return {
            **super().facts(),
            "dataset": {**self.full_train.identity(), **evaluated},
            "selected_on": self.eval.name,
            "tiny_train_subset": self.train.subset,
        }


def open_data(flags: FrozenConfigDict) -> Data:
    """Decide data root, splits, held-out val and subsets of a training run, and read its lists.

    Raises:
        InputError: data root, list files, splits or subsets are missing or malformed.
    """
    source, fraction, seed = _source_of(flags, flags.dataset), flags.val_fraction, flags.split_seed
    if fraction is None and source.official == ("train",):
        fraction = DEFAULT_VAL_FRACTION
    if fraction is None and seed is not None:
        raise InputError("--split_seed means nothing without --val_fraction")
    if fraction is not None:
        if "val" in source.official:
            raise InputError(f"--val_fraction: {source.spec.name} has a val split of its own")
        held_out = HeldOut(fraction, DEFAULT_SPLIT_SEED if seed is None else seed)
        source = replace(source, held_out=held_out)
    decided, (full_train, train), (full_eval, evaluated) = _read(source, flags, "train", "eval")
    check_same_classes(full_train, full_eval)
    shared = len(set(train.ids) & set(evaluated.ids))
    if shared:
        log.warning("warning: %d evaluated samples are also trained on", shared)
    return Data(source, decided, full_eval, evaluated, full_train, train)


def open_eval_data(flags: FrozenConfigDict, checkpoint: Mapping[str, Any]) -> EvalData:
    """Decide what an evaluation reads as `open_data` does; its val is the training run's.

    Args:
        flags: flags of the evaluation.
        checkpoint: fields of the checkpoint.

    Raises:
        InputError: data root, list file, split or subset is missing or malformed.
    """
    source = _source_of(flags, flags.dataset or checkpoint["dataset"])
    is_same = source.spec.name == checkpoint["dataset"] and "val" not in source.official
    if checkpoint["carving"] and is_same:
        source = replace(source, held_out=HeldOut(**checkpoint["carving"]))
    decided, (full_eval, evaluated) = _read(source, flags, "eval")
    return EvalData(source, decided, full_eval, evaluated)


def _source_of(flags: FrozenConfigDict, dataset: str) -> Source:
    spec = get_spec(dataset)
    return find_source(spec, resolve_data_root(spec.name, flags.data_root, flags.output_dir))


def _read(source: Source, flags: FrozenConfigDict, *phases: str) -> tuple[Any, ...]:
    """Return what is decided for the config, and (whole split, used part) of each phase."""
    spec, held_out, offered = source.spec, source.held_out, source.offered
    decided = {
        "dataset": spec.name,
        "data_root": source.data_root,
        "val_fraction": None if held_out is None else held_out.fraction,
        "split_seed": None if held_out is None else held_out.seed,
    }
    for phase in phases:
        default = next(name for name in ("val", "test", *offered) if name in offered)
        split = flags[f"{phase}_split"] or default
        spec.check_split(split, offered, f"{phase}_split")
        subset = SUBSET_FLAGS[phase]
        decided |= {
            f"{phase}_split": split,
            subset: _resolve_subset(spec, flags[subset], f"--{subset}"),
        }
    whole = source.read([decided[f"{phase}_split"] for phase in phases])
    if held_out is not None and decided["eval_split"] == "val":
        absent = [each for each in spec.absent.items() if each[0] not in source.official]
        log.info(
            "val is held out of train: %d images, a share of %g of each class, seed %d%s",
            len(whole["val"]),
            *held_out,
            "".join(f"; no {name}: {why}" for name, why in absent),
        )
    pairs = []
    for phase in phases:
        split, subset = whole[decided[f"{phase}_split"]], SUBSET_FLAGS[phase]
        batch_size = flags[f"{phase}_batch_size"]
        pairs.append((split, select_subset(split, decided[subset], batch_size, f"--{subset}")))
    return decided, *pairs


def _resolve_subset(spec: DatasetSpec, wanted: str | None, flag: str) -> str | None:
    """Return the canonical name of a named subset, or the absolute path of a list of ids."""
    if wanted is None:
        return None
    tiny = f"{spec.name}_tiny"
    if wanted in {f"{name}_tiny" for name in spec.names}:
        return tiny
    with os_errors_are_input_errors({flag: wanted}):
        if Path(wanted).is_file():
            return str(Path(wanted).resolve())
    raise InputError(f"{flag} {wanted} is neither {tiny} nor a file with one sample id a line")


def prepare_images(data: EvalData, may_be_damaged: int = 0) -> None:
    """Make the images of a dataset that has none yet, then check the images of a run.

    The last of all checks, since making images writes.

    Args:
        data: data of the run.
        may_be_damaged: number of damaged training images that are let through.

    Raises:
        InputError: images are missing, empty or damaged.
    """
    if data.source.spec.prepare is not None:
        data.source.spec.prepare(data.source.root)
    splits, used = (data.full_eval,), (data.eval,)
    if isinstance(data, Data):
        splits, used = (data.full_train, *splits), (data.train, *used)
    check_images(splits, used, may_be_damaged)


# --- The labelmap ---------------------------------------------------------------------------------


def labelmap(
    dataset: str, classes: Sequence[str], parents: Sequence[Sequence[str]] = ()
) -> dict[str, Any]:
    """Return the labelmap: class names in index order, the SHA-256 of their compact UTF-8 JSON.

    Where the dataset has a hierarchy, `parents` names for each class what is above it.
    """
    return {
        "dataset": dataset,
        "num_classes": len(classes),
        "classes": list(classes),
        "checksum": sha256_text(canonical_json(list(classes))),
        **({"parents": [list(names) for names in parents]} if parents else {}),
    }
