"""The best weights of a run, with all that is needed to rebuild their model and judge them."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from utils.data.presets import PRESETS
from utils.errors import InputError
from utils.run.tensor_file import load_archive, save_archive

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
    carving: dict[str, Any]  # how its val split was carved: fraction and seed; empty: it was not
    normalization: dict[str, list[float]]
    step: int
    metrics: dict[str, Any]
    config_hash: str
    state_dict: dict[str, Tensor]


_FIELD_TYPES = {
    "model_type": str,
    "model_config": dict,
    "dataset": str,
    "classes": list,
    "img_size": int,
    "preset": str,
    "carving": dict,
    "normalization": dict,
    "step": int,
    "metrics": dict,
    "config_hash": str,
    "state_dict": dict,
}


def checkpoint_id(state_dict: Mapping[str, Tensor]) -> str:
    """The first 12 hex digits of the SHA-256 over the weights.

    Over sorted key, dtype, shape and little-endian bytes, so it depends on no file format.
    """
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        tensor = state_dict[key].detach().cpu().contiguous()
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        array = tensor.numpy()
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()[:12]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, replacing it as a whole; equal checkpoints give equal files."""
    save_archive(path, {"format": FORMAT, "version": VERSION, **checkpoint._asdict()})


def _is_normalization(value: Mapping[str, Any]) -> bool:
    """Whether `value` has a mean and a standard deviation above 0 for each RGB channel."""
    channels = [value.get(key) for key in ("mean", "std")]
    if not all(isinstance(c, list) and len(c) == 3 for c in channels):
        return False
    numbers = [number for channel in channels for number in channel]
    return all(isinstance(n, float) and math.isfinite(n) for n in numbers) and min(channels[1]) > 0


def _is_carving(value: Mapping[str, Any]) -> bool:
    fraction, seed = value.get("fraction"), value.get("seed")
    return isinstance(fraction, float) and 0 < fraction < 1 and isinstance(seed, int)


def _contradictions(payload: Mapping[str, Any]) -> list[str]:
    """The fields of a payload that have the right type and yet cannot be used."""
    usable = {
        "img_size": payload["img_size"] > 0
        and payload["model_config"].get("img_size") == payload["img_size"],
        "preset": payload["preset"] in PRESETS,
        "carving": not payload["carving"] or _is_carving(payload["carving"]),
        "normalization": _is_normalization(payload["normalization"]),
        "state_dict": all(isinstance(value, Tensor) for value in payload["state_dict"].values()),
        "classes": all(isinstance(name, str) for name in payload["classes"]),
    }
    return [field for field, is_usable in usable.items() if not is_usable]


def is_checkpoint(path: Path) -> bool:
    """Whether the file at `path` says it is one of ours, intact or not.

    Raises:
        InputError: it cannot be read.
    """
    # `torch.save` writes the pickle first, and a payload begins with its format.
    try:
        with path.open("rb") as file:
            return FORMAT.encode() in file.read(4096)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint at `path` onto the CPU, without running any code it may hold.

    Raises:
        InputError: missing, truncated, damaged, foreign, or holding more than plain data.
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
    wrong = [k for k, kind in _FIELD_TYPES.items() if not isinstance(payload.get(k), kind)]
    if wrong:
        raise InputError(f"checkpoint {path} lacks {', '.join(wrong)}; name a run's ckpt.bin")
    wrong = _contradictions(payload)
    if wrong:
        raise InputError(f"checkpoint {path} has an unusable {', '.join(wrong)}; use another")
    return Checkpoint(**{key: payload[key] for key in Checkpoint._fields})
