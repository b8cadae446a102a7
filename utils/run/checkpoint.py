"""Save and load checkpoints: weights and all that is needed to rebuild and judge their model."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from utils.data.presets import PRESETS
from utils.errors import InputError
from utils.files import open_regular
from utils.run.tensor_file import load_archive, save_archive
from utils.schema import (
    dict_of,
    fields,
    is_count,
    is_dict,
    is_finite,
    is_text,
    list_of,
    wrong_fields,
)

FORMAT = "fine-vit checkpoint"
VERSION = 2
# What a checkpoint of an older version lacks, as the code that wrote it did it.
BEFORE = {1: {"preset": "vit", "carving": {}}}


class Checkpoint(NamedTuple):
    """Weights and all that is needed to rebuild their model and judge them."""

    model_type: str
    model_config: dict[str, Any]
    dataset: str
    classes: list[str]
    img_size: int
    preset: str  # by which images become model input
    carving: dict[str, Any]  # how its val split was held out: fraction and seed; empty: it was not
    normalization: dict[str, list[float]]
    step: int
    metrics: dict[str, Any]
    config_hash: str
    state_dict: dict[str, Tensor]


def _is_held_out(value: object) -> bool:
    held_out = fields({"fraction": lambda v: is_finite(v) and 0 < v < 1, "seed": is_count})
    return value == {} or held_out(value)


def _is_channels(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(is_finite, value))


_FIELDS = {
    "model_type": is_text,
    "model_config": is_dict,
    "dataset": is_text,
    "classes": list_of(is_text),
    "img_size": lambda value: is_count(value) and value > 0,
    "preset": lambda value: is_text(value) and value in PRESETS,
    "carving": _is_held_out,
    "normalization": fields(
        {"mean": _is_channels, "std": lambda value: _is_channels(value) and min(value) > 0}
    ),
    "step": is_count,
    "metrics": is_dict,
    "config_hash": is_text,
    "state_dict": dict_of(lambda value: isinstance(value, Tensor)),
}


def checkpoint_id(state_dict: Mapping[str, Tensor]) -> str:
    """Return the first 12 hex digits of the SHA-256 over the weights.

    Over sorted key, dtype, shape and little-endian bytes, so it depends on no file format.
    """
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        tensor = state_dict[key].detach().cpu().contiguous()
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        array = tensor.numpy()
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()[:12]


def save_checkpoint(
    path: Path, about: Mapping[str, Any], metrics: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """Write a checkpoint to `path`, replacing it as a whole; equal ones give equal files.

    Args:
        path: file of the checkpoint.
        about: the fields of `Checkpoint` that stay the same during a run.
        metrics: metrics of the weights, their `step` among them.
        weights: state dict of the model.
    """
    checkpoint = Checkpoint(
        **about, step=metrics["step"], metrics=dict(metrics), state_dict=dict(weights)
    )
    save_archive(path, {"format": FORMAT, "version": VERSION, **checkpoint._asdict()})


def is_checkpoint(path: Path) -> bool:
    """Return whether the file at `path` says it is one of ours, intact or not.

    Raises:
        InputError: it cannot be read.
    """
    # `torch.save` writes the pickle first, and a payload begins with its format.
    try:
        with open_regular(path) as file:
            return FORMAT.encode() in file.read(4096)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint at `path` onto the CPU, without running any code that it may hold.

    Raises:
        InputError: it is missing, truncated, damaged, foreign, of another version, or a field is
            missing or cannot be used.
    """
    payload = load_archive(path)
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise InputError(f"checkpoint {path} was not written by train.py; name a run's ckpt.bin")
    version = payload.get("version")
    if version not in [*BEFORE, VERSION]:
        raise InputError(
            f"checkpoint {path} has format version {version}, this code reads "
            f"{', '.join(map(str, (*BEFORE, VERSION)))}; use the code that wrote it"
        )
    payload = {**BEFORE.get(version, {}), **payload}
    wrong = wrong_fields(payload, _FIELDS)
    if not wrong and payload["model_config"].get("img_size") != payload["img_size"]:
        wrong = ["img_size"]
    if wrong:
        raise InputError(
            f"checkpoint {path} has no usable {', '.join(wrong)}; name another run's ckpt.bin"
        )
    return Checkpoint(**{key: payload[key] for key in Checkpoint._fields})
