"""Weight files: what is read, and that a damaged or hostile one is refused."""

import contextlib
import copy
import io
import json
import pickle
import warnings
import zipfile
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

from models.pretrained.formats import MAX_DEPTH, WeightsError, read_weight_file

SETTINGS = settings(max_examples=200)


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
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_types_are_left_as_they_are(path, kind, dtype):
    if kind in NPZ and dtype == torch.bfloat16:
        dtype = torch.float64  # NumPy has no bfloat16
    converted = {key: value.to(dtype) for key, value in tensors().items()}
    assert_equal(read(path, KINDS[kind](converted)), converted)


def test_arrays_in_fortran_order_and_single_numbers(path):
    arrays = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(3.0)}
    assert_equal(read(path, npz_bytes(arrays)), arrays)


def test_parameters_and_views_of_one_tensor(path):
    whole = torch.arange(6.0)
    saved = OrderedDict(a=nn.Parameter(whole[:4]), b=whole[2:], c=whole.view(2, 3).T)
    assert_equal({**read(path, torch_bytes(saved))}, {key: t.detach() for key, t in saved.items()})


@every_torch_kind
def test_names_in_dictionaries_are_joined(path, is_zip):
    payload = {"epoch": 3, "a": {"model": tensors(), 7: tensors()}, "optimizer": {"lr": 0.1}}
    expected = {f"a.model.{key}": value for key, value in tensors().items()}
    assert_equal(read(path, torch_bytes(payload, is_zip)), expected)


@every_torch_kind
def test_a_dictionary_that_holds_itself_is_read_once_and_a_deep_one_not_to_its_end(path, is_zip):
    round_about: dict = {"a": tensors()}
    round_about["self"] = round_about["list"] = {"again": round_about, "a": round_about["a"]}
    assert {key.partition(".")[0] for key in read(path, torch_bytes(round_about, is_zip))} == {"a"}
    deep: dict = {"w": torch.zeros(1)}
    for _ in range(300):
        deep = {"d": deep, "w": torch.zeros(1)}
    assert len(read(path, torch_bytes(deep, is_zip))) == MAX_DEPTH + 1


def test_what_is_not_a_tensor_is_left_out_and_a_tensor_is_not_a_wrapper(path):
    saved = {**tensors(), "model": torch.zeros(2)}
    more = {"epoch": 3, "classes": ["a"], 7: torch.zeros(1)}
    assert_equal(read(path, torch_bytes({**saved, **more})), saved)


# --- What is not a weight file --------------------------------------------------------------------

NEITHER = "it is neither .npz, safetensors nor a PyTorch file"
UNSAFE = r"it holds something other than tensors and plain data( \([\w.]+\))?, which was not loaded"


def assert_refused(path: Path, content: bytes, match: str) -> None:
    """Check that it is refused in one line."""
    with pytest.raises(WeightsError, match=match) as error:
        read(path, content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "known"),
    [
        (b"", " but empty; fetch it again"),
        (b"\x00" * 64, ""),
        (b"\x93NUMPY\x01\x00", ""),
        (b"<!DOCTYPE html><html>", " but a web page; fetch the weights in a browser"),
        (b"\n\n<html><title>Sign in", " but a web page; fetch the weights in a browser"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            " but a pointer of Git LFS; fetch the weights with git lfs pull",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_is_known(path, content, known):
    assert_refused(path, content, f"^{NEITHER}{known}$")


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="directory"):
        read_weight_file(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_weight_file(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["readme.txt", "data.pkl", "archive/data.pkl"])
def test_an_archive_of_another_kind_is_refused(path, name):
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
        ({"model": {}}, "it does not hold tensors by name"),
        ({"a": 3, 1: torch.zeros(3)}, "it does not hold tensors by name"),
    ],
)
def test_a_torch_file_of_something_else_is_refused(path, value, message, is_zip):
    assert_refused(path, torch_bytes(value, is_zip), f"^{message}$")


def test_an_npz_and_a_safetensors_file_of_nothing_are_refused(path):
    assert_refused(path, safetensors_of({}), "^it does not hold tensors by name$")
    assert_refused(path, npz_bytes({}), "not hold tensors|something other than tensors")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "scripted.pt")
    content = (tmp_path / "scripted.pt").read_bytes()
    assert_refused(tmp_path / "weights", content, "not a weight file")


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.array(["rose", "lily"]), "^a does not hold numbers$"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "^a does not hold numbers$"),
        (np.zeros(2, dtype=[("x", "f4"), ("y", "f4")]), "^a does not hold numbers$"),
        (np.array([{"a": 1}, None], dtype=object), r"\.npz archive"),
    ],
    ids=["text", "dates", "structured", "objects"],
)
def test_an_npz_of_other_arrays_is_refused(path, array, match):
    buffer = io.BytesIO()
    np.savez(buffer, b=np.zeros(3), a=array)
    assert_refused(path, buffer.getvalue(), match)


def test_an_npz_with_a_file_that_is_not_an_array_is_refused(path):
    buffer = io.BytesIO(npz_bytes(tensors()))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("note", "made by hand")
    assert_refused(path, buffer.getvalue(), "^note does not hold numbers$")


