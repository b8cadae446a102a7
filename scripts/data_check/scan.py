"""Read every image of a dataset once: what `check_data.py` reports of."""

import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scripts.data_check.duplicates import HASHED_SIDE, THUMBNAIL_SIDE, perceptual_hash, thumbnail
from utils.console import progress_bar
from utils.data.image_files import describe
from utils.data.splits import Split
from utils.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

AT_A_TIME = 16  # files of a packet that a process is handed
PACKETS_AHEAD = 8  # for each process: what the others do while one has large files
NO_DIGEST = b""
START_METHOD = "spawn"  # on every system: a forked child of a process with threads may hang


# --- Which files ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """The image files of a dataset, N of them, each once."""

    paths: list[str]  # relative to the root of the splits
    split_of: np.ndarray  # (N,) int64, index into `splits`
    labels: np.ndarray  # (N,) int64
    splits: tuple[Split, ...]  # those that are no union of others
    shared: list[tuple[str, str, str]]  # a path that two of them list, and their names

    def path_of(self, position: int) -> str:
        """Where the file at `position` lies."""
        return f"{self.splits[0].root}/{self.paths[position]}"


def is_union(split: Split, others: Sequence[Split]) -> bool:
    """Whether a split is made of several `others`, as trainval is."""
    paths = set(split.paths.tolist())
    parts = [set(o.paths.tolist()) for o in others if len(o) < len(split)]
    within = [part for part in parts if part <= paths]
    return len(within) > 1 and set().union(*within) == paths


def collect(splits: Sequence[Split]) -> Files:
    """The files of all `splits`; one that two of them list, or one twice, counts for the first."""
    bases = tuple(split for split in splits if not is_union(split, splits))
    owner: dict[str, int] = {}
    split_of, labels, shared = [], [], []
    for number, split in enumerate(bases):
        for path, label in zip(split.paths.tolist(), split.labels.tolist(), strict=True):
            if path in owner:
                if owner[path] != number:
                    shared.append((path, bases[owner[path]].name, split.name))
                continue
            owner[path] = number
            split_of.append(number)
            labels.append(label)
    return Files(list(owner), np.array(split_of), np.array(labels), bases, shared)


# --- One file -------------------------------------------------------------------------------------


class Look(NamedTuple):
    """What one file is; `trouble` says why it cannot be decoded, and then the rest says nothing."""

    is_missing: bool = False
    trouble: str = ""
    warning: str = ""  # what the decoder said of an image that it decoded all the same
    kind: str = ""  # format and mode
    width: int = 0  # pixels, once upright
    height: int = 0
    orientation: int = 0  # EXIF, 1 to 8
    length: int = 0  # bytes
    digest: bytes = NO_DIGEST  # SHA-256 of the decoded pixels
    hash: int = 0
    thumbnail: np.ndarray | None = None  # (16, 16) uint8


def _grey_square(image: "Tensor") -> np.ndarray:
    """(3, H, W) uint8 as a grey (32, 32) uint8, squashed."""
    from torchvision.transforms.v2 import functional as F

    from utils.data.transforms import as_batch

    small = F.resize(as_batch(image), [HASHED_SIDE, HASHED_SIDE], antialias=True)
    return F.rgb_to_grayscale(small)[0, 0].numpy()


def look(path: str) -> Look:
    """Decode the file at `path` as training does, in a process that `_listen` has prepared."""
    from utils.data.decode import decode

    try:
        length = os.stat(path).st_size  # noqa: PTH116 - a Path costs 10 us an image
    except OSError:
        return Look(is_missing=True)
    _heard()
    try:
        described, image = describe(path), decode(path)
    except RunError as error:
        return Look(trouble=str(error))
    pixels, grey = image.permute(1, 2, 0).contiguous().numpy(), _grey_square(image)
    # The shape too: a black image of 2 x 3 is none of 3 x 2.
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels)
    return Look(
        False,
        "",
        _heard(),
        described.kind,
        described.width,
        described.height,
        described.orientation,
        length,
        digest.digest(),
        int(perceptual_hash(grey)),
        thumbnail(grey),
    )


