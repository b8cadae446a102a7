"""Tell how good the chosen methods are with fewer images, and on folds.

Shapes: N samples to fit, S samples to judge, D width, C classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax
from scipy.stats import binom

from utils.probe.choice import Samples, folds_of
from utils.probe.methods import Row, scores_of

DRAWS = 5
NOT_JUDGED = -1  # the fold of a sample that is always among those to fit


def interval(accuracy: float, num_samples: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of an accuracy (Efron 1979), by percentiles.

    A resample of N right and wrong answers has a binomial number of right ones, so the percentiles
    are known without drawing any.
    """
    low, high = binom.ppf((0.025, 0.975), num_samples, accuracy) / num_samples
    return float(low), float(high)


def _spread(accuracies: Sequence[float]) -> dict[str, Any]:
    """Return mean and standard deviation (of the sample) of some accuracies, and all of them."""
    return {
        "mean": float(np.mean(accuracies)),
        "sd": float(np.std(accuracies, ddof=1)),
        "accuracies": [*accuracies],
    }


def _draw(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Return the positions of `shots` samples of each class, or all of one that has fewer."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    return np.sort(order[rank < shots])


def few_shot(
    row: Row,
    fitted: Samples,
    judged: Samples,
    num_classes: int,
    shots: Sequence[int],
    seed: int,
) -> dict[int, dict[str, Any]]:
    """Return the accuracy of a method with few images of each class, over several draws.

    Args:
        row: method, with the C that was chosen.
        fitted: samples to draw from.
        judged: samples to judge.
        num_classes: C.
        shots: numbers of images of each class.
        seed: random seed; equal for all methods, so that they see the same images.
    """
    (x, labels), (others, truth) = fitted, judged
    curve = {}
    for number in shots:
        accuracies = []
        for draw in range(DRAWS):
            few = _draw(labels, number, seed + draw)
            scores = scores_of(row, (x[few], labels[few]), others, num_classes)
            accuracies.append(float(np.mean(scores.argmax(axis=1) == truth)))
        curve[number] = _spread(accuracies)
    return curve


class OutOfFold(NamedTuple):
    """What a method says of each sample, fitted to the other folds."""

    fold: np.ndarray  # (N,) int64, `NOT_JUDGED` where there is no other sample of the class
    probabilities: np.ndarray  # (N, C) float32, NaN where it is not judged
    spread: dict[str, Any]  # mean, sd and accuracies of the folds


def out_of_fold(
    row: Row, samples: Samples, num_classes: int, num_folds: int, seed: int
) -> OutOfFold | None:
    """Judge a method on stratified folds; None if no class has two samples."""
    x, labels = samples
    fold = np.full(len(labels), NOT_JUDGED)
    probabilities = np.full((len(labels), num_classes), np.nan, np.float32)
    accuracies = []
    for number, (fitted, held) in enumerate(folds_of(labels, seed, num_folds)):
        scores = scores_of(row, (x[fitted], labels[fitted]), x[held], num_classes)
        fold[held], probabilities[held] = number, softmax(scores, axis=1)
        accuracies.append(float(np.mean(scores.argmax(axis=1) == labels[held])))
    return OutOfFold(fold, probabilities, _spread(accuracies)) if accuracies else None
