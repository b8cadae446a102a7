"""Open the data of a run, check its images, write its labelmap.

No torch here: a wrong path or a damaged list is refused before torch is imported.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from utils.console import log
from utils.data.catalog import DatasetSpec, get_spec
from utils.data.catalog import dataset_names as dataset_names
from utils.data.digests import Digests
from utils.data.formats import HEIC_ENDINGS, heic_note
from utils.data.image_checks import check_images
from utils.data.presets import PRESETS
from utils.data.source import Source, find_source, resolve_data_root
from utils.data.source import open_split as open_split
from utils.data.splits import HeldOut, Split, match_classes, say_classes
from utils.data.splits import labelmap as labelmap
from utils.data.subsets import (
    KnownImages,
    choose_of_heap,
    count_trained,
    select_subset,
    tag_heap,
)
from utils.data_utils import DEFAULT_SPLIT_SEED, DEFAULT_VAL_FRACTION, RunPaths
from utils.errors import InputError, os_errors_are_input_errors
from utils.processes import failing_together, main_first, on_main

SUBSET_FLAGS = {"train": "tiny_train_subset", "eval": "tiny_infer_subset"}
ALL = "all"  # as a split to evaluate: every image of every split

# --- The data of a run ----------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalData:
    """The data of an evaluation."""

    source: Source
    decided: dict[str, Any]  # values of the flags that name data, for the config
    full_eval: Split
    eval: Split  # what is evaluated of it
    # Of a heap of images that the checkpoint can tell apart: "open": nobody said which are
    # evaluated; "all": all are; else "".
    heap: str

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

    def divided(self, train: Split, evaluated: Split, flags: FrozenConfigDict) -> "Data":
        """Return the same data with other whole splits, and the same subsets of them."""
        return replace(
            self,
            full_train=train,
            train=_subset_of(train, flags, self.decided, "train"),
            full_eval=evaluated,
            eval=_subset_of(evaluated, flags, self.decided, "eval"),
        )

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
        InputError: data root, list files, splits or subsets are missing or malformed, or an image
            to evaluate is of a class that is not trained.
    """
    source, fraction, seed = _source_of(flags, flags.dataset), flags.val_fraction, flags.split_seed
    if fraction is None and source.is_heap:
        fraction = DEFAULT_VAL_FRACTION
    if fraction is None and seed is not None:
        raise InputError("--split_seed means nothing without --val_fraction")
    if fraction is not None:
        if "val" in source.official:
            raise InputError(f"--val_fraction: {source.spec.name} has a val split of its own")
        held_out = HeldOut(fraction, DEFAULT_SPLIT_SEED if seed is None else seed)
        source = replace(source, held_out=held_out)
    decided = _decide(source, flags, "train", "eval")
    full_train, full_eval = _read(source, decided["train_split"], decided["eval_split"])
    full_eval = match_classes(
        full_eval, full_train.classes, f"split {full_train.name}", "train them, or take them out"
    )
    _say(flags, full_train, full_eval)
    data = Data(source, decided, full_eval, full_eval, "", full_train, full_train)
    return data.divided(full_train, full_eval, flags)


def open_eval_data(flags: FrozenConfigDict, checkpoint: Mapping[str, Any]) -> EvalData:
    """Decide what an evaluation reads as `open_data` does; classes and val are the training run's.

    Where the data are one heap of images, and nobody says which, all of them are read:
    `choose_images` finds those to evaluate.

    Args:
        flags: flags of the evaluation.
        checkpoint: fields of the checkpoint.

    Raises:
        InputError: data root, list file, split or subset is missing or malformed, or images are of
            classes that the checkpoint does not have.
    """
    source = _source_of(flags, flags.dataset or checkpoint["dataset"], checkpoint["class_depth"])
    skips = flags.unknown_classes == "skip"
    source = replace(source, classes=tuple(checkpoint["classes"]), skip_unknown=skips)
    is_same = source.spec.name == checkpoint["dataset"]
    can_hold_out = "train" in source.official and "val" not in source.official
    if checkpoint["carving"] and is_same and can_hold_out:
        source = replace(source, held_out=HeldOut(**checkpoint["carving"]))
    heap = ""
    if source.is_heap and len(checkpoint["trained_images"]):
        is_open = flags.eval_split is None and flags.tiny_infer_subset is None
        heap = "open" if is_open else "all" if flags.eval_split == ALL else ""
    decided = _decide(source, flags, "eval", is_all=bool(heap) or flags.eval_split == ALL)
    # A heap is read undivided: the checkpoint knows its val by content.
    (full_eval,) = _read(replace(source, held_out=None) if heap else source, decided["eval_split"])
    _say(flags, full_eval)
    evaluated = _subset_of(full_eval, flags, decided, "eval")
    return EvalData(source, decided, full_eval, evaluated, heap)


def _source_of(flags: FrozenConfigDict, dataset: str, checkpoint_depth: int = 0) -> Source:
    spec, depth = get_spec(dataset), flags.class_depth
    if depth is not None and "class_depth" not in spec.options:
        raise InputError(f"--class_depth {depth} means nothing without --dataset folder")
    if depth and checkpoint_depth and depth != checkpoint_depth:
        raise InputError(
            f"--class_depth {depth} contradicts the checkpoint, which has {checkpoint_depth}"
        )
    data_root = resolve_data_root(spec.name, flags.data_root, flags.output_dir)
    return replace(find_source(spec, data_root), class_depth=depth or checkpoint_depth or None)


