"""Find images that exist twice: the same pixels, or the same picture saved in another way.

N images. A perceptual hash (pHash: Zauner 2010, "Implementation and benchmarking of perceptual
image hash functions", section 3.2) finds candidates; the correlation of thumbnails confirms them.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.console import progress_bar

HASHED_SIDE = 32  # pixels of the grey image that is hashed
THUMBNAIL_SIDE = 16
# Measured on Flowers-102 (specs/003-datasets-and-input/research.md): together they keep an image
# that was compressed again, resized, brightened or cropped by 2 % a side.
MAX_DISTANCE = 8  # bits of 63
MIN_CORRELATION = 0.9
FREQUENCIES = 8  # a side, of the cosine transform
BLOCK = (16, 8192)  # pairs that are compared at a time: their 1 MB stays in a processor's cache

_PIXELS = np.arange(HASHED_SIDE)
# Rows: the first cosines of DCT-II over the pixels of a side.
_COSINES = np.cos(
    np.pi * np.arange(FREQUENCIES)[:, None] * (2 * _PIXELS[None] + 1) / (2 * HASHED_SIDE)
)
_BITS = np.uint64(1) << np.arange(FREQUENCIES**2 - 1, dtype=np.uint64)


class Pair(NamedTuple):
    """Two images that look alike."""

    first: int
    second: int
    distance: int  # bits of the hash that differ
    correlation: float


def perceptual_hash(grey: np.ndarray) -> np.uint64:
    """Return 63 bits: which low frequencies of a grey (32, 32) image are above their median."""
    values = (_COSINES @ grey.astype(np.float64) @ _COSINES.T).ravel()[1:]  # without the brightness
    return np.bitwise_or.reduce(_BITS[values > np.median(values)])


def thumbnail(grey: np.ndarray) -> np.ndarray:
    """Return a grey (32, 32) image as (16, 16) uint8: means of 2 x 2 pixels."""
    factor = HASHED_SIDE // THUMBNAIL_SIDE
    blocks = grey.reshape(THUMBNAIL_SIDE, factor, THUMBNAIL_SIDE, factor)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def exact_groups(digests: Sequence[bytes]) -> list[list[int]]:
    """Return the positions of equal digests, two or more a group; empty digests do not count."""
    positions: dict[bytes, list[int]] = defaultdict(list)
    for position, digest in enumerate(digests):
        if digest:
            positions[digest].append(position)
    return [group for group in positions.values() if len(group) > 1]


def near_pairs(
    hashes: np.ndarray, thumbnails: Sequence[np.ndarray], parts: Sequence[np.ndarray]
) -> list[Pair]:
    """Return pairs of images of different parts that look alike; of a single part, pairs within it.

    Every pair is compared, so the time grows with the product of the parts' sizes: under a minute
    for iNaturalist's 579,184 and 95,986. Shows a progress bar.

    Args:
        hashes: (N,) uint64.
        thumbnails: N of (16, 16) uint8.
        parts: positions of readable images that belong together, such as a split.
    """
    pairs, combinations = [], list(_combinations(parts))
    with progress_bar(sum(len(one) for one, _ in combinations), "compare", "img") as bar:
        for one, two in combinations:
            for first, second, distance in _close(hashes, one, two, bar):
                correlation = _correlation(thumbnails[first], thumbnails[second])
                if correlation >= MIN_CORRELATION:
                    pairs.append(Pair(first, second, distance, correlation))
    return sorted(pairs, key=lambda pair: (pair.distance, -pair.correlation, pair[:2]))


def _combinations(parts: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if len(parts) == 1:
        yield parts[0], parts[0]
    for number, one in enumerate(parts):
        for two in parts[number + 1 :]:
            yield one, two


def _close(
    hashes: np.ndarray, one: np.ndarray, two: np.ndarray, bar: tqdm
) -> Iterator[tuple[int, int, int]]:
    """Yield pairs of `one` and `two` with similar hashes and their distance, each pair once."""
    (rows, columns), is_same = BLOCK, one is two
    ours, theirs = hashes[one], hashes[two]
    differing, distances = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint8)
    for top in range(0, len(one), rows):
        some = ours[top : top + rows, None]
        for left in range(top if is_same else 0, len(two), columns):
            others = theirs[None, left : left + columns]
            block = slice(len(some)), slice(others.shape[1])
            np.bitwise_xor(some, others, out=differing[block])
            found = np.bitwise_count(differing[block], out=distances[block])
            if found.min() > MAX_DISTANCE:
                continue
            for row, column in zip(*np.nonzero(found <= MAX_DISTANCE), strict=True):
                if not is_same or top + row < left + column:
                    yield int(one[top + row]), int(two[left + column]), int(found[row, column])
        bar.update(len(some))


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Return the correlation of two thumbnails' pixels, -1 to 1; 0 if one has a single shade."""
    a, b = (image.astype(np.float64).ravel() - image.mean() for image in (one, two))
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm else 0.0
