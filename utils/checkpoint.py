"""Self-describing checkpoints that notice damage.

`torch.load` does not notice flipped bits (381 of 400 tried loaded silently), so a checkpoint ends
with the SHA-256 of all its bytes before, in the one place where a zip archive may carry text: its
comment. The comment survives copying.
"""

import hashlib
import io
import math
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.errors import InputError
from utils.files import open_atomic
from utils.presets import PRESETS

FORMAT = "fine-vit checkpoint"
VERSION = 2
# What a checkpoint of an older version lacks, as the code that wrote it did it.
BEFORE = {1: {"preset": "vit", "carving": {}}}
COMMENT_BYTES = 64  # a SHA-256 in hex
# A zip archive ends with a record of 22 bytes, the last two being the length of the comment after.
END_RECORD_BYTES = 22
END_RECORD_SIGNATURE = b"PK\x05\x06"


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
    "model_type": str, "model_config": dict, "dataset": str, "classes": list, "img_size": int,
    "preset": str, "carving": dict, "normalization": dict, "step": int, "metrics": dict,
    "config_hash": str, "state_dict": dict,
}  # fmt: skip


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


def _canonical(value: Any) -> Any:  # noqa: ANN401 - plain data of any shape
    """A copy of plain data whose pickle depends on the values alone.

    pickle writes a reference where it meets an object again, so equal strings must be one object;
    and torch writes the whole memory that a tensor looks into, so it must be the tensor's own.
    """
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, Mapping):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        owned = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if owned else tensor.clone()
    return value


def _seal(archive: bytearray) -> bytes:
    """Declare a comment in the archive's end record; return the comment, the archive's SHA-256."""
    archive[-2:] = COMMENT_BYTES.to_bytes(2, "little")
    return hashlib.sha256(archive).hexdigest().encode()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, replacing it as a whole; equal checkpoints give equal files."""
    payload = _canonical({"format": FORMAT, "version": VERSION, **checkpoint._asdict()})
    # Through a buffer: given a path, torch writes the file's name into the archive.
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    archive = bytearray(buffer.getbuffer())
    comment = _seal(archive)
    with open_atomic(path) as file:
        file.write(archive)
        file.write(comment)


def _read_verified(path: Path) -> bytes:
    """The bytes of the checkpoint at `path`, which are what was once written.

    Raises:
        InputError: unreadable, not a checkpoint of ours, or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read ({error.strerror})") from error
    archive, comment = data[:-COMMENT_BYTES], data[-COMMENT_BYTES:]
    end_record = archive[-END_RECORD_BYTES:]
    expected_end = END_RECORD_SIGNATURE, COMMENT_BYTES.to_bytes(2, "little")
    if (end_record[:4], end_record[-2:]) != expected_end:
        raise InputError(
            f"checkpoint {path} is truncated, damaged or not written by train.py: its checksum is "
            "missing; name a run's checkpoints/ckpt.bin, or copy it again"
        )
    if hashlib.sha256(archive).hexdigest().encode() != comment:
        raise InputError(
            f"checkpoint {path} is damaged: its bytes do not match its checksum; copy it again"
        )
    return data


# What torch.load raises for archives that hold anything but what torch.save makes of plain data.
_LOAD_ERRORS = (
    pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError, TypeError,
    AttributeError, AssertionError, ImportError,
)  # fmt: skip


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
    data = _read_verified(path)
    try:
        # map_location: one saved from MPS loads anywhere (pytorch #194584).
        payload = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        raise InputError(
            f"checkpoint {path} holds something other than tensors and plain data; it was not "
            "loaded. Use only checkpoints that train.py wrote"
        ) from error
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
