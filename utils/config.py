"""From argv to one frozen config; after it no argparse object exists. Imports no torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from utils.data.catalog import get_spec
from utils.data.presets import PRESETS
from utils.data_flags import resolve_data_flags, resolve_data_root
from utils.data_utils import RunPaths, check_writable
from utils.dependent_flags import means_nothing, resolve_dependent_flags
from utils.errors import InputError
from utils.flags import (
    CACHE_FOLDER,
    DEFAULT_NUM_STEPS,
    DEFAULT_NUM_WORKERS,
    LAST,
    MAX_WARMUP_STEPS,
    build_eval_parser,
    build_train_parser,
)
from utils.processes import is_main
from utils.recipes import parse_with_recipe
from utils.run.folder import check_run_name, has_state, is_unfinished
from utils.run.lock import check_not_locked


@contextmanager
def os_errors_are_input_errors(values: Mapping[str, Any]) -> Iterator[None]:
    """A path that the system does not take (too long, not to be entered) is bad input."""
    try:
        yield
    except OSError as error:
        named = [
            (len(str(value)), f"--{flag}")
            for flag, value in values.items()
            if value is not None and str(error.filename or "").find(str(value)) >= 0
        ]
        # The longest: one folder may lie in another, as the cache does in the output folder.
        flag = max(named)[1] if named else "a path"
        raise InputError(f"{flag} {error.filename}: {error.strerror}") from error


def _check_file(path: Path, flag: str) -> None:
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{flag} {path} {state}; name a file")


def _frozen(values: Mapping[str, Any]) -> FrozenConfigDict:
    """Freeze `values`, paths as strings (a Path breaks `to_json`)."""
    plain = {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}
    return FrozenConfigDict(plain)


def check_img_size(img_size: int, patch_size: int, slide_step: int | None = None) -> None:
    """Refuse an image size that is not cut into whole patches.

    Args:
        img_size: side of the square input, pixels.
        patch_size: side of a patch, pixels.
        slide_step: pixels between overlapping patches; None: they do not overlap.

    Raises:
        InputError: names the values and what fits.
    """
    if slide_step is None or slide_step == patch_size:
        if img_size % patch_size:
            nearest = max(1, round(img_size / patch_size)) * patch_size
            raise InputError(
                f"--img_size {img_size} is not a multiple of the patch, {patch_size}; try {nearest}"
            )
        return
    if slide_step > patch_size:
        raise InputError(
            f"--slide_step {slide_step} is over the patch, {patch_size}: pixels would be skipped"
        )
    if img_size < patch_size:
        raise InputError(f"--img_size {img_size} is under the patch, {patch_size}")


def check_freeze(config: FrozenConfigDict, depth: int) -> None:
    """Refuse to freeze more blocks than the model, of `depth` blocks, has.

    Raises:
        InputError: names both numbers.
    """
    if config.freeze.isdecimal() and int(config.freeze) > depth:
        raise InputError(f"--freeze {config.freeze}: {config.model_type} has {depth} blocks")


def _resolve_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with what the preset says where no flag does.

    Raises:
        InputError: images would be mixed while a loss compares them.
    """
    augmentation = PRESETS[values["preset"]].augmentation._asdict()
    chosen = {k: v if values[k] is None else values[k] for k, v in augmentation.items()}
    if (chosen["mixup"] or chosen["cutmix"]) and values["contrastive_weight"]:
        raise InputError(
            "mixed images have no one class that the contrastive loss could compare; use --mixup 0 "
            "--cutmix 0 or --contrastive_weight 0"
        )
    return {**values, **chosen}


