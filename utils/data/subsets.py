"""Choose the samples of a split that a run uses: by a list, or by what it knows of images."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.console import log
from utils.data.digests import TWINS, Digests, contains, whole_digest
from utils.data.readers.file_names import folded, nearest
from utils.data.readers.list_files import read_bytes
from utils.data.readers.listing import without_ending
from utils.data.splits import HeldOut, Split, hold_out, stable_keys
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
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise InputError(f"{flag} {path} is not a readable UTF-8 text file ({error})") from error
    wanted = [line.strip() for line in lines if line.strip()]
    if not wanted:
        raise InputError(f"{flag} {path} lists no sample id")
    position_of = {str(sample_id): position for position, sample_id in enumerate(split.ids)}
    other = [line for line in wanted if line not in position_of]
    if other:
        by_name = _positions_by_name(split)
        below = {line: folded(line.removeprefix(f"{split.root}/")) for line in other}
        position_of |= {line: by_name[name] for line, name in below.items() if name in by_name}
    unknown = [line for line in other if line not in position_of]
    if unknown:
        raise InputError(
            f"{flag} {path}: {len(unknown)} of {len(wanted)} ids are not in split {split.name} of "
            f"{split.dataset} (first: {unknown[0]!r}{nearest(unknown[0], position_of)})"
        )
    line_of: dict[int, str] = {}
    for line in wanted:
        position = position_of[line]
        if position in line_of:
            also = "" if line_of[position] == line else f", also as {line_of[position]}"
            raise InputError(f"{flag} {path} lists {line} more than once{also}")
        line_of[position] = line
    if other:
        count, name = f"{len(other)} of {len(wanted)}", split.ids[position_of[other[0]]]
        message = "%s: %s lines are not the ids themselves (first: %r is %s)"
        log.info(message, flag, count, other[0], name)
    return list(line_of)


def _positions_by_name(split: Split) -> dict[str, int]:
    """Return where the sample is that a name means, which is not its id to the letter.

    It may have the ending of the file, be the path of the file with or without its ending, and
    differ in case or Unicode form. Names that mean two samples are left out.
    """
    found: dict[str, int] = {}
    shared = set()
    for position, (sample_id, path) in enumerate(zip(split.ids, split.paths, strict=True)):
        stem = without_ending(path)
        names = (sample_id, sample_id + path[len(stem) :], path, stem)
        for name in {folded(str(name)) for name in names}:
            if found.setdefault(name, position) != position:
                shared.add(name)
    return {name: position for name, position in found.items() if name not in shared}


def select_subset(split: Split, wanted: str | None, batch_size: int, flag: str) -> Split:
    """Return the samples of `split` that `wanted` names, with their identity as `subset`.

    Args:
        split: a whole split.
        wanted: None for the whole split, `<dataset>_tiny` for two batches, else the path of a text
            file with one sample id a line (`utils/dataset.py` has told the two apart), which may
            have the ending of its file, or be the file's path.
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


# --- What a checkpoint knows of images ------------------------------------------------------------


class KnownImages(NamedTuple):
    """What a checkpoint knows of images: sets of digests, as `digest_set` makes them."""

    trained: np.ndarray  # that were trained on, by it and the runs before it
    val: np.ndarray  # of its run's val
    of_head: np.ndarray = np.empty(0, np.uint64)  # that a probe fitted its head on


def is_among(known: np.ndarray, split: Split, digests: Digests) -> np.ndarray:
    """Tell which images of a split are in a set of digests, (S,) bool."""
    return contains(known, digests, lambda position: whole_digest(split.path_of(position)))


def count_trained(whole: Split, used: Split, digests: Digests, trained: np.ndarray) -> int:
    """Return the number of the `used` images of a whole split that are in the set `trained`."""
    return int(is_among(trained, whole, digests)[whole.positions_of(used)].sum())


def warn_of_trained(trained: int, evaluated: int, note: str = "") -> None:
    """Warn if some of the images to evaluate were trained on; the note follows their number."""
    if trained:
        log.warning(
            "warning: %d of the %d images to evaluate were trained on%s: accuracy on them is too "
            "high an estimate",
            trained,
            evaluated,
            note,
        )


def count_images(known: np.ndarray) -> int:
    """Return the number of images in a set of digests, equal ones once."""
    return int((known & np.uint64(3) != TWINS).sum())


def tag_heap(
    heap: Split, digests: Digests, known: KnownImages, held_out: HeldOut | None = None
) -> Split:
    """Return the samples of one heap, tagged as `train`, `val` or `new` for the checkpoint.

    Args:
        heap: all samples.
        digests: of its images.
        known: what the checkpoint knows of images.
        held_out: how its run held its val out of a heap.
    """
    is_val = is_among(known.val, heap, digests)
    is_trained = is_among(known.trained, heap, digests)
    both = is_val & is_trained
    if held_out is not None and both.sum() > len(np.unique(digests.values[both])):
        # Of copies, some in train and some in val, those are val that have their names still.
        named = np.zeros(len(heap), dtype=bool)
        named[heap.positions_of(hold_out(heap, held_out)[1])] = True
        is_settled = np.isin(digests.values, digests.values[both & named])
        is_val &= ~(both & is_settled) | named
    return replace(heap, tags=np.where(is_val, "val", np.where(is_trained, "train", "new")))


def choose_of_heap(heap: Split, digests: Digests, known: KnownImages) -> Split:
    """Return the samples of a tagged heap to evaluate: all, if none was trained on, else the val.

    The val are the images of the run's val, whatever names they have now.

    Raises:
        InputError: images were trained on, and none is of the run's val.
    """
    trained = int(is_among(known.trained, heap, digests).sum())
    if not trained:
        log.info("none of the %d images was trained on: all of them are evaluated", len(heap))
        return heap
    chosen = np.flatnonzero(heap.tags == "val")
    if not len(chosen):
        raise InputError(
            f"{heap.root}: {trained} of {len(heap)} images were trained on, and none is of the val "
            "of that run; --eval_split all evaluates them nevertheless"
        )
    lost = count_images(known.val) - len(np.unique(digests.values[chosen]))
    log.info(
        "val is that of the run, found by content: %d of %d images%s; %d are in neither its train "
        "split nor its val and are left out; --eval_split all evaluates every image",
        len(chosen),
        len(heap),
        f", {lost} more are not here" if lost > 0 else "",
        int((heap.tags == "new").sum()),
    )
    return replace(heap.select(chosen), name="val", tags=None)


def keep_val(
    heap: Split,
    digests: Digests,
    train: tuple[Collection[str], np.ndarray],
    val: tuple[Collection[str], np.ndarray],
) -> np.ndarray:
    """Tell which samples of one heap are of a val split that was held out before, (S,) bool.

    By content, whatever their names are now; images whose content is new, or was in both splits,
    by id: one that was replaced stays where it was.

    Args:
        heap: all samples.
        digests: of its images.
        train: ids that were not held out, and the set of their images' digests.
        val: ids that were held out, and the set of their images' digests.
    """
    had, held_out = set(train[0]), set(val[0])
    was_train, was_val = (is_among(known, heap, digests).tolist() for _, known in (train, val))
    return np.array(
        [
            in_val if in_val != in_train else each in held_out or (in_val and each not in had)
            for each, in_train, in_val in zip(heap.ids.tolist(), was_train, was_val, strict=True)
        ]
    )
