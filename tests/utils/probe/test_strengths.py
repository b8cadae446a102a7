"""utils/probe/choice.py: how the strength of a logistic regression is chosen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fits import clouds

from utils.probe.choice import Judge, Quality, choose_strength, folds_of, quality_of
from utils.probe.fits import Logistic


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(2, 7))
def test_folds_judge_each_once_but_singletons(counts, most):
    labels = np.repeat(np.arange(len(counts)), counts)
    folds = folds_of(labels, seed=1, num_folds=most)
    if max(counts) < 2:
        assert folds == []
        return
    assert len(folds) == min(most, max(counts))
    judged = np.concatenate([judged for _, judged in folds])
    several = np.flatnonzero(np.array(counts)[labels] > 1)
    assert sorted(judged.tolist()) == several.tolist()
    sizes = [len(held) for _, held in folds]
    assert max(sizes) - min(sizes) <= 1
    for fitted, held in folds:
        assert sorted([*fitted.tolist(), *held.tolist()]) == [*range(len(labels))]
        for number, count in enumerate(counts):
            assert (labels[held] == number).sum() <= -(-count // len(folds))
            assert count < 1 or (labels[fitted] == number).any()


def test_the_grid_grows_where_its_edge_is_best():
    tried = []

    def judge(strengths):
        tried.extend(strengths)
        return [Quality(-abs(np.log10(strength) - 5), 0.0) for strength in strengths]

    best, qualities = choose_strength(judge)
    assert best == pytest.approx(1e5)
    assert sorted(tried) == list(qualities)
    best, qualities = choose_strength(lambda each: [Quality(0.5, 0.0)] * len(each))
    assert (best, len(qualities)) == (1.0, 15)
    best, _ = choose_strength(lambda each: [Quality(0.5, -abs(c - 10)) for c in each])
    assert best == 10.0  # of equal accuracies the least loss


def test_quality_is_accuracy_and_loss():
    scores, labels = np.array([[0.0, 1000.0], [3.0, 0.0]]), np.array([0, 0])
    accuracy, minus_loss = quality_of(scores, labels)
    assert accuracy == 0.5
    assert minus_loss == pytest.approx(-(1000 + np.log1p(np.exp(-3))) / 2)


def test_a_judge_counts_every_sample_of_all_folds():
    x, labels = clouds()
    folds = [
        tuple((x[positions], labels[positions]) for positions in fold)
        for fold in folds_of(labels, seed=0)
    ]
    correct = loss = 0.0
    for fitted, (others, truth) in folds:
        scores = Logistic(*fitted, 4).fit_up_to(0.1).scores(others)
        correct += (scores.argmax(axis=1) == truth).sum()
        loss -= quality_of(scores, truth).minus_loss * len(truth)
    judge = Judge(folds, 4)
    (quality,) = judge([0.1])
    assert quality == pytest.approx((correct / len(x), -loss / len(x)))
    assert not judge.not_converged


def test_a_fit_that_does_not_converge_is_known(monkeypatch):
    monkeypatch.setattr("utils.probe.fits.MAX_ITERATIONS", 2)
    x, labels = clouds()
    judge = Judge([((x, labels), (x, labels))], 4)
    judge([0.001, 1.0])
    assert 1.0 in judge.not_converged
