"""Build and open caches of resized images on disk, never half written and never out of date.

A cache holds the uint8 images of one split at the preset's size, one after another. The system's
page cache keeps it in RAM as far as there is room.

    <cache_dir>/<key>/pixels.bin    H * W * 3 bytes an image, in split order
    <cache_dir>/<key>/index.npz     size and CRC-32 of each image, size of its original
    <cache_dir>/<key>/about.json    what the cache holds; its key, and the CRC-32 of index.npz
    <cache_dir>/<key>.lock          locked by a builder as long as it lives

The key covers everything that the bytes depend on: ids and labels, path, length and times of change
of every file, the size, the versions of what decodes and resizes. Whatever changes leads to another
key, so an old cache is never served. Bad images are read from their files each time. A cache is
built beside its place and renamed when it is whole. Damage since is noticed when it is opened, or
an image first read: it is decoded instead, and about.json removed, so that the next run builds it.
"""

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.console import log, progress_bar
from utils.data.image_files import check_resized_size, describe
from utils.data.presets import Size
from utils.data.resized_images import (
    ABOUT_FILE,
    INDEX_FILE,
    PIXELS_FILE,
    CachedImages,
    FileImages,
    Index,
    about_of,
    open_cached,
)
from utils.data.splits import Split
from utils.data.threads import in_threads
from utils.data_utils import free_bytes
from utils.errors import InputError, RunError, printable
from utils.files import (
    UNFINISHED,
    canonical_json,
    has_locked,
    kind_of,
    naming,
    sha256_text,
    sync,
    write_json,
)
from utils.ownership import is_cache, make_folder

FORMAT = 6  # raise it when the bytes or their layout change
ANY_KEY = "[0-9a-f]" * 24


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


def cache_content(split: Split, geometry: dict[str, Any]) -> dict[str, Any]:
    """Return what the cache of `split` says that it holds.

    Args:
        split: samples of the cache.
        geometry: how the images get their size.
    """
    return {
        "dataset": split.dataset,
        "split": split.name,
        "root": printable(str(split.root)),
        "checksum": split.checksum(),
        "working": geometry,
    }


def cache_key(split: Split, content: dict[str, Any]) -> str:
    """Name the cache of `split` with this content: 24 hex digits.

    Raises:
        RunError: an image is missing.
    """
    made_by = {
        name: importlib.metadata.version(name)
        for name in ("torch", "torchvision", "pillow", "pi-heif")
    }
    parts = {
        "format": FORMAT,
        "checksum": content["checksum"],
        "files": _fingerprint(split),
        "working": content["working"],
        "made_by": made_by,
        "machine": platform.machine(),
    }
    return sha256_text(canonical_json(parts))[:24]


def _plan(files: FileImages, may_be_bad: bool) -> Index:
    """Decide where each image will lie, from the headers of the files alone."""
    count = len(files.split)
    sizes = np.zeros((count, 2), dtype=np.int64)
    originals = np.zeros((count, 2), dtype=np.int64)

    def measure(position: int) -> None:
        path = files.split.path_of(position)
        try:
            described = describe(path)
            original = Size(described.height, described.width)
            size = files.size_of(original)
            check_resized_size(path, original, size)
        except RunError:
            if not may_be_bad:
                raise
            return
        sizes[position] = size
        originals[position] = original[::-1]

    with progress_bar(count, "cache: sizes", "img") as bar:
        in_threads(measure, count, bar)
    return Index.of(sizes, originals, np.zeros(count, dtype=np.uint32))


def _write_at(file: BinaryIO, offset: int, rest: memoryview) -> None:
    """Write bytes at an offset; several threads may write at once.

    Not through a mapping of the file: a full disk would then be a signal, not an OSError.
    """
    while rest:  # a disk that is nearly full takes a part, and fails the next time
        written = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written


