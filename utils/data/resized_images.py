"""Load the resized images of a split, decoded from their files or mapped from a cache on disk.

Both ways give the same bytes. `utils/data/cache.py` builds the caches.
"""

import mmap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.data.decode import decode_resized
from utils.data.presets import SizeOf
from utils.data.splits import Split


class ResizedImage(NamedTuple):
    """One image on its way to the model."""

    image: Tensor  # (3, H, W) uint8, channels last in memory
    original_size: tuple[int, int]  # width and height, pixels


@dataclass
class FileImages:
    """Decode and resize an image of a split whenever it is asked for."""

    split: Split
    size_of: SizeOf

    def load(self, position: int) -> ResizedImage:
        """Decode and resize the image at `position`.

        Raises:
            RunError: the image cannot be decoded, or is too large before or after the resize.
        """
        image, original = decode_resized(self.split.path_of(position), self.size_of)
        return ResizedImage(image, (original.width, original.height))


class Index(NamedTuple):
    """Where each of N images lies in the pixel file of a cache."""

    offsets: np.ndarray  # (N + 1,) int64, bytes
    sizes: np.ndarray  # (N, 2) int64, height and width of the resized images
    originals: np.ndarray  # (N, 2) int64, width and height of the original images
    bad: dict[int, str]  # position to what is wrong with the image

    @classmethod
    def of(cls, sizes: np.ndarray, originals: np.ndarray, bad: dict[int, str]) -> "Index":
        """Build the index of images that lie one after another."""
        ends = np.cumsum(sizes.prod(axis=1) * 3)
        return cls(np.concatenate([[0], ends]), sizes, originals, bad)


class CachedImages:
    """Read resized images from a cache's pixel file, which each process maps into memory."""

    def __init__(self, path: Path, index: Index, files: FileImages) -> None:
        self.path = path
        self.index = index
        self.files = files
        # Mapped now, the file stays readable here and in forked workers even if it is deleted.
        self._mapped: Tensor | None = self._map()

    def _map(self) -> Tensor:
        with self.path.open("rb") as file, warnings.catch_warnings():
            # Not torch.from_file: it maps for writing, which Linux grants only up to the size of
            # the memory. torch warns of memory that is read-only.
            warnings.simplefilter("ignore")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return torch.frombuffer(mapped, dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}

    def load(self, position: int) -> ResizedImage:
        """Return the image at `position` as a read-only view of the file.

        Raises:
            RunError: the image could not be decoded when the cache was built, nor can it now.
            OSError: this is a spawned worker, and the cache was deleted before it started.
        """
        if position in self.index.bad:
            return self.files.load(position)
        if self._mapped is None:  # not in __setstate__: a failure there is a worker's traceback
            self._mapped = self._map()
        begin, end = self.index.offsets[position : position + 2].tolist()
        height, width = self.index.sizes[position].tolist()
        image = self._mapped[begin:end].view(height, width, 3).permute(2, 0, 1)
        return ResizedImage(image, tuple(self.index.originals[position].tolist()))
