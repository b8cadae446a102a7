"""Build and open caches of resized images on disk, never half written and never out of date.

A cache holds the uint8 images of one split at the preset's size, one after another. Readers map it
into memory, so the system's page cache keeps it in RAM as far as there is room.

    <cache_dir>/<key>/pixels.bin    H * W * 3 bytes an image, in split order
    <cache_dir>/<key>/index.npz     size of each image and of its original
    <cache_dir>/<key>/about.json    what the cache holds, for people; which images are bad
    <cache_dir>/<key>.lock          locked by a builder as long as it lives

The key covers everything that the bytes depend on: ids and labels, path, length and times of change
of every file, the size, the versions of what decodes and resizes. Whatever changes leads to another
key, so an old cache is never served. Bad images are read from their files each time, since the
cause may lie outside the file. A cache is built beside its place and renamed when it is whole.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from utils.console import log, progress_bar
from utils.data.image_files import check_resized_size, describe
from utils.data.presets import Size
from utils.data.resized_images import CachedImages, FileImages, Index
from utils.data.splits import Split
from utils.data.threads import in_threads
from utils.data_utils import free_bytes
from utils.errors import InputError, RunError
from utils.files import (
    canonical_json,
    kind_of,
    naming,
    open_regular,
    read_regular,
    sha256_text,
    sync,
    write_json,
)
from utils.ownership import is_cache, make_folder

FORMAT = 5  # raise it when the bytes or their layout change
PIXELS_FILE, INDEX_FILE, ABOUT_FILE = "pixels.bin", "index.npz", "about.json"
# What reading a folder raises that is absent, emptied or overwritten; RuntimeError comes from
# flipped bits in the flags of a zip archive.
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
)


def _fingerprint(split: Split) -> str:
    """Return the SHA-256 over path, length and times of change of every image."""
    digest = hashlib.sha256()
    for position in range(len(split)):
        path = split.path_of(position)
        try:
            stat = os.stat(path)  # noqa: PTH116 - a Path costs 10 us an image
        except OSError as error:
            raise RunError(f"image {path} cannot be read ({error.strerror})") from error
        # ctime too: tools that turn photos by one byte of EXIF, or copy them, can keep the mtime.
        about = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        digest.update(f"{split.paths[position]}\0{about}\n".encode())
    return digest.hexdigest()


def cache_key(split: Split, geometry: dict[str, Any]) -> str:
    """Name the cache of `split`: 24 hex digits.

    Args:
        split: samples of the cache.
        geometry: how the images get their size.

    Raises:
        RunError: an image is missing.
    """
    made_by = {
        name: importlib.metadata.version(name)
        for name in ("torch", "torchvision", "pillow", "pi-heif")
    }
    parts = {
        "format": FORMAT,
        "checksum": split.checksum(),
        "files": _fingerprint(split),
        "working": geometry,
        "made_by": made_by,
        "machine": platform.machine(),
    }
    return sha256_text(canonical_json(parts))[:24]


def _plan(files: FileImages, may_be_bad: bool) -> Index:
    """Decide where each image will lie, from the headers of the files alone."""
    count = len(files.split)
    sizes = np.zeros((count, 2), dtype=np.int64)
    originals = np.zeros((count, 2), dtype=np.int64)
    bad: dict[int, str] = {}

    def measure(position: int) -> None:
        path = files.split.path_of(position)
        try:
            described = describe(path)
            original = Size(described.height, described.width)
            size = files.size_of(original)
            check_resized_size(path, original, size)
        except RunError as error:
            if not may_be_bad:
                raise
            bad[position] = str(error)
            return
        sizes[position] = size
        originals[position] = original[::-1]

    with progress_bar(count, "cache: sizes", "img") as bar:
        in_threads(measure, count, bar)
    return Index.of(sizes, originals, bad)


def _write_at(file: BinaryIO, offset: int, pixels: Tensor) -> None:
    """Write (bytes,) uint8 at an offset; several threads may write at once.

    Not through a mapping of the file: a full disk would then be a signal, not an OSError.
    """
    rest = memoryview(pixels.numpy())
    while rest:  # a disk that is nearly full takes a part, and fails the next time
        written = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written


def _fill(file: BinaryIO, index: Index, files: FileImages, may_be_bad: bool) -> None:
    """Decode every image and write its pixels at its offset; add bad images to the index."""

    def put(position: int) -> None:
        if position in index.bad:
            return
        try:
            image = files.load(position).image.permute(1, 2, 0)
        except RunError as error:
            if not may_be_bad:
                raise
            index.bad[position] = str(error)
            return
        if tuple(image.shape[:2]) != tuple(index.sizes[position]):
            raise RunError(f"image {files.split.path_of(position)} changed while it was cached")
        _write_at(file, int(index.offsets[position]), image.contiguous().flatten())

    with progress_bar(len(files.split), f"cache: {files.split.name}", "img") as bar:
        in_threads(put, len(files.split), bar)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock at `path`; the system releases it when this process ends, however it ends.

    Raises:
        RunError: the file system has no locks, as some network drives.
    """
    make_folder(path.parent)
    if (kind := kind_of(path, follow=False)) not in (None, "file"):
        raise RunError(f"{path} is a {kind}, not a lock; move it away or use another --cache_dir")
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("cache: waiting for another process that builds %s", path.stem)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise RunError(
                f"{path} cannot be locked ({error.strerror}); use --cache_dir on another disk"
            ) from error
        yield


