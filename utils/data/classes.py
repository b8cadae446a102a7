"""Match the classes of a split by name with those of a model, and say which classes a run has.

No torch here.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from utils.console import log
from utils.data.splits import Split
from utils.errors import InputError, near_miss

MOST_SHOWN = 12  # classes that a line names, if there are no more
FIRST_AND_LAST = 3  # classes that it names otherwise, at both ends
MOST_UNKNOWN = 5  # classes that an error names


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
    empty = len(evaluated.classes) - len(np.unique(evaluated.labels))
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
        of = f"of {len(unknown)} classes that {whose} does not have: {_named(unknown, classes)}"
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
        f"{name!r} ({count} images{near_miss(name, known)})"
        for name, count in list(unknown.items())[:MOST_UNKNOWN]
    ]
    rest = len(unknown) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")
