"""Which samples are in which batch, and which of them a process has."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from utils.data_utils import derive_seed
from utils.splits import Split


class Part(NamedTuple):
    """A batch, and which of its samples one process has."""

    samples: list[tuple[int, int]]  # (epoch, position) of all
    begin: int
    end: int

    @property
    def is_whole(self) -> bool:
        """Whether it has all of them."""
        return self.end - self.begin == len(self.samples)


class TrainSampler:
    """Positions in a fixed shuffled order, epoch after epoch, as (epoch, position).

    A batch may span two epochs: every sample is seen equally often, every batch has the same size,
    and a split smaller than a batch still fills it.
    """

    def __init__(
        self, num_samples: int, num_steps: int, step_size: int, seed: int, start_step: int = 0
    ) -> None:
        """Describe the order.

        Args:
            num_samples: of the split.
            num_steps: of the whole run.
            step_size: samples of an optimizer step.
            seed: of the run.
            start_step: optimizer steps that are done already.
        """
        self.num_samples = num_samples
        self.step_size = step_size
        self.total = num_steps * step_size
        self.seed = seed
        self.start = start_step * step_size

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the pairs from `start` to `total`."""
        return self.between(self.start, self.total)

    def ids_of_step(self, split: Split, step: int) -> list[str]:
        """The ids of the samples of an optimizer step, counted from 1."""
        end = step * self.step_size
        pairs = self.between(end - self.step_size, end)
        return [str(split.ids[position]) for _, position in pairs]

    def between(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the pairs of the samples of the run from `start` up to `end`."""
        for epoch in range(start // self.num_samples, -(-end // self.num_samples)):
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, "order"))
            order = torch.randperm(self.num_samples, generator=generator)
            begin = epoch * self.num_samples
            for position in order[max(0, start - begin) : end - begin].tolist():
                yield epoch, position


class TrainBatches:
    """A process's part of each micro-batch: the parts are equal, and in the order of the ranks."""

    def __init__(self, sampler: TrainSampler, batch_size: int, rank: int, world_size: int) -> None:
        """Describe the parts.

        Args:
            sampler: gives the samples.
            batch_size: of a micro-batch of all processes; a multiple of `world_size`.
            rank: of this process.
            world_size: number of processes.
        """
        self.sampler = sampler
        self.batch_size = batch_size
        share = batch_size // world_size
        self.begin, self.end = rank * share, (rank + 1) * share

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[Part]:
        """Yield the parts."""
        samples = iter(self.sampler)
        while batch := list(itertools.islice(samples, self.batch_size)):
            yield Part(batch, self.begin, self.end)


class EvalBatches:
    """Every position once, in whole batches in split order, dealt out to the processes in turn.

    A batch has the same members whatever the number of processes, and so the same logits.
    """

    def __init__(
        self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.firsts = range(rank * batch_size, num_samples, world_size * batch_size)

    def __len__(self) -> int:
        return len(self.firsts)

    def __iter__(self) -> Iterator[Part]:
        """Yield the batches of this process."""
        for first in self.firsts:
            end = min(first + self.batch_size, self.num_samples)
            yield Part([(0, position) for position in range(first, end)], 0, end - first)
