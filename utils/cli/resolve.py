"""Resolve a command line into one frozen config; after it no argparse object exists.

A value comes from the first that has one: the flag given by hand, the run that is resumed, the
recipe, the preset, the default. Imports no torch.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ml_collections import FrozenConfigDict

from utils.cli.checks import check_freeze, check_img_size, check_loss, check_warmup
from utils.cli.defaults import fitting_defaults
from utils.cli.flags import CACHE_FOLDER, DEFAULT_NUM_STEPS, FLAGS, paths_in
from utils.cli.length import describe_length as describe_length
from utils.cli.length import resolve_length as resolve_length
from utils.cli.length import resolve_workers
from utils.cli.parser import parse
from utils.cli.recipes import recipe_layer
from utils.cli.resumed import check_given, values_of_run
from utils.data.presets import PRESETS, has_constant_trunk
from utils.data_utils import EMA_RULE, RunPaths, check_file, check_writable
from utils.errors import InputError, os_errors_are_input_errors
from utils.hub import HUB, address_of, is_address


def run_to_resume(
    argv: Sequence[str], choices: Mapping[str, Collection[str]]
) -> tuple[RunPaths, str] | None:
    """Return the paths of the run to write and its `--resume`; None without that flag.

    Raises:
        InputError: a flag is wrong.
        SystemExit: with code 0, after `--help` or `--recipe list`.
    """
    given = parse("train", argv, choices)
    if "resume" not in given:
        return None
    output_dir = given.get("output_dir", FLAGS["output_dir"].default)
    return RunPaths(output_dir, given["name"]), str(given["resume"])


def parse_train(
    argv: Sequence[str],
    choices: Mapping[str, Collection[str]],
    check_weights: Callable[[Path, str, str | None, str], None] = lambda *_: None,
    run: Mapping[str, Any] | None = None,
) -> FrozenConfigDict:
    """Parse and check the flags of `train.py`, without looking for runs or data.

    Args:
        argv: arguments after the program's name.
        choices: what each name of a dataset stands for (`dataset`), model configs by name
            (`model_type`), and public weights by name (`pretrained`).
        check_weights: function of the weights' path, profile and key and of the model type, which
            raises an `InputError` if the weights are of another model type.
        run: header of the snapshot to resume from, whose values the flags have that are not given.

    Returns:
        A value for every flag; None where data or weights decide it.

    Raises:
        InputError: a flag is wrong, or a file that it names does not exist; or a flag contradicts
            the run.
        SystemExit: with code 0, after `--help` or `--recipe list`.
    """
    given = parse("train", argv, choices)
    of_run = {} if run is None else values_of_run(run, given, choices)
    values = _with_weights("train", given, choices["pretrained"], of_run)
    for flag, value in PRESETS[values["preset"]].augmentation._asdict().items():
        if values[flag] is None:
            values[flag] = value
    values["pretrained_profile"] = _resolve_profile(values)
    if run is not None:
        with os_errors_are_input_errors(paths_in(values)):
            check_given(given, values, run, choices["dataset"])
    weights, model_type = values["pretrained"], values["model_type"]
    model = choices["model_type"][model_type]
    try:
        check_freeze(values["freeze"], model_type, model.depth)
        check_img_size(values["img_size"], model.patch_size, values["slide_step"])
    except InputError:  # these flags may be right, and the model type is not that of the weights
        if weights is not None and run is None and not is_address(weights):
            check_file(weights, "--pretrained")
            told = values["pretrained_profile"], values["pretrained_key"]
            check_weights(weights, *told, model_type)
        raise
    check_loss(values)
    _check_warmup(given, values, run)
    return _with_paths(values, {*values} - {*of_run}, has_constant_trunk(values))


def parse_eval(argv: Sequence[str], choices: Mapping[str, Collection[str]]) -> FrozenConfigDict:
    """Parse and check the flags of `eval.py`, as `parse_train` does for `train.py`.

    What the checkpoint decides is None unless it was given.
    """
    values = _layered("eval", parse("eval", argv, choices))
    return _with_paths(values, values, values["export_features"])


# What the code reads of a config that a probe has no flag for; it has the default.
_NOT_OF_PROBE = (
    *("train_batch_size", "eval_batch_size", "tta", "dropout", "drop_path", "freeze"),
    *("part_init", "grad_checkpointing"),
)


def parse_probe(argv: Sequence[str], choices: Mapping[str, Collection[str]]) -> FrozenConfigDict:
    """Parse and check the flags of `scripts/probe.py`, as `parse_train` does for `train.py`."""
    fixed = {name: FLAGS[name].default for name in _NOT_OF_PROBE}
    given = parse("probe", argv, choices)
    if "pretrained" not in given:
        raise InputError("the following arguments are required: --pretrained, weights to probe")
    values = {**fixed, **_with_weights("probe", given, choices["pretrained"])}
    values["pretrained_profile"] = _resolve_profile(values)
    model = choices["model_type"][values["model_type"]]
    check_img_size(values["img_size"], model.patch_size, values["slide_step"])
    return _with_paths(values, values, reads_features=True)


def _of_weights(weights: Path | str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that public weights of the table have for flags that are not given."""
    row = table.get(weights.removeprefix(HUB)) if is_address(weights) else None
    return {} if row is None else {"model_type": row.model_type, "img_size": row.img_size}


