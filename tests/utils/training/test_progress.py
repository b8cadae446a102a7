"""Check what is due when, whole or interrupted."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict

from utils.training.progress import Progress


def config(num_steps: int = 10, eval_every: int = 3, patience: int | None = None):
    return FrozenConfigDict(
        {"num_steps": num_steps, "eval_every": eval_every, "patience": patience}
    )


def run(
    state: Progress,
    config: FrozenConfigDict,
    better: set[int],
    stop: tuple[int, bool] | None = None,
) -> list[int]:
    """Run to the end as `train.py` does; the steps that were evaluated.

    It may be stopped at a step, before or after its evaluation.
    """
    evaluated = []
    while stop != (state.step, False):
        if state.is_eval_due(config):
            evaluated.append(state.step)
            state.evaluated = state.step
            state.since_best = 0 if state.step in better else state.since_best + 1
        if state.is_over(config) or stop == (state.step, True):
            break
        state.step += 1
    return evaluated


class TestEvaluations:
    @settings(max_examples=100)
    @given(num_steps=st.integers(1, 60), eval_every=st.integers(1, 70))
    def test_are_due_every_so_often_and_at_the_end(self, num_steps, eval_every):
        expected = sorted({*range(eval_every, num_steps + 1, eval_every), num_steps})
        state = Progress()
        assert run(state, config(num_steps, eval_every), set()) == expected
        assert state.step == num_steps

    def test_of_one_step_are_due_once(self):
        state = Progress(step=3)
        assert state.is_eval_due(config())
        state.evaluated = 3
        assert not state.is_eval_due(config())
        assert not Progress().is_eval_due(config())  # nothing is learned yet
        assert not Progress(step=4, evaluated=3).is_eval_due(config())

    @settings(max_examples=100)
    @given(
        num_steps=st.integers(1, 40),
        eval_every=st.integers(1, 10),
        patience=st.none() | st.integers(1, 4),
        better=st.sets(st.integers(1, 40)),
        stop=st.tuples(st.integers(0, 40), st.booleans()),
    )
    def test_of_an_interrupted_run_are_those_of_a_whole_one(
        self, num_steps, eval_every, patience, better, stop
    ):
        flags = config(num_steps, eval_every, patience)
        whole, first = Progress(), Progress()
        expected = run(whole, flags, better)
        before = run(first, flags, better, stop)
        second = Progress()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert before + run(second, flags, better) == expected
        assert second == whole


class TestPatience:
    @pytest.mark.parametrize(
        ("patience", "better", "ends_at"),
        [
            (None, set(), 30),
            (1, set(), 3),
            (2, {3}, 9),
            (2, {3, 9}, 15),
            (3, {3, 6, 12}, 21),
            (20, {3}, 30),
        ],
    )
    def test_ends_a_run_that_gets_no_better(self, patience, better, ends_at):
        state, flags = Progress(), config(30, 3, patience)
        run(state, flags, better)
        assert state.step == ends_at
        assert state.is_over(flags)
        assert state.is_out_of_patience(flags) is (ends_at < 30)

    def test_that_ran_out_may_be_given_anew(self):
        state = Progress(step=9, evaluated=9, since_best=3)
        assert state.is_over(config(patience=3))
        assert not state.is_over(config(patience=4))
        assert not state.is_over(config(patience=None))


@pytest.mark.parametrize(("step", "over"), [(0, False), (9, False), (10, True), (11, True)])
def test_is_over_after_the_last_step(step, over):
    """A run that is to be shorter than it is already is over, too."""
    assert Progress(step=step).is_over(config()) is over


def test_all_but_what_is_on_disk_is_its_state():
    state = Progress(3, 3, {"": {"accuracy": 0.5, "step": 3}}, 1, saved=2).state_dict()
    assert state == {
        "step": 3,
        "evaluated": 3,
        "best": {"": {"accuracy": 0.5, "step": 3}},
        "since_best": 1,
    }


@pytest.mark.parametrize(
    ("step", "saves", "logs"), [(4, True, True), (6, False, True), (5, False, False)]
)
def test_saving_and_logging_are_due_every_so_often_and_an_evaluation_saves_anyway(
    step, saves, logs
):
    flags = FrozenConfigDict(
        {"num_steps": 9, "eval_every": 6, "save_every": 2, "log_every": 2, "patience": None}
    )
    progress = Progress(step=step)
    assert (progress.is_save_due(flags), progress.is_log_due(flags)) == (saves, logs)


def test_two_states_share_nothing():
    one, other = Progress(), Progress()
    one.best[""] = {}
    assert other.best == {}
