"""Do all that a probe is asked to with the features of its splits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from utils.console import log
from utils.probe.curves import OutOfFold, few_shot, out_of_fold
from utils.probe.fits import Linear
from utils.probe.methods import (
    BOTH,
    LOGISTIC,
    MEAN,
    Pool,
    Row,
    Task,
    affordable,
    fit_head,
    joined,
    scores_of,
    try_all,
)


class Wanted(NamedTuple):
    """What the flags ask for."""

    methods: tuple[str, ...] | None  # None: nobody said
    features: str  # a name, or "auto"
    shots: tuple[int, ...]  # numbers of images of each class, for the learning curve
    num_folds: int | None
    seed: int


class Pools(NamedTuple):
    """The splits of a probe."""

    train: Pool
    val: Pool | None  # by which choices are made; None: by folds of train
    evaluated: Pool  # may be val itself
    is_val_fitted: bool  # whether the head is fitted on train and val once all is chosen


class Found(NamedTuple):
    """What was tried, and what came of it."""

    rows: list[Row]
    row: Row  # that of the head
    head: Linear
    head_of_train: Linear | None  # fitted on train alone, where `head` was fitted on val, too
    accuracies: dict[str, float]  # of each method on what is evaluated, if not chosen by it
    few_shot: dict[str, dict[int, dict[str, Any]]]  # by method and number of images
    folds: dict[str, dict[str, Any]]  # by method
    out_of_fold: OutOfFold | None  # of the head's method


def _fitted(row: Row, pool: Pool, num_classes: int) -> Linear:
    """Fit the head of a row, and warn if the fit does not converge."""
    head = fit_head(row.method, pool.read(row.features), num_classes, row.strength)
    if not head.has_converged:
        log.warning("warning: the fit of the head did not converge with C %g", row.strength)
    return head


def _accuracy(row: Row, fitted: Pool, judged: Pool, num_classes: int) -> float:
    x, labels = judged.read(row.features)
    scores = scores_of(row, fitted.read(row.features), x, num_classes)
    return float(np.mean(scores.argmax(axis=1) == labels))


def _shots(wanted: Wanted, pool: Pool) -> list[int]:
    """Return the numbers of images of each class that some class has; say which are left out."""
    most = int(np.bincount(pool.labels).max())
    beyond = [number for number in wanted.shots if number > most]
    if beyond:
        log.info("no class has %s images: left out of the learning curve", beyond)
    return [number for number in wanted.shots if number <= most]


def _curves(
    chosen: Mapping[str, Row], pools: Pools, fitted: Pool, num_classes: int, wanted: Wanted
) -> tuple[dict[str, Any], dict[str, OutOfFold]]:
    """Return the learning curves and what the folds say, by method."""
    curves, folds = {}, {}
    shots = _shots(wanted, pools.train) if wanted.shots else []
    for method, row in chosen.items():
        if shots:
            samples, judged = pools.train.read(row.features), pools.evaluated.read(row.features)
            curves[method] = few_shot(row, samples, judged, num_classes, shots, wanted.seed)
        if wanted.num_folds is not None:
            samples = fitted.read(row.features)
            judged = out_of_fold(row, samples, num_classes, wanted.num_folds, wanted.seed)
            if judged is not None:
                folds[method] = judged
    if wanted.num_folds is not None and not folds:
        log.warning("warning: no class has two images: --folds says nothing")
    return curves, folds


def search(pools: Pools, num_classes: int, wanted: Wanted) -> Found:
    """Try the methods, choose features and C, fit the head, and draw what else is wanted."""
    train, val, evaluated, is_val_fitted = pools
    task = Task(num_classes, train.values.shape[1], train, val, wanted.seed)
    features = task.features if wanted.features == "auto" else (wanted.features,)
    width = train.values.shape[2] * (task.num_kinds if BOTH in features else 1)
    methods = affordable(wanted.methods, len(train.labels), width, num_classes)
    if not {LOGISTIC, MEAN} & {*methods}:
        methods = (*methods, MEAN)  # the model needs a head
    rows = try_all(task, methods, features)
    chosen = {row.method: row for row in rows if row.is_chosen}
    row = chosen.get(LOGISTIC) or chosen[MEAN]
    if row.judged is None:
        log.warning(
            "warning: no val, and no class has two images: nothing could be chosen%s",
            f"; C is {row.strength:g}" if row.method == LOGISTIC else "",
        )
    fitted = joined([train, val]) if is_val_fitted else train
    of_train = row.head or _fitted(row, train, num_classes)
    head = _fitted(row, fitted, num_classes) if is_val_fitted else of_train
    accuracies = {}
    if evaluated is not val:
        accuracies = {
            each.method: _accuracy(each, fitted, evaluated, num_classes) for each in chosen.values()
        }
    curves, folds = _curves(chosen, pools, fitted, num_classes, wanted)
    return Found(
        rows,
        row,
        head,
        of_train if is_val_fitted else None,
        accuracies,
        curves,
        {method: judged.spread for method, judged in folds.items()},
        folds.get(row.method),
    )
