"""Resolve a command line into one frozen config; after it no argparse object exists.

A value comes from the first that has one: the flag given by hand, the run that is resumed, the
recipe, the preset, the default. Imports no torch.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from utils.cli.checks import check_freeze, check_img_size, check_loss
from utils.cli.flags import (
    CACHE_FOLDER,
    DEFAULT_NUM_STEPS,
    DEFAULT_NUM_WORKERS,
    FLAGS,
    LAST,
    MAX_WARMUP_STEPS,
    paths_in,
)
from utils.cli.parser import parse
from utils.cli.recipes import recipe_layer
from utils.data.presets import PRESETS
from utils.data_utils import check_file, check_writable
from utils.errors import InputError, os_errors_are_input_errors


def parse_train(
    argv: Sequence[str],
    choices: Mapping[str, Collection[str]],
    check_weights: Callable[[Path, str, str | None, str], None] = lambda *_: None,
) -> FrozenConfigDict:
    """Parse and check the flags of `train.py`, without looking for runs or data.

    Args:
        argv: arguments after the program's name.
        choices: names of datasets (`dataset`), and model configs by name (`model_type`).
        check_weights: function of the weights' path, profile and key and of the model type, which
            raises an `InputError` if the weights are of another model type.

    Returns:
        A value for every flag; None where data or weights decide it.

    Raises:
        InputError: a flag is wrong, or a file that it names does not exist.
        SystemExit: with code 0, after `--help` or `--recipe list`.
    """
    values = _layered("train", parse("train", argv, choices))
    for flag, value in PRESETS[values["preset"]].augmentation._asdict().items():
        if values[flag] is None:
            values[flag] = value
    values["pretrained_profile"] = _resolve_profile(values)
    weights, model_type = values["pretrained"], values["model_type"]
    model = choices["model_type"][model_type]
    try:
        check_freeze(values["freeze"], model_type, model.depth)
        check_img_size(values["img_size"], model.patch_size, values["slide_step"])
    except InputError:  # these flags may be right, and the model type is not that of the weights
        if weights is not None:
            check_file(weights, "--pretrained")
            told = values["pretrained_profile"], values["pretrained_key"]
            check_weights(weights, *told, model_type)
        raise
    check_loss(values)
    if values["resume"] not in (None, LAST):
        values["resume"] = Path(values["resume"]).resolve()
    return _with_paths(values)


def parse_eval(argv: Sequence[str], choices: Mapping[str, Collection[str]]) -> FrozenConfigDict:
    """Parse and check the flags of `eval.py`, as `parse_train` does for `train.py`.

    What the checkpoint decides is None unless it was given.
    """
    return _with_paths(_layered("eval", parse("eval", argv, choices)))


def _layered(program: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every flag: given by hand, from the recipe, or the default.

    Raises:
        InputError: a flag was given that means nothing without another.
    """
    rows = [row for row in FLAGS.values() if program in row.programs]
    defaults = {row.name: None if row.needs else row.default_in(program) for row in rows}
    layer, record = recipe_layer(
        given, defaults, lambda flag, values: FLAGS[flag].unmet_need(values) is not None
    )
    values = {**defaults, **layer, **given}
    for row in rows:
        unmet = row.unmet_need(values)
        if unmet is not None and row.name in given:
            raise InputError(f"--{row.name} means nothing without {unmet}")
        if row.needs and values[row.name] is None:
            values[row.name] = row.default if unmet is None else row.unmet
    return values if record is None else {**values, "recipe": record}


def _resolve_profile(values: Mapping[str, Any]) -> str | None:
    """Return the profile of the weights; without any, None where it would be Google's anyway."""
    profile = values["pretrained_profile"]
    if values["pretrained"] is not None:
        return profile or "auto"
    return None if profile in ("auto", "google") else profile


def _with_paths(values: dict[str, Any]) -> FrozenConfigDict:
    """Return the values frozen, once their files and the cache's folder are checked."""
    with os_errors_are_input_errors(paths_in(values)):
        for name, row in FLAGS.items():
            if row.path == "file" and values.get(name) is not None:
                check_file(values[name], f"--{name}")
        if values["cache"] == "disk":
            cache_dir = values["cache_dir"] or values["output_dir"] / CACHE_FOLDER
            check_writable(cache_dir, "--cache_dir")
            values = {**values, "cache_dir": cache_dir}
    # As strings: a Path breaks `to_json`.
    return FrozenConfigDict({k: str(v) if isinstance(v, Path) else v for k, v in values.items()})


def resolve_config(flags: FrozenConfigDict, *decided: Mapping[str, Any]) -> FrozenConfigDict:
    """Return the config of a run: its flags, and what data, weights and model decided."""
    values = flags.to_dict()
    for each in decided:
        values |= each
    return FrozenConfigDict(values)


def resolve_length(
    flags: FrozenConfigDict, num_samples: int, earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what depends on the number of training samples: steps, epochs, warm-up, workers.

    An epoch is `num_samples` samples; batches may span two epochs, so `epochs` may be a fraction.

    Args:
        flags: flags of the run.
        num_samples: number of samples that are trained on.
        earlier: config of the run that is resumed. It keeps its warm-up, unless a flag says
            otherwise: another length must not change steps that are done.
    """
    batch = flags.train_batch_size
    if flags.epochs is not None:
        num_steps = math.ceil(flags.epochs * num_samples / batch)
    else:
        num_steps = flags.num_steps or DEFAULT_NUM_STEPS
    warmup = flags.warmup_steps
    if warmup is None and earlier is not None:
        warmup = earlier["warmup_steps"]
    elif warmup is None:
        warmup = min(MAX_WARMUP_STEPS, num_steps // 10)
    return {
        "num_steps": num_steps,
        "epochs": num_steps * batch / num_samples,
        "warmup_steps": warmup,
        "num_workers": _workers(flags, flags.tiny_train_subset),
    }


def _workers(flags: FrozenConfigDict, tiny_subset: str | None) -> int:
    if flags.num_workers is not None:
        return flags.num_workers
    # Starting a worker costs seconds on macOS, more than loading a few images.
    return 0 if tiny_subset else DEFAULT_NUM_WORKERS


def resolve_from_checkpoint(
    flags: FrozenConfigDict, checkpoint: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the flags of `eval.py` leave to the checkpoint, and the number of workers.

    Args:
        flags: flags of the evaluation.
        checkpoint: fields of the checkpoint.

    Raises:
        InputError: a flag contradicts the checkpoint; the message names both values.
    """
    # Another dataset with the same classes contradicts nothing.
    names = [name for name, row in FLAGS.items() if row.checkpoint_decides and name != "dataset"]
    for name in names:
        given = flags.get(name)
        if given is not None and given != checkpoint[name]:
            raise InputError(
                f"--{name} {given} contradicts the checkpoint {flags.checkpoint}, which has "
                f"{checkpoint[name]}"
            )
    workers = _workers(flags, flags.tiny_infer_subset)
    return {**{name: checkpoint[name] for name in names}, "num_workers": workers}
