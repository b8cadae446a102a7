"""utils/samplers.py: the same samples in the same batches, however many processes there are."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.samplers import EvalBatches, Part, TrainBatches, TrainSampler
from utils.splits import Split

SEEDS = st.integers(0, 2**32 - 1)


def split_of(num_samples: int) -> Split:
    ids = np.array([f"photo_{i:03d}" for i in range(num_samples)], dtype=str)
    labels = np.zeros(num_samples, dtype=np.int64)
    return Split("toy", "train", Path(), ("rose",), ids, ids, labels)


@st.composite
def runs(draw) -> dict[str, int]:
    """Steps of any size over splits of any size; epochs end anywhere, also several in a step."""
    return {
        "num_samples": draw(st.integers(1, 40)),
        "num_steps": draw(st.integers(1, 12)),
        "step_size": draw(st.integers(1, 24)),
        "seed": draw(SEEDS),
    }


@st.composite
def shared_runs(draw) -> tuple[dict[str, int], int, int]:
    """A run, the size of its micro-batches, and a number of processes that can share them."""
    world_size = draw(st.integers(1, 5))
    batch_size = world_size * draw(st.integers(1, 5))
    run = {**draw(runs()), "step_size": batch_size * draw(st.integers(1, 3))}
    return run, batch_size, world_size


class TestTrainSampler:
    @settings(max_examples=100, deadline=None)
    @given(run=runs())
    def test_shuffles_every_epoch_anew_and_shows_each_sample_once_in_it(self, run):
        sampler = TrainSampler(**run)
        pairs = list(sampler)
        assert pairs == list(sampler)
        assert len(pairs) == len(sampler) == run["num_steps"] * run["step_size"]
        size = run["num_samples"]
        assert [epoch for epoch, _ in pairs] == [i // size for i in range(len(pairs))]
        for begin in range(0, len(pairs), size):
            epoch = [position for _, position in pairs[begin : begin + size]]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(range(size))

    @settings(max_examples=100, deadline=None)
    @given(run=runs(), data=st.data())
    def test_starts_at_any_step(self, run, data):
        start = data.draw(st.integers(0, run["num_steps"]))
        whole, rest = TrainSampler(**run), TrainSampler(**run, start_step=start)
        assert list(rest) == list(whole)[start * run["step_size"] :]
        assert len(rest) == len(whole) - start * run["step_size"]

    @settings(max_examples=50, deadline=None)
    @given(run=runs(), data=st.data())
    def test_of_a_longer_run_begins_like_that_of_a_shorter(self, run, data):
        longer = TrainSampler(
            **{**run, "num_steps": run["num_steps"] + data.draw(st.integers(1, 9))}
        )
        assert list(longer)[: run["num_steps"] * run["step_size"]] == list(TrainSampler(**run))

    @settings(max_examples=100, deadline=None)
    @given(run=runs(), data=st.data())
    def test_names_the_samples_of_a_step(self, run, data):
        split = split_of(run["num_samples"])
        start = data.draw(st.integers(0, run["num_steps"] - 1))
        sampler = TrainSampler(**run, start_step=start)
        pairs, size = list(TrainSampler(**run)), run["step_size"]
        for step in range(1, run["num_steps"] + 1):  # those before its own start, too
            expected = [str(split.ids[p]) for _, p in pairs[(step - 1) * size : step * size]]
            assert sampler.ids_of_step(split, step) == expected
        assert all(type(each) is str for each in sampler.ids_of_step(split, 1))

    @settings(max_examples=50, deadline=None)
    @given(run=runs(), data=st.data())
    def test_gives_any_stretch(self, run, data):
        sampler = TrainSampler(**run)
        pairs = list(sampler)
        begin = data.draw(st.integers(0, len(pairs)))
        end = data.draw(st.integers(begin, len(pairs)))
        assert list(sampler.between(begin, end)) == pairs[begin:end]

    def test_has_another_order_for_another_seed_and_epoch(self):
        def order(seed: int) -> list[int]:
            return [position for _, position in TrainSampler(40, 2, 40, seed)]

        orders = [order(seed)[:40] for seed in range(5)] + [order(0)[40:]]
        assert len({tuple(each) for each in orders}) == 6


class TestTrainBatches:
    @settings(max_examples=100, deadline=None)
    @given(shared=shared_runs())
    def test_of_all_processes_tile_those_of_one_in_order(self, shared):
        run, batch_size, world_size = shared
        sampler = TrainSampler(**run)
        (alone,) = ([*TrainBatches(sampler, batch_size, 0, 1)],)
        assert all(part.is_whole and part.begin == 0 for part in alone)
        assert [pair for part in alone for pair in part.samples] == list(sampler)
        by_rank = [
            TrainBatches(sampler, batch_size, rank, world_size) for rank in range(world_size)
        ]
        assert {len(batches) for batches in by_rank} == {len(alone)}
        for whole, *parts in zip(alone, *by_rank, strict=True):
            assert all(part.samples == whole.samples for part in parts)
            assert {part.end - part.begin for part in parts} == {batch_size // world_size}
            ends = [part.end for part in parts]
            assert [part.begin for part in parts] == [0, *ends[:-1]]
            assert ends[-1] == len(whole.samples) == batch_size
            assert all(part.is_whole is (world_size == 1) for part in parts)

    @settings(max_examples=50, deadline=None)
    @given(shared=shared_runs(), data=st.data())
    def test_go_on_at_any_step_with_any_number_of_processes(self, shared, data):
        run, batch_size, world_size = shared
        start = data.draw(st.integers(0, run["num_steps"]))
        rank = data.draw(st.integers(0, world_size - 1))
        whole = [*TrainBatches(TrainSampler(**run), batch_size, 0, 1)]
        rest = TrainBatches(TrainSampler(**run, start_step=start), batch_size, rank, world_size)
        done = start * run["step_size"] // batch_size
        assert [part.samples for part in rest] == [part.samples for part in whole[done:]]
        assert len(rest) == len(whole) - done

    def test_can_be_read_twice(self):
        batches = TrainBatches(TrainSampler(5, 3, 4, seed=1), 2, 1, 2)
        assert list(batches) == list(batches)


class TestEvalBatches:
    @settings(max_examples=200, deadline=None)
    @given(
        num_samples=st.integers(0, 70), batch_size=st.integers(1, 12), world_size=st.integers(1, 6)
    )
    def test_deal_out_those_of_one_process(self, num_samples, batch_size, world_size):
        alone = list(EvalBatches(num_samples, batch_size))
        by_rank = [
            EvalBatches(num_samples, batch_size, rank, world_size) for rank in range(world_size)
        ]
        for rank, batches in enumerate(by_rank):
            parts = list(batches)
            assert parts == alone[rank::world_size]
            assert len(batches) == len(parts)
            assert all(part.is_whole and part.samples for part in parts)
        counts = Counter(
            position for batches in by_rank for part in batches for _, position in part.samples
        )
        assert counts == Counter(range(num_samples))  # each once
        sizes = [len(batches) for batches in by_rank]
        assert max(sizes) - min(sizes) <= 1

    @settings(max_examples=100, deadline=None)
    @given(num_samples=st.integers(1, 70), batch_size=st.integers(1, 12))
    def test_of_one_process_are_the_split_in_order(self, num_samples, batch_size):
        parts = list(EvalBatches(num_samples, batch_size))
        pairs = [pair for part in parts for pair in part.samples]
        assert pairs == [(0, position) for position in range(num_samples)]
        *full, last = [len(part.samples) for part in parts]
        assert set(full) <= {batch_size}
        assert 1 <= last <= batch_size

    def test_can_be_read_twice(self):
        batches = EvalBatches(7, 2, 1, 2)
        assert (
            list(batches)
            == list(batches)
            == [
                Part([(0, 2), (0, 3)], 0, 2),
                Part([(0, 6)], 0, 1),
            ]
        )


@pytest.mark.parametrize(
    ("begin", "end", "whole"), [(0, 3, True), (0, 2, False), (1, 3, False), (1, 1, False)]
)
def test_a_part_is_whole_if_it_has_all(begin, end, whole):
    assert Part([(0, 1), (0, 2), (1, 0)], begin, end).is_whole is whole
