"""utils/probe/: what is tried and chosen where data are scarce; curves, folds, intervals, table."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fits import clouds

from utils.probe import methods
from utils.probe.curves import NOT_JUDGED, _draw, interval
from utils.probe.fits import knn_scores
from utils.probe.methods import KNN, LOGISTIC, MEAN, Pool, affordable
from utils.probe.report import make_report, table_lines
from utils.probe.search import Pools, Wanted, search


def pool(seed: int, counts=(12, 12, 12)) -> Pool:
    """Two kinds of features, the second of noise alone, of so many samples of each class."""
    x, labels = clouds(classes=len(counts), each=max(counts), seed=0)
    random = np.random.default_rng(seed)
    x = x + random.normal(scale=0.5, size=x.shape)
    kept = np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate(counts)])
    both = np.stack((x, random.normal(size=x.shape)), axis=1).astype(np.float32)
    return Pool(both[kept], labels[kept])


def wanted(features: str = "auto", shots=(), folds=None, names=None) -> Wanted:
    return Wanted(names, features, shots, folds, seed=0)


def test_val_chooses_features_and_what_was_judged_is_the_head():
    train, val = pool(1), pool(2)
    found = search(Pools(train, val, val, False), 3, wanted())
    assert [(row.method, row.features) for row in found.rows if row.is_chosen][-1][0] == LOGISTIC
    assert {(row.method, row.features) for row in found.rows} == {
        (method, features)
        for method in (KNN, MEAN, LOGISTIC)
        for features in ("class", "mean", "both")
    }
    assert found.row.features != "mean"
    x, labels = val.read(found.row.features)
    accuracy = (found.head.scores(x).argmax(axis=1) == labels).mean()
    assert accuracy == pytest.approx(found.row.judged.accuracy)
    assert (found.head_of_train, found.accuracies) == (None, {})


def test_the_head_is_fitted_on_val_too_and_once_without():
    train, val, test = pool(1), pool(2), pool(3)
    found = search(Pools(train, val, test, True), 3, wanted("class"))
    alone = search(Pools(train, val, test, False), 3, wanted("class"))
    np.testing.assert_array_equal(found.head_of_train.weight, alone.head.weight)
    assert not np.array_equal(found.head.weight, alone.head.weight)
    both = np.concatenate((train.values[:, 0], val.values[:, 0]))
    votes = knn_scores(both, np.concatenate((train.labels, val.labels)), test.values[:, 0], 3)
    assert found.accuracies[KNN] == (votes.argmax(axis=1) == test.labels).mean()


@pytest.mark.parametrize("counts", [(12, 1, 5), (8, 8), (6, 0, 6, 1)])
def test_without_val_folds_of_train_choose(counts):
    train = pool(1, counts)
    found = search(Pools(train, None, pool(2, counts), False), len(counts), wanted("class"))
    assert all(row.judged is not None for row in found.rows)
    assert np.isfinite(found.head.bias).all()
    predicted = found.head.scores(train.values[:, 0]).argmax(axis=1)
    assert (predicted == train.labels).mean() > 0.5


def test_where_nothing_can_be_chosen_c_is_1_and_a_warning_says_so(caplog):
    train = pool(1, (1, 1, 1))
    logger = logging.getLogger("fine_vit")
    logger.addHandler(caplog.handler)
    found = search(Pools(train, None, pool(2), False), 3, wanted(shots=(1, 2), folds=3))
    logger.removeHandler(caplog.handler)
    assert (found.row.strength, found.row.judged) == (1.0, None)
    assert found.folds == {}
    assert [*found.few_shot[LOGISTIC]] == [1]
    assert "nothing could be chosen; C is 1" in caplog.text


def test_nearest_neighbours_alone_get_the_nearest_mean_as_head():
    train, val = pool(1), pool(2)
    found = search(Pools(train, val, val, False), 3, wanted(names=(KNN,)))
    assert found.row.method == MEAN
    assert {row.method for row in found.rows} == {KNN, MEAN}


def test_hours_of_fitting_are_for_those_who_ask(monkeypatch):
    assert affordable(None, 12_000, 768, 200) == (KNN, MEAN, LOGISTIC)
    assert affordable(None, 579_184, 768, 5_089) == (KNN, MEAN)
    assert affordable((LOGISTIC,), 579_184, 768, 5_089) == (LOGISTIC,)
    monkeypatch.setattr(methods, "TOO_LARGE", 36 * 2 * 6 * 3 - 1)
    train, val = pool(1), pool(2)
    assert search(Pools(train, val, val, False), 3, wanted()).row.method == MEAN


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 6), st.integers(0, 99))
def test_a_draw_has_so_many_of_each_class_and_others_with_another_seed(counts, shots, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    drawn = _draw(labels, shots, seed)
    assert len({*drawn.tolist()}) == len(drawn)
    assert np.bincount(labels[drawn]).tolist() == [min(n, shots) for n in counts]
    assert np.array_equal(drawn, _draw(labels, shots, seed))


def test_curve_and_folds_use_the_chosen_strength():
    train, val = pool(1), pool(2)
    found = search(Pools(train, val, val, False), 3, wanted("class", (1, 4, 12, 99), 4))
    for curve in found.few_shot.values():
        assert [*curve] == [1, 4, 12]
        assert [len(at["accuracies"]) for at in curve.values()] == [5, 5, 5]
        assert curve[12]["sd"] == pytest.approx(0, abs=1e-9)  # every draw has all images
        assert curve[1]["mean"] < curve[12]["mean"]
    judged = found.out_of_fold
    assert {*judged.fold.tolist()} == {0, 1, 2, 3}
    np.testing.assert_allclose(judged.probabilities.sum(axis=1), 1, atol=1e-5)
    accuracies = [
        (judged.probabilities[held].argmax(axis=1) == train.labels[held]).mean()
        for held in (judged.fold == n for n in range(4))
    ]
    assert judged.spread["accuracies"] == pytest.approx(accuracies)
    assert judged.spread["sd"] == pytest.approx(np.std(accuracies, ddof=1))


def test_a_single_image_of_a_class_has_no_out_of_fold_probability():
    train = pool(1, (6, 1, 6))
    found = search(Pools(train, None, pool(2), False), 3, wanted("class", folds=3))
    alone = found.out_of_fold.fold == NOT_JUDGED
    assert alone.tolist() == (train.labels == 1).tolist()
    assert np.isnan(found.out_of_fold.probabilities[alone]).all()


@given(st.integers(1, 300), st.floats(0, 1))
@settings(max_examples=20)
def test_the_interval_is_the_bootstraps(samples, share):
    right = np.arange(samples) < round(share * samples)
    low, high = interval(right.mean(), samples)
    random = np.random.default_rng(0)
    means = np.mean(random.choice(right, (4000, samples)), axis=1)
    drawn = np.quantile(means, (0.025, 0.975))
    assert low <= right.mean() <= high
    np.testing.assert_allclose((low, high), drawn, atol=2 / samples + 0.02)


def test_the_table_has_a_row_for_all_that_was_tried():
    train, val, test = pool(1), pool(2), pool(3)
    found = search(Pools(train, val, test, True), 3, wanted())
    report = make_report(found.rows, ("val", 36), ("test", 36), found.accuracies)
    lines = table_lines(report)
    assert lines[0].split() == ["method", "features", "C", "val", "%", "test", "%", "s"]
    assert len(lines) == 10
    assert sum("*" in line for line in lines) == 3
    chosen = [row for row in report["rows"] if row["is_chosen"]]
    assert all(row["final_accuracy"] == found.accuracies[row["method"]] for row in chosen)
    logistic = report["rows"][-1]
    assert len(logistic["tried"]) >= 15
