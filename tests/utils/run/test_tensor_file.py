"""utils/run/tensor_file.py: equal payloads are equal bytes, and no damage goes unnoticed."""

import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import files_up_to, sealed
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import InputError
from utils.run.tensor_file import (
    MAX_DEPTH,
    _SealingWriter,
    canonical,
    is_whole,
    load_archive,
    save_archive,
    write_archive,
)

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
NESTED = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


def archive_of(payload: dict) -> bytes:
    buffer = io.BytesIO()
    write_archive(buffer, payload)
    return buffer.getvalue()


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def small() -> dict:
    """A payload with everything in it; its objects are all new."""
    text = '{"step": 3, "names": ["rose", "lily", "rose"], "none": null, "rate": 0.25, "on": true}'
    return {**json.loads(text), "weights": {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(3)}}


def is_noticed(content: bytes) -> bool:
    try:
        return not is_whole(io.BytesIO(content))
    except EOFError:
        return True


class TestWriter:
    @settings(max_examples=200)
    @given(
        data=st.binary(min_size=2, max_size=300),
        cuts=st.lists(st.integers(0, 300), max_size=20),
        kind=st.sampled_from((bytes, bytearray, memoryview)),
    )
    def test_gives_the_same_bytes_however_it_is_fed(self, data, cuts, kind):
        file = io.BytesIO()
        writer = _SealingWriter(file)
        ends = [*sorted(min(cut, len(data)) for cut in cuts), len(data)]
        written = [
            writer.write(kind(data[begin:end]))
            for begin, end in zip([0, *ends], ends, strict=False)
        ]
        writer.flush()
        writer.seal()
        assert sum(written) == len(data)
        assert file.getvalue() == sealed(data)

    def test_counts_bytes_of_any_memory(self):
        file = io.BytesIO()
        writer = _SealingWriter(file)
        words = torch.arange(5, dtype=torch.int32).numpy()
        assert writer.write(memoryview(words)) == 20
        writer.seal()
        assert file.getvalue() == sealed(words.tobytes())


class TestBytes:
    def test_are_those_of_torch_with_their_sha256_as_zip_comment(self, tmp_path):
        path = tmp_path / "deep" / "a.bin"
        save_archive(path, small())
        content = path.read_bytes()
        assert content == sealed(torch_bytes(canonical(small()))) == archive_of(small())
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert archive.comment == hashlib.sha256(content[:-64]).hexdigest().encode()
        assert [p.name for p in path.parent.iterdir()] == ["a.bin"]

    @settings(max_examples=40)
    @given(payload=st.dictionaries(st.text(), NESTED, max_size=5))
    def test_of_plain_data_survive_loading_and_saving(self, tmp_path_factory, payload):
        """Loading makes new objects, of which none is another's."""
        path = tmp_path_factory.getbasetemp() / "plain.bin"
        save_archive(path, payload)
        first = path.read_bytes()
        loaded = load_archive(path)
        assert loaded == payload
        assert archive_of(loaded) == first
        assert archive_of(json.loads(json.dumps(payload))) == first

    @pytest.mark.parametrize(
        "view",
        [
            torch.arange(100.0)[:6].view(2, 3),
            torch.arange(6.0).view(3, 2).t().contiguous().t().t(),
            torch.arange(12.0).view(6, 2).t()[0].view(2, 3),
            torch.arange(100.0)[50:56].view(2, 3),
            torch.arange(6.0).view(2, 3).requires_grad_(),
            torch.nn.Parameter(torch.arange(6.0).view(2, 3)),
        ],
        ids=["slice", "strides", "strided", "later", "graph", "parameter"],
    )
    def test_of_views_are_of_their_own_memory_alone(self, view):
        fresh = torch.tensor(view.tolist())
        content = archive_of({"w": view})
        assert content == archive_of({"w": fresh})
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (size,) = [i.file_size for i in archive.infolist() if "/data/" in i.filename]
        assert size == fresh.nbytes

    def test_of_a_tensor_with_its_own_memory_need_no_copy(self):
        weights = torch.ones(3)
        assert canonical({"w": weights})["w"].data_ptr() == weights.data_ptr()

    def test_do_not_depend_on_strides_that_mean_nothing(self):
        one = torch.arange(3.0).view(3, 1).t()
        other = torch.arange(3.0).view(1, 3)
        assert torch.equal(one, other)
        assert archive_of({"w": one}) == archive_of({"w": other})

    def test_do_not_depend_on_which_tensors_are_one_object(self):
        weights = torch.ones(3)
        one = archive_of({"a": weights, "b": weights})
        assert one == archive_of({"a": weights, "b": weights.clone()})


