"""Serve the samples of a split in batches: images as they are viewed, or their features.

Shapes: B batch, S image side in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.data.batches import Batch, BatchShare
from utils.data.images.openers import BadImage
from utils.data.resized_images import CachedImages, FileImages
from utils.data.splits import Split
from utils.data.transforms import Mixing, PatchDropout
from utils.data_utils import derive_seed
from utils.errors import LoadingFailed

View = Callable[[Tensor], Tensor]  # resized image (3, H, W) to model input (3, S, S), uint8


@dataclass
class ImageDataset(Dataset):
    """Serve the images of a split in batches, addressed by (epoch, position).

    The random numbers of a sample depend on the seed, the epoch and the sample's id alone; those
    that mix a batch, on the seed, the epoch and the batch. The epoch comes with the index, since a
    persistent worker holds a copy of this object and never sees what the main process changes.
    """

    split: Split
    images: FileImages | CachedImages  # images of the same samples
    view: View  # may draw from torch's CPU generator
    img_size: int  # S, pixels
    seed: int  # random seed of the run
    mixing: Mixing | None = None  # mixes a batch
    patch_dropout: PatchDropout | None = None  # draws after the view
    # Whether an image that cannot be decoded makes its batch smaller instead of raising.
    leaves_out_bad: bool = False
    remedy: str = ""  # what to do about such an image

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, part: BatchShare) -> Batch:
        """Load this process's part of a batch.

        Raises:
            LoadingFailed: an image cannot be decoded.
        """
        # Views draw from torch's CPU generator. Its state is restored, so that loading in this
        # process (no workers) changes it as little as loading in another. torch.manual_seed would
        # seed the MPS generator too.
        state = torch.default_generator.get_state()
        # One thread, as in a worker: some augmentations take the mean of an image, whose last bit
        # depends on how many threads add it up.
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            own = self._batch(part.samples[part.begin : part.end])
            return self._mixed(own, part) if self.mixing and len(own.labels) else own
        finally:
            torch.set_num_threads(num_threads)
            torch.default_generator.set_state(state)

    def _batch(self, indices: list[tuple[int, int]]) -> Batch:
        shape = (len(indices), 3, self.img_size, self.img_size)
        images = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        positions, sizes, bad, kept = [], [], [], []
        for epoch, position in indices:
            sample_id = str(self.split.ids[position])
            try:
                resized = self.images.load(position)
            except BadImage as error:
                if not self.leaves_out_bad:
                    raise LoadingFailed(f"{error}; {self.remedy}") from error
                bad.append((sample_id, str(error)))
                continue
            if resized.trouble:
                bad.append(("", resized.trouble))
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, sample_id))
            images[len(positions)] = self.view(resized.image)
            if self.patch_dropout is not None:
                kept.append(self.patch_dropout())
            positions.append(position)
            sizes.append(resized.original_size)
        return Batch(
            images[: len(positions)],
            torch.from_numpy(self.split.labels[positions]),
            torch.tensor(positions, dtype=torch.int64),
            torch.tensor(sizes, dtype=torch.int64).view(-1, 2),
            bad=tuple(bad),
            kept=torch.stack(kept) if kept else None,
        )

    def _mixed(self, batch: Batch, part: BatchShare) -> Batch:
        """Mix a part as the whole batch is mixed: each image with the one before it."""
        images, labels = batch.images, batch.labels
        before = None if part.is_whole else self._before(part)
        if before is not None:
            images = torch.cat([before.images, images])
            labels = torch.cat([before.labels, labels])
        epoch, position = part.samples[0]
        seed = derive_seed(self.seed, epoch, "mix", str(self.split.ids[position]))
        torch.default_generator.manual_seed(seed)
        images, targets = self.mixing(images, labels)
        own = slice(0 if before is None else 1, None)
        images = images[own].contiguous(memory_format=torch.channels_last)
        targets = targets[own]
        return batch._replace(images=images, targets=targets, labels=targets.argmax(dim=1))

    def _before(self, part: BatchShare) -> Batch | None:
        """Load the sample that is mixed into the part's first; None if all others are bad."""
        others = [*part.samples[part.end :], *part.samples[: part.begin]]
        for sample in reversed(others):
            before = self._batch([sample])
            if len(before.labels):
                return before
        return None


@dataclass
class FeatureDataset(Dataset):
    """Serve features of the images of a split in place of the images.

    A batch has `features` (B, D) float32 as its `images`, and the members that one of images has.
    """

    split: Split
    features: np.ndarray  # (N, D) float32, of the images that can be decoded
    positions: np.ndarray  # (N,) int64, their positions in the split, sorted
    seed: int = 0  # nothing is drawn

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, part: BatchShare) -> Batch:
        """Return this process's part of a batch."""
        asked = np.array([position for _, position in part.samples[part.begin : part.end]])
        is_there = np.isin(asked, self.positions)
        there = asked[is_there]
        return Batch(
            torch.from_numpy(self.features[np.searchsorted(self.positions, there)]),
            torch.from_numpy(self.split.labels[there]),
            torch.from_numpy(there),
            torch.zeros(len(there), 2, dtype=torch.int64),
            bad=tuple(
                (str(self.split.ids[position]), f"{self.split.path_of(position)} has no features")
                for position in asked[~is_there]
            ),
        )
