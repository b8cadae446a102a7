"""Compute classification metrics from logits: sums divided once, in float64 on the CPU.

Shapes: S samples, C classes.
"""

import math
from typing import NamedTuple

import numpy as np

TOP_K = 5


class PerSample(NamedTuple):
    """What an evaluation says of each sample."""

    probabilities: np.ndarray  # (S, C) float64, rows sum to 1
    losses: np.ndarray  # (S,) float64, cross-entropy without smoothing, in nats
    ranking: np.ndarray  # (S, min(5, C)) int64, best classes first; equal logits in index order


class PerClass(NamedTuple):
    """Numbers of samples by class, (C,) int64 each."""

    samples: np.ndarray  # samples with this label
    predicted: np.ndarray  # samples with this prediction
    correct: np.ndarray  # samples with both


def per_sample(logits: np.ndarray, labels: np.ndarray) -> PerSample:
    """Return probabilities, losses and ranking of (S, C) logits against (S,) labels."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_norm = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    log_probabilities = shifted - log_norm
    losses = log_norm[:, 0] - shifted[np.arange(len(labels)), labels]  # no -0.0 where C is 1
    ranking = np.argsort(-logits, axis=1, kind="stable")[:, :TOP_K]
    return PerSample(np.exp(log_probabilities), losses, ranking)


def per_class(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> PerClass:
    """Return counts per class from (S,) predicted and true class indices."""
    return PerClass(
        samples=np.bincount(labels, minlength=num_classes),
        predicted=np.bincount(predicted, minlength=num_classes),
        correct=np.bincount(labels[predicted == labels], minlength=num_classes),
    )


def f1_scores(counts: PerClass) -> np.ndarray:
    """Return F1 by class, (C,) float64: 2 correct / (samples + predicted), 0 if both are 0."""
    return 2 * counts.correct / np.maximum(counts.samples + counts.predicted, 1)


def summarize(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | int]:
    """Return the metrics of (S, C) logits against (S,) labels.

    `accuracy` is top-1, `top5` is top-min(5, C). `mean_per_class_accuracy` is the mean over the
    classes with samples; `macro_f1` is over those with samples or predictions, which is
    scikit-learn's default.

    Raises:
        ValueError: there is no sample.
    """
    num_samples, num_classes = logits.shape
    if not num_samples:
        raise ValueError("no samples to evaluate")
    results = per_sample(logits, labels)
    counts = per_class(results.ranking[:, 0], labels, num_classes)
    present = counts.samples > 0
    seen = present | (counts.predicted > 0)
    recalls = counts.correct[present] / counts.samples[present]
    return {
        # fsum is exact, so the sum depends on no order and on no thread count.
        "loss": math.fsum(results.losses) / num_samples,
        "accuracy": int(counts.correct.sum()) / num_samples,
        "top5": int((results.ranking == labels[:, None]).sum()) / num_samples,
        "mean_per_class_accuracy": math.fsum(recalls) / int(present.sum()),
        "macro_f1": math.fsum(f1_scores(counts)[seen]) / int(seen.sum()),
        "samples": num_samples,
    }
