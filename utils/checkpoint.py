"""Self-describing checkpoints that notice damage.

`torch.load` does not notice flipped bits (381 of 400 tried loaded silently), so a checkpoint ends
with the SHA-256 of all its bytes before, in the one place where a zip archive may carry text: its
comment. The comment survives copying.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.errors import InputError
from utils.files import open_atomic

FORMAT = "fine-vit checkpoint"
VERSION = 1
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
    normalization: dict[str, list[float]]
    step: int
    metrics: dict[str, Any]
    config_hash: str
    state_dict: dict[str, Tensor]


_FIELD_TYPES = {
    "model_type": str, "model_config": dict, "dataset": str, "classes": list, "img_size": int,
    "normalization": dict, "step": int, "metrics": dict, "config_hash": str, "state_dict": dict,
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


def _seal(archive: bytearray) -> bytes:
    """Declare a comment in the archive's end record; return the comment, the archive's SHA-256."""
    archive[-2:] = COMMENT_BYTES.to_bytes(2, "little")
    return hashlib.sha256(archive).hexdigest().encode()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, replacing it as a whole; equal checkpoints give equal files."""
    state_dict = {k: v.detach().cpu().contiguous() for k, v in checkpoint.state_dict.items()}
    payload = {
        "format": FORMAT, "version": VERSION, **checkpoint._asdict(), "state_dict": state_dict,
    }  # fmt: skip
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


def load_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint at `path` onto the CPU, without running any code it may hold.

    Raises:
        InputError: missing, truncated, damaged, foreign, or holding more than plain data.
    """
    data = _read_verified(path)
    try:
        # map_location: one saved from MPS loads anywhere (pytorch #194584).
        payload = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            f"checkpoint {path} holds something other than tensors and plain data; it was not "
            "loaded. Use only checkpoints that train.py wrote"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise InputError(f"checkpoint {path} was not written by train.py; name a run's ckpt.bin")
    if payload.get("version") != VERSION:
        raise InputError(
            f"checkpoint {path} has format version {payload.get('version')}, this code reads "
            f"{VERSION}; use the code that wrote it"
        )
    wrong = [k for k, kind in _FIELD_TYPES.items() if not isinstance(payload.get(k), kind)]
    if wrong:
        raise InputError(f"checkpoint {path} lacks {', '.join(wrong)}; name a run's ckpt.bin")
    return Checkpoint(**{key: payload[key] for key in Checkpoint._fields})
