"""utils/run/checkpoint.py: what is saved comes back, and nothing else does."""

import hashlib
import io
import os
import pickle
import pickletools
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import sealed, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from models.build import build_model
from models.configs import get_config
from utils.data.presets import DATA_RULES
from utils.errors import InputError
from utils.run.checkpoint import (
    Checkpoint,
    checkpoint_id,
    is_checkpoint,
    load_checkpoint,
)


def small(**changes) -> Checkpoint:
    """A checkpoint of a few bytes that means nothing but has every field."""
    values = {
        "model_type": "testing",
        "model_config": {"img_size": 32, "patch_size": 16, "pool": "token"},
        "dataset": "synthetic",
        "classes": ["rose", "lily"],
        "img_size": 32,
        "preset": "transfg",
        "carving": {"fraction": 0.25, "seed": 42},
        "class_depth": 2,
        "data_rules": DATA_RULES,
        "trained_images": torch.tensor([-5, 3, 1 << 60]),
        "val_images": torch.tensor([7]),
        "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "step": 3,
        "metrics": {"accuracy": 0.5, "step": 3, "split": "val"},
        "config_hash": "0" * 64,
        "state_dict": {"w": torch.arange(6.0).view(2, 3), "b": torch.zeros(3)},
        "public_weights": {"name": "dinov2-s14", "licence": "apache-2.0"},
    }
    return Checkpoint(**{**values, **changes})


