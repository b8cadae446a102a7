"""Load the resized images of a split, decoded from their files or read from a cache on disk.

Both ways give the same bytes. `utils/data/cache.py` builds the caches.
"""

import io
import json
import os
import weakref
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.data.decode import decode_resized
from utils.data.images.openers import BadImage
from utils.data.presets import SizeOf
from utils.data.readers import synthetic
from utils.data.splits import Split
from utils.files import open_regular, read_regular

PIXELS_FILE, INDEX_FILE, ABOUT_FILE = "pixels.bin", "index.npz", "about.json"  # of a cache


class ResizedImage(NamedTuple):
    """One image on its way to the model."""

    image: Tensor  # (3, H, W) uint8, channels last in memory
    original_size: tuple[int, int]  # width and height, pixels
    trouble: str = ""  # why it was decoded although it is in a cache


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
        split, path = self.split, self.split.path_of(position)
        try:
            image, original = decode_resized(path, self.size_of)
        except BadImage:
            if split.dataset != "synthetic" or Path(split.root).exists():
                raise
            synthetic.draw(Path(split.root))  # somebody has removed what we drew
            image, original = decode_resized(path, self.size_of)
        return ResizedImage(image, (original.width, original.height))


class Index(NamedTuple):
    """Where each of N images lies in the pixel file of a cache."""

    offsets: np.ndarray  # (N + 1,) int64, bytes
    sizes: np.ndarray  # (N, 2) int64, height and width of the resized images
    originals: np.ndarray  # (N, 2) int64, width and height of the original images; 0: a bad image
    checksums: np.ndarray  # (N,) uint32, CRC-32 of the pixels

    @classmethod
    def of(cls, sizes: np.ndarray, originals: np.ndarray, checksums: np.ndarray) -> "Index":
        """Build the index of images that lie one after another."""
        ends = np.cumsum(sizes.prod(axis=1) * 3)
        return cls(np.concatenate([[0], ends]), sizes, originals, checksums)


class CachedImages:
    """Read resized images from a cache; decode those that are bad, damaged or gone."""

    def __init__(self, folder: Path, index: Index, files: FileImages) -> None:
        """Open the cache.

        Raises:
            OSError: its pixel file cannot be opened.
        """
        self.folder = folder
        self.index = index
        self.files = files
        self._is_verified = np.zeros(len(files.split), dtype=bool)  # by this process
        self._is_marked = False  # as damaged, by this process
        # Opened now, the file stays readable here and in forked workers even if it is deleted.
        self._descriptor: int | None = self._open()

    def _open(self) -> int:
        with open_regular(self.folder / PIXELS_FILE) as file:
            descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def load(self, position: int) -> ResizedImage:
        """Return the image at `position`; decode it if the cache does not have it as it was.

        Raises:
            RunError: it cannot be decoded.
        """
        original = tuple(self.index.originals[position].tolist())
        if not all(original):
            return self.files.load(position)
        pixels = self._read(position)
        if pixels is None:
            self._mark()
            trouble = (
                f"the cache in {self.folder} is damaged or gone: its images are decoded where they "
                "are not whole; the next run builds it again"
            )
            return self.files.load(position)._replace(trouble=trouble)
        height, width = self.index.sizes[position].tolist()
        return ResizedImage(pixels.view(height, width, 3).permute(2, 0, 1), original)

    def _read(self, position: int) -> Tensor | None:
        """Return (bytes,) uint8; None if the file is gone or cut, or has other bytes than it had.

        Not through a mapping of the file: where it was cut, the system would end this process.
        """
        begin, end = self.index.offsets[position : position + 2].tolist()
        pixels = torch.empty(end - begin, dtype=torch.uint8)
        try:
            if self._descriptor is None:  # a spawned worker
                self._descriptor = self._open()
            if os.preadv(self._descriptor, [pixels.numpy()], begin) < end - begin:
                return None
        except OSError:
            return None
        if not self._is_verified[position]:
            if zlib.crc32(pixels.numpy()) != self.index.checksums[position]:
                return None
            self._is_verified[position] = True
        return pixels

    def _mark(self) -> None:
        """Make the next run build the cache again."""
        if not self._is_marked:  # once: by then, another run may have done so
            self._is_marked = True
            with suppress(OSError):
                (self.folder / ABOUT_FILE).unlink()


def about_of(folder: Path) -> dict[str, Any]:
    """Return what the cache in `folder` says of itself; nothing if it is absent or damaged."""
    try:
        about = json.loads(read_regular(folder / ABOUT_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def open_cached(folder: Path, files: FileImages) -> CachedImages | None:
    """Open the cache of `files` in `folder`, or return None if it is absent or damaged."""
    about = about_of(folder)
    try:
        packed = read_regular(folder / INDEX_FILE)
        if about.get("key") != folder.name or about.get("index") != zlib.crc32(packed):
            return None
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            index = Index.of(**arrays)
        is_whole = (folder / PIXELS_FILE).stat().st_size == index.offsets[-1]
        return CachedImages(folder, index, files) if is_whole else None
    except OSError:
        return None
