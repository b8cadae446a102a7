"""Check before a run that its images exist, are whole and can be decoded, and digest them.

No torch here: a missing or damaged image ends a run before torch is imported.
"""

import functools
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from utils.console import log, progress_bar
from utils.data.digests import NONE, Digests
from utils.data.image_files import MAX_PIXELS, check_resized_size, decode_rgb
from utils.data.presets import Size, SizeOf
from utils.data.readers.file_names import Folders
from utils.data.splits import Split
from utils.data.structure.looks import (
    MISSING,
    THREADS,
    TOO_LARGE,
    UNREADABLE,
    Looks,
    trouble_of,
)
from utils.data.threads import in_threads
from utils.errors import InputError

# Decoding every image would take minutes: only this many or fewer are decoded.
MAX_DECODED_IN_CHECK = 64
USERS_OWN = ("folder", "csv")  # datasets that nobody can fetch again
MISSING_REMEDIES = {
    "csv": "put them there, or take them from the list",
    "folder": "put them back, or remove the links to them",
}


def _look_at(splits: Collection[Split]) -> tuple[Looks, list[np.ndarray]]:
    """Look at every file of `splits` once; return for each split where its files are in that."""
    index_of: dict[str, int] = {}
    where = [
        np.fromiter(
            (index_of.setdefault(split.path_of(at), len(index_of)) for at in range(len(split))),
            np.int64,
            len(split),
        )
        for split in splits
    ]
    looks = Looks(list(index_of))
    with progress_bar(len(index_of), "check", "img") as bar:
        in_threads(looks.look, len(index_of), bar, THREADS)
    looks.read_twins()
    return looks, where


def check_images(
    splits: Sequence[Split],
    used: Collection[Split],
    may_be_damaged: int = 0,
    sizes_of: Sequence[SizeOf] = (),
    is_resumed: bool = False,
) -> list[Digests]:
    """Raise an error if images are missing, damaged, or of a kind or size that is not decoded.

    All that size, mode, format and structure decide is found, for any number of images; damage
    inside their pixels only if the images of `used` are at most `MAX_DECODED_IN_CHECK` in all.

    Args:
        splits: whole splits.
        used: parts of them that a run uses.
        may_be_damaged: number of damaged images in all that are let through.
        sizes_of: for each split, the size that its images are resized to.
        is_resumed: whether the run has begun; then flags that change it have to be allowed.

    Returns:
        For each split the digests of its images.

    Raises:
        InputError: says how many of how many are bad, where and why, and what to do.
    """
    looks, where = _look_at(splits)
    for split, indices in zip(splits, where, strict=True):
        _check_missing(split, looks, indices)
    if sum(map(len, used)) <= MAX_DECODED_IN_CHECK:
        _decode(used, looks)
    for indices, size_of in zip(where, sizes_of, strict=False):
        _add_those_that_grow(looks, indices, size_of)
    _check_damaged(splits, looks, where, may_be_damaged, is_resumed)
    for said, found in (
        ("JPEG files that lack only their end marker, and are used", looks.unended),
        ("images whose color profile is damaged, and counts as sRGB", looks.odd_profiles),
    ):
        if found:
            log.warning("warning: %s: %d (first: %s)", said, len(found), looks.paths[min(found)])
    for index in looks.troubles:
        looks.short[index] = looks.whole[index] = NONE
    return [Digests(looks.short[indices], looks.whole[indices]) for indices in where]


def _decode(used: Collection[Split], looks: Looks) -> None:
    """Decode the images of `used` that seem well."""
    paths = {split.path_of(at) for split in used for at in range(len(split))}
    chosen = [
        index
        for index, path in enumerate(looks.paths)
        if path in paths and index not in looks.troubles
    ]

    def decode(number: int) -> None:
        trouble = trouble_of(looks.paths[chosen[number]], decode_rgb)
        if trouble is not None:
            looks.troubles[chosen[number]] = trouble

    with progress_bar(len(chosen), "decode", "img") as bar:
        in_threads(decode, len(chosen), bar, THREADS)


def _add_those_that_grow(looks: Looks, indices: np.ndarray, size_of: SizeOf) -> None:
    """Note images that would be too large after they are resized: a line one pixel high."""
    sizes, of_size = np.unique(looks.sizes[indices], axis=0, return_inverse=True)
    for number, (height, width) in enumerate(sizes.tolist()):
        size = Size(height, width)
        resized = size_of(size) if height else size
        if resized.height * resized.width <= MAX_PIXELS:
            continue
        check = functools.partial(check_resized_size, size=size, resized=resized)
        for index in indices[of_size == number].tolist():
            looks.troubles.setdefault(index, trouble_of(looks.paths[index], check))


# --- Messages -------------------------------------------------------------------------------------


def _check_missing(split: Split, looks: Looks, indices: np.ndarray) -> None:
    kinds = {index: trouble.kind for index, trouble in looks.troubles.items()}
    missing = [index for index in indices.tolist() if kinds.get(index) == MISSING]
    if not missing:
        return
    first = Path(looks.paths[missing[0]])
    near = Folders(split.root).near(first.relative_to(split.root).as_posix())
    remedy = MISSING_REMEDIES.get(split.dataset, "fetch the whole archive, or choose another split")
    raise InputError(
        f"{len(missing)} of {len(split)} images of split {split.name} are missing in "
        f"{first.parent} (first: {first.name}{near}); {remedy}"
    )


def _check_damaged(
    splits: Sequence[Split],
    looks: Looks,
    where: Sequence[np.ndarray],
    allowed: int,
    is_resumed: bool,
) -> None:
    if not looks.troubles:
        return
    bad = [[i for i in indices.tolist() if i in looks.troubles] for indices in where]
    # Not all that there are: nothing would be left.
    can_skip = all(len(found) < len(split) for found, split in zip(bad, splits, strict=True))
    if can_skip and len(looks.troubles) <= allowed:
        return
    counted = " and ".join(
        f"{len(found)} of {len(split)} images of split {split.name}"
        for split, found in zip(splits, bad, strict=True)
        if found
    )
    first = next(found for found in bad if found)[0]
    kinds = Counter(trouble.kind for trouble in looks.troubles.values())
    several = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    said = f" ({several}; first:" if len(looks.troubles) > 1 else " (first:"
    remedy = _remedy(splits[0], set(kinds), is_resumed)
    skip = f"--skip_bad_images {len(looks.troubles)}"
    skip += " --allow_change skip_bad_images" if is_resumed else ""
    raise InputError(
        f"{counted} cannot be used{said} {looks.paths[first]} {looks.troubles[first].text}); "
        + (f"{remedy}; {skip} leaves them out" if can_skip else remedy)
    )


def _remedy(split: Split, kinds: set[str], is_resumed: bool) -> str:
    """Say what helps against all `kinds` of trouble."""
    allow = ", and add --allow_change data" if is_resumed else ""
    if kinds == {UNREADABLE}:
        return "make them readable for yourself"
    if kinds == {TOO_LARGE}:
        return f"shrink or crop them{allow}"
    if split.dataset in USERS_OWN:
        return f"replace or remove them{allow}"
    if split.dataset == "synthetic":
        return f"remove {split.root}, and they are drawn again"
    return "fetch the whole archive again"
