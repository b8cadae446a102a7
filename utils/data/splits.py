"""Hold the samples of a split, tell their identity, match classes, hold val out of train.

No torch here.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.console import log
from utils.errors import InputError, near_miss
from utils.files import canonical_json, sha256_text

PAIRS_AT_ONCE = 4096  # in a checksum: one by one takes eight times as long
MOST_SHOWN = 12  # classes that a line names, if there are no more
FIRST_AND_LAST = 3  # classes that it names otherwise, at both ends
MOST_UNKNOWN = 5  # classes that an error names


@dataclass(frozen=True)
class Split:
    """The samples of one split in their official order, S of them."""

    dataset: str
    name: str
    root: Path
    classes: tuple[str, ...]  # of the whole dataset, in index order
    ids: np.ndarray  # (S,) text, stable names of the samples
    paths: np.ndarray  # (S,) text, relative to `root`, with forward slashes
    labels: np.ndarray  # (S,) int64, from 0
    # For each class the names above it in the dataset's hierarchy, nearest first; empty: none.
    parents: tuple[tuple[str, ...], ...] = field(default=())
    # What the env stamp says of the samples chosen from a whole split; "none": all of them.
    subset: dict[str, Any] | str = "none"
    # Lines for people: what was passed over, how a list was understood.
    notes: tuple[str, ...] = field(default=())
    # (S,) text, the split of each sample, where they are of several; None: of this one.
    tags: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def path_of(self, position: int) -> str:
        """Return where the image of the sample at `position` lies."""
        return f"{self.root}/{self.paths[position]}"

    def tag_of(self, position: int) -> str:
        """Return the name of the split that the sample at `position` is of."""
        return self.name if self.tags is None else str(self.tags[position])

    def select(self, positions: Sequence[int] | np.ndarray) -> "Split":
        """Return the samples at `positions`, in split order whatever the order of `positions`."""
        keep = np.sort(np.asarray(positions, dtype=np.int64))
        return replace(
            self,
            ids=self.ids[keep],
            paths=self.paths[keep],
            labels=self.labels[keep],
            tags=None if self.tags is None else self.tags[keep],
        )

    def positions_of(self, part: "Split") -> np.ndarray:
        """Return where the samples of `part`, chosen from this split, are in it."""
        if len(part) == len(self):  # seconds, of half a million samples
            return np.arange(len(self))
        position = {sample_id: number for number, sample_id in enumerate(self.ids.tolist())}
        return np.array([position[sample_id] for sample_id in part.ids.tolist()], dtype=np.int64)

    def checksum(self) -> str:
        """Return the SHA-256 of the canonical JSON of the list of pairs of id and label."""
        digest = hashlib.sha256(b"[")
        for start in range(0, len(self), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            pairs = [*zip(self.ids[part].tolist(), self.labels[part].tolist(), strict=True)]
            comma = "," if start else ""
            digest.update(f"{comma}{canonical_json(pairs)[1:-1]}".encode())
        digest.update(b"]")
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """Return name, split, sample count and the checksum of ids and labels for the env stamp."""
        return {
            "name": self.dataset,
            "split": self.name,
            "samples": len(self),
            "checksum": self.checksum(),
        }


def united(splits: Sequence[Split], name: str) -> Split:
    """Return the samples of several splits of the same classes as one, each image once.

    Raises:
        InputError: two images have one id.
    """
    first = splits[0]
    tags = np.repeat([split.name for split in splits], [len(split) for split in splits])
    columns = zip(*((split.ids, split.paths, split.labels) for split in splits), strict=True)
    ids, paths, labels = (np.concatenate(column) for column in columns)
    _, once = np.unique(paths, return_index=True)  # some lists are in others, as trainval
    notes = tuple(dict.fromkeys(note for split in splits for note in split.notes))
    all_samples = replace(
        first, name=name, ids=ids, paths=paths, labels=labels, tags=tags, notes=notes
    ).select(once)
    if len(set(all_samples.ids.tolist())) < len(all_samples):
        raise InputError(
            f"{first.root}: images of several splits have the same id; name one as --eval_split"
        )
    return all_samples


# --- Classes --------------------------------------------------------------------------------------


def class_line(classes: Sequence[str], labelmap: str) -> str:
    """Return the line that says which classes a run has.

    Args:
        classes: names in index order.
        labelmap: where all names are found, for classes that do not fit the line.
    """
    names = [repr(name) if "," in name else name for name in classes]
    if len(names) <= MOST_SHOWN:
        return f"{len(names)} classes: {', '.join(names)}"
    shown = [*names[:FIRST_AND_LAST], "...", *names[-FIRST_AND_LAST:]]
    return f"{len(names)} classes: {', '.join(shown)} (all are in {labelmap})"


def say_classes(labelmap: str, *splits: Split) -> None:
    """Log which classes a run has, how many the split to evaluate lacks, and the readers' notes.

    Args:
        labelmap: where the run writes all names.
        splits: splits of the run, all of the same classes; that to evaluate is the last.
    """
    evaluated = splits[-1]
    log.info("%s", class_line(evaluated.classes, labelmap))
    counts = np.bincount(evaluated.labels, minlength=len(evaluated.classes))
    empty = int((counts == 0).sum())
    if empty:
        log.info("%d of the classes have no image in split %s", empty, evaluated.name)
    for note in dict.fromkeys(note for split in splits for note in split.notes):
        log.info("%s", note)


def match_classes(
    split: Split, classes: Sequence[str], whose: str, remedy: str, skip_unknown: bool = False
) -> Split:
    """Return a split with these classes, in this order; its labels follow by name.

    A class that the split lacks has no sample. What it has more must have none either.

    Args:
        split: samples under the classes that their reader found.
        classes: names in index order.
        whose: what has these classes, for messages.
        remedy: what to do about images of other classes.
        skip_unknown: whether images of other classes are left out, and counted in a line.

    Raises:
        InputError: there are images of other classes: names these and counts the images.
    """
    if split.classes == tuple(classes):
        return split
    index = {name: number for number, name in enumerate(classes)}
    labels = np.array([index.get(name, -1) for name in split.classes])[split.labels]
    is_unknown = labels < 0
    if is_unknown.any():
        counts = np.bincount(split.labels[is_unknown], minlength=len(split.classes))
        unknown = {split.classes[n]: int(counts[n]) for n in np.flatnonzero(counts)}
        counted = f"{int(is_unknown.sum())} of {len(split)} images of split {split.name}"
        named = _named(unknown, classes)
        of = f"of classes that {whose} does not have ({len(unknown)}): {named}"
        if is_unknown.all():
            raise InputError(
                f"{split.root}: all {len(split)} images of split {split.name} are {of}; the "
                f"classes there are {class_line(classes, 'the labelmap')}"
            )
        if not skip_unknown:
            raise InputError(f"{split.root}: {counted} are {of}; {remedy}")
        log.warning("warning: left out %s, which are %s", counted, of)
    above = dict(zip(split.classes, split.parents, strict=False))
    matched = replace(
        split,
        classes=tuple(classes),
        labels=labels,
        parents=tuple(above.get(name, ()) for name in classes) if above else (),
    )
    return matched.select(np.flatnonzero(~is_unknown)) if is_unknown.any() else matched


def _named(unknown: dict[str, int], known: Sequence[str]) -> str:
    """Return some of the classes with their counts, and what was perhaps meant."""
    named = [
        f"{name!r} ({count}{near_miss(name, known)})"
        for name, count in list(unknown.items())[:MOST_UNKNOWN]
    ]
    rest = len(unknown) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")


def labelmap(
    dataset: str, classes: Sequence[str], parents: Sequence[Sequence[str]] = ()
) -> dict[str, Any]:
    """Return the labelmap: class names in index order, the SHA-256 of their compact UTF-8 JSON.

    Where the dataset has a hierarchy, `parents` names for each class what is above it.
    """
    return {
        "dataset": dataset,
        "num_classes": len(classes),
        "classes": list(classes),
        "checksum": sha256_text(canonical_json(list(classes))),
        **({"parents": [list(names) for names in parents]} if parents else {}),
    }


# --- A val split held out of train ----------------------------------------------------------------


def stable_keys(ids: Iterable[str], seed: int) -> list[bytes]:
    """Return for each id a key to sort by: a random order that is the same on every machine."""
    return [hashlib.sha256(f"{seed}:{sample_id}".encode()).digest() for sample_id in ids]


class HeldOut(NamedTuple):
    """How a val split is held out of the train split of a dataset that has none."""

    fraction: float  # share of the train samples, above 0 and below 1
    seed: int


def hold_out(split: Split, held_out: HeldOut) -> tuple[Split, Split]:
    """Divide `split` in two: what stays train, and a stratified val split that is held out.

    Each class gives its share, rounded so that the sum is `fraction` of all samples (the largest
    remainders are rounded up), and keeps at least one sample for training. Which ones: by the hash
    of seed and id, so the same on every machine.

    Raises:
        InputError: no sample would be held out.
    """
    keys = stable_keys(split.ids, held_out.seed)
    order = np.array(sorted(range(len(split)), key=keys.__getitem__), dtype=np.int64)
    counts = np.bincount(split.labels, minlength=len(split.classes))
    shares = counts * held_out.fraction
    quotas = np.minimum(np.floor(shares).astype(np.int64), np.maximum(counts - 1, 0))
    missing = round(len(split) * held_out.fraction) - int(quotas.sum())
    for label in np.argsort(np.floor(shares) - shares, kind="stable"):
        if missing <= 0:
            break
        if quotas[label] < counts[label] - 1 and shares[label] > quotas[label]:
            quotas[label] += 1
            missing -= 1
    by_class = order[np.argsort(split.labels[order], kind="stable")]
    rank = np.arange(len(split)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_val = rank < np.repeat(quotas, counts)
    if not is_val.any():
        raise InputError(
            f"--val_fraction {held_out.fraction} of {len(split)} samples of {split.dataset} in "
            f"{int((counts > 0).sum())} classes holds out none; give more"
            f"{' images, two of a class' if counts.max() < 2 else ''}"
        )
    train, val = split.select(by_class[~is_val]), split.select(by_class[is_val])
    return replace(train, name="train"), replace(val, name="val")
