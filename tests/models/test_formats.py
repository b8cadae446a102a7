"""Weight files: what is read, and that a damaged or hostile one is refused."""

import io
import json
import pickle
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from models.pretrained.formats import PREFIXES, WRAPPERS, WeightsError, read_weight_file

SETTINGS = settings(max_examples=200, deadline=None)


def torch_bytes(value: object, is_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def npz_bytes(tensors: dict[str, Tensor], save: Callable = np.savez) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **{key: value.numpy() for key, value in tensors.items()})
    return buffer.getvalue()


def safetensors_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


KINDS = {
    "safetensors": safetensors_bytes,
    "torch": torch_bytes,
    "torch before 1.6": partial(torch_bytes, is_zip=False),
    "npz": npz_bytes,
    "compressed npz": partial(npz_bytes, save=np.savez_compressed),
}
NPZ = ("npz", "compressed npz")
every_kind = pytest.mark.parametrize("kind", KINDS)
every_torch_kind = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])


@cache
def tensors() -> dict[str, Tensor]:
    """A small state dict; only to be read."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"blocks.0.attn.qkv.weight": (6, 4), "pos_embed": (1, 5, 4), "norm.bias": (4,)}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


@cache
def intact(kind: str) -> bytes:
    return KINDS[kind](tensors())


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Where a test's file is; its name says nothing."""
    return tmp_path_factory.mktemp("weights") / "weights"


def read(path: Path, content: bytes) -> dict[str, Tensor]:
    path.write_bytes(content)
    with warnings.catch_warnings():
        # torch warns of odd pickles before it refuses them.
        warnings.simplefilter("ignore")
        return read_weight_file(path)


def assert_equal(given_tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(given_tensors, expected, rtol=0, atol=0)


# --- What is read ---------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("suffix", ["", ".npz", ".pth", ".safetensors"])
def test_a_kind_is_known_by_content_not_by_name(tmp_path, kind, suffix):
    assert_equal(read(tmp_path / f"weights{suffix}", intact(kind)), tensors())


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.bool])
def test_types_are_left_as_they_are(path, kind, dtype):
    converted = {key: value.to(dtype) for key, value in tensors().items()}
    assert_equal(read(path, KINDS[kind](converted)), converted)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch before 1.6"])
def test_bfloat16_is_left_as_it_is(path, kind):
    converted = {key: value.bfloat16() for key, value in tensors().items()}
    assert_equal(read(path, KINDS[kind](converted)), converted)


def test_arrays_in_fortran_order_and_single_numbers(path):
    arrays = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(3.0)}
    assert_equal(read(path, npz_bytes(arrays)), arrays)


def test_parameters_and_views_of_one_tensor(path):
    whole = torch.arange(6.0)
    saved = OrderedDict(a=nn.Parameter(whole[:4]), b=whole[2:], c=whole.view(2, 3).T)
    assert_equal({**read(path, torch_bytes(saved))}, {key: t.detach() for key, t in saved.items()})


@every_torch_kind
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_taken_off(path, wrapper, is_zip):
    payload = {"epoch": 3, wrapper: tensors(), "optimizer": {"lr": 0.1}}
    assert_equal(read(path, torch_bytes(payload, is_zip)), tensors())


def test_wrappers_in_wrappers(path):
    payload = {"state_dict": {"model": tensors(), "epoch": 3}}
    assert_equal(read(path, torch_bytes(payload)), tensors())


def test_a_tensor_named_as_a_wrapper_is_none(path):
    saved = {**tensors(), "model": torch.zeros(2)}
    assert_equal(read(path, torch_bytes(saved)), saved)


@every_kind
@pytest.mark.parametrize("prefix", [*PREFIXES, "module.model.", "module.backbone."])
def test_prefixes_are_taken_off(path, kind, prefix):
    prefixed = {f"{prefix}{key}": value for key, value in tensors().items()}
    assert_equal(read(path, KINDS[kind](prefixed)), tensors())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_some_names_alone_stays(path, prefix):
    prefixed = {f"{prefix}{key}": value for key, value in tensors().items()}
    saved = {**prefixed, "head.weight": torch.ones(2, 2)}
    assert_equal(read(path, torch_bytes(saved)), saved)


def test_what_is_no_tensor_is_left_out(path):
    saved = {**tensors(), "epoch": 3, "classes": ["a"], 7: torch.zeros(1)}
    assert_equal(read(path, torch_bytes(saved)), tensors())


# --- What is not a weight file --------------------------------------------------------------------

NEITHER = "it is neither .npz, safetensors nor a PyTorch file"
UNSAFE = "it holds something other than tensors and plain data"


