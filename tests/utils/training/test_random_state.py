"""Check that everything random repeats after a state is put back."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_mps import pretended_mps

from utils.data_utils import seed_everything
from utils.run.tensor_file import load_archive, save_archive
from utils.training.random_state import RandomState, rng_state, set_rng_state

CPU, MPS = torch.device("cpu"), torch.device("mps")


@pytest.fixture(autouse=True)
def _generators_stay() -> Iterator[None]:
    state = rng_state(CPU)
    yield
    set_rng_state(state, CPU)


def draw(count: int) -> list[list[float]]:
    """Numbers of all generators, the kinds that remember one for the next draw included."""
    return [
        [random.random() for _ in range(count)],
        [random.gauss(0, 1) for _ in range(count)],
        [random.randrange(10**30) for _ in range(count)],
        np.random.random(count).tolist(),  # noqa: NPY002 - the generator in question
        np.random.normal(size=count).tolist(),  # noqa: NPY002
        np.random.randint(0, 2**31, count).tolist(),  # noqa: NPY002
        torch.rand(count).tolist(),
        torch.randn(count).tolist(),
        torch.randn(count + 16).tolist(),
        torch.randperm(count + 1).tolist(),
    ]


def plain_parts(value: object) -> Iterator[object]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from plain_parts(item)
    else:
        yield value


class TestRandomState:
    @settings(max_examples=30)
    @given(
        seed=st.integers(0, 2**32 - 1),
        before=st.integers(0, 700),
        after=st.integers(1, 30),
    )
    def test_repeats_all_draws_from_memory_and_from_a_file(
        self, tmp_path_factory, seed, before, after
    ):
        path = tmp_path_factory.getbasetemp() / "rng.bin"
        seed_everything(seed)
        draw(before)
        state = rng_state(CPU)
        save_archive(path, state)
        expected = draw(after)
        for again in (state, load_archive(path), state):  # putting it back does not use it up
            seed_everything(seed ^ 1)
            set_rng_state(again, CPU)
            assert draw(after) == expected
            assert draw(after) != expected

    def test_is_tensors_and_plain_data(self):
        state = rng_state(CPU)
        kinds = {type(part) for part in plain_parts(state)}
        assert kinds <= {str, int, float, type(None), torch.Tensor}
        assert state.keys() == {"python", "numpy", "torch"}

    def test_does_not_change_with_later_draws(self, tmp_path):
        """A state is written after it was taken, and training may go on in between."""
        state = rng_state(CPU)
        for name in ("a", "b"):
            save_archive(tmp_path / name, state)
            draw(700)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_taking_it_draws_nothing(self):
        state = rng_state(CPU)
        expected = draw(5)
        set_rng_state(state, CPU)
        rng_state(CPU)
        assert draw(5) == expected


class TestMps:
    def numbers(self) -> list[float]:
        # `torch.rand` has no place for a generator: the pretended device would not notice it.
        return torch.empty(5, device="mps").uniform_().cpu().tolist()

    def test_has_a_state_of_its_own(self, tmp_path):
        with pretended_mps():
            torch.mps.manual_seed(7)
            self.numbers()
            save_archive(tmp_path / "a", rng_state(MPS))
            expected = self.numbers(), draw(5)
            self.numbers()
            state = load_archive(tmp_path / "a")
            set_rng_state(state, MPS)
            assert (self.numbers(), draw(5)) == expected
        assert state.keys() == {"python", "numpy", "torch", "mps"}
        assert state["mps"].device.type == "cpu"

    def test_keeps_its_own_where_the_state_knows_none(self):
        """Saved on the CPU, resumed on a Mac."""
        state = rng_state(CPU)
        expected = draw(5)
        with pretended_mps():
            torch.mps.manual_seed(7)
            own = self.numbers()
            torch.mps.manual_seed(7)
            set_rng_state(state, MPS)
            assert self.numbers() == own
            assert draw(5) == expected

    def test_is_left_alone_on_the_cpu(self):
        with pretended_mps():
            torch.mps.manual_seed(7)
            state = rng_state(MPS)
            own = self.numbers()
            torch.mps.manual_seed(7)
            set_rng_state(state, CPU)
            assert self.numbers() == own
            assert "mps" not in rng_state(CPU)


class TestPart:
    def test_restores_this_process(self):
        part = RandomState(CPU)
        state = part.state_dict()
        expected = draw(5)
        part.load_state_dict(state)
        assert draw(5) == expected

    def test_of_another_number_of_processes_changes_nothing(self):
        part = RandomState(CPU)
        state = {"ranks": part.state_dict()["ranks"] * 2}
        before = rng_state(CPU)
        draw(5)
        expected = draw(5)
        set_rng_state(before, CPU)
        draw(5)
        part.load_state_dict(state)
        assert draw(5) == expected
