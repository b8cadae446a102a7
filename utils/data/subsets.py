"""Choose the samples of a split that a run uses."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.data.splits import Split, stable_keys
from utils.errors import InputError
from utils.files import canonical_json, sha256_text

TINY_SEED = 42
TINY_BATCHES = 2


def _tiny_positions(split: Split, batch_size: int) -> list[int]:
    keys = stable_keys(split.ids, TINY_SEED)
    order = sorted(range(len(split)), key=keys.__getitem__)
    chosen = order[: TINY_BATCHES * batch_size]
    first = split.labels[chosen[0]]
    if all(split.labels[position] == first for position in chosen):
        others = [position for position in order if split.labels[position] != first]
        chosen[-1:] = others[:1] or chosen[-1:]
    return chosen


def _listed_positions(split: Split, path: Path, flag: str) -> list[int]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path} is not a readable UTF-8 text file ({error})") from error
    wanted = [line.strip() for line in lines if line.strip()]
    if not wanted:
        raise InputError(f"{flag} {path} lists no sample id")
    if len(set(wanted)) < len(wanted):
        twice = next(sample_id for sample_id in wanted if wanted.count(sample_id) > 1)
        raise InputError(f"{flag} {path} lists {twice} more than once")
    position_of = {str(sample_id): position for position, sample_id in enumerate(split.ids)}
    unknown = [sample_id for sample_id in wanted if sample_id not in position_of]
    if unknown:
        raise InputError(
            f"{flag} {path}: {len(unknown)} of {len(wanted)} ids are not in split {split.name} of "
            f"{split.dataset} (first: {unknown[0]!r})"
        )
    return [position_of[sample_id] for sample_id in wanted]


def select_subset(split: Split, wanted: str | None, batch_size: int, flag: str) -> Split:
    """Return the samples of `split` that `wanted` names, with their identity as `subset`.

    Args:
        split: a whole split.
        wanted: None for the whole split, `<dataset>_tiny` for two batches, else the path of a text
            file with one sample id a line (`utils/dataset.py` has told the two apart).
        batch_size: number of samples in a batch of the loader that will read the subset.
        flag: flag to blame in an error.

    Raises:
        InputError: unreadable file, empty list, unknown or repeated id.
    """
    if wanted is None:
        return split
    if wanted == f"{split.dataset}_tiny":
        positions = _tiny_positions(split, batch_size)
    else:
        positions = _listed_positions(split, Path(wanted), flag)
    chosen = split.select(positions)
    identity = {
        "name": Path(wanted).name,
        "sha256": sha256_text(canonical_json([str(sample_id) for sample_id in chosen.ids])),
        "count": len(chosen),
        "classes": len(np.unique(chosen.labels)),
    }
    return replace(chosen, subset=identity)