def assert_refused(path: Path, content: bytes, match: str) -> str:
    """Refused in one line; returns it."""
    with pytest.raises(WeightsError, match=match) as error:
        read(path, content)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"P",
        b"\x00" * 64,
        b"weights\n",
        b"<!DOCTYPE html><html>",
        b"\x93NUMPY\x01\x00",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"{}",
        "Gewichte für alle".encode(),
    ],
)
def test_a_file_of_another_kind(path, content):
    assert_refused(path, content, f"^{NEITHER}$")


def test_a_text_that_could_be_safetensors(path):
    assert_refused(path, b'weights:{"a": 1}', "damaged or truncated safetensors")


def test_a_folder_and_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="directory"):
        read_weight_file(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_weight_file(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["readme.txt", "data.pkl", "archive/data.pkl"])
def test_an_archive_of_another_kind(path, name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "nothing")
    assert_refused(
        path, buffer.getvalue(), "damaged, truncated or not a weight file|something other"
    )


@every_torch_kind
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3), "it holds a Tensor, not a state dict"),
        ([torch.zeros(3)], "it holds a list, not a state dict"),
        (3, "it holds a int, not a state dict"),
        ({}, "it does not hold tensors by name"),
        ({"model": {}}, "it does not hold tensors by name"),
        ({"a": 3, "b": [torch.zeros(3)]}, "it does not hold tensors by name"),
        ({1: torch.zeros(3)}, "it does not hold tensors by name"),
    ],
)
def test_a_torch_file_of_something_else(path, value, message, is_zip):
    assert_refused(path, torch_bytes(value, is_zip), f"^{message}$")


def test_an_npz_and_a_safetensors_file_of_nothing(path):
    assert_refused(path, safetensors_of({}), "^it does not hold tensors by name$")
    assert_refused(path, npz_bytes({}), "not hold tensors|something other than tensors")


def test_a_sparse_tensor(path):
    assert_refused(path, torch_bytes({"a": torch.eye(3).to_sparse()}), "^a is not a plain tensor$")


def test_a_tensor_without_data(path):
    content = torch_bytes({"a": torch.empty(3, device="meta")})
    assert_refused(path, content, "^a is not a plain tensor$")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_archive(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "scripted.pt")
    content = (tmp_path / "scripted.pt").read_bytes()
    assert_refused(tmp_path / "weights", content, "not a weight file")


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.array(["rose", "lily"]), "^a does not hold numbers$"),
        (np.array([b"rose"]), "^a does not hold numbers$"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "^a does not hold numbers$"),
        (np.zeros(2, dtype=[("x", "f4"), ("y", "f4")]), "^a does not hold numbers$"),
        (np.array([{"a": 1}, None], dtype=object), r"\.npz archive"),
    ],
    ids=["text", "bytes", "dates", "structured", "objects"],
)
def test_an_npz_of_other_arrays(path, array, match):
    buffer = io.BytesIO()
    np.savez(buffer, b=np.zeros(3), a=array)
    assert_refused(path, buffer.getvalue(), match)


def test_an_npz_with_a_file_that_is_no_array(path):
    buffer = io.BytesIO(npz_bytes(tensors()))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("note", "made by hand")
    assert_refused(path, buffer.getvalue(), "^note does not hold numbers$")