def _fill(file: BinaryIO, index: Index, files: FileImages, may_be_bad: bool) -> None:
    """Decode every image and write its pixels at its offset; complete the index."""

    def put(position: int) -> None:
        if not index.originals[position].all():
            return
        try:
            image = files.load(position).image.permute(1, 2, 0)
        except RunError:
            if not may_be_bad:
                raise
            index.originals[position] = 0
            return
        if tuple(image.shape[:2]) != tuple(index.sizes[position]):
            raise RunError(f"image {files.split.path_of(position)} changed while it was cached")
        pixels = memoryview(image.contiguous().flatten().numpy())
        index.checksums[position] = zlib.crc32(pixels)
        _write_at(file, int(index.offsets[position]), pixels)

    with progress_bar(len(files.split), f"cache: {files.split.name}", "img") as bar:
        in_threads(put, len(files.split), bar)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock at `path`; the system releases it when this process ends, however it ends.

    Raises:
        RunError: the file system has no locks, as some network drives.
    """
    make_folder(path.parent)
    if (kind := kind_of(path, follow=False)) not in (None, "file"):
        raise RunError(f"{path} is a {kind}, not a lock; move it away or use another --cache_dir")
    with path.open("a") as file:
        is_locked = has_locked(fcntl.flock, file)
        if is_locked is None:
            raise RunError(f"{path} cannot be locked on this disk; use --cache_dir on another disk")
        if not is_locked:
            log.info("cache: waiting for another process that builds %s", path.stem)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(folder: Path, files: FileImages, content: dict[str, Any], may_be_bad: bool) -> None:
    beside = folder.with_name(folder.name + UNFINISHED)
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
            f"{free / 1e9:.1f} GB free; use --cache none, another --cache_dir or smaller images"
        )
    if not total:
        raise RunError(f"no image of split {files.split.name} can be decoded")
    beside.mkdir()
    try:
        with (beside / PIXELS_FILE).open("wb") as file:
            _fill(file, index, files, may_be_bad)
            file.truncate(total)  # the last image may be a bad one
        arrays = {name: array for name, array in index._asdict().items() if name != "offsets"}
        np.savez(beside / INDEX_FILE, **arrays)
        about = {
            **content,
            "images": len(files.split),
            "bytes": total,
            "key": folder.name,
            "index": zlib.crc32((beside / INDEX_FILE).read_bytes()),
        }
        write_json(beside / ABOUT_FILE, about)
        for path in beside.iterdir():
            with path.open("rb") as file:
                sync(file.fileno())
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    log.info("cache: %d images, %.2f GB in %s", len(files.split), total / 1e9, folder)


def _clear_unfinished(cache_dir: Path) -> None:
    """Remove what killed builders left, also of caches that nobody will build again."""
    for left in cache_dir.glob(f"{ANY_KEY}{UNFINISHED}"):
        # A builder at work holds the lock.
        with suppress(OSError), left.with_suffix(".lock").open("a") as file:
            if has_locked(fcntl.flock, file) and is_cache(left, is_whole=False):
                shutil.rmtree(left)


def _say_stale(folder: Path, content: dict[str, Any]) -> None:
    """Name the caches of the images in `folder` as they were before; a run deletes none."""
    stale, total = [], 0
    with suppress(OSError):  # others may delete them just now
        for other in sorted(folder.parent.glob(ANY_KEY)):
            about = about_of(other)
            # Those of earlier versions of this program know no root and no checksum.
            told = {name: about.get(name) for name in content if name in about or name == "working"}
            if other != folder and is_cache(other) and told.items() <= content.items():
                total += (other / PIXELS_FILE).stat().st_size
                stale.append(shlex.quote(str(other)))
    if stale:
        log.info(
            "cache: %.2f GB were built before these images, or what decodes them, changed; to "
            "delete them: rm -r %s",
            total / 1e9,
            " ".join(stale),
        )


def open_cache(
    cache_dir: Path, files: FileImages, geometry: dict[str, Any], may_be_bad: bool
) -> CachedImages | FileImages:
    """Open the cache of these images, and build it first if it is absent or damaged.

    Args:
        cache_dir: folder of all caches.
        files: source of the images, and the result if somebody removes the cache at once.
        geometry: how the images get their size; part of the key.
        may_be_bad: whether an image that cannot be decoded is left out instead of raised.

    Raises:
        RunError: an image cannot be decoded, there is no room, or the folder cannot be locked.
        OSError: the disk became full, or the folder cannot be written.
    """
    content = cache_content(files.split, geometry)
    key = cache_key(files.split, content)
    folder = cache_dir / key
    _clear_unfinished(cache_dir)
    with naming(folder), locked(cache_dir / f"{key}.lock"):
        cache = open_cached(folder, files)
        if cache is not None:
            log.info("cache: reading %s", folder)
        else:
            with suppress(FileNotFoundError):  # it was removed while it was built
                _build(folder, files, content, may_be_bad)
            cache = open_cached(folder, files)
    make_folder(cache_dir, {key, f"{key}.lock"})  # one that was empty is marked too
    _say_stale(folder, content)
    if cache is None:
        log.warning("warning: the cache in %s vanished; images are decoded each time", folder)
        return files
    return cache