def _listen() -> None:
    """Prepare a process that looks at files.

    libjpeg's warnings, which go to file descriptor 2, are caught in a file: it decodes what is
    damaged as best it can, grey where it cannot, and only a warning tells.
    """
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)  # the processes are what runs side by side
    caught = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process lives
    os.dup2(caught.fileno(), 2)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - Python's own warnings are none


def _end_with_the_parent() -> None:
    """Else a process would wait for work for ever after its parent was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _heard() -> str:
    """The first line that was caught since the last call, or nothing."""
    length = os.lseek(2, 0, os.SEEK_CUR)
    if not length:
        return ""
    text = os.pread(2, length, 0).decode(errors="replace")
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    return text.strip().partition("\n")[0]


# --- All of them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What was found, by position; zeros for files that are missing or cannot be decoded."""

    sizes: np.ndarray  # (N, 2) int64, width and height once upright, pixels
    lengths: np.ndarray  # (N,) int64, bytes
    orientations: np.ndarray  # (N,) int64, EXIF, 1 to 8
    kinds: list[str]  # format and mode
    digests: list[bytes]
    hashes: np.ndarray  # (N,) uint64
    thumbnails: np.ndarray  # (N, 16, 16) uint8
    missing: list[int]  # positions
    trouble: dict[int, str]  # why a file cannot be decoded
    warnings: dict[int, str]  # what the decoder said of one that it decoded all the same

    @property
    def readable(self) -> np.ndarray:
        """(N,) bool: which files are there and decode."""
        return self.lengths > 0

    @classmethod
    def empty(cls, count: int) -> "Scan":
        """Nothing is known of `count` files yet."""
        return cls(
            np.zeros((count, 2), np.int64),
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
            [""] * count,
            [NO_DIGEST] * count,
            np.zeros(count, np.uint64),
            np.zeros((count, THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8),
            [],
            {},
            {},
        )

    def note(self, position: int, found: Look) -> None:
        """Record the look at one file."""
        if found.is_missing:
            self.missing.append(position)
            return
        if found.trouble:
            self.trouble[position] = found.trouble
            return
        if found.warning:
            self.warnings[position] = found.warning
        self.sizes[position] = found.width, found.height
        self.lengths[position] = found.length
        self.orientations[position] = found.orientation
        self.kinds[position] = found.kind
        self.digests[position] = found.digest
        self.hashes[position] = found.hash
        self.thumbnails[position] = found.thumbnail


@contextmanager
def _ctrl_c_is_not_for_children() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to every process, from those that are started in here.

    They would each print a traceback. Their parent ends them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _look_at(paths: Sequence[str]) -> list[Look]:
    return [look(path) for path in paths]


def _looks(pool: Executor, paths: Sequence[str], ahead: int) -> Iterator[Look]:
    """The looks at all files in their order; so many packets of them are handed out `ahead`.

    Not `pool.map`: that hands out everything at once, and cancels it after Ctrl-C, upon which a
    pool whose processes are gone fails with a traceback (Python 3.11).
    """
    packets = (paths[start : start + AT_A_TIME] for start in range(0, len(paths), AT_A_TIME))
    with _ctrl_c_is_not_for_children():  # the first packets start the processes
        waiting = deque(pool.submit(_look_at, packet) for packet in islice(packets, ahead))
    while waiting:
        yield from waiting.popleft().result()
        waiting.extend(pool.submit(_look_at, packet) for packet in islice(packets, 1))


def scan(files: Files, num_workers: int) -> Scan:
    """Decode every file in `num_workers` processes, with a progress bar.

    Raises:
        RunError: a process was lost.
    """
    found, done = Scan.empty(len(files.paths)), 0
    paths = [files.path_of(position) for position in range(len(files.paths))]
    context = multiprocessing.get_context(START_METHOD)
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(num_workers, context, _listen) as pool:
        try:
            with progress_bar(len(paths), "check", "img") as bar:
                for one in _looks(pool, paths, PACKETS_AHEAD * num_workers):
                    found.note(done, one)
                    done += 1
                    bar.update()
        except BaseException as error:
            # Not to be waited for: they may be importing torch, or have large files before them.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            if not isinstance(error, BrokenProcessPool):
                raise
            raise RunError(
                f"a process was lost that read {paths[done]} or one of the next images"
            ) from error
    return found