def _resolve_cache(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the default of `--cache_dir`.

    Raises:
        InputError: it was given without `--cache disk`, or cannot be written into.
    """
    if values["cache"] == "disk":
        cache_dir = values["cache_dir"] or values["output_dir"] / CACHE_FOLDER
        check_writable(cache_dir, "--cache_dir")
        return {**values, "cache_dir": cache_dir}
    if values["cache_dir"] is not None:
        raise InputError("--cache_dir means nothing without --cache disk")
    return dict(values)


def parse_train_args(argv: Sequence[str], patch_sizes: Mapping[str, int]) -> FrozenConfigDict:
    """Parse and check the flags of `train.py`, without opening the data.

    Args:
        argv: the arguments after the program's name.
        patch_sizes: patch side in pixels of every known model type.

    Raises:
        InputError: a flag is wrong, or a file or folder it names is not there.
        SystemExit: with code 0, after `--help`.
    """
    values = parse_with_recipe(build_train_parser(tuple(patch_sizes)), argv, means_nothing)
    with os_errors_are_input_errors(_paths_in(values)):
        return _checked_train_config(values, patch_sizes)


def _paths_in(values: Mapping[str, Any]) -> dict[str, Any]:
    flags = (
        "data_root",
        "checkpoint",
        "pretrained",
        "tiny_train_subset",
        "tiny_infer_subset",
        "output_dir",
        "cache_dir",
        "resume",
    )
    return {flag: values[flag] for flag in flags if values.get(flag)}


def _resolve_profile(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with a profile for weights; without, None where Google's would be meant anyway."""
    profile = values["pretrained_profile"]
    if values["pretrained"] is not None:
        profile = profile or "auto"
    elif profile in ("auto", "google"):
        profile = None
    return {**values, "pretrained_profile": profile}


def _checked_train_config(
    values: dict[str, Any], patch_sizes: Mapping[str, int]
) -> FrozenConfigDict:
    values = _resolve_preset(_resolve_profile(resolve_dependent_flags(values)))
    check_img_size(values["img_size"], patch_sizes[values["model_type"]], values["slide_step"])
    batch, micro_batches = values["train_batch_size"], values["gradient_accumulation_steps"]
    if batch % micro_batches:
        raise InputError(
            f"--gradient_accumulation_steps {micro_batches} does not divide "
            f"--train_batch_size {batch}"
        )
    paths = RunPaths(values["output_dir"], values["name"])
    if values["allow_change"] and values["resume"] is None:
        raise InputError("--allow_change means nothing without --resume")
    if is_main():  # the others write nothing, and may be on another machine
        check_run_name(paths)
        check_not_locked(paths.lock)
        values["resume"] = _resolve_resume(values["resume"], paths)
    values = _resolve_cache(values)  # below the output folder, unless told
    if values["pretrained"] is not None:
        _check_file(values["pretrained"], "--pretrained")
    return _frozen(resolve_data_flags(values))


def parse_eval_args(argv: Sequence[str], model_names: Sequence[str]) -> FrozenConfigDict:
    """Parse and check the flags of `eval.py`, without opening checkpoint or data.

    `dataset`, `img_size` and `model_type` are None where the checkpoint is to say them.

    Raises:
        InputError: a flag is wrong, or a file or folder it names is not there.
        SystemExit: with code 0, after `--help`.
    """
    values = vars(build_eval_parser(tuple(model_names)).parse_args(argv))
    values |= {"skip_bad_images": 0, "val_fraction": None, "split_seed": None}
    with os_errors_are_input_errors(_paths_in(values)):
        return _checked_eval_config(values)


def _checked_eval_config(values: dict[str, Any]) -> FrozenConfigDict:
    paths = RunPaths(values["output_dir"], values["name"])
    if is_main():
        check_run_name(paths)
        check_not_locked(paths.lock)
        if is_unfinished(paths):
            raise InputError(
                f"--name {paths.name} is an unfinished training run; choose another name"
            )
    values = _resolve_cache(values)
    _check_file(values["checkpoint"], "--checkpoint")
    if values["checkpoint"].resolve().is_relative_to(paths.run.resolve()):
        raise InputError(
            f"--name {paths.name} is the run that --checkpoint {values['checkpoint']} lies in; "
            "choose another name"
        )
    if values["dataset"] is not None:
        spec = get_spec(values["dataset"])
        root = resolve_data_root(spec.name, values["data_root"], values["output_dir"])
        spec.find_root(spec, Path(root))
    return _frozen(values)


def _resolve_resume(resume: str | None, paths: RunPaths) -> str | None:
    """`--resume` with an absolute path, if it is one.

    Raises:
        InputError: there is nothing to go on from, or a run is unfinished and would be restarted.
    """
    if resume is None:
        if is_unfinished(paths):
            raise InputError(
                f"--name {paths.name} is an unfinished run: add --resume to go on with it, or "
                "choose another name"
            )
        return None
    if resume == LAST:
        if not has_state(paths):
            raise InputError(
                f"--resume: {paths.run} has no state to go on from; start it without --resume"
            )
        return LAST
    _check_file(Path(resume), "--resume")
    return str(Path(resume).resolve())


def resolve_length(
    config: FrozenConfigDict, num_samples: int, earlier: Mapping[str, Any] | None = None
) -> FrozenConfigDict:
    """Settle what depends on the number of training samples: steps, epochs, warm-up, workers.

    An epoch is `num_samples` samples; batches may span two epochs, so `epochs` may be a fraction.

    Args:
        config: from `parse_train_args`.
        num_samples: that are trained on.
        earlier: the config of the run that goes on. It keeps its warm-up, unless a flag says
            otherwise: another length must not change steps that are done.
    """
    batch = config.train_batch_size
    if config.epochs is not None:
        num_steps = math.ceil(config.epochs * num_samples / batch)
    else:
        num_steps = config.num_steps or DEFAULT_NUM_STEPS
    warmup = config.warmup_steps
    if warmup is None and earlier is not None:
        warmup = earlier["warmup_steps"]
    elif warmup is None:
        warmup = min(MAX_WARMUP_STEPS, num_steps // 10)
    return _frozen(
        {
            **config.to_dict(),
            "num_steps": num_steps,
            "epochs": num_steps * batch / num_samples,
            "warmup_steps": warmup,
            "num_workers": _workers(config, config.tiny_train_subset),
        }
    )


def resolve_model(
    config: FrozenConfigDict, model: Mapping[str, Any], normalization: Mapping[str, Any]
) -> FrozenConfigDict:
    """Record the model and its normalisation, which the flags and the weights decided together.

    Args:
        config: from the flags.
        model: all fields of the model's config.
        normalization: mean and standard deviation per RGB channel, of pixels in [0, 1].
    """
    return _frozen({**config.to_dict(), "model": dict(model), "normalization": dict(normalization)})


def _workers(config: FrozenConfigDict, tiny_subset: str | None) -> int:
    if config.num_workers is not None:
        return config.num_workers
    # Starting a worker costs seconds on macOS, more than loading a few images.
    return 0 if tiny_subset else DEFAULT_NUM_WORKERS


def resolve_from_checkpoint(
    config: FrozenConfigDict, checkpoint: Mapping[str, Any]
) -> FrozenConfigDict:
    """Fill in what the flags of `eval.py` left to the checkpoint.

    Args:
        config: from `parse_eval_args`.
        checkpoint: the fields of the checkpoint.

    Raises:
        InputError: a flag contradicts the checkpoint; the message names both values. Or the data is
            not there, or lacks the split.
    """
    values = config.to_dict()
    for flag in ("model_type", "img_size"):
        if config[flag] is not None and config[flag] != checkpoint[flag]:
            raise InputError(
                f"--{flag} {config[flag]} contradicts the checkpoint {config.checkpoint}, which "
                f"has {checkpoint[flag]}"
            )
        values[flag] = checkpoint[flag]
    values["preset"] = checkpoint["preset"]
    values["dataset"] = get_spec(config.dataset or checkpoint["dataset"]).name
    if checkpoint["carving"] and values["dataset"] == checkpoint["dataset"]:
        values["val_fraction"] = checkpoint["carving"]["fraction"]
        values["split_seed"] = checkpoint["carving"]["seed"]
    with os_errors_are_input_errors(_paths_in(values)):
        values = resolve_data_flags(values)
    values["num_workers"] = _workers(config, config.tiny_infer_subset)
    return _frozen(values)
