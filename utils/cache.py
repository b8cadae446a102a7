"""Caches of working images: built in parallel, in RAM or on disk, never half and never stale.

A cache holds the uint8 images of one split at the preset's working size, one after another; workers
share it, forked or spawned.

    <cache_dir>/<key>/pixels.bin    H * W * 3 bytes an image, in split order
    <cache_dir>/<key>/index.npz     size of each, size of its original
    <cache_dir>/<key>/about.json    what it is of, for people; and which images are bad
    <cache_dir>/<key>.lock          held by a builder as long as it lives

The key covers everything the bytes depend on: ids and labels, path, length and times of change of
every file, the working size, the versions of what decodes and resizes. What changes gets another
key, so an old cache is never served. Images that were bad are tried again when a cache is opened:
not all that ails them is in the file. A cache is built beside and renamed: it is whole or not
there.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from utils.console import log, progress
from utils.errors import RunError
from utils.files import canonical_json, sha256_text, write_json
from utils.images import describe, refuse_bomb
from utils.parallel import in_threads
from utils.presets import Size
from utils.splits import Split
from utils.working_images import CachedImages, FileImages, Index, SizeOf

FORMAT = 4  # raise it when the bytes or their layout change
PIXELS_FILE, INDEX_FILE, ABOUT_FILE = "pixels.bin", "index.npz", "about.json"
SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps what workers share; macOS has no such folder
RAM_SHARE = 0.6  # of the machine's memory that the caches of a run may take

_in_ram: WeakSet[CachedImages] = WeakSet()  # that this process holds: of training, of evaluation


def _fingerprint(split: Split) -> str:
    """SHA-256 over path, length and times of change of every image."""
    digest = hashlib.sha256()
    for position in range(len(split)):
        path = split.path_of(position)
        try:
            stat = os.stat(path)  # noqa: PTH116 - a Path costs 10 us an image
        except OSError as error:
            raise RunError(f"image {path} cannot be read ({error.strerror})") from error
        # ctime too: tools that turn photos by one byte of EXIF, or copy, can keep the mtime.
        about = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        digest.update(f"{split.paths[position]}\0{about}\n".encode())
    return digest.hexdigest()


def cache_key(split: Split, working: dict[str, Any]) -> str:
    """The name of the cache of `split` at a working size: 24 hex digits.

    Args:
        split: the samples that are cached.
        working: says how they get their working size.

    Raises:
        RunError: an image is not there.
    """
    made_by = {
        name: importlib.metadata.version(name) for name in ("torch", "torchvision", "pillow")
    }
    parts = {
        "format": FORMAT,
        "checksum": split.checksum(),
        "files": _fingerprint(split),
        "working": working,
        "made_by": made_by,
        "machine": platform.machine(),
    }
    return sha256_text(canonical_json(parts))[:24]


def _plan(split: Split, size_of: SizeOf, may_be_bad: bool) -> Index:
    """Where each image will lie, from the headers of the files alone."""
    sizes = np.zeros((len(split), 2), dtype=np.int64)
    originals = np.zeros((len(split), 2), dtype=np.int64)
    bad: dict[int, str] = {}

    def measure(position: int) -> None:
        path = split.path_of(position)
        try:
            _, width, height, _ = describe(path)
            size = size_of(Size(height, width))
            refuse_bomb(path, size.width, size.height)
        except RunError as error:
            if not may_be_bad:
                raise
            bad[position] = str(error)
            return
        sizes[position] = size
        originals[position] = width, height

    with progress(len(split), "cache: sizes", "img") as bar:
        in_threads(measure, len(split), bar)
    return Index.of(sizes, originals, bad)


def _fill(
    write: Callable[[int, Tensor], None],
    index: Index,
    files: FileImages,
    may_be_bad: bool,
) -> None:
    """Decode every image and `write` its bytes, one after another, to its offset."""

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
        write(int(index.offsets[position]), image.contiguous().flatten())

    with progress(len(files.split), f"cache: {files.split.name}", "img") as bar:
        in_threads(put, len(files.split), bar)


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _refuse_too_much(what: str, needed: int, there: int) -> None:
    if needed > there:
        raise RunError(
            f"the cache needs {needed / 1e9:.1f} GB of {what}, {there / 1e9:.1f} GB are there; "
            "use --cache disk, --cache none or a smaller --img_size"
        )


def ram_cache(files: FileImages, may_be_bad: bool, is_shared: bool) -> CachedImages:
    """Build a cache in memory.

    Args:
        files: where the images come from.
        may_be_bad: whether an image that cannot be decoded is noted instead of raised.
        is_shared: whether loader processes will read it.

    Raises:
        RunError: an image cannot be decoded, or there is not enough memory.
    """
    index = _plan(files.split, files.size_of, may_be_bad)
    total = int(index.offsets[-1])
    # Each process that torchrun started on this machine has a copy.
    share = RAM_SHARE / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    there = int(_physical_memory() * share) - sum(len(cache.pixels) for cache in _in_ram)
    _refuse_too_much("memory", total, max(0, there))
    pixels = torch.empty(total, dtype=torch.uint8)
    if is_shared:
        if SHARED_MEMORY.is_dir():
            free = shutil.disk_usage(SHARED_MEMORY).free
            _refuse_too_much(f"shared memory ({SHARED_MEMORY})", total, free)
        pixels.share_memory_()

    def write(offset: int, values: Tensor) -> None:
        pixels[offset : offset + len(values)] = values

    _fill(write, index, files, may_be_bad)
    log.info("cache: %d images, %.2f GB in RAM", len(files.split), total / 1e9)
    cache = CachedImages(pixels, index)
    _in_ram.add(cache)
    return cache


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock at `path`; the system lets go of it when this process ends, however it ends.

    Raises:
        RunError: the file system has no locks, as some network drives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("cache: waiting for another process that builds %s", path.stem)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise RunError(
                f"{path} cannot be locked ({error.strerror}); --cache_dir on another disk"
            ) from error
        yield


def _has_size(size: np.ndarray, original: np.ndarray, size_of: SizeOf) -> bool:
    width, height = original.tolist()
    if not width or not height:  # a bad image
        return not size.any()
    return tuple(size.tolist()) == size_of(Size(height, width))


def _open_disk_cache(folder: Path, files: FileImages) -> CachedImages | None:
    """The cache of `files` in `folder`, or None: not there, or not what would be written now."""
    count = len(files.split)
    try:
        about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        bad = {int(position): message for position, message in about["bad"].items()}
        with np.load(folder / INDEX_FILE, allow_pickle=False) as arrays:
            sizes, originals = arrays["sizes"], arrays["originals"]
        if not all(a.shape == (count, 2) and a.dtype == np.int64 for a in (sizes, originals)):
            return None
        index = Index.of(sizes, originals, bad)
        is_whole = (folder / PIXELS_FILE).stat().st_size == index.offsets[-1] > 0
        has_sizes = all(
            _has_size(*pair, files.size_of) for pair in zip(sizes, originals, strict=True)
        )
    # What a folder that is absent, emptied or overwritten raises; RuntimeError: flipped bits in the
    # zip archive's flags.
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
    ):
        return None
    return CachedImages(folder / PIXELS_FILE, index) if is_whole and has_sizes else None


def _has_healed(files: FileImages, bad: dict[int, str]) -> bool:
    """Whether an image that could not be decoded now can: a drive or a permission may come back.

    Messages of those that still cannot are brought up to date: the data may have moved.
    """
    for position in bad:
        try:
            files.load(position)
        except RunError as error:
            bad[position] = str(error)
            continue
        return True
    return False


def _write_all(file: BinaryIO, values: Tensor, offset: int) -> None:
    """Write bytes at an offset; several threads may.

    Not through a mapping of the file: a full disk would be a signal, not an OSError.
    """
    rest = memoryview(values.numpy())
    while rest:  # a disk that is nearly full takes a part, and says so the next time
        written = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written


def _build_disk_cache(
    folder: Path, files: FileImages, about: dict[str, Any], may_be_bad: bool
) -> None:
    # What was damaged, and what builders left that were killed: the lock is ours, so nobody is at
    # work in there.
    for left in (folder, *folder.parent.glob(f"{folder.name}.*tmp")):
        shutil.rmtree(left, ignore_errors=True)
    index = _plan(files.split, files.size_of, may_be_bad)
    total = int(index.offsets[-1])
    _refuse_too_much(f"disk in {folder.parent}", total, shutil.disk_usage(folder.parent).free)
    if not total:
        raise RunError(f"no image of split {files.split.name} can be decoded")
    # By process, all the same: somebody may have deleted the file of the lock that another holds.
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    beside.mkdir()
    try:
        with (beside / PIXELS_FILE).open("wb") as file:

            def write(offset: int, values: Tensor) -> None:
                _write_all(file, values, offset)

            _fill(write, index, files, may_be_bad)
            file.truncate(total)  # the last image may be a bad one
        np.savez(beside / INDEX_FILE, sizes=index.sizes, originals=index.originals)
        bad = {str(position): message for position, message in sorted(index.bad.items())}
        write_json(beside / ABOUT_FILE, {**about, "bytes": total, "bad": bad})
        for path in beside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    log.info("cache: %d images, %.2f GB in %s", len(files.split), total / 1e9, folder)


def disk_cache(
    cache_dir: Path, files: FileImages, working: dict[str, Any], may_be_bad: bool
) -> CachedImages:
    """Open the cache of these images, building it first where it is not there.

    Args:
        cache_dir: holds all caches.
        files: where the images come from.
        working: says how they get their working size.
        may_be_bad: whether an image that cannot be decoded is noted instead of raised.

    Raises:
        RunError: an image cannot be decoded, there is no room, or the folder cannot be locked.
        OSError: the disk became full, or the folder cannot be written.
    """
    key = cache_key(files.split, working)
    folder = cache_dir / key
    with _locked(cache_dir / f"{key}.lock"):
        cache = _open_disk_cache(folder, files)
        if cache is None or _has_healed(files, cache.index.bad):
            about = {
                "dataset": files.split.dataset,
                "split": files.split.name,
                "images": len(files.split),
                "working": working,
            }
            _build_disk_cache(folder, files, about, may_be_bad)
            cache = _open_disk_cache(folder, files)
        else:
            log.info("cache: reading %s", folder)
    if cache is None:
        raise RunError(f"the cache in {folder} vanished")
    return cache