def _decide(
    source: Source, flags: FrozenConfigDict, *phases: str, is_all: bool = False
) -> dict[str, Any]:
    """Return what is decided for the config."""
    spec, held_out, offered = source.spec, source.held_out, source.offered
    decided = {
        "dataset": spec.name,
        "data_root": source.data_root,
        "class_depth": source.class_depth if "class_depth" in spec.options else None,
        "val_fraction": None if held_out is None else held_out.fraction,
        "split_seed": None if held_out is None else held_out.seed,
    }
    for phase in phases:
        default = next(name for name in ("val", "test", *offered) if name in offered)
        split = flags[f"{phase}_split"] or default
        if is_all:
            split = ALL
        else:
            spec.check_split(split, offered, f"{phase}_split")
        subset = SUBSET_FLAGS[phase]
        decided |= {
            f"{phase}_split": split,
            subset: _resolve_subset(spec, flags[subset], f"--{subset}"),
        }
    return decided


def _read(source: Source, *splits: str) -> list[Split]:
    """Return the whole splits of these names, and say what there is to say of them."""
    whole = {ALL: source.read_all()} if ALL in splits else source.read(splits)
    if source.held_out is not None and splits[-1] == "val":
        spec = source.spec
        absent = [each for each in spec.absent.items() if each[0] not in source.official]
        log.info(
            "val is held out of train: %d images, a share of %g of each class, seed %d%s",
            len(whole["val"]),
            *source.held_out,
            "".join(f"; no {name}: {why}" for name, why in absent),
        )
    return [whole[name] for name in splits]


def _say(flags: FrozenConfigDict, *splits: Split) -> None:
    """Log what a person should know of the data of a run, once."""
    say_classes(str(RunPaths(Path(flags.output_dir), flags.name).labelmap), *splits)
    if flags.cache == "none":  # the cache decodes them once
        paths = (path for split in splits for path in split.paths.tolist())
        if note := heic_note(sum(path.lower().endswith(HEIC_ENDINGS) for path in paths)):
            log.info("%s", note)


def _subset_of(
    split: Split, flags: FrozenConfigDict, decided: Mapping[str, Any], phase: str
) -> Split:
    """Return what a run uses of a whole split in a phase, `train` or `eval`."""
    subset = SUBSET_FLAGS[phase]
    return select_subset(split, decided[subset], flags[f"{phase}_batch_size"], f"--{subset}")


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


# --- The images of a run --------------------------------------------------------------------------


def prepare_images(data: EvalData, config: Mapping[str, Any]) -> list[Digests]:
    """Make the images of a dataset that has none yet, then check the images of a run.

    All processes call it together; the main process makes them first, and alone checks.

    Args:
        data: data of the run.
        config: flags of the run, with preset, image size and the bad images that it may have.

    Returns:
        The digests of the whole splits: of that to evaluate; in training, of train and of that.

    Raises:
        InputError: images are missing, empty or damaged.
    """
    with failing_together(), main_first():
        if data.source.spec.prepare is not None:
            data.source.spec.prepare(data.source.root)
    preset, img_size = PRESETS[config["preset"]], config["img_size"]
    splits, used = (data.full_eval,), (data.eval,)
    sizes_of = (functools.partial(preset.eval_size, img_size),)
    if isinstance(data, Data):
        splits, used = (data.full_train, *splits), (data.train, *used)
        sizes_of = (functools.partial(preset.train_size, img_size), *sizes_of)
    is_resumed = config.get("resume") is not None
    return on_main(check_images, splits, used, config["skip_bad_images"], sizes_of, is_resumed)


def choose_images(data: EvalData, digests: Digests, known: KnownImages) -> tuple[EvalData, int]:
    """Decide which images of one heap are evaluated, and count those that were trained on.

    Args:
        data: data of the evaluation.
        digests: of its whole split.
        known: what the checkpoint knows of images.

    Raises:
        InputError: images of the heap were trained on, and none is of the run's val.
    """
    if data.heap:
        heap = tag_heap(data.full_eval, digests, known, data.source.held_out)
        if data.heap == "open":
            chosen = choose_of_heap(heap, digests, known)
            digests = digests.at(heap.positions_of(chosen))
            data = _evaluating(data, chosen)
        else:
            part = heap.select(heap.positions_of(data.eval))
            data = replace(data, full_eval=heap, eval=replace(part, subset=data.eval.subset))
    return data, count_trained(data.full_eval, data.eval, digests, known.trained)


def _evaluating(data: EvalData, split: Split) -> EvalData:
    """Return the data of an evaluation of the whole of `split`."""
    decided, source = {**data.decided, "eval_split": split.name}, data.source
    if split.name == ALL:  # nothing is held out
        source = replace(source, held_out=None)
        decided |= {"val_fraction": None, "split_seed": None}
    return replace(data, source=source, decided=decided, full_eval=split, eval=split)
