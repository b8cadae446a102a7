"""Read the tensors of weight files without running any code that a file may hold.

The first bytes say what a file is, not its name: safetensors, a zip archive of NumPy arrays
(`.npz`), or what `torch.save` writes (a zip archive, before torch 1.6 a bare pickle).
"""

import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# The keys under which training scripts wrap a state dict, and the prefixes that wrappers of models
# put before every name.
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema")
PREFIXES = ("module.", "model.", "backbone.")

# What zipfile raises for a damaged archive; RuntimeError: an encrypted entry or an unknown method.
_ZIP_ERRORS = (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, zlib.error)
# What torch.load raises for archives and pickles that are not of tensors.
_TORCH_ERRORS = (
    *(RuntimeError, ValueError, LookupError, EOFError, TypeError, AttributeError),
    *(AssertionError, OSError, struct.error),
)


class WeightsError(ValueError):
    """Weights that cannot be used; the message is one line and says what is wrong."""


def _damaged(what: str) -> WeightsError:
    return WeightsError(f"it is a damaged or truncated {what}; copy it again")


def _read_npz(path: Path) -> dict[str, Tensor]:
    tensors = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                tensors[key] = torch.from_numpy(np.array(archive[key], order="C"))
    except TypeError as error:  # torch has no such type (text, dates)
        raise WeightsError(f"{key} does not hold numbers") from error
    except (*_ZIP_ERRORS, KeyError) as error:
        raise _damaged(".npz archive") from error
    return tensors


def _read_torch(path: Path) -> object:
    try:
        # A file and not its path: a path's suffix would decide how torch reads it.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of odd pickle protocols, then refused
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            "it holds something other than tensors and plain data, which was not loaded; save its "
            "state dict alone"
        ) from error
    except _TORCH_ERRORS as error:
        raise WeightsError(
            "it is damaged, truncated or not a weight file; copy it again"
        ) from error


def _read_archive(path: Path) -> object:
    """Read a zip archive, of NumPy arrays or of torch."""
    try:
        with zipfile.ZipFile(path) as archive:
            is_npz = any(name.endswith(".npy") for name in archive.namelist())
            # Torch can be told to write no checksums, and does not look at them; NumPy does.
            entries = [entry for entry in archive.infolist() if entry.CRC and not is_npz]
            for entry in entries:
                with archive.open(entry) as file:
                    while file.read(2**20):
                        pass
    except _ZIP_ERRORS as error:
        raise _damaged("archive") from error
    return _read_npz(path) if is_npz else _read_torch(path)


def _read(path: Path) -> object:
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":  # eight bytes of length, then a JSON header
        try:
            return load_file(path)
        except (SafetensorError, ValueError, KeyError) as error:
            raise _damaged("safetensors file") from error
    if start.startswith(b"PK"):
        return _read_archive(path)
    if start.startswith(b"\x80"):  # a pickle
        return _read_torch(path)
    known = ""
    if start.lstrip().startswith(b"<"):  # from a server that wants people to sign in
        known = " but a web page; fetch the weights in a browser"
    elif start == b"version h":
        known = " but a pointer of Git LFS; fetch the weights with git lfs pull"
    raise WeightsError(f"it is neither .npz, safetensors nor a PyTorch file{known}")


def _state_dict(payload: object) -> dict[str, Tensor]:
    """Return the state dict in what a file holds, without wrappers and prefixes."""
    while isinstance(payload, Mapping):
        inner = [payload[key] for key in WRAPPERS if isinstance(payload.get(key), Mapping)]
        if not inner:
            break
        payload = inner[0]
    if not isinstance(payload, Mapping):
        raise WeightsError(f"it holds a {type(payload).__name__}, not a state dict")
    tensors = {
        key: value
        for key, value in payload.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise WeightsError("it does not hold tensors by name")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file by their names in the file, on the CPU, types unchanged.

    Raises:
        WeightsError: not a weight file, a damaged one, or one that holds more than tensors and
            plain data.
        OSError: the file cannot be read.
    """
    tensors = _state_dict(_read(path))
    odd = [key for key, value in tensors.items() if value.layout != torch.strided or value.is_meta]
    if odd:
        raise WeightsError(f"{odd[0]} is not a plain tensor")
    return tensors