@pytest.mark.parametrize(
    "content",
    [
        b'weights:{"a": 1}',  # a text that could be one
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
def test_a_safetensors_file_that_contradicts_itself_is_refused(path, content):
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


# --- Damaged files --------------------------------------------------------------------------------


@given(kind=st.sampled_from(sorted(KINDS)), where=st.floats(0, 1, exclude_max=True))
@SETTINGS
def test_a_truncated_file_is_refused(path, kind, where):
    content = intact(kind)
    assert_refused(path, content[: int(where * len(content))], "^it ")


@pytest.mark.parametrize("left", [0.3, 0.99])
@every_kind
def test_a_truncated_file_is_said_to_be_damaged(path, kind, left):
    content = KINDS[kind]({"blocks.0.attn.qkv.weight": torch.arange(10000.0)})
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


@given(damaged=damages())
@settings(SETTINGS, max_examples=500)
def test_a_damaged_file_is_refused_or_read_and_nothing_else(path, damaged):
    kind, content = damaged
    given_tensors = {}
    with contextlib.suppress(WeightsError):
        given_tensors = read(path, content)
    assert all(isinstance(value, Tensor) for value in given_tensors.values())
    if kind in NPZ:  # each array has a checksum; safetensors has none
        assert_equal(given_tensors, {key: tensors()[key] for key in given_tensors})


@pytest.mark.parametrize("kind", ["npz", "torch"])
def test_a_damaged_number_in_an_archive_is_refused(path, kind):
    # Both are zip archives with a checksum of every entry.
    content = bytearray(intact(kind))
    content[content.index(tensors()["blocks.0.attn.qkv.weight"].numpy().tobytes()) + 48] ^= 1
    assert_refused(path, bytes(content), "damaged.*copy it again$")


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


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        *((kind, entry) for kind in NPZ for entry in ODD_ENTRIES),
        ("torch", "version"),
        ("torch", "unknown compression"),
    ],
)
def test_an_archive_of_odd_entries_is_refused(path, kind, entry):
    content = central_directory(intact(kind), *ODD_ENTRIES[entry])
    assert_refused(path, content, "damaged.*copy it again$")


# --- Small files that ask for much ----------------------------------------------------------------


def repeated(content: bytes, times: int) -> bytes:
    """An archive with the first entry listed many times, as if each had bytes of its own."""
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        first, number = archive.infolist()[0], len(archive.infolist())
        for i in range(number, number + times):
            entry = copy.copy(first)
            entry.filename = f"{i}{first.filename}"
            archive.filelist.append(entry)
        archive._didModify = True
    return buffer.getvalue()


def deflated(content: bytes) -> bytes:
    """The same archive, its entries compressed."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as stored,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for entry in sorted(stored.infolist(), key=lambda entry: -entry.file_size):
            archive.writestr(entry.filename, stored.read(entry))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        lambda: npz_bytes({"a": torch.zeros(2**24)}, np.savez_compressed),
        lambda: deflated(torch_bytes({"a": torch.zeros(2**24)})),
    ],
    ids=["npz", "torch"],
)
def test_an_archive_that_unpacks_to_gigabytes_is_refused_and_one_of_zeros_is_read(path, content):
    zeros = content()
    assert len(zeros) < 10**6
    assert read(path, zeros)["a"].count_nonzero() == 0
    bomb = repeated(zeros, 160)
    assert_refused(path, bomb, r"^its 0\.\d MB would unpack to 1\d\.\d GB; save it uncompressed$")


def npz_of_header(header: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        text = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        archive.writestr("a.npy", text + bytes(64))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "shape",
    [
        *("(1000000000000,)", "(4611686018427387904, 4611686018427387904)", "(17,)", "(-1,)"),
        *("(2, -8)", "(1.5,)", "('a',)", "None", "(" * 3000, "-" * 5000 + "1", "9" * 5000),
        "(" + "9" * 4000 + ",)",
    ],
    ids=lambda shape: shape[:12],
)
def test_an_npz_array_larger_than_its_entry_or_of_no_shape_is_damaged(path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n"
    assert_refused(path, npz_of_header(header.encode()), r"damaged or truncated \.npz archive")


@pytest.mark.parametrize("kind", ["torch", "torch before 1.6"])
def test_a_tensor_that_claims_a_terabyte_is_damaged(path, kind):
    content, more = KINDS[kind]({"a": torch.zeros(4)}), b"\x8a\x06" + (2**40).to_bytes(6, "little")
    if kind == "torch":
        buffer = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(content)) as old,
            zipfile.ZipFile(buffer, "w") as archive,
        ):
            for entry in old.infolist():
                data = old.read(entry)
                archive.writestr(entry.filename, data.replace(b"K\x04t", more + b"t"))
                assert not entry.filename.endswith("data.pkl") or b"K\x04t" in data
        content = buffer.getvalue()
    else:
        assert b"K\x04Nt" in content
        content = content.replace(b"K\x04Nt", more + b"Nt")
    assert_refused(path, content, "damaged, truncated or not a weight file")