def _open(folder: Path, files: FileImages) -> CachedImages | None:
    """Open the cache of `files` in `folder`, or return None if it is absent or damaged."""
    shape = (len(files.split), 2)
    try:
        about = json.loads(read_regular(folder / ABOUT_FILE))
        bad = {int(position): message for position, message in about["bad"].items()}
        with (
            open_regular(folder / INDEX_FILE) as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            sizes, originals = arrays["sizes"], arrays["originals"]
        if not all(a.shape == shape and a.dtype == np.int64 for a in (sizes, originals)):
            return None
        index = Index.of(sizes, originals, bad)
        if not (folder / PIXELS_FILE).stat().st_size == index.offsets[-1] > 0:
            return None
        return CachedImages(folder / PIXELS_FILE, index, files)
    except DAMAGE:
        return None


def _build(folder: Path, files: FileImages, about: dict[str, Any], may_be_bad: bool) -> None:
    beside = folder.with_name(f"{folder.name}.tmp")
    # A damaged cache, and what a killed builder left: the lock is ours, so nobody is at work there.
    for left in filter(kind_of, (folder, beside)):
        if not is_cache(left, is_whole=False):
            raise InputError(f"{left} is not a cache; move it away or use another --cache_dir")
        shutil.rmtree(left, ignore_errors=True)
    index = _plan(files, may_be_bad)
    total, free = int(index.offsets[-1]), free_bytes(folder.parent)
    if free is not None and total > free:
        raise RunError(
            f"the cache needs {total / 1e9:.1f} GB of disk in {folder.parent}, which has "
            f"{free / 1e9:.1f} GB free; use --cache none, another --cache_dir or a smaller "
            "--img_size"
        )
    if not total:
        raise RunError(f"no image of split {files.split.name} can be decoded")
    beside.mkdir()
    try:
        with (beside / PIXELS_FILE).open("wb") as file:
            _fill(file, index, files, may_be_bad)
            file.truncate(total)  # the last image may be a bad one
        np.savez(beside / INDEX_FILE, sizes=index.sizes, originals=index.originals)
        bad = {str(position): message for position, message in sorted(index.bad.items())}
        write_json(beside / ABOUT_FILE, {**about, "bytes": total, "bad": bad})
        for path in beside.iterdir():
            with path.open("rb") as file:
                sync(file.fileno())
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    log.info("cache: %d images, %.2f GB in %s", len(files.split), total / 1e9, folder)


def open_cache(
    cache_dir: Path, files: FileImages, geometry: dict[str, Any], may_be_bad: bool
) -> CachedImages:
    """Open the cache of these images, and build it first if it is absent or damaged.

    Args:
        cache_dir: folder of all caches.
        files: source of the images.
        geometry: how the images get their size; part of the key.
        may_be_bad: whether an image that cannot be decoded is noted instead of raised.

    Raises:
        RunError: an image cannot be decoded, there is no room, or the folder cannot be locked.
        OSError: the disk became full, or the folder cannot be written.
    """
    key = cache_key(files.split, geometry)
    folder = cache_dir / key
    with naming(folder), _locked(cache_dir / f"{key}.lock"):
        cache = _open(folder, files)
        if cache is None:
            about = {
                "dataset": files.split.dataset,
                "split": files.split.name,
                "images": len(files.split),
                "working": geometry,
            }
            _build(folder, files, about, may_be_bad)
            cache = _open(folder, files)
        else:
            log.info("cache: reading %s", folder)
    make_folder(cache_dir, {key, f"{key}.lock"})  # one that was empty is marked too
    if cache is None:
        raise RunError(f"the cache in {folder} vanished")
    return cache
