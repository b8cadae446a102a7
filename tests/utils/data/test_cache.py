"""utils/data/cache.py: never half written, never out of date, one builder at a time."""

import errno
import fcntl
import functools
import io
import json
import logging
import os
import pickle
import random
import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data import cache as cache_module
from utils.data.cache import cache_content, cache_key, open_cache
from utils.data.presets import PRESETS
from utils.data.resized_images import FileImages
from utils.errors import InputError, RunError
from utils.ownership import MARKER, is_ours

SIZE = 16
GEOMETRY = {"phase": "train", "squash": False, "side": 36}


@pytest.fixture
def split(tmp_path, make_split):
    return make_split(tmp_path / "data", [0, 1, 2, 0, 1, 2], size=(60, 50))


def files_of(split) -> FileImages:
    return FileImages(split, functools.partial(PRESETS["vit"].train_size, SIZE))


def build(split, folder, may_be_bad=False):
    return open_cache(folder, files_of(split), GEOMETRY, may_be_bad)


def key_of(split, geometry=GEOMETRY) -> str:
    return cache_key(split, cache_content(split, geometry))


def folders_in(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if entry.is_dir()]


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def changed(change: Callable[..., dict]) -> Callable[[bytes], bytes]:
    """Damage of an index: other sizes or original sizes."""

    def damage(content: bytes) -> bytes:
        with np.load(io.BytesIO(content)) as arrays:
            values = change(arrays["sizes"], arrays["originals"])
        buffer = io.BytesIO()
        np.savez(buffer, **values)
        return buffer.getvalue()

    return damage


def assert_same(cache, split) -> list[str]:
    """Check all images; return what is said of the cache."""
    files, said = files_of(split), []
    for position in range(len(split)):
        given, expected = cache.load(position), files.load(position)
        assert torch.equal(given.image, expected.image)
        assert given.image.stride() == expected.image.stride()
        assert tuple(given.original_size) == tuple(expected.original_size)
        said += [given.trouble] if given.trouble else []
    return said


