"""Check what training reports, whole or interrupted."""

import json
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import RunError
from utils.training.meter import Settled, StepResult, TrainMeter

WAITED = 0.25  # seconds; a clock that has run for no time at all would be none
NAN, INF = float("nan"), float("inf")
LOSSES = st.floats(0, 100, width=32)


def ids_of(step: int) -> list[str]:
    return [f"photo_{step:03d}", f"flower_{step:03d}"]


def meter_of(step: int = 0) -> TrainMeter:
    return TrainMeter(step, ids_of)


def result(loss: float, correct: int = 0, samples: int = 4, norm: float = 1.0) -> StepResult:
    return StepResult(torch.tensor(loss), torch.tensor(correct), torch.tensor(norm), samples)


@st.composite
def results(draw) -> StepResult:
    samples = draw(st.integers(1, 64))
    return result(draw(LOSSES), draw(st.integers(0, samples)), samples, draw(LOSSES))


# None: all images of the step are bad.
WINDOWS = st.lists(st.none() | results(), min_size=1, max_size=20).filter(any)


def add(meter: TrainMeter, window: Sequence[StepResult | None]) -> None:
    for each in window:
        meter.add(each, WAITED)


def means(scalars: dict[str, float]) -> tuple[float, float]:
    return scalars["loss"], scalars["accuracy"]


class TestReading:
    def test_is_of_the_steps_since_the_last(self):
        meter = meter_of()
        assert not meter
        add(meter, [result(1.0, 4), result(2.0, 1)])
        assert meter
        read = meter.read()
        assert read.keys() == {"loss", "accuracy", "images_per_second", "wait_fraction"}
        assert means(read) == (1.5, 5 / 8)
        assert read["images_per_second"] > 0
        assert not meter
        add(meter, [result(5.0)])
        assert means(meter.read()) == (5.0, 0.0)
        assert meter.step == 3

    @settings(max_examples=100)
    @given(window=WINDOWS)
    def test_is_the_exact_mean_over_steps(self, window):
        """Of the loss; the accuracy is of the samples, of which steps may have fewer."""
        meter = meter_of()
        add(meter, window)
        there = [each for each in window if each is not None]
        loss = math.fsum(float(each.loss) for each in there) / len(there)
        correct = sum(int(each.correct) for each in there)
        assert means(meter.read()) == (loss, correct / sum(each.samples for each in there))

    def test_does_not_count_steps_without_result(self):
        meter = meter_of(step=10)
        add(meter, [None, None])
        assert not meter
        assert meter.step == 12
        add(meter, [result(2.0, 3), None])
        assert means(meter.read()) == (2.0, 0.75)
        assert meter.step == 13 + 1

    def test_says_what_was_waited(self):
        meter = meter_of()
        assert meter.wait_fraction == 0
        add(meter, [result(1.0), None, result(1.0)])
        read = meter.read()
        seconds = meter.total_seconds
        assert meter.total_waited == 3 * WAITED
        assert read["wait_fraction"] == 3 * WAITED / seconds
        assert read["images_per_second"] == 8 / seconds
        assert meter.wait_fraction == read["wait_fraction"]
        add(meter, [result(1.0)])
        meter.read()
        assert meter.wait_fraction == 4 * WAITED / meter.total_seconds
        assert meter.total_seconds > seconds

    def test_that_was_restarted_forgets(self):
        meter = meter_of()
        add(meter, [result(NAN)])
        meter.restart()
        assert not meter
        add(meter, [result(3.0, 2)])
        assert means(meter.read()) == (3.0, 0.5)
        assert meter.total_waited == WAITED


class TestMeterState:
    @settings(max_examples=100)
    @given(window=WINDOWS, cuts=st.lists(st.integers(0, 20), max_size=4))
    def test_of_any_moments_of_a_window_gives_the_same_reading(self, window, cuts):
        whole = meter_of()
        add(whole, window)
        meter, done = meter_of(), 0
        for cut in sorted(min(cut, len(window)) for cut in cuts):
            add(meter, window[done:cut])
            state = json.loads(json.dumps(meter.state_dict()))  # plain data
            done = cut
            meter = meter_of(step=done)
            meter.load_state_dict(state)
        add(meter, window[done:])
        assert bool(meter)
        assert meter.step == whole.step
        assert means(meter.read()) == means(whole.read())

    def test_does_not_make_the_rest_look_faster(self):
        meter = meter_of()
        add(meter, [result(1.0, samples=1000)] * 9)
        state = meter.state_dict()
        meter = meter_of(step=9)
        meter.load_state_dict(state)
        add(meter, [result(1.0, samples=1000)])
        read = meter.read()
        assert read["images_per_second"] == pytest.approx(1000 / meter.total_seconds)

    def test_is_empty_after_a_reading(self):
        meter = meter_of()
        assert meter.state_dict() == {"settled": []}
        add(meter, [result(1.0)])
        meter.read()
        assert meter.state_dict() == {"settled": []}
        other = meter_of(step=1)
        other.load_state_dict(meter.state_dict())
        assert not other

    def test_is_a_row_a_step(self):
        meter = meter_of(step=4)
        add(meter, [None, result(0.5, 2, 8)])
        assert meter.state_dict() == {"settled": [[6, 0.5, 2.0, 8]]}
        assert meter.settled == [Settled(6, 0.5, 2.0, 8)]


class TestNumberThatIsNotFinite:
    @pytest.mark.parametrize("how", ["read", "state_dict"])
    @pytest.mark.parametrize("bad", [NAN, INF, -INF])
    def test_in_a_loss_names_the_first_such_step_and_its_samples(self, bad, how):
        meter = meter_of(7)
        add(meter, [result(1.0), None])
        meter.read()
        add(meter, [result(1.0), result(bad, norm=NAN), None, result(bad)])
        step = 7 + 4
        message = (
            rf"^the loss of step {step} is {bad}; its samples: photo_{step:03d}, "
            rf"flower_{step:03d}; try a lower --learning_rate$"
        )
        with pytest.raises(RunError, match=message):
            getattr(meter, how)()

    @pytest.mark.parametrize("bad", [NAN, INF])
    def test_in_a_gradient_names_its_step_too(self, bad):
        meter = meter_of()
        add(meter, [result(1.0), None, result(1.0, norm=bad), result(NAN)])
        message = rf"^the gradient of step 3 is {bad}; its samples: photo_003, flower_003; try"
        with pytest.raises(RunError, match=message):
            meter.read()

    def test_is_found_again_when_asked_again(self):
        """A signal's save after it must not write a state that hides it."""
        meter = meter_of()
        add(meter, [result(1.0), result(NAN)])
        for _ in range(2):
            with pytest.raises(RunError, match=r"^the loss of step 2 is nan"):
                meter.state_dict()

    def test_after_a_resume_names_the_step_of_the_whole_run(self):
        meter = meter_of()
        add(meter, [result(1.0), result(2.0)])
        state = meter.state_dict()
        meter = meter_of(step=2)
        meter.load_state_dict(state)
        add(meter, [result(NAN)])
        with pytest.raises(RunError, match=r"^the loss of step 3 is nan; its samples: photo_003"):
            meter.read()
