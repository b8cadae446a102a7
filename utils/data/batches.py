"""Decide which samples are in which batch of which process; what a batch holds, and how it is sent.

Shapes: B batch, S image side in pixels, C classes.
"""

import itertools
import pickle
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.console import log
from utils.data.splits import Split
from utils.data_utils import derive_seed
from utils.errors import one_line

# Images in shared memory take a file descriptor a batch, in the main process. Where fewer files may
# be open than the most loader processes and micro-batches in use would take, they are not shared.
ENOUGH_FILES = 4096


class Batch(NamedTuple):
    """What a loader yields, B samples of it."""

    images: Tensor  # (B, 3, S, S) uint8, channels last in memory; or (B, D) float32 features
    labels: Tensor  # (B,) int64; of mixed images the class with the larger share
    positions: Tensor  # (B,) int64, in the split
    sizes: Tensor  # (B, 2) int64, width and height of the original image, pixels
    targets: Tensor | None = None  # (B, C) float32 shares of the classes, if images are mixed
    kept: Tensor | None = None  # (B, K) int64, the patches that the model sees, if not all
    # Id and trouble of images that were left out; without an id, trouble of a cache.
    bad: tuple[tuple[str, str], ...] = ()

    def __reduce__(self) -> tuple[Callable[..., "Batch"], tuple[Any, ...]]:
        """Send it from a loader process: images in shared memory if there is room, the rest as is.

        torch shares each tensor in a thread that drops a batch for which there is no room; the main
        process would wait for it for ever.
        """
        others = [each if each is None else each.numpy() for each in self[1:-1]]
        return _received, (*_send_images(self.images), others, self.bad)


def _send_images(images: Tensor) -> tuple[bytes | np.ndarray, str]:
    """Return where images are in shared memory; or all their bytes, and why they are not there."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < ENOUGH_FILES:
        why = f"only {files} files may be open"
    else:
        try:
            return bytes(ForkingPickler.dumps(images)), ""
        except (OSError, RuntimeError) as error:  # torch's for shared memory, ours for sockets
            why = one_line(error)
    return images.permute(0, 2, 3, 1).numpy(), why


_warned: list[str] = []  # why batches come through the pipe, said once


def _received(
    sent: bytes | np.ndarray,
    why: str,
    others: Sequence[np.ndarray | None],
    bad: tuple[tuple[str, str], ...],
) -> Batch:
    """Return in the main process what `Batch.__reduce__` sent."""
    if isinstance(sent, bytes):
        images = pickle.loads(sent)
    else:
        images = torch.from_numpy(sent).permute(0, 3, 1, 2)
        if not _warned:
            _warned.append(why)
            log.warning(
                "warning: batches come through a pipe, which is slower (%s); more shared memory "
                "(docker run --shm-size=1g), open files (ulimit -n) or room in TMPDIR helps",
                why,
            )
    return Batch(
        images, *(each if each is None else torch.from_numpy(each) for each in others), bad
    )


class BatchShare(NamedTuple):
    """A batch, and which of its samples one process has."""

    samples: list[tuple[int, int]]  # (epoch, position) of all
    begin: int
    end: int

    @property
    def is_whole(self) -> bool:
        """Tell whether the process has all samples of the batch."""
        return self.end - self.begin == len(self.samples)


def sample_order(num_samples: int, seed: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (epoch, position) of the run's samples from `start` up to `end`, shuffled by epoch.

    A batch may span two epochs: so every sample is seen equally often, every batch has the same
    size, and a split smaller than a batch still fills it.

    Args:
        num_samples: number of samples of the split.
        seed: random seed of the run.
        start: first sample, counted from the beginning of the run.
        end: sample after the last.
    """
    for epoch in range(start // num_samples, -(-end // num_samples)):
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch, "order"))
        order = torch.randperm(num_samples, generator=generator)
        begin = epoch * num_samples
        for position in order[max(0, start - begin) : end - begin].tolist():
            yield epoch, position


def ids_of_step(split: Split, seed: int, step_size: int, step: int) -> list[str]:
    """Return the ids of the samples of an optimizer step, counted from 1."""
    order = sample_order(len(split), seed, (step - 1) * step_size, step * step_size)
    return [str(split.ids[position]) for _, position in order]


@dataclass(frozen=True)
class TrainBatches:
    """Yield a process's part of each micro-batch: equal parts, in the order of the ranks."""

    num_samples: int  # samples in the split
    seed: int  # random seed of the run
    stretch: range  # samples still to be seen, counted from the beginning of the run
    batch_size: int  # samples of a micro-batch in all processes; a multiple of `world_size`
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return len(self.stretch) // self.batch_size

    def __iter__(self) -> Iterator[BatchShare]:
        share = self.batch_size // self.world_size
        order = sample_order(self.num_samples, self.seed, self.stretch.start, self.stretch.stop)
        while batch := list(itertools.islice(order, self.batch_size)):
            yield BatchShare(batch, self.rank * share, (self.rank + 1) * share)


@dataclass(frozen=True)
class EvalBatches:
    """Yield every position once, in whole batches in split order, dealt out to the ranks in turn.

    A batch has the same members whatever the number of processes, and so the same logits.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return len(self._firsts())

    def __iter__(self) -> Iterator[BatchShare]:
        for first in self._firsts():
            end = min(first + self.batch_size, self.num_samples)
            yield BatchShare([(0, position) for position in range(first, end)], 0, end - first)

    def _firsts(self) -> range:
        step = self.world_size * self.batch_size
        return range(self.rank * self.batch_size, self.num_samples, step)


class Normalizer:
    """Turn uint8 images into float32 model input on the device: the one place that does it."""

    def __init__(self, normalization: Mapping[str, Sequence[float]], device: torch.device) -> None:
        self.device = device
        mean, std = (torch.tensor(normalization[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.scale = (1 / (255 * std)).to(device)
        self.shift = (-mean / std).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Turn (B, 3, S, S) uint8 on the CPU into contiguous float32 on the device.

        Features, which are float32, are moved as they are.
        """
        # non_blocking can corrupt data on MPS (pytorch #189690) and pays only from pinned memory.
        # Batches come channels last; contiguous before MPS sees them (mistakes with other layouts).
        images = images.contiguous().to(self.device, non_blocking=self.device.type == "cuda")
        return images if images.is_floating_point() else images.float() * self.scale + self.shift
