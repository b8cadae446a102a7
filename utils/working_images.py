"""Where the pipeline gets its working images from: decoded from their files, in RAM, or on disk.

All three give the same bytes. `utils/cache.py` builds the latter two.
"""

import errno
import mmap
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from utils.decode import decode
from utils.errors import RunError
from utils.images import refuse_bomb
from utils.presets import Size
from utils.splits import Split
from utils.transforms import working_image

SizeOf = Callable[[Size], Size]  # original size to working size


class Working(NamedTuple):
    """One image on its way to the model."""

    image: Tensor  # (3, H, W) uint8, channels last in memory
    size: tuple[int, int]  # width and height of the original, pixels


class WorkingImages(Protocol):
    """The images of a split at working size."""

    def load(self, position: int) -> Working:
        """The image of the sample at `position`.

        Raises:
            RunError: it cannot be decoded.
        """
        ...


class FileImages:
    """Decodes an image whenever it is asked for."""

    def __init__(self, split: Split, size_of: SizeOf) -> None:
        """Describe the images.

        Args:
            split: the samples.
            size_of: gives their working sizes.
        """
        self.split = split
        self.size_of = size_of

    def load(self, position: int) -> Working:
        """Decode and resize the image at `position`.

        Raises:
            RunError: the image cannot be decoded, or is too large.
        """
        path = self.split.path_of(position)
        image = decode(path)
        original = Size(*image.shape[1:])
        size = self.size_of(original)
        refuse_bomb(path, size.width, size.height)  # a line one pixel high, enlarged
        return Working(working_image(image, size), (original.width, original.height))


class Index(NamedTuple):
    """Where the images of a cache lie, N of them."""

    offsets: np.ndarray  # (N + 1,) int64, bytes
    sizes: np.ndarray  # (N, 2) int64, height and width at working size
    originals: np.ndarray  # (N, 2) int64, width and height
    bad: dict[int, str]  # position to what is wrong with the image

    @classmethod
    def of(cls, sizes: np.ndarray, originals: np.ndarray, bad: dict[int, str]) -> "Index":
        """Of images that lie one after another."""
        ends = np.cumsum(sizes.prod(axis=1) * 3)
        return cls(np.concatenate([[0], ends]), sizes, originals, bad)


class _PixelFile:
    """The pixels of a cache on disk, mapped into memory; each process maps them for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: tuple[int, ...] | None = None
        # At once: from now on it is readable here and in forked workers, even if it is deleted.
        self.mapped: Tensor | None = self._map()

    def _map(self) -> Tensor:
        with self.path.open("rb") as file, warnings.catch_warnings():
            stat = os.fstat(file.fileno())
            identity = stat.st_ino, stat.st_size, stat.st_mtime_ns
            if self.identity not in (None, identity):
                raise OSError(errno.ESTALE, "built again while it was in use", str(self.path))
            self.identity = identity
            # Not torch.from_file: that maps for writing, which Linux grants only up to the size of
            # the memory. And torch warns of memory that may not be written.
            warnings.simplefilter("ignore")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return torch.frombuffer(mapped, dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "mapped": None}

    def pixels(self) -> Tensor:
        """The pixels, (bytes,) uint8; writing to them ends the process.

        Raises:
            OSError: this is a spawned worker, and the file was deleted or built again before it
                started.
        """
        if self.mapped is None:  # not when unpickled: what fails there is a traceback of the worker
            self.mapped = self._map()
        return self.mapped


class CachedImages:
    """Working images from memory, or from a file that is mapped into it."""

    def __init__(self, pixels: Tensor | Path, index: Index) -> None:
        self.index = index
        self._source = _PixelFile(pixels) if isinstance(pixels, Path) else pixels

    @property
    def pixels(self) -> Tensor:
        """All images, one after another; (bytes,) uint8."""
        return self._source.pixels() if isinstance(self._source, _PixelFile) else self._source

    def load(self, position: int) -> Working:
        """The image at `position`; a view of the cache.

        Raises:
            RunError: it could not be decoded when the cache was built.
            OSError: the cache is not there any more.
        """
        if position in self.index.bad:
            raise RunError(self.index.bad[position])
        begin, end = self.index.offsets[position : position + 2].tolist()
        height, width = self.index.sizes[position].tolist()
        image = self.pixels[begin:end].view(height, width, 3).permute(2, 0, 1)
        return Working(image, tuple(self.index.originals[position].tolist()))
