"""utils/probe/fits.py: what the classifiers are, beside references written here."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from utils.probe import fits
from utils.probe.fits import Logistic, fit_nearest_mean, knn_scores


def clouds(classes: int = 4, each: int = 12, width: int = 6, seed: int = 0):
    """Features around a center for each class, far from 0, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    centers = random.normal(size=(classes, width))
    x = 3 + centers[labels] + random.normal(size=(len(labels), width))
    return x.astype(np.float32), labels


def loss_and_gradient(x, labels, strength, weight, bias):
    """Of scikit-learn's objective: C times the summed cross-entropy, and half the squares."""
    logits = x @ weight.T + bias
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = shifted / shifted.sum(axis=1, keepdims=True)
    error = p - np.eye(len(weight))[labels]
    return strength * error.T @ x + weight, strength * error.sum(axis=0)


@pytest.mark.parametrize("strength", [1e-3, 1.0, 30.0])
def test_a_fit_is_the_minimum(strength):
    x, labels = clouds()
    fit = Logistic(x, labels, 4).fit(strength)
    scale = x.std(axis=0, dtype=float)
    centered = (x - x.mean(0, dtype=float)) / scale
    weight = fit.weight * scale
    bias = fit.bias + fit.weight @ x.mean(0, dtype=float)
    assert fit.has_converged
    for gradient in loss_and_gradient(centered, labels, strength, weight, bias):
        assert np.abs(gradient).max() < 2e-2 * max(1, strength)


def test_a_warm_start_comes_to_the_same():
    x, labels = clouds()
    warm = Logistic(x, labels, 4)
    for strength in (0.01, 0.1, 1.0):
        fit = warm.fit(strength)
    cold = Logistic(x, labels, 4).fit(1.0)
    np.testing.assert_allclose(fit.scores(x), cold.scores(x), atol=2e-2)


def test_two_classes_have_rows_of_half_the_weight():
    x, labels = clouds(classes=2)
    fit = Logistic(x, labels, 2).fit(1.0)
    np.testing.assert_allclose(fit.weight[0], -fit.weight[1])
    assert (fit.scores(x).argmax(axis=1) == labels).mean() > 0.9


def test_a_class_without_an_image_has_weight_0_and_the_least_bias():
    x, labels = clouds(classes=3)
    labels = np.array([0, 2, 3])[labels]
    for fit in (Logistic(x, labels, 5).fit(1.0), fit_nearest_mean(x, labels, 5)):
        assert not fit.weight[[1, 4]].any()
        assert np.isfinite(fit.bias).all()
        assert fit.bias[[1, 4]].max() < fit.bias[[0, 2, 3]].min()
        assert {*fit.scores(x).argmax(axis=1).tolist()} == {0, 2, 3}


def test_one_class_can_be_fitted():
    x, _ = clouds()
    fit = Logistic(x, np.full(len(x), 2), 4).fit(1.0)
    assert (fit.scores(x).argmax(axis=1) == 2).all()


@st.composite
def problems(draw, most: int = 40):
    """Features, labels of some of the classes, other features, number of classes."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, s, width = draw(st.integers(1, most)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    classes = draw(st.integers(1, 6))
    x, others = (random.normal(size=(k, width)).astype(np.float32) for k in (n, s))
    x[draw(st.integers(0, n - 1))] *= draw(st.sampled_from([0, 1, 1000]))
    return x, random.integers(0, classes, n), others, classes


def unit(x):
    lengths = np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    return x / np.where(lengths, lengths, 1)


@given(problems())
@settings(max_examples=50)
def test_nearest_mean_is_the_largest_cosine(problem):
    x, labels, others, classes = problem
    fit = fit_nearest_mean(x, labels, classes)
    cosines = np.full((len(others), classes), -np.inf)
    for c in set(labels.tolist()):
        mean = np.mean([row for row, label in zip(unit(x), labels, strict=True) if label == c], 0)
        if np.linalg.norm(mean) < 1e-3:
            return  # no direction
        cosines[:, c] = unit(others) @ mean / np.linalg.norm(mean)
    largest = cosines[np.arange(len(others)), fit.scores(others).argmax(axis=1)]
    np.testing.assert_allclose(largest, cosines.max(axis=1), atol=1e-4)


@given(problems(), st.sampled_from([1, 100, 2**25]))
@settings(max_examples=50)
def test_knn_votes_by_cosine(problem, at_once):
    x, labels, others, classes = problem
    expected = np.zeros((len(others), classes))
    for row, cosines in zip(expected, unit(others) @ unit(x).T, strict=True):
        order = np.argsort(-cosines)
        if len(x) > 20:  # which of two equal ones is the last neighbour is open
            assume(cosines[order[19]] - cosines[order[20]] > 1e-5)
        for i in order[:20]:
            row[labels[i]] += np.exp((cosines[i] - 1) / 0.07)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fits, "COSINES_AT_ONCE", at_once)
        votes = knn_scores(x, labels, others, classes)
    np.testing.assert_allclose(votes, expected, atol=1e-4)
    assert (expected[:, np.bincount(labels, minlength=classes) == 0] == 0).all()


@given(problems(), st.sampled_from([1e-3, 0.1, 1.0]))
@settings(max_examples=30)
def test_any_logistic_fit_is_finite_and_predicts_classes_with_images(problem, strength):
    x, labels, others, classes = problem
    fit = Logistic(x, labels, classes).fit(strength)
    assert np.isfinite(fit.weight).all()
    assert np.isfinite(fit.bias).all()
    present = set(labels.tolist())
    absent = [c for c in range(classes) if c not in present]
    assert not fit.weight[absent].any()
    assert fit.scores(others).argmax(axis=1).tolist() == [
        max(present, key=lambda c: row[c]) for row in fit.scores(others)
    ]
