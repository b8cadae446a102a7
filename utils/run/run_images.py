"""Remember which images a run uses, and say what became of them when it is resumed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from ml_collections import FrozenConfigDict
from torch import Tensor

from utils.cli.flags import DATA, may_change
from utils.console import log
from utils.data.digests import NONE, Digests, digest_set, is_same, union, whole_digest
from utils.data.splits import Split
from utils.data.subsets import keep_val
from utils.errors import InputError
from utils.run.checkpoint import from_tensor, is_digests, to_tensor
from utils.schema import is_text, list_of

if TYPE_CHECKING:
    from utils.dataset import Data

MOST_LISTED = 100  # names that the stamp lists of each kind of change


def _is_text_bytes(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 1


class Used(NamedTuple):
    """A whole split as a run knows it."""

    ids: list[str]  # (S,)
    digests: np.ndarray  # (S,) uint64


class RunImages:
    """The images of a run: those of its whole splits, and all that it was trained on."""

    STATE: ClassVar = {
        "classes": list_of(is_text),
        # Ids as UTF-8, a line each: 579,000 of iNaturalist are 49 MB.
        **{f"{phase}_ids": _is_text_bytes for phase in ("train", "eval")},
        **{f"{phase}_digests": is_digests for phase in ("train", "eval", "trained")},
    }

    def __init__(self) -> None:
        self.classes: list[str] = []
        self.train = self.eval = Used([], np.empty(0, np.uint64))
        self.trained = np.empty(0, np.uint64)  # set of digests, earlier runs' too

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain data."""
        state: dict[str, Any] = {
            "classes": self.classes,
            "trained_digests": to_tensor(self.trained),
        }
        for phase, used in (("train", self.train), ("eval", self.eval)):
            text = "\n".join(used.ids).encode()
            state[f"{phase}_ids"] = torch.from_numpy(np.frombuffer(text, np.uint8).copy())
            state[f"{phase}_digests"] = to_tensor(used.digests)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Know the images of the run that is resumed."""
        self.classes = list(state["classes"])
        self.trained = from_tensor(state["trained_digests"])
        self.train, self.eval = (
            Used(
                state[f"{phase}_ids"].numpy().tobytes().decode(errors="replace").split("\n"),
                from_tensor(state[f"{phase}_digests"]),
            )
            for phase in ("train", "eval")
        )
        if any(len(used.ids) != len(used.digests) for used in (self.train, self.eval)):
            raise InputError("--resume: the snapshot does not say which images the run has")

    def resume(
        self, flags: FrozenConfigDict, data: "Data", digests: list[Digests]
    ) -> "tuple[Data, list[Digests], dict[str, list[str]]]":
        """Check that a resumed run has the images that it had, or may have others.

        A val that was held out stays the images that it was, minus those that are gone.

        Args:
            flags: flags of this start.
            data: data of this start.
            digests: of its whole splits, train first.

        Returns:
            Data, digests, and the ids of images that changed, by what became of them.

        Raises:
            InputError: the images or the classes are others.
        """
        classes = list(data.train.classes)
        if classes != self.classes:
            other = sorted({*classes} ^ {*self.classes})
            raise InputError(
                f"--resume: the run has {len(self.classes)} classes, the data now have "
                f"{len(classes)} (first that differs: {other[0] if other else 'their order'!r}); "
                "start another run"
            )
        if data.source.held_out is not None and data.full_eval.name == "val":
            data, digests = self._hold_out_again(flags, data, digests)
        changes = self._changes(data, digests)
        if changes:
            shown = ", ".join(
                f"{len(ids)} images {kind} (first: {ids[0]})" for kind, ids in changes.items()
            )
            if DATA not in may_change(flags.allow_change):
                raise InputError(
                    f"--resume: the data are not those of the run: {shown}; bring them back, or "
                    "resume with these by --allow_change data"
                )
            log.warning("warning: the data changed within the run: %s", shown)
            if data.source.held_out is not None:
                kept = f"{len(data.full_eval)} of its {len(self.eval.ids)} images"
                log.info("val stays what it was when it was held out: %s", kept)
        return data, digests, changes

    def _hold_out_again(
        self, flags: FrozenConfigDict, data: "Data", digests: list[Digests]
    ) -> "tuple[Data, list[Digests]]":
        """Divide a heap as it was divided before images changed."""
        heap = data.source.read_heap()
        ids = [*data.full_train.ids.tolist(), *data.full_eval.ids.tolist()]
        at = {sample_id: position for position, sample_id in enumerate(ids)}
        both = Digests(*(np.concatenate(pair) for pair in zip(*digests, strict=True)))
        of_heap = both.at(np.array([at[sample_id] for sample_id in heap.ids.tolist()]))
        before = [
            (used.ids, union(used.digests[used.digests != NONE]))
            for used in (self.train, self.eval)
        ]
        is_val = keep_val(heap, of_heap, *before)
        if is_val.all() or not is_val.any():
            what = "train on" if is_val.all() else "evaluate"
            raise InputError(f"--resume: no image to {what} is left; start another run")
        train, evaluated = (
            replace(heap.select(np.flatnonzero(mask)), name=name)
            for mask, name in ((~is_val, "train"), (is_val, "val"))
        )
        return data.divided(train, evaluated, flags), [of_heap.at(~is_val), of_heap.at(is_val)]

    def _changes(self, data: "Data", digests: list[Digests]) -> dict[str, list[str]]:
        """Return the ids of images that are removed, replaced or added since, by what they are.

        Args:
            data: data of this start.
            digests: of its whole splits, train first.
        """
        found: dict[str, list[str]] = {}
        pairs = ((self.train, data.full_train), (self.eval, data.full_eval))
        for (before, split), now in zip(pairs, digests, strict=True):
            for kind, ids in _changes(before, split, now).items():
                found[kind] = list(dict.fromkeys([*found.get(kind, []), *ids]))
        return {kind: ids for kind, ids in found.items() if ids}

    def add(self, data: "Data", digests: list[Digests]) -> None:
        """Know the images of this start, which are trained on from now on."""
        train, evaluated = digests
        used = train.at(data.full_train.positions_of(data.train))
        self.classes = list(data.train.classes)
        self.train = Used(data.full_train.ids.tolist(), train.values)
        self.eval = Used(data.full_eval.ids.tolist(), evaluated.values)
        self.trained = union(self.trained, digest_set(used))


def _changes(before: Used, split: Split, digests: Digests) -> dict[str, list[str]]:
    """Return the ids of images that are removed, replaced or added since, of one split."""
    ids = split.ids.tolist()
    if ids == before.ids:  # nearly always, and quick
        there, removed, added, known = np.arange(len(ids)), [], [], before.digests
    else:
        had = {sample_id: position for position, sample_id in enumerate(before.ids)}
        there = np.array([i for i, sample_id in enumerate(ids) if sample_id in had], np.int64)
        removed = sorted(had.keys() - set(ids))
        added = [sample_id for sample_id in ids if sample_id not in had]
        known = before.digests[[had[ids[position]] for position in there]]

    def whole_of(number: int) -> int:
        return whole_digest(split.path_of(there[number]))

    same = is_same(known, digests.at(there), whole_of)
    replaced = [ids[position] for position in there[~same]]
    return {"removed": removed, "replaced": replaced, "added": added}


def stamped(changes: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return what the stamp of a start says of changed images: counts, and at most 100 ids each."""
    return {kind: {"count": len(ids), "ids": ids[:MOST_LISTED]} for kind, ids in changes.items()}
