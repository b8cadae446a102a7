"""Choose the strength C of a logistic regression: on val, or on folds where there is no val.

Shapes: N samples to fit, S samples to judge, D width, C classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from utils.probe.fits import GRID, Linear, Logistic

MAX_FOLDS = 5
ROWS = 4096  # that are judged at a time, to bound the memory

Samples = tuple[np.ndarray, np.ndarray]  # (N, D) features and (N,) labels


class Quality(NamedTuple):
    """How good a classifier is on some samples; the larger the better."""

    accuracy: float
    minus_loss: float  # minus the mean cross-entropy in nats: decides between equal accuracies


def quality_of(scores: np.ndarray, labels: np.ndarray) -> Quality:
    """Return how good (S, C) logits are for (S,) labels."""
    correct, log_p = 0, 0.0
    for begin in range(0, len(labels), ROWS):
        block, truth = scores[begin : begin + ROWS], labels[begin : begin + ROWS]
        correct += int((block.argmax(axis=1) == truth).sum())
        of_all = log_softmax(block.astype(np.float64), axis=1)
        log_p += float(of_all[np.arange(len(truth)), truth].sum())
    return Quality(correct / len(labels), log_p / len(labels))


def folds_of(
    labels: np.ndarray, seed: int, num_folds: int = MAX_FOLDS
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return positions to fit and to judge, in folds stratified by class.

    Every sample is judged once, but for a class with one sample: it is always among those to fit.

    Args:
        labels: (N,) classes.
        seed: random seed of the division.
        num_folds: number of folds, at most the size of the largest class.

    Returns:
        The folds; none if no class has two samples.
    """
    counts = np.bincount(labels)
    num_folds = min(num_folds, int(counts.max(initial=0)))
    if num_folds < 2:
        return []
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    # Dealt out class by class, each beginning where the last one ended: equal sizes, too.
    several = order[counts[labels[order]] > 1]
    fold = np.full(len(labels), -1)
    fold[several] = np.arange(len(several)) % num_folds
    return [(np.flatnonzero(fold != n), np.flatnonzero(fold == n)) for n in range(num_folds)]


def choose_strength(
    judge: Callable[[Sequence[float]], list[Quality]], grid: Sequence[float] = GRID
) -> tuple[float, dict[float, Quality]]:
    """Return the strength C that is best, and how good each is that was tried, by strength.

    The best has the highest accuracy; of equal ones the least loss, and then it is that next to 1.
    While the best one is at an edge, the grid grows there, to at most twice its size.

    Args:
        judge: function from rising strengths to how good each is.
        grid: at least two strengths, rising by equal factors.
    """
    step, tried = grid[1] / grid[0], dict(zip(grid, judge(grid), strict=True))

    def best() -> float:
        return max(tried, key=lambda strength: (*tried[strength], -abs(math.log(strength))))

    while not min(tried) < best() < max(tried) and len(tried) < 2 * len(grid):
        more = min(tried) / step if best() == min(tried) else max(tried) * step
        tried[more] = judge([more])[0]
    return best(), dict(sorted(tried.items()))


class Judge:
    """Say how good logistic regressions are on samples that they were not fitted to."""

    def __init__(self, folds: Sequence[tuple[Samples, Samples]], num_classes: int) -> None:
        """Take samples to fit and to judge, train and val or those of each fold; and C."""
        self.folds, self.num_classes = folds, num_classes
        self.not_converged: set[float] = set()  # strengths of fits that did not converge
        # Fits of train, by strength, where there is no other to fit.
        self.fits: dict[float, Linear] = {}

    def __call__(self, strengths: Sequence[float]) -> list[Quality]:
        """Return how good each of some strengths is, over all samples to judge."""
        qualities, sizes = [], []
        for fitted, (x, labels) in self.folds:  # one after another: each takes a copy of features
            logistic = Logistic(*fitted, self.num_classes)
            first, *others = strengths
            fits = [logistic.fit_up_to(first), *map(logistic.fit, others)]
            self.not_converged |= {
                strength
                for strength, fit in zip(strengths, fits, strict=True)
                if not fit.has_converged
            }
            if len(self.folds) == 1:
                self.fits |= dict(zip(strengths, fits, strict=True))
            qualities.append([quality_of(fit.scores(x), labels) for fit in fits])
            sizes.append(len(labels))
        mean = np.average(qualities, axis=0, weights=sizes)
        return [Quality(*row) for row in mean.tolist()]