class TestDamage:
    def test_of_any_single_bit_is_noticed(self):
        whole = archive_of(small())
        assert not is_noticed(whole)
        for position in range(len(whole)):
            for bit in range(8):
                content = bytearray(whole)
                content[position] ^= 1 << bit
                assert is_noticed(content), (position, bit)

    def test_by_truncation_is_noticed(self):
        whole = archive_of(small())
        assert all(is_noticed(whole[:size]) for size in range(len(whole)))

    @settings(max_examples=200)
    @given(data=st.data())
    def test_of_any_other_kind_is_noticed(self, data):
        whole = archive_of(small())
        begin = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(begin, len(whole)))
        between = data.draw(
            st.just(bytes(end - begin)) | st.binary(max_size=80) | st.just(whole[begin:end] * 2)
        )
        content = whole[:begin] + between + whole[end:]
        assert is_noticed(content) is (content != whole)

    @settings(max_examples=100)
    @given(content=st.binary(max_size=200))
    def test_of_anything_else_is_a_missing_checksum(self, content):
        with pytest.raises(EOFError, match=r"^$"):
            is_whole(io.BytesIO(content))

    def test_beyond_a_block_is_noticed(self):
        """The checksum is taken block by block."""
        whole = archive_of({"w": torch.zeros(700_000)})
        assert len(whole) > 2 << 20
        assert not is_noticed(whole)
        for position in (100, 1 << 20, (1 << 20) + 1, (2 << 20) - 1, 2 << 20, len(whole) - 200):
            content = bytearray(whole)
            content[position] ^= 1
            assert is_noticed(content)


class TestLoading:
    def test_gives_back_what_was_saved(self, tmp_path):
        save_archive(tmp_path / "a", small())
        loaded = load_archive(tmp_path / "a")
        expected = small()
        weights, expected_weights = loaded.pop("weights"), expected.pop("weights")
        assert loaded == expected
        assert weights.keys() == expected_weights.keys()
        for name, tensor in expected_weights.items():
            assert torch.equal(weights[name], tensor)

    def test_of_a_damaged_file_is_one_line_that_names_it(self, tmp_path):
        path = tmp_path / "a.bin"
        save_archive(path, small())
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(InputError, match=r"^checkpoint .*a\.bin is truncated, damaged or not"):
            load_archive(path)
        path.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
        with pytest.raises(InputError, match=r"^checkpoint .*a\.bin is damaged: its bytes"):
            load_archive(path)

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_runs_no_code(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        for content in (torch_bytes({"a": Bomb()}), pickle.dumps(1) + torch_bytes([])[-22:]):
            (tmp_path / "bomb").write_bytes(sealed(content))
            with pytest.raises(InputError, match=r"bomb holds something other than tensors"):
                load_archive(tmp_path / "bomb")
        assert not (tmp_path / "ran").exists()


def holding_itself() -> dict:
    payload: dict = {"a": {}}
    payload["a"]["again"] = payload
    return payload


def sharing(times: int = 60) -> dict:
    """Few lists that are 2 to the `times` when each is looked at wherever it stands."""
    value: list = []
    for _ in range(times):
        value = [value, value]
    return {"a": value}


def nested(times: int) -> dict:
    value: dict = {}
    for _ in range(times):
        value = {"a": value}
    return value


class TestSealedByAnybody:
    @pytest.mark.parametrize(
        "payload",
        [
            holding_itself(),
            sharing(),
            nested(MAX_DEPTH + 1),
            {"a": 10**5000},
            {"a": torch.zeros(1).expand(10**12)},
            {"a": torch.zeros(1, device="meta")},
            {"a": torch.eye(2).to_sparse()},
            {"a": {1, 2}},
            {"a": b"bytes"},
        ],
        ids=["itself", "shared", "deep", "int", "expanded", "meta", "sparse", "set", "bytes"],
    )
    def test_anything_but_a_plain_tree_is_refused_at_once(self, tmp_path, payload):
        (tmp_path / "odd").write_bytes(sealed(torch_bytes(payload)))
        with pytest.raises(InputError, match=r"odd holds something other than tensors") as error:
            load_archive(tmp_path / "odd")
        assert "\n" not in str(error.value)

    def test_a_plain_tree_of_every_kind_is_read(self, tmp_path):
        plain = {"a": [None, True, 2**200, -1.5, "x", [], {}, (), ()], 3: nested(MAX_DEPTH - 2)}
        (tmp_path / "plain").write_bytes(sealed(torch_bytes(plain)))
        assert load_archive(tmp_path / "plain") == plain


def old_file(folder: Path) -> Path:
    path = folder / "a.bin"
    save_archive(path, {"step": 1})
    return path


class TestFailure:
    """Of a write: the old file stays, and nothing beside it."""

    def check(self, path: Path) -> None:
        assert load_archive(path) == {"step": 1}
        assert [p.name for p in path.parent.iterdir()] == ["a.bin"]

    def test_of_what_cannot_be_written(self, tmp_path):
        path = old_file(tmp_path)
        with pytest.raises((pickle.PicklingError, AttributeError), match=r"lambda"):
            save_archive(path, {"weights": torch.ones(3), "code": lambda: None})
        self.check(path)

    @pytest.mark.parametrize(
        "room",
        [0, 1000, 50_000, 150_000, 200_200],
    )
    def test_of_a_disk_that_is_full(self, tmp_path, room):
        path = old_file(tmp_path)
        payload = {"a": torch.zeros(20_000), "b": torch.zeros(30_000)}
        try:
            with pytest.raises(OSError, match=r"too large"), files_up_to(room):
                save_archive(path, payload)
        finally:
            self.check(path)
        save_archive(path, payload)
        assert load_archive(path).keys() == payload.keys()
