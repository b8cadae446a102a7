"""What the flags that name data mean: where it lies, which splits and subsets. Imports no torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.data.catalog import DatasetSpec, get_spec, offered_splits, resolve_carving
from utils.data.splits import Carving
from utils.errors import InputError
from utils.flags import DEFAULT_SPLIT_SEED, SYNTHETIC_FOLDER


def resolve_data_root(dataset: str, data_root: Path | str | None, output_dir: Path) -> str:
    """Where the data of `dataset` lies: the flag, else the default."""
    if data_root is not None:
        return str(data_root)
    if dataset == "synthetic":  # not $DATA_ROOT: that is where somebody's photos are
        return str(output_dir / SYNTHETIC_FOLDER)
    from_environment = os.environ.get("DATA_ROOT", "")
    if from_environment:
        return from_environment
    raise InputError(
        f"no data for {dataset}: give --data_root PATH or `export DATA_ROOT=PATH`; "
        "scripts/get_flowers.py fetches the flowers, --dataset synthetic needs none"
    )


def _resolve_subset(spec: DatasetSpec, wanted: str | None, flag: str) -> str | None:
    """The canonical name of a named subset, or the absolute path of a list of ids."""
    if wanted is None:
        return None
    tiny = f"{spec.name}_tiny"
    if wanted in {f"{name}_tiny" for name in (spec.name, *spec.aliases)}:
        return tiny
    if not Path(wanted).is_file():
        raise InputError(f"{flag} {wanted} is neither {tiny} nor a file with one sample id a line")
    return str(Path(wanted).resolve())


def resolve_data_flags(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with its data flags in canonical form; the dataset must be known."""
    spec = get_spec(values["dataset"])
    changes = {"dataset": spec.name}
    changes["data_root"] = resolve_data_root(
        spec.name, values["data_root"], Path(values["output_dir"])
    )
    for flag in ("tiny_train_subset", "tiny_infer_subset"):
        if flag in values:
            changes[flag] = _resolve_subset(spec, values[flag], f"--{flag}")
    root = spec.find_root(spec, Path(changes["data_root"]))
    return {**values, **changes, **_resolve_splits(spec, root, values)}


def _resolve_splits(spec: DatasetSpec, root: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The splits of a run and how its val split is carved."""
    fraction, seed = values["val_fraction"], values["split_seed"]
    if "train_split" in values:  # an evaluation carves as its checkpoint did
        given_seed, seed = seed, DEFAULT_SPLIT_SEED if seed is None else seed
        carving = resolve_carving(spec, root, fraction, seed)
        if carving is None and given_seed is not None:
            raise InputError("--split_seed means nothing without --val_fraction")
    else:
        is_carved = fraction is not None and "val" not in spec.official_splits(root)
        carving = Carving(fraction, seed) if is_carved else None
    offered = offered_splits(spec, root, carving)
    chosen = {flag: values[flag] for flag in ("train_split",) if flag in values}
    chosen["eval_split"] = values["eval_split"] or next(
        split for split in ("val", "test", *offered) if split in offered
    )
    for flag, split in chosen.items():
        spec.check_split(split, offered, flag)
    return {
        **chosen,
        "val_fraction": None if carving is None else carving.fraction,
        "split_seed": None if carving is None else carving.seed,
    }
