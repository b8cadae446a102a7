"""Try every method on every kind of features, and choose among them where nothing was fitted.

Shapes: N samples, F kinds of features, D width of one kind, C classes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from utils.console import log
from utils.data_utils import PROBE_METHODS
from utils.probe.choice import (
    Judge,
    Quality,
    Samples,
    choose_strength,
    folds_of,
    quality_of,
)
from utils.probe.fits import Linear, Logistic, fit_nearest_mean, knn_scores

KNN, MEAN, LOGISTIC = PROBE_METHODS
FIRST, PATCHES, BOTH = FEATURES = ("class", "mean", "both")
UNTRIED = 1.0  # C where there is nothing to choose it by
TOO_LARGE = 1e11  # images x features x classes: hours of L-BFGS


class Pool(NamedTuple):
    """Features of the samples of a split, and their classes."""

    values: np.ndarray  # (N, F, D) float32, may be mapped from the disk
    labels: np.ndarray  # (N,) int64

    def read(self, features: str) -> Samples:
        """Return (N, D) or (N, 2 D) features of one name, and the labels."""
        if features == BOTH:
            return self.values.reshape(len(self.values), -1), self.labels
        return np.ascontiguousarray(self.values[:, int(features == PATCHES)]), self.labels


def joined(pools: Sequence[Pool]) -> Pool:
    """Return several pools as one; a single one is not copied."""
    first, *others = pools
    return (
        first if not others else Pool(*(np.concatenate(each) for each in zip(*pools, strict=True)))
    )


@dataclass(frozen=True)
class Row:
    """One method on one kind of features: a row of the table."""

    method: str
    features: str
    strength: float | None  # C of the logistic regression
    judged: Quality | None  # how good on val, or on the folds; None: there was nothing to judge by
    seconds: float  # of all its fits
    is_chosen: bool = False  # whether it is the best of its method
    has_converged: bool = True
    tried: dict[float, Quality] = field(default_factory=dict)  # by strength
    head: Linear | None = None  # the fit that was judged on val; nearest neighbours have none


class Task(NamedTuple):
    """What is to be told apart, and by what choices are made."""

    num_classes: int
    num_kinds: int  # F
    train: Pool
    val: Pool | None  # by which methods are judged; None: by folds of train
    seed: int

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features that there are."""
        return FEATURES if self.num_kinds > 1 else (FIRST,)

    def folds(self, features: str) -> list[tuple[Samples, Samples]]:
        """Return samples to fit and samples to judge; none if nothing can be judged."""
        x, labels = self.train.read(features)
        if self.val is not None:
            return [((x, labels), self.val.read(features))]
        return [
            tuple((x[positions], labels[positions]) for positions in fold)
            for fold in folds_of(labels, self.seed)
        ]


def fit_head(
    method: str, samples: Samples, num_classes: int, strength: float | None = None
) -> Linear:
    """Fit a linear head: the logistic regression with C = `strength`, or the nearest mean."""
    if method == LOGISTIC:
        return Logistic(*samples, num_classes).fit_up_to(strength)
    return fit_nearest_mean(*samples, num_classes)


def scores_of(row: Row, samples: Samples, others: np.ndarray, num_classes: int) -> np.ndarray:
    """Return what the method of a row, fitted to `samples`, says of others: (S, C) scores."""
    if row.method == KNN:
        return knn_scores(*samples, others, num_classes)
    return fit_head(row.method, samples, num_classes, row.strength).scores(others)


def _tried(task: Task, method: str, features: str) -> Row:
    """Return the row of a method on one kind of features."""
    begin, folds = time.perf_counter(), task.folds(features)
    row = Row(method, features, UNTRIED if method == LOGISTIC else None, None, 0.0)
    if folds and method == LOGISTIC:
        judge = Judge(folds, task.num_classes)
        strength, tried = choose_strength(judge)
        has_converged = strength not in judge.not_converged
        row = replace(
            row,
            strength=strength,
            tried=tried,
            judged=tried[strength],
            has_converged=has_converged,
            head=judge.fits.get(strength),
        )
        if judge.not_converged:
            log.warning(
                "warning: logistic regression on %s did not converge with C of %s%s",
                features,
                ", ".join(f"{each:g}" for each in sorted(judge.not_converged)),
                "" if has_converged else "; the chosen one is among them",
            )
    elif folds:
        qualities, head = [], None
        for fitted, (x, labels) in folds:
            head = None if method == KNN else fit_head(method, fitted, task.num_classes)
            scores = scores_of(row, fitted, x, task.num_classes) if head is None else head.scores(x)
            qualities.append(quality_of(scores, labels))
        sizes = [len(labels) for _, (_, labels) in folds]
        mean = Quality(*np.average(qualities, axis=0, weights=sizes).tolist())
        row = replace(row, judged=mean, head=head if task.val is not None else None)
    return replace(row, seconds=time.perf_counter() - begin)


def try_all(task: Task, methods: Sequence[str], features: Sequence[str]) -> list[Row]:
    """Return a row for each method on each kind of features; of each method the best is chosen.

    Where nothing can be judged, that is the first.
    """
    rows = []
    for method in methods:
        tried = [_tried(task, method, each) for each in features]
        best = max(range(len(tried)), key=lambda number: (tried[number].judged or (), -number))
        rows += [replace(row, is_chosen=number == best) for number, row in enumerate(tried)]
    return rows


def affordable(
    methods: Sequence[str] | None, num_images: int, width: int, num_classes: int
) -> tuple[str, ...]:
    """Return the methods to try: those asked for, else all that take no hours.

    Args:
        methods: methods that were asked for by name; None: nobody said.
        num_images: number of images to fit.
        width: most features of an image that a fit reads.
        num_classes: C.
    """
    if methods is not None:
        return tuple(methods)
    if num_images * width * num_classes <= TOO_LARGE:
        return PROBE_METHODS
    log.info(
        "no logistic regression: %d images x %d features x %d classes are more than %g, which "
        "would take hours; --method logistic fits it nevertheless",
        num_images,
        width,
        num_classes,
        TOO_LARGE,
    )
    return (KNN, MEAN)
