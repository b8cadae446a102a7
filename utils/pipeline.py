"""The input pipeline: the dataset that loaders read, samplers, loaders, steps of training.

Shapes: B batch, S image side in pixels, C classes.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from ml_collections import FrozenConfigDict
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.cache import disk_cache, ram_cache
from utils.data_utils import derive_seed, seed_worker
from utils.errors import RunError
from utils.presets import PRESETS, Augmentation, original_size
from utils.splits import Split
from utils.transforms import EvalView, Mixing, TrainView, height_first
from utils.working_images import FileImages, WorkingImages

View = Callable[[Tensor], Tensor]  # working image (3, H, W) to model input (3, S, S), both uint8


class Batch(NamedTuple):
    """What a loader yields, B samples of it."""

    images: Tensor  # (B, 3, S, S) uint8, channels last in memory
    labels: Tensor  # (B,) int64; of mixed images the class with the larger share
    positions: Tensor  # (B,) int64, in the split
    sizes: Tensor  # (B, 2) int64, width and height of the original image, pixels
    targets: Tensor | None = None  # (B, C) float32 shares of the classes, where images are mixed
    bad: tuple[tuple[str, str], ...] = ()  # id and trouble of images that were left out


class ImageDataset(Dataset):
    """The images of a split in batches, addressed by (epoch, position).

    What is random about a sample depends on the seed, the epoch and the sample's id alone; how a
    batch is mixed, on the seed, the epoch and the batch. The epoch comes with the index because a
    persistent worker holds a copy of this object and never sees an attribute that the main process
    changes later.
    """

    def __init__(
        self,
        split: Split,
        images: WorkingImages,
        view: View,
        img_size: int,
        seed: int,
        mixing: Mixing | None = None,
        leaves_out_bad: bool = False,
    ) -> None:
        """Describe the samples.

        Args:
            split: of the samples.
            images: of the same samples.
            view: draws from torch's CPU generator, if at all.
            img_size: S.
            seed: of the run.
            mixing: of batches, if at all.
            leaves_out_bad: whether an image that cannot be decoded makes its batch smaller instead
                of raising.
        """
        self.split = split
        self.images = images
        self.view = view
        self.img_size = img_size
        self.seed = seed
        self.mixing = mixing
        self.leaves_out_bad = leaves_out_bad

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, indices: list[tuple[int, int]]) -> Batch:
        """The batch of the samples at these (epoch, position).

        Raises:
            RunError: an image cannot be decoded.
        """
        # Transforms draw from torch's CPU generator. It is put back, so that loading in this
        # process (no workers) draws as little from it as loading elsewhere. torch.manual_seed would
        # reach into the MPS generator too.
        state = torch.default_generator.get_state()
        try:
            return self._mixed(self._batch(indices), indices[0])
        finally:
            torch.default_generator.set_state(state)

    def _batch(self, indices: list[tuple[int, int]]) -> Batch:
        shape = (len(indices), 3, self.img_size, self.img_size)
        images = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        positions, sizes, bad = [], [], []
        for epoch, position in indices:
            sample_id = str(self.split.ids[position])
            try:
                working = self.images.load(position)
            except RunError as error:
                if not self.leaves_out_bad:
                    raise
                bad.append((sample_id, str(error)))
                continue
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, sample_id))
            images[len(positions)] = self.view(working.image)
            positions.append(position)
            sizes.append(working.size)
        return Batch(
            images[: len(positions)],
            torch.from_numpy(self.split.labels[positions]),
            torch.tensor(positions, dtype=torch.int64),
            torch.tensor(sizes, dtype=torch.int64).view(-1, 2),
            bad=tuple(bad),
        )

    def _mixed(self, batch: Batch, first: tuple[int, int]) -> Batch:
        if not self.mixing or not len(batch.labels):
            return batch
        epoch, position = first
        seed = derive_seed(self.seed, epoch, "mix", str(self.split.ids[position]))
        torch.default_generator.manual_seed(seed)
        images, targets = self.mixing(batch.images, batch.labels)
        return batch._replace(images=images, targets=targets, labels=targets.argmax(dim=1))


# --- Loaders --------------------------------------------------------------------------------------


class TrainSampler:
    """Positions in a fixed shuffled order, epoch after epoch, as (epoch, position).

    A batch may span two epochs: every sample is seen equally often, every batch has the same size,
    and a split smaller than a batch still fills it.
    """

    def __init__(self, num_samples: int, total: int, seed: int, start: int = 0) -> None:
        """Describe the order.

        Args:
            num_samples: of the split.
            total: samples of the whole run.
            seed: of the run.
            start: samples of the run that are done already.
        """
        self.num_samples = num_samples
        self.total = total
        self.seed = seed
        self.start = start

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the pairs from `start` to `total`."""
        for epoch in range(self.start // self.num_samples, -(-self.total // self.num_samples)):
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, "order"))
            order = torch.randperm(self.num_samples, generator=generator)
            begin = epoch * self.num_samples
            for position in order[max(0, self.start - begin) : self.total - begin].tolist():
                yield epoch, position


