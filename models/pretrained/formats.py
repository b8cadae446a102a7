"""Read the tensors of weight files without running any code that a file may hold.

The first bytes say what a file is, not its name: safetensors, a zip archive of NumPy arrays
(`.npz`), or what `torch.save` writes (a zip archive, before torch 1.6 a bare pickle).
"""

import json
import math
import pickle
import re
import shlex
import struct
import tokenize
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

MAX_DEPTH = 8  # of dictionaries in dictionaries that are looked through for tensors
# An archive may unpack to so many times its size, and so much more. A model whose weights are all
# zeros is compressed a thousandfold, and so is a file made to fill the memory.
MAX_EXPANSION, MAX_EXTRA = 20, 2**28
MAX_INDEX = 2**26  # bytes of a JSON file that is looked at

# What zipfile raises for a damaged archive (RuntimeError: an encrypted entry or an unknown method),
# and NumPy for the header of an array.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, zlib.error),
    *(SyntaxError, tokenize.TokenError, OverflowError),
)
# What torch.load raises for archives and pickles that are not of tensors.
_TORCH_ERRORS = (
    *(RuntimeError, ValueError, LookupError, EOFError, TypeError, AttributeError),
    *(AssertionError, OSError, struct.error),
)


class WeightsError(ValueError):
    """Weights that cannot be used; the message is one line and says what is wrong."""


def _damaged(what: str) -> WeightsError:
    return WeightsError(f"it is a damaged or truncated {what}; copy it again")


def _check_unpacked_size(path: Path, archive: zipfile.ZipFile) -> None:
    """Check how much memory an archive takes: in all, and for the arrays that it declares.

    Raises:
        WeightsError: too much for its size; an array is larger than its entry.
    """
    unpacked, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
    if unpacked > MAX_EXPANSION * size + MAX_EXTRA:
        raise WeightsError(
            f"its {size / 1e6:.1f} MB would unpack to {unpacked / 1e9:.1f} GB; save it uncompressed"
        )
    for entry in archive.infolist():
        if not entry.filename.endswith(".npy"):
            continue
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                continue  # of arrays that do not hold numbers alone
            is_first = version == (1, 0)
            read = np.lib.format.read_array_header_1_0 if is_first else _read_header_2
            shape, _, dtype = read(file)
            if not dtype.hasobject and math.prod(shape) * dtype.itemsize > entry.file_size:
                raise _damaged(".npz archive")


_read_header_2 = np.lib.format.read_array_header_2_0


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
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_of_objects(path, error)) from error
    except _TORCH_ERRORS as error:
        raise WeightsError(
            "it is damaged, truncated or not a weight file; copy it again"
        ) from error


# What training scripts save beside tensors and what runs no code when it is loaded.
_HARMLESS = ("argparse.Namespace", "pathlib.PosixPath")
# Takes the tensors and the dictionaries around them out of what a file holds.
_EXTRACT = (
    "import argparse, pathlib, torch; "
    f"torch.serialization.add_safe_globals([{', '.join(_HARMLESS)}]); "
    "f = lambda d: {{k: f(v) if isinstance(v, dict) else v for k, v in d.items() "
    "if isinstance(v, (dict, torch.Tensor))}}; "
    "torch.save(f(torch.load({!r}, map_location='cpu')), {!r})"
)


def _python(code: str) -> str:
    """Return the command that runs `code`, as one types it."""
    is_plain = not set(code) & set('"$`!\\')
    return "python -c " + (f'"{code}"' if is_plain else shlex.quote(code))


def _of_objects(path: Path, error: pickle.UnpicklingError) -> str:
    """Say what a pickle holds beside tensors, and how to take the tensors out."""
    held = (re.findall(r"GLOBAL ([\w.]+)", str(error)) or [""])[0]
    if held in _HARMLESS:
        target = path.with_name(f"{path.stem}.tensors.pth")
        command = _python(_EXTRACT.format(str(path), str(target)))
        return f"it holds {held} beside tensors, which was not loaded; take these out: {command}"
    what = "something other than tensors and plain data" + (f" ({held})" if held else "")
    return f"it holds {what}, which was not loaded; save its state dict alone"


