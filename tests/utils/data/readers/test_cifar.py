"""utils/data/readers/cifar.py: pickles of Python 2, read exactly or refused, unpacked once."""

import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts_web import (
    CIFAR10_CLASSES,
    CIFAR100_CLASSES,
    write_cifar10,
    write_cifar100,
    write_pickle,
)
from PIL import Image

from utils.data.readers import cifar
from utils.data.readers.cifar import CIFAR10, CIFAR100
from utils.errors import InputError

SPLITS = ("train", "test")
KINDS = {
    "cifar-10-batches-py": (write_cifar10, CIFAR10),
    "cifar-100-python": (write_cifar100, CIFAR100),
}


@pytest.fixture
def root10(tmp_path):
    """CIFAR-10 of 15 training and 6 test images."""
    return write_cifar10(tmp_path / "cifar-10-batches-py")


@pytest.fixture
def root100(tmp_path):
    """CIFAR-100 of 15 training and 6 test images."""
    return write_cifar100(tmp_path / "cifar-100-python")


def load(path: Path) -> dict:
    """What the fixture's own pickles hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy: align=0 is no bool
        return pickle.loads(path.read_bytes(), encoding="latin1")


def edit_pickle(path: Path, **values: object) -> None:
    """Change values of the dict in a pickle; None takes a key away."""
    value = {**load(path), **values}
    write_pickle(path, {key: value for key, value in value.items() if value is not None})


def theirs(name: str, root: Path, is_train: bool):
    """torchvision's dataset; None for its checksums, so that it reads a drawn copy."""
    from torchvision import datasets

    base = {"cifar-10-batches-py": datasets.CIFAR10, "cifar-100-python": datasets.CIFAR100}[name]
    unchecked = {
        "train_list": [[name, None] for name, _ in base.train_list],
        "test_list": [[name, None] for name, _ in base.test_list],
        "meta": {**base.meta, "md5": None},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return type("Unchecked", (base,), unchecked)(root.parent, train=is_train)


class TestRead:
    def test_gives_the_batches_of_cifar10_in_their_order(self, root10):
        train, test = CIFAR10.read(root10, "train"), CIFAR10.read(root10, "test")
        assert train.classes == test.classes == CIFAR10_CLASSES
        assert train.parents == test.parents == ()
        assert train.ids.tolist() == [f"train_{number:05d}" for number in range(15)]
        assert test.paths.tolist() == [f"png/test/{number:05d}.png" for number in range(6)]
        batches = [load(root10 / f"data_batch_{number}") for number in range(1, 6)]
        assert train.labels.tolist() == [label for batch in batches for label in batch["labels"]]
        assert sorted(path.name for path in root10.iterdir()) == sorted(CIFAR10.entries)

    def test_gives_cifar100_with_the_coarse_class_as_parent(self, root100):
        train, test = CIFAR100.read(root100, "train"), CIFAR100.read(root100, "test")
        assert train.classes == test.classes == ("apple", "aquarium fish", "baby")
        assert train.parents == test.parents == (("fruit and vegetables",), ("fish",), ("people",))
        assert train.labels.tolist() == load(root100 / "train")["fine_labels"]
        assert test.ids.tolist() == [f"test_{number:05d}" for number in range(6)]
        assert sorted(path.name for path in root100.iterdir()) == sorted(CIFAR100.entries)

    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("name", KINDS)
    def test_agrees_with_torchvision_and_warns_of_nothing(self, tmp_path, name, split):
        """numpy warns of pickles as old as these."""
        write, dataset = KINDS[name]
        root = write(tmp_path / name)
        expected = theirs(name, root, split == "train")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dataset.prepare(root)
            listing = dataset.read(root, split)
        assert listing.labels.tolist() == expected.targets
        assert list(listing.classes) == [name.replace("_", " ") for name in expected.classes]
        pixels = [np.asarray(Image.open(root / path)) for path in listing.paths]
        assert np.array_equal(pixels, expected.data)

    @pytest.mark.parametrize("protocol", [0, 1, 2, 4])
    def test_reads_what_python_3_pickled(self, root10, protocol):
        before = CIFAR10.read(root10, "test")
        for name in CIFAR10.entries:
            value = load(root10 / name)
            if name == "test_batch":
                value["labels"] = list(np.asarray(value["labels"]))  # numpy numbers
                value["data"] = np.asfortranarray(value["data"])
            (root10 / name).write_bytes(pickle.dumps(value, protocol=protocol))
        after = CIFAR10.read(root10, "test")
        pixels = cifar._pixels(root10, cifar._load(root10 / "test_batch"))
        assert np.array_equal(pixels, load(root10 / "test_batch")["data"])
        assert after.labels.tolist() == before.labels.tolist()
        assert after.classes == before.classes


class TestPrepare:
    def test_returns_at_once_where_the_images_are_there(self, root10, monkeypatch):
        CIFAR10.prepare(root10)
        before = (root10 / "png" / "train" / "00000.png").stat().st_mtime_ns
        monkeypatch.setattr(cifar, "_load", None)
        monkeypatch.setattr(cifar, "_unpack", None)
        CIFAR10.prepare(root10)
        assert (root10 / "png" / "train" / "00000.png").stat().st_mtime_ns == before

    def test_lets_the_faster_builder_win(self, root10, monkeypatch):
        unpack = cifar._unpack

        def unpack_after_another(folder, splits):
            unpack(folder, splits)
            with monkeypatch.context() as patch:
                patch.setattr(cifar, "_unpack", unpack)
                patch.setattr(os, "getpid", lambda: 0)
                CIFAR10.prepare(root10)

        monkeypatch.setattr(cifar, "_unpack", unpack_after_another)
        CIFAR10.prepare(root10)
        assert sorted(path.name for path in root10.iterdir()) == sorted([*CIFAR10.entries, "png"])

    @pytest.mark.parametrize("damage", ["marker", "same size", "file"])
    def test_refuses_images_of_other_pickles(self, root10, damage):
        CIFAR10.prepare(root10)
        if damage == "marker":
            (root10 / "png" / cifar.MARKER_FILE).unlink()
        elif damage == "same size":  # other pixels
            batch = root10 / "data_batch_1"
            content = bytearray(batch.read_bytes())
            content[len(content) // 2] ^= 1
            batch.write_bytes(content)
        else:
            shutil.rmtree(root10 / "png")
            (root10 / "png").write_text("?")
        with pytest.raises(InputError, match=r"png was not made from the pickles beside it, or"):
            CIFAR10.prepare(root10)

    def test_leaves_nothing_where_the_disk_is_full(self, root10, monkeypatch):
        written = []

        def fill(path, data):
            written.append(path)
            if len(written) > 16:
                raise OSError(28, "No space left on device", str(path))
            return len(data)

        monkeypatch.setattr(Path, "write_bytes", fill)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            CIFAR10.prepare(root10)
        assert sorted(path.name for path in root10.iterdir()) == sorted(CIFAR10.entries)


class _Runs:
    """Pickled, a call of whatever the test asks for."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


# What to write in place of a pickle, message.
NO_PICKLES = [
    (b"", "is not an official pickle"),
    (b"\xff\xd8\xff\xe0 JPEG", "is not an official pickle"),
    (b"\x80\x02]q\x00.", r"is not an official pickle \(not a dict\)"),
    (pickle.dumps(_Runs(os.system, "touch ran")), r"the pickle wants (posix|nt)\.system"),
    (pickle.dumps({"data": _Runs(eval, "1")}, 2), r"the pickle wants (__builtin__|builtins)\.eval"),
    (pickle.dumps(_Runs(np.load, "x")), r"the pickle wants numpy\.load"),
    (pickle.dumps(np.array([{}], dtype=object), 2), r"\(the array type O8\)"),
    (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", r"\(the codec rot13\)"),
    (b"cnumpy\ndtype.__class__\n.", r"the pickle wants numpy\.dtype\.__class__"),
    (b"c\x1b[31m\nred\n.", r"the pickle wants \\x1b\[31m\.red"),
    (b"]" * 9 + b"\x85" * 99, "is not an official pickle"),
]

# File, new values, message.
DAMAGES10 = [
    ("batches.meta", {"label_names": None}, "lacks 'label_names'"),
    ("batches.meta", {"label_names": [1, 2, 3]}, "'label_names' is not a list of class names"),
    ("batches.meta", {"label_names": ["a", "_", "b"]}, "gives class 1 no name"),
    ("data_batch_5", {"data": None}, "lacks 'data'"),
    *(
        ("data_batch_2", {"data": bad}, "'data' is not an array of N x 3072 bytes")
        for bad in (
            "text",
            np.zeros((3, 3071), np.uint8),
            np.zeros((), np.uint8),
            np.zeros((3, 3072), np.int8),
            np.zeros((3, 32, 32, 3), np.uint8),
        )
    ),
    *(
        ("data_batch_2", {"labels": bad}, "'labels' is not a list of 3 labels")
        for bad in ("abc", [0, 1])
    ),
    *(
        ("data_batch_2", {"labels": [0, bad, 1]}, "'labels' holds .*, not a whole number from 0")
        for bad in (3, -1, "1", None)
    ),
]


class TestRefusals:
    @pytest.mark.parametrize(("content", "message"), NO_PICKLES)
    def test_of_what_is_no_official_pickle(self, root10, content, message, monkeypatch):
        monkeypatch.chdir(root10)
        for name in ("batches.meta", "data_batch_4"):
            before = (root10 / name).read_bytes()
            (root10 / name).write_bytes(content)
            with pytest.raises(InputError, match=message) as caught:
                CIFAR10.read(root10, "train")
            assert name in str(caught.value)
            assert str(caught.value).isprintable()
            (root10 / name).write_bytes(before)
        assert not (root10 / "ran").exists()

    @pytest.mark.parametrize(("name", "values", "message"), DAMAGES10)
    def test_of_wrong_content(self, root10, name, values, message):
        edit_pickle(root10 / name, **values)
        with pytest.raises(InputError, match=f"{name}:? {message}"):
            CIFAR10.read(root10, "train")

    def test_of_a_fine_class_with_two_coarse_ones_or_none(self, root100):
        batch = load(root100 / "train")
        edit_pickle(root100 / "train", coarse_labels=[*batch["coarse_labels"][:-1], 3])
        with pytest.raises(InputError, match=r"train: 'coarse_labels' holds 3, not a"):
            CIFAR100.read(root100, "train")
        other = (batch["coarse_labels"][-1] + 1) % 3
        edit_pickle(root100 / "train", coarse_labels=[*batch["coarse_labels"][:-1], other])
        with pytest.raises(InputError, match=r"train puts a class into two coarse classes"):
            CIFAR100.read(root100, "test")
        edit_pickle(root100 / "train", coarse_labels=None)
        with pytest.raises(InputError, match=r"train lacks 'coarse_labels'"):
            CIFAR100.read(root100, "test")
        write_cifar100(root100)
        edit_pickle(root100 / "meta", fine_label_names=[*CIFAR100_CLASSES, "bear"])
        with pytest.raises(InputError, match=r"train has no image of 'bear' to tell its coarse"):
            CIFAR100.read(root100, "test")

    @settings(
        max_examples=200,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_of_damaged_bytes_is_one_line(self, root10, data):
        """Or the damage is in pixels or other places that do not show."""
        name = data.draw(st.sampled_from(["batches.meta", "test_batch"]))
        content = bytearray((root10 / name).read_bytes())
        backup = bytes(content)
        ends = st.integers(0, 300) | st.integers(len(content) - 400, len(content) - 1)
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(ends) % len(content)] = data.draw(st.integers(0, 255))
        (root10 / name).write_bytes(content[: data.draw(st.just(len(content)) | ends)])
        message = ""
        try:
            CIFAR10.read(root10, "test")
        except InputError as error:
            message = str(error)
        finally:
            (root10 / name).write_bytes(backup)
        assert "\n" not in message
