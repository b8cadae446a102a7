"""utils/class_weights.py: rare classes count more, and together as much as without weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict

from utils.class_weights import balanced_class_weights, class_weights

CPU = torch.device("cpu")


class TestClassWeights:
    @settings(max_examples=200, deadline=None)
    @given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=200), more=st.integers(0, 5))
    def test_average_to_one_over_the_labels(self, labels, more):
        labels, classes = np.array(labels), max(labels) + 1 + more
        weights = balanced_class_weights(labels, classes)
        assert (weights.shape, weights.dtype) == ((classes,), np.float32)
        assert weights[labels].mean() == pytest.approx(1, rel=1e-5)
        counts = np.bincount(labels, minlength=classes)
        assert (weights[counts == 0] == 1).all()
        # n / (present classes * count): what sklearn's compute_class_weight("balanced") gives.
        present = counts[counts > 0]
        expected = len(labels) / (len(present) * present)
        assert weights[counts > 0] == pytest.approx(expected, rel=1e-6)

    def test_by_hand(self):
        weights = balanced_class_weights(np.array([0, 0, 0, 2, 2, 3]), 5)
        assert weights.tolist() == pytest.approx([6 / 9, 1, 6 / 6, 6 / 3, 1], rel=1e-6)

    @settings(max_examples=50, deadline=None)
    @given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=50))
    def test_give_every_class_the_same_total(self, labels):
        weights = balanced_class_weights(np.array(labels), 5)
        totals = [float(weights[label]) * labels.count(label) for label in set(labels)]
        assert totals == pytest.approx([totals[0]] * len(totals), rel=1e-5)

    def test_of_equally_many_are_one(self):
        assert balanced_class_weights(np.array([1, 0, 2] * 7), 3).tolist() == [1, 1, 1]

    def test_of_a_run_are_those_of_its_samples_if_asked(self, tmp_path, make_split):
        labels = [0, 0, 0, 2, 2, 3]
        split = make_split(tmp_path, labels, num_classes=5, photos=False)
        assert class_weights(FrozenConfigDict({"class_weights": "none"}), split, CPU) is None
        weights = class_weights(FrozenConfigDict({"class_weights": "balanced"}), split, CPU)
        assert (weights.dtype, weights.device) == (torch.float32, CPU)
        assert weights.tolist() == balanced_class_weights(np.array(labels), 5).tolist()