def payload_of(checkpoint: Checkpoint, **changes) -> dict:
    """What a file of ours holds."""
    return {"format": "fine-vit checkpoint", "version": 3, **checkpoint._asdict(), **changes}


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A checkpoint of the real `testing` model; only to be read."""
    model_config = get_config("testing", 32)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build_model(model_config, 2)
    path = tmp_path_factory.mktemp("whole") / "ckpt.bin"
    write_checkpoint(
        path, small(model_config=model_config.to_dict(), state_dict=model.state_dict())
    )
    return path


class TestRoundTrip:
    def test_gives_back_every_field(self, tmp_path):
        saved = small()
        write_checkpoint(tmp_path / "deep" / "ckpt.bin", saved)
        loaded = load_checkpoint(tmp_path / "deep" / "ckpt.bin")
        for field in Checkpoint._fields:
            if field.endswith("_images"):
                assert torch.equal(getattr(loaded, field), getattr(saved, field))
            elif field != "state_dict":
                assert getattr(loaded, field) == getattr(saved, field)
        assert loaded.state_dict.keys() == saved.state_dict.keys()
        for key, tensor in saved.state_dict.items():
            assert torch.equal(loaded.state_dict[key], tensor)
            assert loaded.state_dict[key].dtype == tensor.dtype

    def test_of_a_real_model_gives_equal_logits(self, whole):
        loaded = load_checkpoint(whole)
        model = build_model(get_config("testing", 32), 2)
        model.load_state_dict(loaded.state_dict)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            original = build_model(get_config("testing", 32), 2)
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        assert torch.equal(model(images).features, original(images).features)


class TestBytes:
    def save(self, path: Path, checkpoint: Checkpoint) -> bytes:
        write_checkpoint(path, checkpoint)
        return path.read_bytes()

    def test_of_equal_checkpoints_are_equal_whatever_the_name(self, tmp_path):
        one = self.save(tmp_path / "a" / "ckpt.bin", small())
        assert one == self.save(tmp_path / "other name.pt", small())
        assert one != self.save(tmp_path / "c", small(step=4))

    def test_survive_loading_and_saving(self, tmp_path, whole):
        assert self.save(tmp_path / "again", load_checkpoint(whole)) == whole.read_bytes()

    def test_hold_no_name_and_no_time(self, tmp_path):
        path = tmp_path / "a-telling-name.bin"
        data = self.save(path, small())
        assert b"telling" not in data
        with zipfile.ZipFile(path) as archive:
            assert {info.date_time[0] for info in archive.infolist()} <= {1980, 2011}

    def test_load_with_torch_alone_and_hold_plain_values_only(self, whole):
        with zipfile.ZipFile(whole) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
            operations = list(pickletools.genops(archive.read(name)))
        assert {argument for code, argument, _ in operations if "GLOBAL" in code.name} == {
            "torch._utils _rebuild_tensor_v2",
            "torch FloatStorage",
            "torch LongStorage",
            "collections OrderedDict",
        }
        payload = torch.load(whole, weights_only=True)

        def check(value):
            if isinstance(value, dict):
                check(list(value))
                check(list(value.values()))
            elif isinstance(value, list | tuple):
                for item in value:
                    check(item)
            elif isinstance(value, torch.Tensor):
                assert value.device.type == "cpu"
            else:
                assert value is None or type(value) in (str, int, float, bool)

        check(payload)
        assert payload["format"] == "fine-vit checkpoint"


class TestDamage:
    def refuse(self, path: Path, content: bytes, message: str = "is (truncated|damaged)") -> None:
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"checkpoint .*{path.name} {message}") as caught:
            load_checkpoint(path)
        assert len(str(caught.value).splitlines()) == 1

    def test_a_flipped_bit_anywhere(self, tmp_path, whole):
        data, draw = whole.read_bytes(), random.Random(0)
        for _ in range(200):
            content = bytearray(data)
            content[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            self.refuse(tmp_path / "flipped.bin", content)

    def test_a_missing_file_and_a_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"checkpoint .*absent cannot be read \(No such file"):
            load_checkpoint(tmp_path / "absent")
        with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
            load_checkpoint(tmp_path)


class Bomb:
    """Unpickling it makes a file: the code that a malicious checkpoint would run."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class TestForeign:
    def refuse(self, path: Path, content: bytes, message: str) -> None:
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize("value", [{"state_dict": {"w": torch.zeros(2)}}, torch.zeros(2), []])
    def test_files_of_torch_have_no_checksum(self, tmp_path, value):
        self.refuse(tmp_path / "theirs.pth", torch_bytes(value), "not written by train.py")

    @pytest.mark.parametrize("value", [{"state_dict": {}}, torch.zeros(2), [], "x", None, {}])
    def test_files_of_torch_are_foreign_even_with_a_checksum(self, tmp_path, value):
        content = sealed(torch_bytes(value))
        self.refuse(tmp_path / "theirs.pth", content, "was not written by train.py")

    @pytest.mark.parametrize("how", ["pickle", "torch", "old torch", "sealed", "sealed in ours"])
    def test_code_is_not_run(self, tmp_path, how):
        mark = tmp_path / "code ran"
        bomb = Bomb(mark)
        buffer = io.BytesIO()
        torch.save(bomb, buffer, _use_new_zipfile_serialization=False)
        content = {
            "pickle": pickle.dumps(bomb),
            "torch": torch_bytes(bomb),
            "old torch": buffer.getvalue(),
            "sealed": sealed(torch_bytes(bomb)),
            "sealed in ours": sealed(torch_bytes(payload_of(small(), metrics={"a": bomb}))),
        }[how]
        message = "holds something other than tensors" if "sealed" in how else "checksum is missing"
        self.refuse(tmp_path / "bomb.bin", content, message)
        assert not mark.exists()

    def test_other_objects_are_refused(self, tmp_path):
        for value in (np.float64(1), Path("x"), random.Random(0)):
            content = sealed(torch_bytes(payload_of(small(), metrics={"value": value})))
            (tmp_path / "c").write_bytes(content)
            with pytest.raises(InputError, match=r"checkpoint .*/c "):
                load_checkpoint(tmp_path / "c")

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_a_sealed_file_of_any_content_is_refused_or_read(self, tmp_path):
        """A seal proves nothing about who made it: what is inside may be as odd as it likes."""
        archive = torch_bytes(payload_of(small()))
        draw, path, failures = random.Random(0), tmp_path / "odd.bin", set()
        for _ in range(600):
            content, start = bytearray(archive), draw.randrange(len(archive) - 22)
            if draw.random() < 0.5:
                content[start] ^= 1 << draw.randrange(8)
            else:
                del content[start : min(start + draw.randrange(1, 30), len(archive) - 22)]
            path.write_bytes(sealed(bytes(content)))
            try:
                load_checkpoint(path)
            except InputError:
                pass
            except Exception as error:  # noqa: BLE001 - collected to be shown together
                failures.add(type(error).__name__)
        assert failures == set()


