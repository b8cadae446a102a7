"""utils/training/trouble.py: a run that learns nothing is told so, once; others hear nothing."""

import logging
import math

import numpy as np
import pytest
from helpers import train_config
from hypothesis import given
from hypothesis import strategies as st

from utils.training.trouble import Trouble

CLASSES, WARMUP = 10, 7
FIRST = WARMUP + 50  # the first step of which something may be said
AUGMENTED = {"mixup": 0.0, "cutmix": 0.0, "contrastive_weight": None, "warmup_steps": WARMUP}
LABELS = np.repeat(np.arange(CLASSES), 10)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture
def watch(caplog):
    """Makes a watch of a run by its flags."""
    caplog.set_level(logging.INFO, "fine_vit")

    def make(**flags: object) -> Trouble:
        return Trouble(train_config(**{**AUGMENTED, **flags}), CLASSES)

    return make


class TestLosses:
    def test_of_guessing_are_one_warning_with_the_numbers(self, watch, caplog):
        trouble = watch(learning_rate=0.02, pretrained="w.npz")
        for step in (FIRST - 1, FIRST, FIRST + 50):
            trouble.note_losses(step, [2.304] * 50)
        (line,) = warnings_of(caplog)
        assert line.startswith(f"warning: after step {FIRST} the training loss, 2.304 over the ")
        assert "ln(10 classes) = 2.303" in line
        assert "may have ruined the pretrained weights" in line
        assert "--learning_rate, such as 0.002 instead of 0.02" in line
        assert f"more --warmup_steps than {WARMUP}" in line

    @given(
        loss=st.floats(2, 3),
        count=st.sampled_from([1, 49, 50, 50]),
        step=st.integers(FIRST - 2, FIRST + 5),
    )
    def test_are_judged_by_their_mean_over_50_steps_beyond_the_warm_up(self, loss, count, step):
        trouble = Trouble(train_config(**AUGMENTED), CLASSES)
        trouble.note_losses(step, [loss] * count)
        is_bad = math.fsum([loss] * count) / count >= math.log(CLASSES)
        assert trouble.is_said == (is_bad and count == 50 and step >= FIRST)

    @pytest.mark.parametrize(
        "flags",
        [
            {"smoothing_value": 0.1},
            {"mixup": 0.2},
            {"cutmix": 1.0},
            {"class_weights": "balanced"},
            {"contrastive_weight": 1.0},
        ],
    )
    def test_of_another_objective_say_nothing(self, watch, caplog, flags):
        watch(**flags).note_losses(FIRST, [9.0] * 50)
        assert warnings_of(caplog) == []


class TestPredictions:
    @pytest.mark.parametrize(("share", "is_warned"), [(0.89, False), (0.9, True), (1.0, True)])
    def test_of_which_90_percent_are_one_class_are_one_warning(
        self, watch, caplog, share, is_warned
    ):
        predicted = LABELS.copy()
        of_three = round(share * 100)
        predicted[:of_three], predicted[of_three:] = 3, 0
        trouble = watch(smoothing_value=0.1)
        for step in (FIRST - 1, FIRST, FIRST + 1):
            trouble.note_predictions(step, predicted, LABELS)
        lines = warnings_of(caplog)
        assert len(lines) == is_warned
        if is_warned:
            assert (
                f"{share:.0%} of the predictions are one class, number 3, which 10.0%" in lines[0]
            )
            assert "the learning rate may be too high" in lines[0]

    def test_are_fine_where_nearly_all_images_are_of_that_class(self, watch, caplog):
        labels = np.array([1] * 85 + [0] * 15)
        watch().note_predictions(FIRST, np.ones(100, int), labels)
        assert warnings_of(caplog) == []