def _start(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _read_archive(path: Path) -> object:
    """Read a zip archive, of NumPy arrays or of torch."""
    is_npz = False
    try:
        with zipfile.ZipFile(path) as archive:
            is_npz = any(name.endswith(".npy") for name in archive.namelist())
            _check_unpacked_size(path, archive)
            # Torch can be told to write no checksums, and does not look at them; NumPy does.
            entries = [entry for entry in archive.infolist() if entry.CRC and not is_npz]
            for entry in entries:
                with archive.open(entry) as file:
                    while file.read(2**20):
                        pass
    except WeightsError:
        raise
    except (*_ZIP_ERRORS, MemoryError) as error:  # of a header that nests too deep
        raise _damaged(".npz archive" if is_npz else "archive") from error
    return _read_npz(path) if is_npz else _read_torch(path)


_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(\.\w+)")
_MERGE = {
    ".safetensors": "from safetensors.torch import load_file as load, save_file as save",
    ".bin": "from torch import load, save",
}


def _merging(folder: Path, shards: list[str]) -> str:
    """Return the command that makes one file of the shards of a model."""
    match = _SHARD.fullmatch(shards[0])
    stem, ending = (match[1], match[4]) if match else ("model", Path(shards[0]).suffix)
    code = (
        f"{_MERGE.get(ending, _MERGE['.bin'])}; "
        f"save({{k: v for p in {[str(folder / name) for name in shards]} "
        f"for k, v in load(p).items()}}, {str(folder / (stem + ending))!r})"
    )
    return _python(code)


def _check_is_no_shard(path: Path) -> None:
    """Raise if a file's name says that it is a part of a model.

    Raises:
        WeightsError: it does; says how to join the parts.
    """
    match = _SHARD.fullmatch(path.name)
    if match is None or int(match[3][:6]) < 2:
        return
    count = int(match[3][:6])
    width, what = len(match[2]), f"it is shard {match[2]} of {match[3]} of a model"
    names = [f"{match[1]}-{n:0{width}}-of-{match[3]}{match[4]}" for n in range(1, count + 1)]
    absent = [name for name in names[:1000] if not (path.parent / name).is_file()]
    if absent or count > 1000:
        raise WeightsError(f"{what}, whose {(absent or ['rest'])[0]} is not here; fetch them all")
    raise WeightsError(f"{what}; make one file of them: {_merging(path.parent, names)}")


def _json_kind(path: Path) -> str:
    """Say what a JSON file in place of weights is."""
    if path.stat().st_size > MAX_INDEX:
        return ""
    try:
        index = json.loads(path.read_bytes())
        shards = sorted(set(index["weight_map"].values()))
        command = _merging(path.parent, shards)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return " but JSON; name the weights beside it"
    return f" but the index of a model in {len(shards)} shards; make one file of them: {command}"


def _read(path: Path) -> object:
    start = _start(path, 2**10)
    _check_is_no_shard(path)
    is_json = start.lstrip().startswith(b"{") and b"\0" not in start[:8]
    if start[8:9] == b"{" and not is_json:  # eight bytes of length, then a JSON header
        try:
            return load_file(path)
        except (SafetensorError, ValueError, KeyError) as error:
            raise _damaged("safetensors file") from error
    if start.startswith(b"PK"):
        return _read_archive(path)
    if start.startswith(b"\x80"):  # a pickle
        return _read_torch(path)
    known = ""
    if not start:
        known = " but empty; fetch it again"
    elif start.lstrip().startswith(b"<"):  # from a server that wants people to sign in
        known = " but a web page; fetch the weights in a browser"
    elif start.startswith(b"version https://git-lfs"):
        known = " but a pointer of Git LFS; fetch the weights with git lfs pull"
    elif is_json:
        known = _json_kind(path)
    raise WeightsError(f"it is neither .npz, safetensors nor a PyTorch file{known}")


def _tensors(payload: object) -> dict[str, Tensor]:
    """Return the tensors in what a file holds; names in dictionaries in it are joined by dots."""
    if not isinstance(payload, Mapping):
        raise WeightsError(f"it holds a {type(payload).__name__}, not a state dict")
    tensors: dict[str, Tensor] = {}
    seen = {id(payload)}  # a dictionary may hold itself
    waiting: list[tuple[str, int, Mapping]] = [("", 0, payload)]
    for prefix, depth, mapping in waiting:
        for key, value in mapping.items():
            if isinstance(key, str) and isinstance(value, Tensor):
                tensors.setdefault(f"{prefix}{key}", value)
            elif isinstance(key, str) and isinstance(value, Mapping) and depth < MAX_DEPTH:
                if id(value) not in seen:
                    waiting.append((f"{prefix}{key}.", depth + 1, value))
                seen.add(id(value))
    if not tensors:
        raise WeightsError("it does not hold tensors by name")
    return tensors


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file by their names in the file, on the CPU, types unchanged.

    Takes memory of at most `MAX_EXPANSION` times the file's size and `MAX_EXTRA` bytes.

    Raises:
        WeightsError: not a weight file, a damaged one, or one that holds more than tensors and
            plain data.
        OSError: the file cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd pickles and headers: they are read, or refused
        return _tensors(_read(path))
