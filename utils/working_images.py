"""Where the pipeline gets its working images from: decoded from their files, in RAM, or on disk.

All three give the same bytes. `utils/cache.py` builds the latter two.
"""

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


class CachedImages:
    """Working images from memory, or from a file that is mapped into it."""

    def __init__(self, pixels: Tensor | Path, index: Index) -> None:
        self.index = index
        self.path = pixels if isinstance(pixels, Path) else None
        self.pixels = self._mapped() if isinstance(pixels, Path) else pixels

    def _mapped(self) -> Tensor:
        # shared=False: what is written by mistake stays in this process.
        total = int(self.index.offsets[-1])
        return torch.from_file(str(self.path), shared=False, size=total, dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker maps the file itself; a tensor in shared memory travels as a handle.
        return {**self.__dict__, "pixels": None} if self.path else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.path:
            self.pixels = self._mapped()

    def load(self, position: int) -> Working:
        """The image at `position`; a view of the cache.

        Raises:
            RunError: it could not be decoded when the cache was built.
        """
        if position in self.index.bad:
            raise RunError(self.index.bad[position])
        begin, end = self.index.offsets[position : position + 2].tolist()
        height, width = self.index.sizes[position].tolist()
        image = self.pixels[begin:end].view(height, width, 3).permute(2, 0, 1)
        return Working(image, tuple(self.index.originals[position].tolist()))
