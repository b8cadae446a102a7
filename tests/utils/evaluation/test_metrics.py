"""Check the metrics against plain loops over samples and classes."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.evaluation.metrics import f1_scores, per_class, per_sample, summarize


@st.composite
def evaluations(draw):
    """Logits with many ties (S, C) float32, and labels (S,)."""
    samples, classes = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    values = st.one_of(
        st.integers(-2, 2).map(float), st.floats(-30, 30, width=32), st.floats(-1e4, 1e4, width=32)
    )
    rows = st.lists(values, min_size=classes, max_size=classes)
    logits = draw(st.lists(rows, min_size=samples, max_size=samples))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=samples, max_size=samples))
    return np.array(logits, dtype=np.float32), np.array(labels, dtype=np.int64)


def ranked(row: np.ndarray) -> list[int]:
    """Classes by falling logit; ties in index order."""
    return sorted(range(len(row)), key=lambda c: (-float(row[c]), c))


def plain_loss(row: np.ndarray, label: int) -> float:
    values = [float(value) for value in row]
    top = max(values)
    return top + math.log(math.fsum(math.exp(v - top) for v in values)) - values[label]


def plain_summary(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    samples, classes = logits.shape
    tops = [ranked(row) for row in logits]
    hits = [top[0] == label for top, label in zip(tops, labels, strict=True)]
    recalls, f1s = [], []
    for c in range(classes):
        of_class = [hit for hit, label in zip(hits, labels, strict=True) if label == c]
        predicted = sum(top[0] == c for top in tops)
        if of_class:
            recalls.append(Fraction(sum(of_class), len(of_class)))
        if of_class or predicted:
            f1s.append(Fraction(2 * sum(of_class), len(of_class) + predicted))
    return {
        "loss": sum(map(plain_loss, logits, labels)) / samples,
        "accuracy": sum(hits) / samples,
        "top5": sum(label in top[:5] for top, label in zip(tops, labels, strict=True)) / samples,
        "mean_per_class_accuracy": float(sum(recalls) / len(recalls)),
        "macro_f1": float(sum(f1s) / len(f1s)),
        "samples": samples,
    }


class TestSummarize:
    @settings(max_examples=100)
    @given(evaluation=evaluations())
    def test_equals_the_plain_computation(self, evaluation):
        got, expected = summarize(*evaluation), plain_summary(*evaluation)
        assert got.keys() == expected.keys()
        for name in expected:
            assert got[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name
            assert type(got[name]) in (int, float)

    @settings(max_examples=50)
    @given(evaluation=evaluations(), seed=st.integers(0, 99))
    def test_does_not_depend_on_the_order_of_samples(self, evaluation, seed):
        logits, labels = evaluation
        order = np.random.default_rng(seed).permutation(len(labels))
        assert summarize(logits[order], labels[order]) == summarize(logits, labels)

    def test_of_a_hand_made_case(self):
        logits = np.array([[3, 1, 0], [0, 2, 1], [0, 3, 1], [5, 0, 0]], dtype=np.float32)
        got = summarize(logits, np.array([0, 1, 2, 1]))
        assert got["accuracy"] == 0.5
        assert got["mean_per_class_accuracy"] == (1 + 0.5 + 0) / 3
        assert got["macro_f1"] == pytest.approx((2 / 3 + 0.5 + 0) / 3)
        assert got["top5"] == 1.0

    def test_classes_without_samples_count_only_where_they_are_predicted(self):
        logits = np.array([[2, 0, 0, 0], [2, 0, 1, 0]], dtype=np.float32)
        got = summarize(logits, np.array([0, 0]))
        assert (got["mean_per_class_accuracy"], got["macro_f1"]) == (1.0, 1.0)
        got = summarize(logits, np.array([0, 1]))
        assert (got["mean_per_class_accuracy"], got["macro_f1"]) == (0.5, pytest.approx(1 / 3))
        got = summarize(logits[::-1, ::-1], np.array([3, 3]))  # class 1 predicted nowhere
        assert got["accuracy"] == 1.0

    def test_of_one_class_is_perfect(self):
        got = summarize(np.array([[-7.0], [3.0]], dtype=np.float32), np.array([0, 0]))
        assert [got[name] for name in ("accuracy", "top5", "macro_f1", "loss")] == [1, 1, 1, 0]
        assert math.copysign(1, got["loss"]) == 1

    def test_survives_logits_of_any_size(self):
        logits = np.array([[3e38, -3e38], [-3e38, 3e38]], dtype=np.float32)
        got = summarize(logits, np.array([0, 0]))
        assert got["accuracy"] == 0.5
        assert math.isfinite(got["loss"])

    def test_of_nothing_is_refused(self):
        with pytest.raises(ValueError, match=r"no samples to evaluate"):
            summarize(np.zeros((0, 3), dtype=np.float32), np.zeros(0, dtype=np.int64))


class TestPerSample:
    @settings(max_examples=50)
    @given(evaluation=evaluations())
    def test_equals_the_plain_computation(self, evaluation):
        logits, labels = evaluation
        got = per_sample(logits, labels)
        assert got.ranking.tolist() == [ranked(row)[:5] for row in logits]
        assert got.losses == pytest.approx([*map(plain_loss, logits, labels)], abs=1e-9)
        assert got.probabilities.sum(axis=1) == pytest.approx(np.ones(len(labels)))
        expected = np.exp([[-plain_loss(row, c) for c in range(len(row))] for row in logits])
        assert np.allclose(got.probabilities, expected, atol=1e-12)
        assert got.probabilities.dtype == got.losses.dtype == np.float64


class TestPerClass:
    @settings(max_examples=50)
    @given(data=st.data(), classes=st.integers(1, 6), samples=st.integers(0, 20))
    def test_equals_the_plain_computation(self, data, classes, samples):
        index = st.lists(st.integers(0, classes - 1), min_size=samples, max_size=samples)
        predicted, labels = (np.array(data.draw(index), dtype=np.int64) for _ in range(2))
        counts = per_class(predicted, labels, classes)
        pairs = list(zip(predicted.tolist(), labels.tolist(), strict=True))
        for c in range(classes):
            assert counts.samples[c] == sum(label == c for _, label in pairs)
            assert counts.predicted[c] == sum(guess == c for guess, _ in pairs)
            assert counts.correct[c] == sum(guess == label == c for guess, label in pairs)
        for c, f1 in enumerate(f1_scores(counts)):
            touched = sum(c in pair for pair in pairs)
            hits = sum(pair == (c, c) for pair in pairs)
            assert f1 == pytest.approx(2 * hits / (touched + hits) if touched else 0)
