"""Weight files to tensors, without running any code they may hold.

What a file is, its first bytes say, not its name: safetensors, a zip archive of NumPy arrays
(`.npz`), or what `torch.save` writes (a zip archive, or before torch 1.6 a bare pickle).
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


class WeightsError(ValueError):
    """A weight file that cannot be used; the message is one line and names what is wrong."""


def _read_npz(path: Path) -> dict[str, Tensor]:
    tensors = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                tensors[key] = torch.from_numpy(np.array(archive[key], order="C"))
    except TypeError as error:  # torch has no such type (text, dates)
        raise WeightsError(f"{key} holds no numbers") from error
    # RuntimeError: an entry that zipfile cannot open (encrypted, unknown compression).
    except (
        ValueError,
        OSError,
        EOFError,
        KeyError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise WeightsError("it is a damaged or truncated .npz archive; copy it again") from error
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
    # What torch.load raises for archives that are no pickle of tensors.
    except (
        RuntimeError,
        ValueError,
        LookupError,
        EOFError,
        TypeError,
        AttributeError,
        AssertionError,
        OSError,
        struct.error,
    ) as error:
        raise WeightsError("it is damaged, truncated or no weight file; copy it again") from error


def _zip_names(path: Path) -> list[str] | None:
    """The names in a zip archive; None if it is none, or a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError):
        return None


def _is_intact(path: Path) -> bool:
    """Whether the checksums of an archive's entries are right: torch does not look at them."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.CRC:  # torch can be told to write none
                    with archive.open(entry) as file:
                        while file.read(2**20):
                            pass
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, zlib.error):
        return False
    return True


def _read(path: Path) -> object:
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":  # eight bytes of length, then a JSON header
        try:
            return load_file(path)
        except (SafetensorError, ValueError, KeyError) as error:
            raise WeightsError(
                "it is a damaged or truncated safetensors file; copy it again"
            ) from error
    if start.startswith(b"PK"):
        names = _zip_names(path)
        if names is None:
            raise WeightsError("it is a damaged or truncated archive; copy it again")
        if any(name.endswith(".npy") for name in names):
            return _read_npz(path)
        if not _is_intact(path):
            raise WeightsError("it is a damaged or truncated archive; copy it again")
        return _read_torch(path)
    if start.startswith(b"\x80"):  # a pickle
        return _read_torch(path)
    raise WeightsError("it is neither .npz, safetensors nor a PyTorch file")


def _state_dict(payload: object) -> dict[str, Tensor]:
    """The state dict in what a file holds, without wrappers and prefixes."""
    while isinstance(payload, Mapping):
        inner = [payload[key] for key in WRAPPERS if isinstance(payload.get(key), Mapping)]
        if not inner:
            break
        payload = inner[0]
    if not isinstance(payload, Mapping):
        raise WeightsError(f"it holds a {type(payload).__name__}, no state dict")
    tensors = {
        key: value
        for key, value in payload.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise WeightsError("it holds no tensors by name")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by their names in the file, on the CPU, as they are stored.

    Raises:
        WeightsError: not a weight file, damaged, or holding more than tensors and plain data.
        OSError: it cannot be read.
    """
    tensors = _state_dict(_read(path))
    odd = [key for key, value in tensors.items() if value.layout != torch.strided or value.is_meta]
    if odd:
        raise WeightsError(f"{odd[0]} is no plain tensor")
    return tensors
