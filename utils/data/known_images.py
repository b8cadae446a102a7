"""Tell by their content which images a checkpoint was trained on, and which are of its val.

S: samples of a split. No torch here.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from utils.console import log
from utils.data.digests import Digests, contains, whole_digest
from utils.data.splits import Split
from utils.errors import InputError


class KnownImages(NamedTuple):
    """What a checkpoint knows of images: sets of digests, as `digest_set` makes them."""

    trained: np.ndarray  # that were trained on, by it and the runs before it
    val: np.ndarray  # of its run's val


def is_among(known: np.ndarray, split: Split, digests: Digests) -> np.ndarray:
    """Tell which images of a split are in a set of digests, (S,) bool."""
    return contains(known, digests, lambda position: whole_digest(split.path_of(position)))


def count_trained(whole: Split, used: Split, digests: Digests, trained: np.ndarray) -> int:
    """Return the number of the `used` images of a whole split that are in the set `trained`."""
    return int(is_among(trained, whole, digests)[whole.positions_of(used)].sum())


def tag_heap(heap: Split, digests: Digests, known: KnownImages) -> Split:
    """Return the samples of one heap, tagged as `train`, `val` or `new` for the checkpoint."""
    is_val = is_among(known.val, heap, digests)
    is_trained = is_among(known.trained, heap, digests)
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
    log.info(
        "val is that of the run, found by content: %d of %d images; %d are in neither its train "
        "split nor its val and are left out; --eval_split all evaluates every image",
        len(chosen),
        len(heap),
        int((heap.tags == "new").sum()),
    )
    return replace(heap.select(chosen), name="val", tags=None)


def keep_val(
    heap: Split,
    digests: Digests,
    train_ids: Collection[str],
    val_ids: Collection[str],
    val: np.ndarray,
) -> np.ndarray:
    """Tell which samples of one heap are of a val split that was held out before, (S,) bool.

    By id, whatever the content is now; what has another id now, by content.

    Args:
        heap: all samples.
        digests: of its images.
        train_ids: ids that were not held out.
        val_ids: ids that were.
        val: set of the digests of the images that were.
    """
    had, held_out = set(train_ids), set(val_ids)
    is_val = is_among(val, heap, digests)
    ids = heap.ids.tolist()
    return np.array(
        [
            sample_id in held_out or (is_there and sample_id not in had)
            for sample_id, is_there in zip(ids, is_val.tolist(), strict=True)
        ]
    )
