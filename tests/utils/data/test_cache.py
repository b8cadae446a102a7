"""utils/data/cache.py: never half written, never out of date, one builder at a time."""

import errno
import fcntl
import functools
import io
import json
import logging
import os
import pickle
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
from utils.data.cache import cache_key, open_cache
from utils.data.presets import PRESETS
from utils.data.resized_images import CachedImages, FileImages, Index
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


def assert_same(cache, split) -> None:
    files = files_of(split)
    for position in range(len(split)):
        given, expected = cache.load(position), files.load(position)
        assert torch.equal(given.image, expected.image)
        assert given.image.stride() == expected.image.stride()
        assert tuple(given.original_size) == tuple(expected.original_size)


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
            cache_key(split, GEOMETRY),
            cache_key(split, {**GEOMETRY, "side": 37}),
            cache_key(split.select(range(5)), GEOMETRY),
        }
        monkeypatch.setattr(cache_module.importlib.metadata, "version", lambda name: "0")
        keys.add(cache_key(split, GEOMETRY))
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

    def test_a_cache_may_be_larger_than_the_memory(self, tmp_path):
        total = 3 * ((os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 3 + 2**30)
        path = tmp_path / "pixels.bin"
        with path.open("wb") as file:
            file.truncate(total)  # a hole: takes no room
        sizes = np.array([[total // 3 - 1, 1], [1, 1]])
        cache = CachedImages(path, Index.of(sizes, sizes, {}), None)
        assert cache.load(1).image.flatten().tolist() == [0, 0, 0]

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

    def test_a_spawned_worker_maps_the_file_itself(self, split, tmp_path):
        cache = build(split, tmp_path / "c")
        sent = pickle.dumps(cache)
        assert len(sent) < 10_000  # not the pixels
        assert_same(pickle.loads(sent), split)
        shutil.rmtree(tmp_path / "c")
        late = pickle.loads(sent)  # a failure here would be a traceback of the worker
        with pytest.raises(FileNotFoundError, match=r"pixels.bin"):
            late.load(0)

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
        folder = tmp_path / cache_key(split, GEOMETRY)
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
        folder = tmp_path / "c" / cache_key(split, GEOMETRY)
        left = folder.with_name(f"{folder.name}.tmp")
        left.mkdir(parents=True)
        (left / "pixels.bin").write_bytes(b"half of it")
        (tmp_path / "c" / f"{folder.name}.lock").touch()
        assert_same(build(split, tmp_path / "c"), split)
        assert folders_in(tmp_path / "c") == [folder]
