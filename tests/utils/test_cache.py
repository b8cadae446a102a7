"""utils/cache.py: never half, never stale, one builder at a time."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from helpers import REPO
from PIL import Image

from utils import cache as cache_module
from utils.cache import cache_key, disk_cache, ram_cache
from utils.errors import RunError
from utils.presets import PRESETS
from utils.working_images import FileImages

SIZE = 16
WORKING = {"phase": "train", "squash": False, "side": 36}


@pytest.fixture
def split(tmp_path, make_split):
    return make_split(tmp_path / "data", [0, 1, 2, 0, 1, 2], size=(60, 50))


def files_of(split) -> FileImages:
    return FileImages(split, functools.partial(PRESETS["vit"].train_size, SIZE))


def build(split, folder, may_be_bad=False):
    return disk_cache(folder, files_of(split), WORKING, may_be_bad)


def assert_same(cache, split) -> None:
    files = files_of(split)
    for position in range(len(split)):
        given, expected = cache.load(position), files.load(position)
        assert torch.equal(given.image, expected.image)
        assert given.image.stride() == expected.image.stride()
        assert tuple(given.size) == tuple(expected.size)


class TestRam:
    @pytest.mark.parametrize("is_shared", [True, False])
    def test_holds_the_working_images(self, split, is_shared):
        cache = ram_cache(files_of(split), False, is_shared)
        assert_same(cache, split)
        assert cache.pixels.is_shared() is is_shared

    def test_that_would_not_fit_is_refused(self, split, monkeypatch):
        monkeypatch.setattr(cache_module, "_physical_memory", lambda: 1000)
        with pytest.raises(RunError, match=r"the cache needs .* GB of memory, .*--cache disk"):
            ram_cache(files_of(split), False, False)


class TestDisk:
    def test_is_built_once_and_read_again(self, split, tmp_path, monkeypatch):
        assert_same(build(split, tmp_path / "c"), split)
        (folder,) = [path for path in (tmp_path / "c").iterdir() if path.is_dir()]
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert before.keys() == {"pixels.bin", "index.npz", "about.json"}
        monkeypatch.setattr(FileImages, "load", lambda *_: pytest.fail("decoded again"))
        again = build(split, tmp_path / "c")
        monkeypatch.undo()
        assert_same(again, split)
        assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    def test_is_not_stale_when_an_image_changes(self, split, tmp_path, save_photo):
        build(split, tmp_path / "c")
        save_photo(split.root / split.paths[3], seed=99, size=(60, 50))
        assert_same(build(split, tmp_path / "c"), split)

    def test_is_not_stale_when_an_image_of_the_same_length_and_time_order_changes(
        self, split, tmp_path
    ):
        path = split.root / split.paths[1]
        path = path.rename(path.with_suffix(".old"))
        array = np.zeros((50, 60, 3), dtype=np.uint8)
        target = split.root / split.paths[1]
        Image.fromarray(array).save(target, "BMP")
        build(split, tmp_path / "c")
        Image.fromarray(array + 7).save(target, "BMP")
        assert_same(build(split, tmp_path / "c"), split)

    def test_key_covers_samples_size_and_decoders(self, split, tmp_path, monkeypatch):
        keys = {
            cache_key(split, WORKING),
            cache_key(split, {**WORKING, "side": 37}),
            cache_key(split.select(range(5)), WORKING),
        }
        monkeypatch.setattr(cache_module.importlib.metadata, "version", lambda name: "0")
        keys.add(cache_key(split, WORKING))
        assert len(keys) == 4
        assert all(len(key) == 24 for key in keys)

    @pytest.mark.parametrize("name", ["pixels.bin", "index.npz", "about.json"])
    @pytest.mark.parametrize("damage", [b"", b"{}", None])
    def test_that_is_damaged_is_built_again(self, split, tmp_path, name, damage):
        build(split, tmp_path / "c")
        (path,) = (tmp_path / "c").glob(f"*/{name}")
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        assert_same(build(split, tmp_path / "c"), split)

    def test_names_a_bad_image(self, split, tmp_path):
        (split.root / split.paths[4]).write_bytes(b"text")
        with pytest.raises(RunError, match=r"photo_004.jpg cannot be decoded"):
            build(split, tmp_path / "c")
        assert not [path for path in (tmp_path / "c").iterdir() if path.is_dir()]
        cache = build(split, tmp_path / "c", may_be_bad=True)
        for cached in (cache, build(split, tmp_path / "c", may_be_bad=True)):
            with pytest.raises(RunError, match=r"photo_004.jpg cannot be decoded"):
                cached.load(4)
            assert torch.equal(cached.load(5).image, files_of(split).load(5).image)

    def test_with_a_bad_image_does_not_serve_a_run_that_allows_none(self, split, tmp_path):
        (split.root / split.paths[4]).write_bytes(b"text")
        build(split, tmp_path / "c", may_be_bad=True)
        cache = build(split, tmp_path / "c")
        with pytest.raises(RunError, match=r"photo_004.jpg"):
            cache.load(4)

    def test_of_a_full_disk_leaves_nothing(self, split, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device", "pixels.bin")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            build(split, tmp_path / "c")
        assert not [path for path in (tmp_path / "c").iterdir() if path.is_dir()]

    def test_is_built_once_by_two_builders(self, split, tmp_path, monkeypatch):
        built, results = [], []
        original = cache_module._build_disk_cache

        def counted(*args):
            built.append(1)
            return original(*args)

        monkeypatch.setattr(cache_module, "_build_disk_cache", counted)
        threads = [
            threading.Thread(target=lambda: results.append(build(split, tmp_path / "c")))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(built), len(results)) == (1, 3)
        for cache in results:
            assert_same(cache, split)

    def test_of_a_killed_builder_is_built_again(self, split, tmp_path):
        """A process that is killed while it holds the lock and half of the pixels."""
        script = f"""
import functools, os, signal, sys, pickle
sys.path[:0] = [{str(REPO)!r}]
from utils.cache import disk_cache
from utils.working_images import FileImages
files = pickle.load(sys.stdin.buffer)
load, count = FileImages.load, []
def dying(self, position):
    count.append(position)
    if len(count) > 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return load(self, position)
FileImages.load = dying
from pathlib import Path
disk_cache(Path({str(tmp_path / "c")!r}), files, {WORKING!r}, False)
"""
        import pickle

        done = subprocess.run(
            [sys.executable, "-c", script], input=pickle.dumps(files_of(split)), check=False
        )
        assert done.returncode == -signal.SIGKILL
        left = [path for path in (tmp_path / "c").iterdir() if path.is_dir()]
        assert [path.suffix for path in left] == [".tmp"]
        assert_same(build(split, tmp_path / "c"), split)
        assert all(path.suffix != ".tmp" for path in (tmp_path / "c").iterdir())

    def test_says_what_it_is(self, split, tmp_path):
        build(split, tmp_path / "c")
        (path,) = (tmp_path / "c").glob("*/about.json")
        about = json.loads(path.read_text("utf-8"))
        assert about["dataset"] == "toy"
        assert about["split"] == "val"
        assert about["images"] == 6
        assert about["working"] == WORKING
        assert about["bytes"] == (path.parent / "pixels.bin").stat().st_size