@pytest.mark.parametrize(
    "content",
    [
        safetensors_of(b"{"),
        safetensors_of(b"{}" * 3),
        safetensors_of({"a": 3}),
        safetensors_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)),
        safetensors_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(12)),
        safetensors_of({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors_of({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors_of({"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        b"\xff" * 8 + b"{" + bytes(64),
    ],
)
def test_a_safetensors_file_that_contradicts_itself(path, content):
    assert_refused(path, content, "damaged or truncated safetensors file; copy it again$")


# --- Nothing in a file is run ---------------------------------------------------------------------


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple:
        return open, (self.target, "w")


def npz_of_objects(value: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{"blocks.0.attn.qkv.weight": np.array([value], dtype=object)})
    return buffer.getvalue()


BOMBS = {
    "torch": lambda bomb: torch_bytes({**tensors(), "bomb": bomb}),
    "torch, in a wrapper": lambda bomb: torch_bytes({"model": tensors(), "args": bomb}),
    "torch, alone": torch_bytes,
    "torch before 1.6": lambda bomb: torch_bytes({**tensors(), "bomb": bomb}, is_zip=False),
    **{
        f"pickle, protocol {n}": lambda bomb, n=n: pickle.dumps({"bomb": bomb}, protocol=n)
        for n in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "npz": npz_of_objects,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_that_would_run_code_is_not_run(tmp_path, kind):
    target = tmp_path / "made by the file"
    content = BOMBS[kind](Bomb(target))
    assert_refused(tmp_path / "weights", content, f"^({UNSAFE}|{NEITHER}|it is a damaged)")
    assert not target.exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_those_pickles_would_run_code(tmp_path):
    # Else the test above would prove nothing.
    for kind, write in BOMBS.items():
        target = tmp_path / kind
        buffer = io.BytesIO(write(Bomb(target)))
        if kind.startswith("torch"):
            torch.load(buffer, weights_only=False)
        elif kind == "npz":
            np.load(buffer, allow_pickle=True)["blocks.0.attn.qkv.weight"]
        else:
            pickle.load(buffer)
        assert target.exists(), kind


@every_torch_kind
@pytest.mark.parametrize(
    "value",
    [nn.Linear(2, 2), {"model": tensors(), "args": Namespace(lr=0.1)}],
    ids=["module", "args"],
)
def test_objects_are_refused_with_what_to_do(path, value, is_zip):
    message = assert_refused(path, torch_bytes(value, is_zip), f"^{UNSAFE}")
    assert message.endswith("which was not loaded; save its state dict alone")


# --- Damaged files --------------------------------------------------------------------------------


@given(kind=st.sampled_from(sorted(KINDS)), where=st.floats(0, 1, exclude_max=True))
@settings(SETTINGS, max_examples=400)
def test_a_truncated_file_is_refused(path, kind, where):
    content = intact(kind)
    assert_refused(path, content[: int(where * len(content))], "^it ")


@pytest.mark.parametrize("left", [0.3, 0.5, 0.9, 0.99])
@every_kind
def test_a_truncated_file_is_said_to_be_damaged(path, kind, left):
    large = {"blocks.0.attn.qkv.weight": torch.arange(10000.0)}
    content = KINDS[kind](large)
    assert_refused(path, content[: int(left * len(content))], "damaged.*copy it again$")


@st.composite
def damages(draw) -> tuple[str, bytes]:
    """A kind, and its file with one bit turned over or a run of zeros, as disks and copies do."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    content = bytearray(intact(kind))
    start = draw(st.integers(0, len(content) - 1))
    if draw(st.booleans()):
        content[start] ^= 1 << draw(st.integers(0, 7))
    else:
        stop = min(len(content), start + draw(st.integers(1, 200)))
        content[start:stop] = bytes(stop - start)
    return kind, bytes(content)


def read_if_possible(path: Path, content: bytes) -> dict[str, Tensor]:
    """What is read; nothing if it is refused."""
    try:
        return read(path, content)
    except WeightsError:
        return {}


@given(damaged=damages())
@settings(SETTINGS, max_examples=1000)
def test_a_damaged_file_is_refused_or_read_and_nothing_else(path, damaged):
    kind, content = damaged
    given_tensors = read_if_possible(path, content)
    assert all(isinstance(value, Tensor) for value in given_tensors.values())
    if kind in NPZ:  # each array has a checksum; safetensors has none
        assert_equal(given_tensors, {key: tensors()[key] for key in given_tensors})


def flipped(content: bytes, value: Tensor) -> bytes:
    """`content` with one bit turned over amid the stored numbers of `value`."""
    start = content.index(value.numpy().tobytes())
    damaged = bytearray(content)
    damaged[start + 4 * value.numel() // 2] ^= 1
    return bytes(damaged)


@pytest.mark.parametrize("kind", ["npz", "torch"])
def test_a_damaged_number_in_an_archive_is_refused(path, kind):
    # Both are zip archives with a checksum of every entry.
    content = flipped(intact(kind), tensors()["blocks.0.attn.qkv.weight"])
    assert_refused(path, content, "damaged.*copy it again$")


def central_directory(content: bytes, offset: int, value: int) -> bytes:
    """`content` with a byte of the archive's first directory entry set."""
    damaged = bytearray(content)
    damaged[content.index(b"PK\x01\x02") + offset] = value
    return bytes(damaged)


ODD_ENTRIES = {
    "version": (6, 0xFF),
    "encrypted": (8, 0x01),
    "patched": (8, 0x20),
    "strongly encrypted": (8, 0x40),
    "unknown compression": (10, 0x63),
}


@pytest.mark.parametrize("entry", ODD_ENTRIES)
@pytest.mark.parametrize("kind", NPZ)
def test_an_npz_of_odd_entries(path, kind, entry):
    content = central_directory(intact(kind), *ODD_ENTRIES[entry])
    assert_refused(path, content, "damaged.*copy it again$")


@pytest.mark.parametrize("entry", ["version", "unknown compression"])
def test_a_torch_archive_of_odd_entries(path, entry):
    content = central_directory(intact("torch"), *ODD_ENTRIES[entry])
    assert_refused(path, content, "damaged.*copy it again$")