class TestCache:
    def test_a_cache_is_built_once_and_read_again(self, split, tmp_path, monkeypatch):
        assert_same(build(split, tmp_path / "c"), split)
        (folder,) = [path for path in (tmp_path / "c").iterdir() if path.is_dir()]
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert before.keys() == {"pixels.bin", "index.npz", "about.json"}
        about = json.loads((folder / "about.json").read_text("utf-8"))
        assert (about["dataset"], about["split"], about["images"]) == ("toy", "val", 6)
        assert about["working"] == GEOMETRY
        assert about["bytes"] == (folder / "pixels.bin").stat().st_size
        monkeypatch.setattr(FileImages, "load", lambda *_: pytest.fail("decoded again"))
        again = build(split, tmp_path / "c")
        monkeypatch.undo()
        assert_same(again, split)
        assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    def test_an_image_whose_tool_keeps_length_and_mtime_is_cached_again(self, split, tmp_path):
        """`exiftool -P -Orientation=...` turns a photo by one byte, and puts the time back."""
        target = split.root / split.paths[1]
        array = np.zeros((50, 60, 3), dtype=np.uint8)
        Image.fromarray(array).save(target, "BMP")
        before = target.stat()
        build(split, tmp_path / "c")
        Image.fromarray(array + 7).save(target, "BMP")
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = target.stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        assert_same(build(split, tmp_path / "c"), split)

    def test_the_key_covers_samples_size_and_decoders(self, split, tmp_path, monkeypatch):
        keys = {
            key_of(split),
            key_of(split, {**GEOMETRY, "side": 37}),
            key_of(split.select(range(5))),
        }
        monkeypatch.setattr(cache_module.importlib.metadata, "version", lambda name: "0")
        keys.add(key_of(split))
        assert len(keys) == 4
        assert all(len(key) == 24 for key in keys)

    @pytest.mark.parametrize(
        ("name", "damage"),
        [
            ("pixels.bin", lambda content: None),
            ("pixels.bin", lambda content: b""),
            ("pixels.bin", lambda content: content[:-1]),
            ("pixels.bin", lambda content: content + b"x"),
            ("about.json", lambda content: None),
            ("about.json", lambda content: b"[]"),
            ("about.json", lambda content: b"[" * 10**5),
            ("index.npz", lambda content: None),
            ("index.npz", lambda content: content[:200]),
            ("index.npz", lambda content: saved(np.ones((6, 2), np.int64))),
            ("index.npz", changed(lambda sizes, old: {"sizes": sizes, "originals": old[:5]})),
            ("index.npz", changed(lambda sizes, old: {"sizes": sizes * 1.0, "originals": old})),
            ("index.npz", changed(lambda sizes, old: {"sizes": sizes[::-1] * 2, "originals": old})),
        ],
    )
    def test_a_damaged_cache_is_built_again(self, split, tmp_path, name, damage):
        build(split, tmp_path / "c")
        (path,) = (tmp_path / "c").glob(f"*/{name}")
        content = damage(path.read_bytes())
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert_same(build(split, tmp_path / "c"), split)

    @pytest.mark.parametrize("kept", [0, -500])  # with its header whole, room is kept for it
    def test_a_bad_image_is_read_from_its_file_each_time(self, split, tmp_path, kept):
        """The last one: the cache may end with it. It may heal, and the data may have moved."""
        path = split.root / split.paths[5]
        whole = path.read_bytes()
        path.write_bytes(whole[:kept])
        with pytest.raises(RunError, match=r"photo_005.jpg cannot be decoded"):
            build(split, tmp_path / "c")
        assert folders_in(tmp_path / "c") == []
        built = build(split, tmp_path / "c", may_be_bad=True)
        moved = replace(split, root=split.root.rename(tmp_path / "elsewhere"))
        # A run that allows no bad image opens the same cache, and fails where it meets the image.
        for may_be_bad in (True, False):
            cache = build(moved, tmp_path / "c", may_be_bad)
            assert len(folders_in(tmp_path / "c")) == 1
            assert torch.equal(cache.load(4).image, files_of(moved).load(4).image)
            with pytest.raises(RunError, match=r"elsewhere/.*photo_005.jpg cannot be decoded"):
                cache.load(5)
        (tmp_path / "elsewhere").rename(split.root)
        path.write_bytes(whole)
        assert_same(built, split)

    def test_a_full_disk_leaves_nothing(self, split, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device", "pixels.bin")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            build(split, tmp_path / "c")
        assert not [path for path in (tmp_path / "c").iterdir() if path.is_dir()]

    def test_a_cache_is_whole_where_a_disk_takes_a_part_at_a_time(
        self, split, tmp_path, monkeypatch
    ):
        pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:1000], at))
        assert_same(build(split, tmp_path / "c"), split)

    def test_a_cache_without_room_is_refused(self, split, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(
            RunError, match=r"the cache needs .* GB of disk in .* GB free; use --cache none"
        ):
            build(split, tmp_path / "c")
        assert folders_in(tmp_path / "c") == []

    def test_a_file_system_without_locks_is_refused(self, split, tmp_path, monkeypatch):
        def flock(*_):
            raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(
            RunError, match=r"lock cannot be locked .*use --cache_dir on another disk"
        ):
            build(split, tmp_path / "c")

    def test_any_flipped_bit_is_noticed(self, split, tmp_path):
        """The images are right, and the next cache is whole again."""
        pristine, work = tmp_path / "pristine", tmp_path / "c"
        build(split, pristine)
        draw = random.Random(0)
        for name in ("pixels.bin", "index.npz", "about.json") * 15:
            shutil.copytree(pristine, work)
            (path,) = work.glob(f"*/{name}")
            content, bit = bytearray(path.read_bytes()), draw.randrange(8)
            place = draw.randrange(len(content))
            content[place] ^= 1 << bit
            path.write_bytes(content)
            cache = build(split, work)
            assert len(assert_same(cache, split)) == (name == "pixels.bin"), (place, bit)
            assert assert_same(build(split, work), split) == []
            (again,) = work.glob("*/pixels.bin")
            assert again.read_bytes() == next(pristine.glob("*/pixels.bin")).read_bytes()
            shutil.rmtree(work)

    @pytest.mark.parametrize("kept", [0, 1000, -1])
    @pytest.mark.parametrize("is_read", [False, True])
    def test_a_cache_that_is_cut_or_zeroed_at_work_changes_no_image(
        self, split, tmp_path, kept, is_read
    ):
        cache = build(split, tmp_path / "c")
        if is_read:
            assert assert_same(cache, split) == []
        (path,) = (tmp_path / "c").glob("*/pixels.bin")
        os.truncate(path, path.stat().st_size + kept if kept < 0 else kept)
        said = assert_same(cache, split)
        assert said
        assert set(said) == {
            f"the cache in {path.parent} is damaged or gone: its images are decoded where they "
            "are not whole; the next run builds it again"
        }
        assert assert_same(build(split, tmp_path / "c"), split) == []

    def test_a_cache_of_other_images_under_this_name_is_built_again(self, split, tmp_path):
        """Somebody put one in the other's place; both have as many images of these sizes."""
        other = replace(split, labels=split.labels[::-1], paths=split.paths[::-1])
        build(split, tmp_path / "c")
        build(other, tmp_path / "c")
        of_split, of_other = (tmp_path / "c" / key_of(each) for each in (split, other))
        shutil.rmtree(of_split)
        shutil.copytree(of_other, of_split)
        assert assert_same(build(split, tmp_path / "c"), split) == []

    def test_a_spawned_worker_opens_the_file_itself(self, split, tmp_path):
        cache = build(split, tmp_path / "c")
        sent = pickle.dumps(cache)
        assert len(sent) < 10_000  # not the pixels
        assert assert_same(pickle.loads(sent), split) == []
        shutil.rmtree(tmp_path / "c")
        assert len(assert_same(pickle.loads(sent), split)) == len(split)  # from their files
        assert assert_same(cache, split) == []  # from the file that is open

    def test_a_cache_that_vanishes_while_it_is_built_is_done_without(
        self, split, tmp_path, monkeypatch, caplog
    ):
        def load(files, position):
            shutil.rmtree(tmp_path / "c", ignore_errors=True)
            return original(files, position)

        original = FileImages.load
        monkeypatch.setattr(FileImages, "load", load)
        assert assert_same(build(split, tmp_path / "c"), split) == []
        assert "c vanished; images are decoded each time" in caplog.text.replace(key_of(split), "c")

    def test_caches_of_images_that_changed_since_are_named(self, split, tmp_path, caplog):
        folder, line = tmp_path / "a b", "to delete them: rm -r "
        other = replace(split, root=tmp_path / "copy")
        shutil.copytree(split.root, other.root)
        with caplog.at_level(logging.INFO, logger="fine_vit"):
            build(split, folder)
            build(other, folder)
            open_cache(folder, files_of(split), {**GEOMETRY, "side": 30}, False)
            part = split.select(range(5))
            build(part, folder)
            assert line not in caplog.text
            stale, stale_part = folder / key_of(split), folder / key_of(part)
            (split.root / split.paths[0]).touch()
            build(split, folder)
            assert caplog.messages[-1].startswith("cache: 0.00 GB were built before")
            assert shlex.split(caplog.messages[-1].partition(line)[2]) == [str(stale)]
            about = json.loads((stale / "about.json").read_text())
            for name in ("key", "root", "checksum"):  # as before there were checksums
                del about[name]
            (stale / "about.json").write_text(json.dumps(about))
            build(part, folder)
            named = shlex.split(caplog.messages[-1].partition(line)[2])
            assert named == sorted(map(str, (stale, stale_part)))
            for content in ("[]", "[" * 10**5, "{}"):
                (stale / "about.json").write_text(content)
                build(split, folder)
                assert line not in caplog.messages[-1]

    def test_builders_at_the_same_time_build_a_cache_once(self, split, tmp_path, caplog):
        """Threads here: the lock belongs to the opened file, as between processes."""
        with caplog.at_level(logging.INFO, logger="fine_vit"), ThreadPoolExecutor(4) as pool:
            caches = list(pool.map(lambda _: build(split, tmp_path / "c"), range(4)))
        said = [record.getMessage() for record in caplog.records]
        assert sum(line.startswith("cache: 6 images") for line in said) == 1
        assert sum(line.startswith("cache: reading") for line in said) == 3
        for cache in caches:
            assert_same(cache, split)

    @pytest.mark.parametrize("name", ["about.json", "index.npz", "pixels.bin"])
    def test_a_pipe_in_a_cache_is_damage_and_not_waited_for(self, split, tmp_path, name):
        build(split, tmp_path / "c")
        (path,) = (tmp_path / "c").glob(f"*/{name}")
        path.unlink()
        os.mkfifo(path)
        assert_same(build(split, tmp_path / "c"), split)

    def test_a_pipe_for_a_lock_and_what_is_not_a_cache_stay(self, split, tmp_path):
        folder = tmp_path / key_of(split)
        lock = folder.with_name(f"{folder.name}.lock")
        folder.mkdir()
        (folder / "mine").write_text("precious")
        with pytest.raises(InputError, match=f"{folder.name} is not a cache; move it away"):
            build(split, tmp_path)
        assert (folder / "mine").read_text() == "precious"
        lock.unlink()
        os.mkfifo(lock)
        with pytest.raises(RunError, match="lock is a pipe, not a lock; move it away"):
            build(split, tmp_path)
        assert not (tmp_path / MARKER).exists()

    def test_a_folder_for_caches_is_marked_if_it_holds_nothing_else(self, split, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "1.jpg").touch()
        for name in ("new", "empty", "mine"):
            build(split, tmp_path / name)
        marked = [path.name for path in sorted(tmp_path.iterdir()) if (path / MARKER).exists()]
        assert marked == ["empty", "new"]
        assert all(map(is_ours, folders_in(tmp_path / "mine")))

    def test_what_a_killed_builder_left_goes(self, split, tmp_path):
        """It was at work beside the cache's place; the system has let go of its lock."""
        folder = tmp_path / "c" / key_of(split)
        left = folder.with_name(f"{folder.name}.tmp")
        left.mkdir(parents=True)
        (left / "pixels.bin").write_bytes(b"half of it")
        (tmp_path / "c" / f"{folder.name}.lock").touch()
        # Of images that changed since: the second is being built, the third not ours.
        others = [folder.with_name(f"{digit * 24}.tmp") for digit in "abc"]
        for other in others:
            shutil.copytree(left, other)
        (others[2] / "mine").touch()
        with others[1].with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert_same(build(split, tmp_path / "c"), split)
        assert set(folders_in(tmp_path / "c")) == {folder, *others[1:]}
