"""The input pipeline: transforms per phase, the dataset that loaders read, samplers, loaders.

Shapes: B batch, S image side in pixels (of points: samples), H heads, C classes.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from ml_collections import FrozenConfigDict
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

from utils.data_utils import derive_seed, seed_worker
from utils.dataset import Split, decode_rgb

# --- Transforms -----------------------------------------------------------------------------------

TRAIN_CROP_SCALE = (0.25, 1.0)  # area; smaller crops lose the flower
EVAL_RESIZE = 8 / 7  # shorter side before the center crop, as 256 is to 224


def train_transform(img_size: int) -> v2.Transform:
    """Random resized crop and flip; PIL RGB image to (3, S, S) uint8."""
    return v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(img_size, scale=TRAIN_CROP_SCALE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToPureTensor(),
        ]
    )


def eval_transform(img_size: int) -> v2.Transform:
    """Resize and center crop; PIL RGB image to (3, S, S) uint8."""
    return v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(round(img_size * EVAL_RESIZE), antialias=True),
            v2.CenterCrop(img_size),
            v2.ToPureTensor(),
        ]
    )


def crop_to_image(points: np.ndarray, sizes: np.ndarray, img_size: int) -> np.ndarray:
    """Undo `eval_transform` for points: from its square output to the original image.

    Args:
        points: (S, H, 2) x and y in [0, 1] of the square.
        sizes: (S, 2) width and height of the original images, pixels.
        img_size: side of the square, pixels.

    Returns:
        (S, H, 2) float64 x and y in [0, 1] of the original image.
    """
    resized_side = round(img_size * EVAL_RESIZE)
    shorter = sizes.min(axis=1, keepdims=True)
    # As torchvision rounds: `v2.Resize` down, `v2.CenterCrop` half to even.
    resized = np.where(sizes == shorter, resized_side, resized_side * sizes // shorter)  # (S, 2)
    offset = np.round((resized - img_size) / 2)
    return (points * img_size + offset[:, None]) / resized[:, None]


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(C,) float32 weights by the inverse of the classes' counts; their mean over `labels` is 1.

    Classes without samples get 1: they are no sample's target, but label smoothing has a share for
    them.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = len(labels) / (present.sum() * np.maximum(counts, 1))
    return np.where(present, weights, 1.0).astype(np.float32)


def class_weights(config: FrozenConfigDict, train: Split, device: torch.device) -> Tensor | None:
    """The weights of `--class_weights` for the samples trained on, (C,) on `device`, or None."""
    if config.class_weights == "none":
        return None
    weights = balanced_class_weights(train.labels, len(train.classes))
    return torch.from_numpy(weights).to(device)


# --- Loaders --------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What a loader yields, B samples of it."""

    images: Tensor  # (B, 3, S, S) uint8
    labels: Tensor  # (B,) int64
    positions: Tensor  # (B,) int64, in the split
    sizes: Tensor  # (B, 2) int64, width and height of the original image, pixels


class ImageDataset:
    """The images of a split, addressed by (epoch, position).

    What is random about a sample depends on the seed, the epoch and the sample's id alone. The
    epoch comes with the index because a persistent worker holds a copy of this object and never
    sees an attribute that the main process changes later.
    """

    def __init__(self, split: Split, transform: v2.Transform, seed: int) -> None:
        self.split = split
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: tuple[int, int]) -> Batch:
        """The sample at (epoch, position): image (3, S, S) uint8, label, position, size.

        Raises:
            RunError: the image cannot be decoded.
        """
        epoch, position = index
        image = decode_rgb(self.split.root / self.split.paths[position])
        # Transforms draw from torch's CPU generator. It is put back, so that loading in this
        # process (no workers) draws as little from it as loading elsewhere. torch.manual_seed would
        # reach into the MPS generator too.
        generator = torch.default_generator
        state = generator.get_state()
        try:
            generator.manual_seed(derive_seed(self.seed, epoch, str(self.split.ids[position])))
            pixels = self.transform(image)
        finally:
            generator.set_state(state)
        return Batch(pixels, int(self.split.labels[position]), position, torch.tensor(image.size))


class TrainSampler:
    """Positions in a fixed shuffled order, epoch after epoch, as (epoch, position).

    A batch may span two epochs: every sample is seen equally often, every batch has the same size,
    and a split smaller than a batch still fills it.
    """

    def __init__(self, num_samples: int, total: int, seed: int) -> None:
        self.num_samples = num_samples
        self.total = total
        self.seed = seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield `total` pairs."""
        for start in range(0, self.total, self.num_samples):
            epoch = start // self.num_samples
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, "order"))
            order = torch.randperm(self.num_samples, generator=generator).tolist()
            for position in order[: self.total - start]:
                yield epoch, position


def _collate(samples: list[Batch]) -> Batch:
    return Batch(*(default_collate(list(column)) for column in zip(*samples, strict=True)))


def _loader(
    dataset: ImageDataset,
    sampler: Iterable[tuple[int, int]],
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=_collate,
        # Of its own: else each pass over the loader draws from the global generator.
        generator=torch.Generator().manual_seed(dataset.seed),
        worker_init_fn=seed_worker,
        pin_memory=device.type == "cuda",  # only there: MPS warns and gains nothing
    )


def train_loader(
    split: Split,
    img_size: int,
    micro_batch_size: int,
    num_micro_batches: int,
    seed: int,
    num_workers: int,
    device: torch.device,
) -> DataLoader:
    """A loader of exactly `num_micro_batches` full micro-batches in shuffled order."""
    sampler = TrainSampler(len(split), num_micro_batches * micro_batch_size, seed)
    dataset = ImageDataset(split, train_transform(img_size), seed)
    return _loader(dataset, sampler, micro_batch_size, num_workers, device)


def eval_loader(
    split: Split, img_size: int, batch_size: int, num_workers: int, device: torch.device
) -> DataLoader:
    """A loader of every sample once in split order; the last batch may be smaller."""
    dataset = ImageDataset(split, eval_transform(img_size), seed=0)
    order = [(0, position) for position in range(len(split))]
    return _loader(dataset, order, batch_size, num_workers, device)
