"""Save and load checkpoints: weights and all that is needed to rebuild and judge their model."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ml_collections import FrozenConfigDict
from torch import Tensor

from utils.cli.flags import PUBLIC_WEIGHTS
from utils.data.presets import DATA_RULES, OLDER_RULES, PRESETS
from utils.data.subsets import KnownImages
from utils.errors import InputError
from utils.files import open_regular
from utils.run.tensor_file import load_archive, save_archive
from utils.schema import (
    dict_of,
    fields,
    is_count,
    is_dict,
    is_finite,
    is_json_object,
    is_text,
    list_of,
    wrong_fields,
)

FAMILY = "fine-vit "
FORMAT = f"{FAMILY}checkpoint"
VERSION = 3
_NO_IMAGES = torch.empty(0, dtype=torch.int64)
# What a checkpoint of an older version lacks, as the code that wrote it did it.
_UNKNOWN = {
    "class_depth": 0,
    "data_rules": 1,
    "trained_images": _NO_IMAGES,
    "val_images": _NO_IMAGES,
}
BEFORE = {1: {"preset": "vit", "carving": {}, **_UNKNOWN}, 2: _UNKNOWN}


class Checkpoint(NamedTuple):
    """Weights and all that is needed to rebuild their model and judge them."""

    model_type: str
    model_config: dict[str, Any]
    dataset: str
    classes: list[str]
    img_size: int
    preset: str  # by which images become model input
    carving: dict[str, Any]  # how its val split was held out: fraction and seed; empty: it was not
    class_depth: int  # folders that make a class name; 0: not said
    data_rules: int  # version of the rules by which its images were read
    # (N,) int64: sets of image digests (`utils/data/digests.py`), 8 bytes an image.
    trained_images: Tensor  # images that were trained on, by the runs before it too
    val_images: Tensor  # images of the run's val
    normalization: dict[str, list[float]]
    step: int
    metrics: dict[str, Any]
    config_hash: str
    state_dict: dict[str, Tensor]
    # The public weights that its training began with, at any remove; empty: none. Of version 3, but
    # younger: a checkpoint may lack it.
    public_weights: Mapping[str, str] = {}
    # Splits that a probe fitted the head on, and the set of their images; empty: it was trained. Of
    # version 3, but younger: a checkpoint may lack them.
    fitted_on: Sequence[str] = []
    head_images: Tensor = _NO_IMAGES

    @property
    def known_images(self) -> KnownImages:
        """Return what it knows of images."""
        sets = self.trained_images, self.val_images, self.head_images
        return KnownImages(*map(from_tensor, sets))

    @property
    def older_rules(self) -> str:
        """Return in words what is done otherwise than when it was trained; "": nothing."""
        if self.data_rules == DATA_RULES:
            return ""
        before = OLDER_RULES.get(self.data_rules, "images may have been decoded otherwise")
        return (
            f"was trained by version {self.data_rules} of the rules for data, this code has "
            f"version {DATA_RULES}. Before, {before}; which images it was trained on is not known"
        )


def _is_held_out(value: object) -> bool:
    held_out = fields({"fraction": lambda v: is_finite(v) and 0 < v < 1, "seed": is_count})
    return value == {} or held_out(value)


def _is_channels(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(is_finite, value))


def is_digests(value: object) -> bool:
    """Return whether `value` holds image digests."""
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == 1


def is_weights(value: object) -> bool:
    """Return whether `value` is a tensor of floating-point numbers that NumPy has, too."""
    return isinstance(value, Tensor) and value.dtype in (
        torch.float16,
        torch.float32,
        torch.float64,
    )


def to_tensor(digests: np.ndarray) -> Tensor:
    """Return uint64 digests as a tensor that every version of torch saves."""
    return torch.from_numpy(digests.view(np.int64).copy())


def from_tensor(digests: Tensor) -> np.ndarray:
    """Return the uint64 digests that `to_tensor` was given."""
    return digests.numpy().view(np.uint64)


is_normalization = fields(
    {"mean": _is_channels, "std": lambda value: _is_channels(value) and min(value) > 0}
)


_FIELDS = {
    "model_type": is_text,
    "model_config": is_dict,
    "dataset": is_text,
    "classes": list_of(is_text),
    "img_size": lambda value: is_count(value) and value > 0,
    "preset": lambda value: is_text(value) and value in PRESETS,
    "carving": _is_held_out,
    "class_depth": is_count,
    "data_rules": lambda value: is_count(value) and value > 0,
    "trained_images": is_digests,
    "val_images": is_digests,
    "normalization": is_normalization,
    "step": is_count,
    "metrics": is_json_object,
    "config_hash": is_text,
    "state_dict": dict_of(is_weights),
    "public_weights": dict_of(is_text),
    "fitted_on": list_of(is_text),
    "head_images": is_digests,
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


def trunk_id(state_dict: Mapping[str, Tensor]) -> str:
    """Return `checkpoint_id` without the head: weights that differ in it alone are equal here."""
    return checkpoint_id({k: v for k, v in state_dict.items() if not k.startswith("head.")})


def about_run(
    config: FrozenConfigDict,
    classes: Sequence[str],
    carving: Mapping[str, Any] | None,
    config_hash: str,
    fitted_on: Sequence[str] = [],
) -> dict[str, Any]:
    """Return the fields of a checkpoint that stay the same during a run, but its images.

    Args:
        config: resolved config of the run.
        classes: class names in index order.
        carving: how its val split was held out; None: it was not.
        config_hash: hash of the experiment.
        fitted_on: splits that a probe fitted the head on.
    """
    return {
        "model_type": config.model_type,
        "model_config": config.model.to_dict(),
        "dataset": config.dataset,
        "classes": list(classes),
        "img_size": config.img_size,
        "preset": config.preset,
        "carving": carving or {},
        "class_depth": config.class_depth or 0,
        "data_rules": DATA_RULES,
        "normalization": config.normalization.to_dict(),
        "config_hash": config_hash,
        "public_weights": dict(config.get(PUBLIC_WEIGHTS, {})),
        "fitted_on": list(fitted_on),
    }


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
    """Return whether the file at `path` says it is of ours, a snapshot too, intact or not.

    Raises:
        InputError: it cannot be read.
    """
    # `torch.save` writes the pickle first, and a payload begins with its format.
    try:
        with open_regular(path) as file:
            return FAMILY.encode() in file.read(4096)
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
        is_ours = isinstance(payload, dict) and str(payload.get("format")).startswith(FAMILY)
        what = "is a snapshot, for --resume" if is_ours else "was not written by train.py"
        raise InputError(f"checkpoint {path} {what}; name a run's ckpt.bin")
    version = payload.get("version")
    if type(version) is not int or version not in [*BEFORE, VERSION]:
        raise InputError(
            f"checkpoint {path} has format version {version!s:.40}, this code reads "
            f"{', '.join(map(str, (*BEFORE, VERSION)))}; use the code that wrote it"
        )
    payload = {**BEFORE.get(version, {}), **Checkpoint._field_defaults, **payload}
    wrong = wrong_fields(payload, _FIELDS)
    if not wrong:
        size = payload["model_config"].get("img_size")
        wrong = [] if type(size) is int and size == payload["img_size"] else ["img_size"]
    if wrong:
        raise InputError(
            f"checkpoint {path} has no usable {', '.join(wrong)}; name another run's ckpt.bin"
        )
    return Checkpoint(**{key: payload[key] for key in Checkpoint._fields})