class TestFields:
    def refuse(self, tmp_path: Path, message: str, **changes) -> None:
        path = tmp_path / "ckpt.bin"
        payload = {k: v for k, v in payload_of(small(), **changes).items() if v is not ...}
        path.write_bytes(sealed(torch_bytes(payload)))
        with pytest.raises(InputError, match=message):
            load_checkpoint(path)

    def test_of_ours_are_accepted_when_sealed_by_hand(self, tmp_path):
        (tmp_path / "c").write_bytes(sealed(torch_bytes(payload_of(small()))))
        assert load_checkpoint(tmp_path / "c").step == 3

    def test_format_and_version(self, tmp_path):
        self.refuse(tmp_path, r"ckpt.bin was not written by train.py", format="other")
        self.refuse(tmp_path, r"ckpt.bin was not written by train.py", format=...)
        said = r"ckpt.bin is a snapshot, for --resume; name a run's ckpt.bin$"
        self.refuse(tmp_path, said, format="fine-vit state")
        self.refuse(tmp_path, r"has format version 4, this code reads 1, 2, 3;", version=4)
        self.refuse(tmp_path, r"has format version None, this code reads 1, 2, 3;", version=...)
        self.refuse(tmp_path, r"has format version \[2\], this code", version=[2])

    @pytest.mark.parametrize("version", [1, 2])
    def test_of_an_older_version_is_read_as_it_was_meant(self, tmp_path, version):
        payload = payload_of(small(), version=version)
        newer = (
            "class_depth",
            "data_rules",
            "trained_images",
            "val_images",
            "public_weights",
            "head_images",
        )
        for field in (*newer, *(("preset", "carving") if version == 1 else ())):
            del payload[field]
        (tmp_path / "c").write_bytes(sealed(torch_bytes(payload)))
        read = load_checkpoint(tmp_path / "c")
        expected = ("vit", {}) if version == 1 else ("transfg", {"fraction": 0.25, "seed": 42})
        assert (read.preset, read.carving, read.step, read.class_depth) == (*expected, 3, 0)
        assert [len(images) for images in read.known_images] == [0, 0, 0]
        assert read.public_weights == {}
        assert "version 1 of the rules for data, this code has version 2" in read.older_rules

    def test_say_which_images_are_known(self, tmp_path):
        (tmp_path / "c").write_bytes(sealed(torch_bytes(payload_of(small()))))
        known = load_checkpoint(tmp_path / "c").known_images
        assert (known.val.tolist(), known.trained.tolist()) == ([7], [2**64 - 5, 3, 1 << 60])
        assert load_checkpoint(tmp_path / "c").older_rules == ""

    @pytest.mark.parametrize("field", Checkpoint._fields)
    def test_missing_or_of_another_type(self, tmp_path, field):
        missing = () if field in Checkpoint._field_defaults else (...,)
        for value in (*missing, None, 1.5):
            self.refuse(tmp_path, f"has no usable {field}; name another run's", **{field: value})

    @pytest.mark.parametrize(
        "changes",
        [
            {"normalization": {}},
            {"normalization": {"mean": [0.5] * 3}},
            {"normalization": {"mean": [0.5] * 2, "std": [0.5] * 3}},
            {"normalization": {"mean": "abc", "std": [0.5] * 3}},
            {"img_size": 0},
            {"img_size": 64},
            {"state_dict": {"w": 3}},
            {"normalization": {"mean": [float("nan")] * 3, "std": [0.5] * 3}},
            {"normalization": {"mean": [0.5] * 3, "std": [0.5, 0.5, 0.0]}},
            {"classes": ["rose", 3]},
            {"step": -1},
            {"class_depth": -1},
            {"data_rules": 0},
            {"trained_images": torch.zeros(2)},
            {"val_images": torch.zeros(2, 2, dtype=torch.int64)},
            {"preset": "square"},
            {"carving": {"fraction": 0.5}},
            {"carving": {"fraction": 1.5, "seed": 1}},
            {"carving": {"fraction": 0.5, "seed": "1"}},
        ],
        ids=lambda changes: str(changes)[:60],
    )
    def test_that_nobody_could_use(self, tmp_path, changes):
        """Found while loading, or it would be found after the first write, as a traceback."""
        self.refuse(tmp_path, f"ckpt.bin has no usable {next(iter(changes))}; name", **changes)


