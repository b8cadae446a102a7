"""Fit classifiers to features: k nearest neighbours, nearest class mean, logistic regression.

Which features they read, and of which split, is decided elsewhere. Shapes: N samples to fit, S
samples to judge, D width, C classes.
"""

import warnings
from typing import NamedTuple

import numpy as np

NEIGHBOURS, TEMPERATURE = 20, 0.07  # Caron et al. 2021 (arXiv 2104.14294), section 4.1
COSINES_AT_ONCE = 2**25  # with their order about 0.5 GB
# Strengths C, strongest regularisation first; the best at an edge extends them.
GRID = tuple(10.0 ** (power / 2) for power in range(-8, 7))
MAX_ITERATIONS = 1000
CONSTANT = 1e-6  # times the largest standard deviation: under it a feature is a constant
TOLERANCE = 1e-3  # over C: the largest gradient of the mean loss, which falls as 1 / C does
UNSEEN = 10.0  # nats by which a class without an image is less likely than the rarest


class Linear(NamedTuple):
    """A linear head for features: `x @ weight.T + bias`."""

    weight: np.ndarray  # (C, D) float64
    bias: np.ndarray  # (C,) float64
    has_converged: bool = True

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Return the (S, C) logits of (S, D) features."""
        return x @ self.weight.T + self.bias


def _unit(x: np.ndarray) -> np.ndarray:
    """Return (N, D) rows of length 1; zeros stay."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1)


def knn_scores(
    x: np.ndarray, labels: np.ndarray, others: np.ndarray, num_classes: int
) -> np.ndarray:
    """Return the (S, C) votes of the nearest neighbours, each exp(cosine / temperature).

    All of them are divided by exp(1 / temperature), so that a vote is at most 1.

    Args:
        x: (N, D) features with labels.
        labels: (N,) classes.
        others: (S, D) features to judge.
        num_classes: C.
    """
    x, others = _unit(x), _unit(others)
    k = min(NEIGHBOURS, len(x))
    votes = np.zeros((len(others), num_classes), np.float32)
    block = max(1, COSINES_AT_ONCE // len(x))
    for begin in range(0, len(others), block):
        cosines = others[begin : begin + block] @ x.T
        nearest = np.argpartition(cosines, len(x) - k, axis=1)[:, len(x) - k :]
        rows = np.arange(len(cosines))[:, None]
        weights = np.exp((cosines[rows, nearest].astype(np.float64) - 1) / TEMPERATURE)
        sums = np.zeros((len(cosines), num_classes))
        np.add.at(sums, (rows, labels[nearest]), weights)
        votes[begin : begin + block] = sums
    return votes


def fit_nearest_mean(x: np.ndarray, labels: np.ndarray, num_classes: int) -> Linear:
    """Fit the mean direction of each class; the largest score is the largest cosine.

    A class without a sample has weight 0 and a bias under every cosine; a sample's length scales
    all scores but that.
    """
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    sums = np.add.reduceat(_unit(x)[order], starts, axis=0, dtype=np.float64)
    longest = np.linalg.norm(x, axis=1).max(initial=1.0)
    weight = np.zeros((num_classes, x.shape[1]))
    bias = np.full(num_classes, -2 * longest - UNSEEN)
    weight[present], bias[present] = _unit(sums), 0.0
    return Linear(weight, bias)


class Logistic:
    """Multinomial logistic regressions on the same samples, each begun where the last one ended."""

    def __init__(self, x: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
        """Take (N, D) features and (N,) labels of the C classes."""
        self.num_classes = num_classes
        self.present, self.classes = np.unique(labels, return_inverse=True)
        # Each feature has mean 0 and variance 1, so that C means the same for all weights and
        # L-BFGS needs fewer steps; the head that comes out of it is for features as they are.
        self.x = np.array(x, dtype=np.float64, order="C")
        self.mean = self.x.mean(axis=0)
        self.x -= self.mean
        spread = self.x.std(axis=0)
        self.scale = np.where(spread > CONSTANT * spread.max(initial=0.0), spread, 1.0)
        self.x /= self.scale
        self._before: tuple[np.ndarray, np.ndarray] | None = None

    def fit_up_to(self, strength: float) -> Linear:
        """Fit with C = `strength` by way of the grid's smaller ones, as when it was chosen.

        Where classes can be separated, a fit with a large C is never quite at its end, and one that
        begins with 0 stops elsewhere (on real flowers: 2 points less accurate).
        """
        for smaller in (each for each in GRID if each < strength * (1 - 1e-9)):
            self.fit(smaller)
        return self.fit(strength)

    def fit(self, strength: float) -> Linear:
        """Fit with C = `strength`: by L-BFGS, in float64, the bias without a penalty."""
        if len(self.present) == 1:  # nothing to tell apart
            return self._spread(np.zeros((1, self.x.shape[1])), np.zeros(1), True)
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(
            C=strength, max_iter=MAX_ITERATIONS, tol=TOLERANCE / len(self.present), warm_start=True
        )
        if self._before is not None:
            model.coef_, model.intercept_ = (each.copy() for each in self._before)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(self.x, self.classes)
        weight, bias = self._before = model.coef_, model.intercept_
        self.iterations = int(model.n_iter_[0])
        if len(self.present) == 2:  # one row, of the second class over the first
            weight, bias = np.stack((-weight[0], weight[0])) / 2, np.array((-bias[0], bias[0])) / 2
        has_converged = not any(issubclass(each.category, ConvergenceWarning) for each in said)
        return self._spread(weight, bias, has_converged)

    def _spread(self, weight: np.ndarray, bias: np.ndarray, has_converged: bool) -> Linear:
        """Return the fit for features as they are, and for all classes."""
        weight = weight / self.scale
        bias = bias - weight @ self.mean
        # The penalty makes the weights of all classes add up to 0, so that the largest logit is
        # never under the least bias.
        weights = np.zeros((self.num_classes, weight.shape[1]))
        biases = np.full(self.num_classes, bias.min() - UNSEEN)
        weights[self.present], biases[self.present] = weight, bias
        return Linear(weights, biases, has_converged)