class EvalSampler:
    """Every position once, in split order, as (epoch, position)."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the pairs."""
        return ((0, position) for position in range(self.num_samples))


def _as_it_is(batch: Batch) -> Batch:
    """The dataset hands out whole batches: there is nothing to collate."""
    return batch


def make_loader(
    dataset: ImageDataset,
    sampler: Iterable[tuple[int, int]],
    batch_size: int,
    num_workers: int,
    device: torch.device,
    start_method: str | None = None,
) -> DataLoader:
    """A loader of the samples that `sampler` gives, in its order.

    Args:
        dataset: of the samples.
        sampler: gives (epoch, position).
        batch_size: of each batch but, maybe, the last.
        num_workers: loader processes; changes no batch.
        device: that the batches go to.
        start_method: of the processes, `fork` or `spawn`; None: the system's own.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=_as_it_is,
        # Of its own: else each pass over the loader draws from the global generator.
        generator=torch.Generator().manual_seed(dataset.seed),
        worker_init_fn=seed_worker,
        pin_memory=device.type == "cuda",  # only there: MPS warns and gains nothing
        multiprocessing_context=start_method if num_workers else None,
    )


def open_images(config: FrozenConfigDict, split: Split, phase: str) -> WorkingImages:
    """The working images of `split`, from their files or a cache, which is built if need be.

    Args:
        config: of the run.
        split: the samples.
        phase: `train` or `eval`.

    Raises:
        RunError: a cache is to be built, and an image is bad or there is no room.
    """
    preset = PRESETS[config.preset]
    if phase == "eval":
        files = FileImages(split, functools.partial(preset.eval_size, config.img_size))
    elif config.cache == "none" and preset.squash:
        # Squashing is left to the view, which needs not all rows of the squashed image.
        files = FileImages(split, original_size)
    else:
        size_of = functools.partial(preset.train_size, config.img_size)
        files = FileImages(split, size_of, height_first)
    may_be_bad = phase == "train" and config.skip_bad_images > 0
    if config.cache == "ram":
        return ram_cache(files, may_be_bad, is_shared=config.num_workers > 0)
    if config.cache == "disk":
        working = {"phase": phase, "squash": preset.squash, "img_size": config.img_size}
        return disk_cache(Path(config.cache_dir), files, working, may_be_bad)
    return files


def augmentation_of(config: FrozenConfigDict) -> Augmentation:
    """What a training run does to images besides geometry, by its flags."""
    return Augmentation(config.augment, config.random_erasing, config.mixup, config.cutmix)


def train_loader(
    config: FrozenConfigDict,
    split: Split,
    micro_batches: int,
    device: torch.device,
    start_step: int = 0,
) -> DataLoader:
    """A loader of the micro-batches of a run in shuffled order, each of them full.

    Args:
        config: of the run.
        split: trained on.
        micro_batches: of an optimizer step.
        device: that the batches go to.
        start_step: optimizer steps that are done already.

    Raises:
        RunError: as `open_images`.
    """
    batch = config.train_batch_size
    sampler = TrainSampler(
        len(split), config.num_steps * batch, config.seed, start_step * batch
    )  # fmt: skip
    augmentation = augmentation_of(config)
    dataset = ImageDataset(
        split,
        open_images(config, split, "train"),
        TrainView(PRESETS[config.preset], config.img_size, augmentation),
        config.img_size,
        config.seed,
        Mixing(augmentation, len(split.classes)),
        leaves_out_bad=config.skip_bad_images > 0,
    )
    return make_loader(dataset, sampler, batch // micro_batches, config.num_workers, device)


def eval_loader(config: FrozenConfigDict, split: Split, device: torch.device) -> DataLoader:
    """A loader of every sample once in split order; the last batch may be smaller.

    Raises:
        RunError: as `open_images`.
    """
    view = EvalView(PRESETS[config.preset], config.img_size)
    images = open_images(config, split, "eval")
    dataset = ImageDataset(split, images, view, config.img_size, seed=0)
    sampler = EvalSampler(len(split))
    return make_loader(dataset, sampler, config.eval_batch_size, config.num_workers, device)