class TestIsCheckpoint:
    """What is ours and damaged must be refused as ours, not be taken for somebody else's."""

    def test_knows_its_own(self, tmp_path, whole):
        assert is_checkpoint(whole)
        write_checkpoint(tmp_path / "any name.pth", small())
        assert is_checkpoint(tmp_path / "any name.pth")
        long = small(classes=["x" * 50] * 500, metrics={"more": "y" * 10_000})
        write_checkpoint(tmp_path / "long", long)
        assert is_checkpoint(tmp_path / "long")

    @pytest.mark.parametrize("keep", [200, 1000, 0.5, -1, -64, -86])
    def test_knows_its_own_cut_short(self, tmp_path, whole, keep):
        data = whole.read_bytes()
        (tmp_path / "cut").write_bytes(data[: int(keep * len(data)) if keep == 0.5 else keep])
        assert is_checkpoint(tmp_path / "cut")

    def test_knows_its_own_with_a_bit_flipped(self, tmp_path, whole):
        """Anywhere but where it says so: what says nothing is refused for its checksums."""
        data = whole.read_bytes()
        generator = np.random.default_rng(0)
        positions = generator.integers(200, len(data), size=20).tolist()
        for position in [0, *positions, *range(len(data) - 86, len(data), 5)]:
            damaged = bytearray(data)
            damaged[position] ^= 4
            (tmp_path / "flipped").write_bytes(damaged)
            assert is_checkpoint(tmp_path / "flipped"), position

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"text",
            torch_bytes({"w": torch.zeros(3)}),
            b"PK\x05\x06" + bytes(18),
            torch_bytes({"state_dict": {"w": torch.zeros(2000)}, "classes": ["a"]}),
            torch_bytes({"format": "other checkpoint", "version": 1}),
        ],
        ids=["empty", "text", "state dict", "empty zip", "wrapped", "other format"],
    )
    def test_does_not_claim_what_others_wrote(self, tmp_path, content):
        (tmp_path / "other").write_bytes(content)
        assert not is_checkpoint(tmp_path / "other")

    def test_names_what_cannot_be_read(self, tmp_path):
        for path in (tmp_path / "absent", tmp_path):
            with pytest.raises(InputError, match=f"^{path} cannot be read "):
                is_checkpoint(path)


class TestCheckpointId:
    def plain(self, state_dict: dict[str, torch.Tensor]) -> str:
        """The formula of the contract, spelled out byte by byte."""
        codes = {torch.float32: "f", torch.int64: "q", torch.float64: "d", torch.uint8: "B"}
        data = b""
        for key in sorted(state_dict):
            tensor = state_dict[key]
            shape = (
                "(" + ", ".join(map(str, tensor.shape)) + ("," if tensor.ndim == 1 else "") + ")"
            )
            data += f"{key}|{tensor.dtype}|{shape}|".encode()
            values = tensor.flatten().tolist()
            data += struct.pack(f"<{len(values)}{codes[tensor.dtype]}", *values)
        return hashlib.sha256(data).hexdigest()[:12]

    @settings(max_examples=50)
    @given(data=st.data())
    def test_is_the_formula(self, data):
        dtypes = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8])
        shapes = st.lists(st.integers(0, 3), max_size=3)
        state_dict = {}
        for key in data.draw(st.lists(st.text(max_size=4), unique=True, max_size=4)):
            shape = data.draw(shapes)
            values = torch.arange(100)[: int(np.prod(shape))].reshape(shape)
            state_dict[key] = values.to(data.draw(dtypes))
        assert checkpoint_id(state_dict) == self.plain(state_dict)

    def test_ignores_order_and_layout(self):
        w, b = torch.arange(6.0).view(2, 3), torch.zeros(3)
        first = checkpoint_id({"w": w, "b": b})
        assert checkpoint_id({"b": b, "w": torch.nn.Parameter(w)}) == first
        assert checkpoint_id({"b": b, "w": w.t().contiguous().t()}) == first

    def test_changes_with_everything_else(self):
        w = torch.arange(6.0).view(2, 3)
        ids = {
            checkpoint_id(state_dict)
            for state_dict in (
                {"w": w},
                {"v": w},
                {"w": w.view(3, 2)},
                {"w": w.double()},
                {"w": w.int()},
                {"w": w + 1e-7},
                {"w": -w},
                {"w": w, "b": torch.zeros(0)},
                {"w": w.view(6)},
                {},
            )
        }
        assert len(ids) == 10
