"""Decode every image file of a dataset once, in processes, and note what it is."""

import hashlib
import multiprocessing
import os
import signal
import sys
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

from scripts.data_check.duplicates import HASHED_SIDE, perceptual_hash, thumbnail
from utils.console import progress_bar
from utils.data.image_files import describe
from utils.data.splits import Split
from utils.data.structure.looks import Looks
from utils.errors import NOT_STARTED, RunError

if TYPE_CHECKING:
    from torch import Tensor

AT_A_TIME = 16  # files that a process gets at once
PACKETS_AHEAD = (
    8  # so many times that for each process, so that none waits for one with large files
)
NO_DIGEST = b""
# What is said of an image that can be used, and perhaps should not be.
ONE_COLOR = "of one color"
DARK = "16 bits with values under an eighth of the range: probably of fewer bits, and dark"
NO_PROFILE = "with a damaged color profile, which counts as sRGB"
NO_END = "JPEG that lacks only its end marker, and is used"
NOTES = (ONE_COLOR, DARK, NO_PROFILE, NO_END)
START_METHOD = "spawn"  # on every system: a forked child of a process with threads may hang


# --- Which files ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """The N image files of a dataset, each once."""

    paths: list[str]  # relative to the root of the splits
    split_of: np.ndarray  # (N,) int64, index into `splits`
    labels: np.ndarray  # (N,) int64
    splits: tuple[Split, ...]  # those that are not a union of others
    shared: list[tuple[str, str, str]]  # each path that two splits list, and their names

    def path_of(self, position: int) -> str:
        """Return where the file at `position` lies."""
        return f"{self.splits[0].root}/{self.paths[position]}"


def is_union(split: Split, others: Sequence[Split]) -> bool:
    """Return whether a split is made of several `others`, as trainval is."""
    paths = set(split.paths.tolist())
    parts = [set(o.paths.tolist()) for o in others if len(o) < len(split)]
    within = [part for part in parts if part <= paths]
    return len(within) > 1 and set().union(*within) == paths


def collect(splits: Sequence[Split]) -> Files:
    """Return the files of all `splits`; a file that is listed twice counts for the first split."""
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
    """The facts about one file; of one that is missing or cannot be decoded, only that."""

    is_missing: bool = False
    trouble: str = ""  # why it cannot be decoded
    warning: str = ""  # the decoder's warning about an image that it decoded
    kind: str = ""  # format and mode, such as `JPEG RGB`
    width: int = 0  # pixels, once upright
    height: int = 0
    orientation: int = 0  # EXIF, 1 to 8
    length: int = 0  # bytes
    digest: bytes = NO_DIGEST  # SHA-256 of the decoded pixels
    hash: int = 0
    thumbnail: np.ndarray | None = None  # (16, 16) uint8
    notes: tuple[str, ...] = ()  # findings, of `NOTES`

    @property
    def is_readable(self) -> bool:
        """Return whether the file exists and can be decoded."""
        return self.kind != ""


def _grey_square(image: "Tensor") -> np.ndarray:
    """Return a (3, H, W) uint8 image as a grey (32, 32) uint8 one, squashed."""
    from torchvision.transforms.v2 import functional as F

    from utils.data.transforms import as_batch

    small = F.resize(as_batch(image), [HASHED_SIDE, HASHED_SIDE], antialias=True)
    return F.rgb_to_grayscale(small)[0, 0].numpy()


def look(path: str) -> Look:
    """Decode the file at `path` as training does, in a process prepared by `_prepare_process`."""
    from utils.data.decode import decode

    try:
        length = os.stat(path).st_size  # noqa: PTH116 - a Path costs 10 us an image
    except OSError:
        return Look(is_missing=True)
    _heard()
    looks = Looks([path])
    looks.look(0)  # what a run would refuse before its first step
    if looks.troubles:
        return Look(trouble=f"image {path} {looks.troubles[0].text}")
    try:
        described, image = describe(path), decode(path)
    except RunError as error:
        return Look(trouble=str(error))
    pixels, grey = image.permute(1, 2, 0).contiguous().numpy(), _grey_square(image)
    found = (
        (pixels == pixels[0, 0]).all(),
        described.bits == 16 and pixels.max() < 256 // 8,
        described.has_damaged_profile,
        bool(looks.unended),
    )
    # With the shape: black images of 2 x 3 and of 3 x 2 pixels differ.
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels)
    return Look(
        warning=_heard(),
        kind=described.kind,
        width=described.width,
        height=described.height,
        orientation=described.orientation,
        length=length,
        digest=digest.digest(),
        hash=int(perceptual_hash(grey)),
        thumbnail=thumbnail(grey),
        notes=tuple(note for note, is_so in zip(NOTES, found, strict=True) if is_so),
    )


def _prepare_process() -> None:
    """Catch in a pipe the warnings of libjpeg, which go to file descriptor 2.

    It decodes a damaged image as well as it can, grey where it cannot, and only warns.
    """
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)  # one process for each processor is enough
    global _caught
    _caught, writer = os.pipe()
    for end in (_caught, writer):
        os.set_blocking(end, False)  # what there is no room for is dropped
    os.dup2(writer, 2)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - not Python's own warnings


def _end_with_the_parent() -> None:
    """End this process with its parent; it would wait for work for ever if that is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _heard() -> str:
    """Return the first line that was caught since the last call, or an empty text."""
    try:
        text = os.read(_caught, 1 << 16)  # as much as a pipe holds
    except BlockingIOError:
        return ""
    return text.decode(errors="replace").strip().partition("\n")[0]


# --- All of them ----------------------------------------------------------------------------------


@contextmanager
def _ctrl_c_is_not_for_children() -> Iterator[None]:
    """Have processes that are started in the block ignore Ctrl-C, which a terminal sends to all.

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
    """Yield the looks at all files in their order, with `ahead` packets handed out at a time.

    `pool.map` hands out everything at once and cancels it after Ctrl-C; then a pool whose processes
    have ended fails with a traceback (Python 3.11).
    """
    packets = (paths[start : start + AT_A_TIME] for start in range(0, len(paths), AT_A_TIME))
    with _ctrl_c_is_not_for_children():  # the first packets start the processes
        waiting = deque(pool.submit(_look_at, packet) for packet in islice(packets, ahead))
    while waiting:
        yield from waiting.popleft().result()
        waiting.extend(pool.submit(_look_at, packet) for packet in islice(packets, 1))


def scan(files: Files, num_workers: int) -> list[Look]:
    """Look at every file in `num_workers` processes, with a progress bar.

    Raises:
        RunError: a process was lost, or none can be started.
    """
    found: list[Look] = []
    paths = [files.path_of(position) for position in range(len(files.paths))]
    context = multiprocessing.get_context(START_METHOD)
    others = set(multiprocessing.active_children())
    try:
        started = ProcessPoolExecutor(num_workers, context, _prepare_process)
    except OSError as error:  # of semaphores, for example
        raise RunError(f"{NOT_STARTED} ({error})") from error
    with started as pool:
        try:
            with progress_bar(len(paths), "check", "img") as bar:
                for one in _looks(pool, paths, PACKETS_AHEAD * num_workers):
                    found.append(one)
                    bar.update()
        except BaseException as error:
            # Not awaited: they may be importing torch, or have large files to read.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            if not isinstance(error, BrokenProcessPool):
                raise
            raise RunError(
                f"a process was lost that read {paths[len(found)]} or one of the next images"
            ) from error
    return found