def _with_weights(
    program: str,
    given: dict[str, Any],
    table: Mapping[str, Any],
    of_run: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the value of every flag, as `_layered`; `given` then has the weights' address.

    Raises:
        InputError: as `_layered`, or public weights are unknown, or of another model type.
    """
    of_weights = {}
    if given.get("pretrained"):
        given["pretrained"] = address_of(given["pretrained"], table)
        of_weights = _of_weights(given["pretrained"], table)
    values = _layered(program, given, of_run, of_weights)
    if of_weights and of_weights["model_type"] != values["model_type"]:
        raise InputError(
            f"--pretrained {values['pretrained']} is a {of_weights['model_type']}, not a "
            f"{values['model_type']}; use --model_type {of_weights['model_type']}"
        )
    return values


def _layered(
    program: str,
    given: Mapping[str, Any],
    of_run: Mapping[str, Any] = MappingProxyType({}),
    of_weights: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the value of every flag: by hand, the run's, the recipe's, the weights', the default.

    Raises:
        InputError: a flag was given that means nothing without another.
    """
    rows = [row for row in FLAGS.values() if program in row.programs]
    defaults = {row.name: None if row.needs else row.default_in(program) for row in rows}
    defaults |= of_weights
    if of_run:  # it has all values of its recipe
        layer, record = of_run, of_run["recipe"]
    else:
        layer, record = recipe_layer(
            given, defaults, lambda flag, values: FLAGS[flag].unmet_need(values) is not None
        )
    values = {**defaults, **layer, **given}
    if "recipe" in values:
        values["recipe"] = record
    for row in rows:
        unmet = row.unmet_need(values)
        if unmet is not None and row.name in given:
            raise InputError(f"--{row.name} means nothing without {unmet}")
        if unmet is not None:
            values[row.name] = row.unmet
        elif row.needs and values[row.name] is None:
            values[row.name] = row.default
    if program == "train":
        values |= {k: v for k, v in fitting_defaults(values).items() if values[k] is None}
        if not of_run and values["ema_decay"] is not None:
            values["ema_rule"] = EMA_RULE
    return values


def _check_warmup(
    given: Mapping[str, Any], values: Mapping[str, Any], run: Mapping[str, Any] | None
) -> None:
    """Raise if a warm-up given by hand outlasts the run, as far as is known before the data.

    Raises:
        InputError: names both numbers.
    """
    if "warmup_steps" not in given or values["epochs"] is not None:
        return
    warmup = values["warmup_steps"]
    if run is None or warmup != run["config"].get("warmup_steps"):
        check_warmup(warmup, values["num_steps"] or DEFAULT_NUM_STEPS)


def _resolve_profile(values: Mapping[str, Any]) -> str | None:
    """Return the profile of the weights; without any, None where it would be Google's anyway."""
    profile = values["pretrained_profile"]
    if values["pretrained"] is not None:
        return profile or "auto"
    return None if profile in ("auto", "google") else profile


def _with_paths(
    values: dict[str, Any], checked: Collection[str], reads_features: bool
) -> FrozenConfigDict:
    """Return the values frozen, once the `checked` ones' files and the cache's folder are."""
    with os_errors_are_input_errors(paths_in(values)):
        for name, row in FLAGS.items():
            is_file = row.path == "file" and name in checked and values.get(name) is not None
            if is_file and not is_address(values[name]):
                check_file(Path(values[name]), f"--{name}")
        if values["cache"] == "disk" or reads_features or values["cache_dir"]:
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
    workers = resolve_workers(flags, flags.tiny_infer_subset)
    return {**{name: checkpoint[name] for name in names}, "num_workers": workers}
