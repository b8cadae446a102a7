"""utils/data/readers/cifar.py: pickles of Python 2, read exactly or refused, unpacked once."""

import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import REPO
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
from utils.errors import InputError

SPLITS = ("train", "test")
KINDS = {
    10: (write_cifar10, cifar.read10, cifar.prepare10, cifar.ENTRIES10),
    100: (write_cifar100, cifar.read100, cifar.prepare100, cifar.ENTRIES100),
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


def theirs(kind: int, root: Path, is_train: bool):
    """torchvision's dataset; None for its checksums, so that it reads a drawn copy."""
    from torchvision.datasets import CIFAR10, CIFAR100

    base = {10: CIFAR10, 100: CIFAR100}[kind]
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
        train, test = cifar.read10(root10, "train"), cifar.read10(root10, "test")
        assert train.classes == test.classes == CIFAR10_CLASSES
        assert train.parents == test.parents == ()
        assert train.ids.tolist() == [f"train_{number:05d}" for number in range(15)]
        assert test.paths.tolist() == [f"png/test/{number:05d}.png" for number in range(6)]
        batches = [load(root10 / f"data_batch_{number}") for number in range(1, 6)]
        assert train.labels.tolist() == [label for batch in batches for label in batch["labels"]]
        assert sorted(path.name for path in root10.iterdir()) == sorted(cifar.ENTRIES10)

    def test_gives_cifar100_with_the_coarse_class_as_parent(self, root100):
        train, test = cifar.read100(root100, "train"), cifar.read100(root100, "test")
        assert train.classes == test.classes == ("apple", "aquarium fish", "baby")
        assert train.parents == test.parents == (("fruit and vegetables",), ("fish",), ("people",))
        assert train.labels.tolist() == load(root100 / "train")["fine_labels"]
        assert test.ids.tolist() == [f"test_{number:05d}" for number in range(6)]
        assert sorted(path.name for path in root100.iterdir()) == sorted(cifar.ENTRIES100)

    @pytest.mark.parametrize("kind", KINDS)
    def test_has_every_class_where_a_split_lacks_one(self, tmp_path, kind):
        write, read, _, _ = KINDS[kind]
        test = read(write(tmp_path, test_classes=[0, 2]), "test")
        assert len(test.classes) == 3
        assert sorted(test.labels.tolist()) == [0, 0, 2, 2]

    @pytest.mark.parametrize("kind", KINDS)
    def test_says_nothing_and_writes_nothing(self, tmp_path, kind):
        """numpy warns of pickles as old as these."""
        write, read, _, entries = KINDS[kind]
        root = write(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for split in SPLITS:
                read(root, split)
        assert sorted(path.name for path in root.iterdir()) == sorted(entries)

    @pytest.mark.parametrize("is_train", [True, False])
    @pytest.mark.parametrize("kind", KINDS)
    def test_agrees_with_torchvision(self, tmp_path, kind, is_train):
        write, read, prepare, _ = KINDS[kind]
        root = write(tmp_path / {10: "cifar-10-batches-py", 100: "cifar-100-python"}[kind])
        expected = theirs(kind, root, is_train)
        prepare(root)
        listing = read(root, "train" if is_train else "test")
        assert listing.labels.tolist() == expected.targets
        assert list(listing.classes) == [name.replace("_", " ") for name in expected.classes]
        pixels = [np.asarray(Image.open(root / path)) for path in listing.paths]
        assert np.array_equal(pixels, expected.data)

    @pytest.mark.parametrize("protocol", [0, 1, 2, 4])
    def test_reads_what_python_3_pickled(self, root10, protocol):
        before = cifar.read10(root10, "test")
        for name in cifar.ENTRIES10:
            value = load(root10 / name)
            if name == "test_batch":
                value["labels"] = list(np.asarray(value["labels"]))  # numpy numbers
                value["data"] = np.asfortranarray(value["data"])
            (root10 / name).write_bytes(pickle.dumps(value, protocol=protocol))
        after = cifar.read10(root10, "test")
        pixels = cifar._pixels(root10, cifar._load(root10 / "test_batch"))
        assert np.array_equal(pixels, load(root10 / "test_batch")["data"])
        assert after.labels.tolist() == before.labels.tolist()
        assert after.classes == before.classes

    @settings(max_examples=20, deadline=None)
    @given(data=st.data())
    def test_gives_back_what_was_written(self, tmp_path_factory, data):
        root = tmp_path_factory.getbasetemp() / "cifar_pickles"
        names = [f"fish_{number}" for number in range(data.draw(st.integers(1, 9)))]
        write_pickle(root / "batches.meta", {"label_names": names})
        labels = st.lists(st.integers(0, len(names) - 1), max_size=5)
        batches = {name: data.draw(labels) for name in cifar.ENTRIES10[1:]}
        for name, of_batch in batches.items():
            pixels = np.zeros((len(of_batch), 3072), dtype=np.uint8)
            write_pickle(root / name, {"data": pixels, "labels": of_batch})
        train = [label for name in cifar.ENTRIES10[1:6] for label in batches[name]]
        for split, expected in (("train", train), ("test", batches["test_batch"])):
            if not expected:
                with pytest.raises(InputError, match="lists no image"):
                    cifar.read10(root, split)
                continue
            listing = cifar.read10(root, split)
            assert listing.labels.tolist() == expected
            assert listing.classes == tuple(name.replace("_", " ") for name in names)


class TestPrepare:
    @pytest.mark.parametrize("kind", KINDS)
    def test_unpacks_what_the_listing_names(self, tmp_path, kind):
        write, read, prepare, entries = KINDS[kind]
        root = write(tmp_path)
        prepare(root)
        paths = [path for split in SPLITS for path in read(root, split).paths]
        assert {path.relative_to(root).as_posix() for path in root.rglob("*.png")} == set(paths)
        photos = {np.asarray(Image.open(root / path)).tobytes() for path in paths}
        assert len(photos) == 21
        assert sorted(path.name for path in root.iterdir()) == sorted([*entries, "png"])

    def test_returns_at_once_where_the_images_are_there(self, root10, monkeypatch):
        cifar.prepare10(root10)
        before = (root10 / "png" / "train" / "00000.png").stat().st_mtime_ns
        monkeypatch.setattr(cifar, "_load", None)
        monkeypatch.setattr(cifar, "_unpack", None)
        cifar.prepare10(root10)
        assert (root10 / "png" / "train" / "00000.png").stat().st_mtime_ns == before

    def test_leaves_no_half_of_the_images_when_killed(self, root10):
        code = (
            "import os, sys\nfrom pathlib import Path\nfrom utils.data.readers import cifar\n"
            "from PIL import Image\nsave, saved = Image.Image.save, []\n"
            "def kill(*args, **kwargs):\n"
            "    saved.append(1)\n"
            "    if len(saved) > 16: os.kill(os.getpid(), 9)\n"
            "    save(*args, **kwargs)\n"
            "Image.Image.save = kill\ncifar.prepare10(Path(sys.argv[1]))\n"
        )
        ended = subprocess.run([sys.executable, "-c", code, root10], cwd=REPO, check=False)
        assert ended.returncode == -9
        assert not (root10 / "png").exists()
        cifar.prepare10(root10)
        assert len(list((root10 / "png").rglob("*.png"))) == 21

    def test_two_builders_do_no_harm(self, root10):
        code = (
            "import sys\nfrom pathlib import Path\nfrom utils.data.readers import cifar\n"
            "print('ready', flush=True)\nsys.stdin.readline()\ncifar.prepare10(Path(sys.argv[1]))\n"
        )
        command = [sys.executable, "-c", code, root10]
        pipe = subprocess.PIPE
        builders = [
            subprocess.Popen(command, cwd=REPO, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
            for _ in range(3)
        ]
        for builder in builders:
            assert builder.stdout.readline() == "ready\n"
        with ThreadPoolExecutor(3) as pool:
            errors = list(pool.map(lambda builder: builder.communicate("go\n")[1], builders))
        assert errors == [""] * 3
        assert [builder.returncode for builder in builders] == [0] * 3
        assert sorted(path.name for path in root10.iterdir()) == sorted([*cifar.ENTRIES10, "png"])
        assert len(list((root10 / "png").rglob("*.png"))) == 21

    def test_lets_the_faster_builder_win(self, root10, monkeypatch):
        unpack = cifar._unpack

        def unpack_after_another(folder, splits):
            unpack(folder, splits)
            with monkeypatch.context() as patch:
                patch.setattr(cifar, "_unpack", unpack)
                patch.setattr(os, "getpid", lambda: 0)
                cifar.prepare10(root10)

        monkeypatch.setattr(cifar, "_unpack", unpack_after_another)
        cifar.prepare10(root10)
        assert sorted(path.name for path in root10.iterdir()) == sorted([*cifar.ENTRIES10, "png"])

    @pytest.mark.parametrize("damage", ["marker", "pickle", "same size", "file"])
    def test_refuses_images_of_other_pickles(self, root10, damage):
        cifar.prepare10(root10)
        if damage == "marker":
            (root10 / "png" / cifar.MARKER_FILE).unlink()
        elif damage == "pickle":
            write_cifar10(root10, test_images=1)
        elif damage == "same size":  # other pixels
            batch = root10 / "data_batch_1"
            content = bytearray(batch.read_bytes())
            content[len(content) // 2] ^= 1
            batch.write_bytes(content)
        else:
            shutil.rmtree(root10 / "png")
            (root10 / "png").write_text("?")
        with pytest.raises(InputError, match=r"png was not made from the pickles beside it, or"):
            cifar.prepare10(root10)

    def test_refuses_a_root_that_cannot_be_written(self, root10, monkeypatch):
        def refuse(path, *args, **kwargs):
            raise OSError(30, "Read-only file system", str(path))

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(
            InputError, match=r"cifar-10-batches-py cannot be written \(Read-only file system\)"
        ):
            cifar.prepare10(root10)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_refuses_a_root_without_permission(self, root10):
        root10.chmod(0o555)
        try:
            with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
                cifar.prepare10(root10)
        finally:
            root10.chmod(0o755)

    def test_leaves_nothing_where_the_disk_is_full(self, root10, monkeypatch):
        written = []

        def fill(path, data):
            written.append(path)
            if len(written) > 16:
                raise OSError(28, "No space left on device", str(path))
            return len(data)

        monkeypatch.setattr(Path, "write_bytes", fill)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            cifar.prepare10(root10)
        assert sorted(path.name for path in root10.iterdir()) == sorted(cifar.ENTRIES10)

    def test_refuses_pickles_that_are_not_there(self, root10):
        (root10 / "data_batch_3").unlink()
        with pytest.raises(InputError, match=r"data_batch_3 cannot be read \(No such file"):
            cifar.prepare10(root10)


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
    (b"\x80\x02]q\x00.", r"is not an official pickle \(it holds no dict\)"),
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
    *(
        ("batches.meta", {"label_names": bad}, "'label_names' is no list of different class names")
        for bad in ("abc", [], [1, 2, 3], ["a", "b", "a"], ["a", "_a", "a"], ["a", "", "b"])
    ),
    *(
        (name, {key: None}, f"lacks '{key}'")
        for name in ("data_batch_1", "data_batch_5")
        for key in ("data", "labels")
    ),
    *(
        ("data_batch_2", {"data": bad}, "'data' is no array of N x 3072 bytes")
        for bad in (
            "text",
            np.zeros((3, 3071), np.uint8),
            np.zeros(3072, np.uint8),
            np.zeros((), np.uint8),
            np.zeros((3, 3072), np.int8),
            np.zeros((3, 32, 32, 3), np.uint8),
        )
    ),
    *(
        ("data_batch_2", {"labels": bad}, "'labels' is no list of 3 labels")
        for bad in ("abc", [0, 1], [0, 1, 2, 0])
    ),
    ("data_batch_2", {"data": np.zeros((2, 3072), np.uint8)}, "'labels' is no list of 2 labels"),
    *(
        ("data_batch_2", {"labels": [0, bad, 1]}, "'labels' gives image 1 .*, not a whole number")
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
                cifar.read10(root10, "train")
            assert name in str(caught.value)
            assert str(caught.value).isprintable()
            (root10 / name).write_bytes(before)
        assert not (root10 / "ran").exists()

    @pytest.mark.parametrize(("name", "values", "message"), DAMAGES10)
    def test_of_wrong_content(self, root10, name, values, message):
        edit_pickle(root10 / name, **values)
        with pytest.raises(InputError, match=f"{name}:? {message}"):
            cifar.read10(root10, "train")

    @pytest.mark.parametrize("name", ["batches.meta", "data_batch_1", "data_batch_5"])
    def test_of_a_file_that_cannot_be_read(self, root10, name):
        (root10 / name).unlink()
        with pytest.raises(InputError, match=rf"{name} does not exist; fetch the python version"):
            cifar.read10(root10, "train")
        (root10 / name).mkdir()
        with pytest.raises(InputError, match=rf"{name} is a folder"):
            cifar.read10(root10, "train")

    def test_of_a_fine_class_with_two_coarse_ones_or_none(self, root100):
        batch = load(root100 / "train")
        edit_pickle(root100 / "train", coarse_labels=[*batch["coarse_labels"][:-1], 3])
        with pytest.raises(InputError, match=r"train: 'coarse_labels' gives image 14 3, not a"):
            cifar.read100(root100, "train")
        other = (batch["coarse_labels"][-1] + 1) % 3
        edit_pickle(root100 / "train", coarse_labels=[*batch["coarse_labels"][:-1], other])
        with pytest.raises(InputError, match=r"train puts '.*' into two coarse classes, '"):
            cifar.read100(root100, "test")
        edit_pickle(root100 / "train", coarse_labels=None)
        with pytest.raises(InputError, match=r"train lacks 'coarse_labels'"):
            cifar.read100(root100, "test")
        write_cifar100(root100)
        edit_pickle(root100 / "meta", fine_label_names=[*CIFAR100_CLASSES, "bear"])
        with pytest.raises(InputError, match=r"train has no image of 'bear' to tell its coarse"):
            cifar.read100(root100, "test")

    @settings(
        max_examples=200,
        deadline=None,
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
            cifar.read10(root10, "test")
        except InputError as error:
            message = str(error)
        finally:
            (root10 / name).write_bytes(backup)
        assert "\n" not in message


def test_full_size_is_quick(tmp_path):
    """Reading 50,000 images takes seconds at most, no image is made."""
    write_pickle(tmp_path / "batches.meta", {"label_names": list(CIFAR10_CLASSES)})
    pixels = np.zeros((10000, 3072), dtype=np.uint8)
    for name in cifar.ENTRIES10[1:]:
        labels = [number % 3 for number in range(10000)]
        write_pickle(tmp_path / name, {"data": pixels, "labels": labels})
    start = time.process_time()
    listing = cifar.read10(tmp_path, "train")
    assert time.process_time() - start < 5
    assert len(listing.ids) == 50000
    for name in cifar.ENTRIES10:
        (tmp_path / name).unlink()  # 180 MB that pytest would keep
