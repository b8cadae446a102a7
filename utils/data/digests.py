"""Digest the content of images: which were trained on, which were replaced.

A short digest is over a file's size and its first and last 4 KB, which the check before a run reads
anyway. It cannot tell twins apart, files that differ only between; where two images of a run have
one short digest, both are read whole, and so are files whose pixels lie in them as they are (BMP,
PPM, uncompressed TIFF). Digests of both kinds have 64 bits; the last two say which it is, so that
one sorted array holds them all, 8 bytes an image. S: samples of a split. No torch here.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.structure.content import PIECE
from utils.files import open_regular

NONE = 0  # the digest of an image that is damaged and let through, or that was not made
SHORT, WHOLE, TWINS = 1, 2, 3  # the last two bits: of what it is a digest
_KIND = np.uint64(3)


def _digest(parts: Iterable[bytes], kind: int) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big") & ~3 | kind


def short_digest(size: int, head: bytes, tail: bytes) -> int:
    """Return the digest of a file of `size` bytes with these first and last bytes, `PIECE` each."""
    return _digest((size.to_bytes(8, "big"), head[:PIECE], tail[-PIECE:]), SHORT)


def whole_digest(path: str | Path) -> int:
    """Return the digest of all bytes of a file.

    Raises:
        OSError: it is not a file, or cannot be read.
    """
    with open_regular(Path(path)) as file:
        return _digest(iter(lambda: file.read(1 << 20), b""), WHOLE)


class Digests(NamedTuple):
    """The digests of the images of a split, in its order."""

    short: np.ndarray  # (S,) uint64; NONE where files of the format are always read whole
    whole: np.ndarray  # (S,) uint64; NONE where the short one is enough

    @property
    def values(self) -> np.ndarray:
        """Return one digest of each image, (S,) uint64: the whole one, or else the short one."""
        return np.where(self.whole == NONE, self.short, self.whole)

    def at(self, positions: np.ndarray) -> "Digests":
        """Return those of the samples at `positions` (indices or a mask)."""
        return Digests(self.short[positions], self.whole[positions])


WholeOf = Callable[[int], int]  # position of a sample to the whole digest of its file


def twins(short: np.ndarray) -> np.ndarray:
    """Return the positions of different files that have one short digest."""
    values, counts = np.unique(short, return_counts=True)
    return np.flatnonzero(np.isin(short, values[(counts > 1) & (values != NONE)]))


def digest_set(*several: Digests) -> np.ndarray:
    """Return the set of these images, for `contains`: sorted uint64, 8 bytes an image.

    An image that has a twin is in it by its whole digest, and the short digest of the twins is
    marked: it asks for the whole one. (`array.view(np.int64)` is what torch can hold.)
    """
    parts = []
    for digests in several:
        twins = digests.short[(digests.short != NONE) & (digests.whole != NONE)]
        parts += [digests.values, twins | _KIND]
    found = union(*parts)
    return found[found != NONE]


def union(*several: np.ndarray) -> np.ndarray:
    """Return the union of digests, sorted."""
    values = np.sort(np.concatenate([np.empty(0, np.uint64), *several]))  # np.unique: 25 times that
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]


def _is_in(known: np.ndarray, digests: np.ndarray) -> np.ndarray:
    if not len(known):
        return np.zeros(len(digests), dtype=bool)
    at = np.minimum(np.searchsorted(known, digests), len(known) - 1)
    return known[at] == digests


def contains(known: np.ndarray, digests: Digests, whole_of: WholeOf) -> np.ndarray:
    """Tell which images are in a set that `digest_set` made, perhaps in another run.

    Where the set has twins with an image's short digest, the image's file is read whole. An image
    counts as one of the set that has no twin there if their short digests are equal.

    Args:
        known: the set.
        digests: of S images.
        whole_of: reads the file of one of them, as `whole_digest`.

    Returns:
        (S,) bool.
    """
    is_in = _is_in(known, digests.short) | _is_in(known, digests.whole)
    has_twins = (digests.short != NONE) & _is_in(known, digests.short | _KIND)
    for position in np.flatnonzero(has_twins & (digests.whole == NONE)):
        is_in[position] = _is_in(known, np.array([whole_of(int(position))], np.uint64))[0]
    return is_in


def is_same(before: np.ndarray, now: Digests, whole_of: WholeOf) -> np.ndarray:
    """Tell which images are still what they were, (S,) bool.

    Args:
        before: `Digests.values` of the same samples earlier, perhaps beside others.
        now: their digests now.
        whole_of: reads the file of one of them, as `whole_digest`.
    """
    same = (before == now.values) | (before == now.short)
    asks_for_whole = ~same & (before & _KIND == WHOLE) & (now.whole == NONE) & (now.short != NONE)
    for position in np.flatnonzero(asks_for_whole):
        same[position] = before[position] == whole_of(int(position))
    return same
