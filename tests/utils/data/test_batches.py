"""utils/data/batches.py: the same samples in the same batches, however many processes there are."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.batches import EvalBatches, TrainBatches, ids_of_step, sample_order
from utils.data.splits import Split

SIZES, SEEDS = st.integers(1, 40), st.integers(0, 2**32 - 1)


class TestSampleOrder:
    @settings(max_examples=100)
    @given(size=SIZES, total=st.integers(0, 200), seed=SEEDS)
    def test_each_epoch_shows_each_sample_once(self, size, total, seed):
        pairs = list(sample_order(size, seed, 0, total))
        assert [epoch for epoch, _ in pairs] == [i // size for i in range(total)]
        for begin in range(0, total, size):
            epoch = [position for _, position in pairs[begin : begin + size]]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(range(size))

    @settings(max_examples=100)
    @given(size=SIZES, seed=SEEDS, ends=st.tuples(*[st.integers(0, 200)] * 2).map(sorted))
    def test_any_stretch_is_that_of_the_whole_run(self, size, seed, ends):
        start, end = ends
        pairs = list(sample_order(size, seed, 0, 200))
        assert list(sample_order(size, seed, start, end)) == pairs[start:end]

    def test_another_seed_and_another_epoch_have_another_order(self):
        torch.manual_seed(1)  # must not matter
        orders = [[p for _, p in sample_order(40, seed, 0, 40)] for seed in range(5)]
        orders.append([p for _, p in sample_order(40, 0, 40, 80)])
        assert len({tuple(order) for order in [*orders, range(40)]}) == 7
        torch.manual_seed(2)
        assert [p for _, p in sample_order(40, 0, 0, 40)] == orders[0]

    def test_the_ids_of_a_step_are_those_of_its_samples(self):
        ids = np.array([f"photo_{i}" for i in range(5)], dtype=str)
        split = Split("toy", "train", Path(), ("rose",), ids, ids, np.zeros(5, dtype=np.int64))
        steps = [ids_of_step(split, 3, 4, step) for step in (1, 2)]
        expected = [str(ids[position]) for _, position in sample_order(5, 3, 0, 8)]
        assert steps == [expected[:4], expected[4:]]
        assert type(steps[0][0]) is str


@st.composite
def shared_runs(draw) -> tuple[dict[str, int], int, int, int]:
    """Split, seed and batch size; samples of a step, number of steps, number of processes."""
    world_size = draw(st.integers(1, 5))
    batch_size = world_size * draw(st.integers(1, 5))
    run = {"num_samples": draw(SIZES), "seed": draw(SEEDS), "batch_size": batch_size}
    return run, batch_size * draw(st.integers(1, 3)), draw(st.integers(1, 12)), world_size


class TestTrainBatches:
    @settings(max_examples=100)
    @given(shared=shared_runs())
    def test_the_parts_of_all_processes_tile_the_batches_of_one_in_order(self, shared):
        run, step_size, num_steps, world_size = shared
        stretch = range(step_size * num_steps)
        alone = list(TrainBatches(**run, stretch=stretch))
        assert all(part.is_whole and part.begin == 0 for part in alone)
        order = sample_order(run["num_samples"], run["seed"], 0, len(stretch))
        assert [pair for part in alone for pair in part.samples] == list(order)
        by_rank = [
            TrainBatches(**run, stretch=stretch, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert {len(batches) for batches in by_rank} == {len(alone)}
        for whole, *parts in zip(alone, *by_rank, strict=True):
            assert all(part.samples == whole.samples for part in parts)
            assert {part.end - part.begin for part in parts} == {run["batch_size"] // world_size}
            ends = [part.end for part in parts]
            assert [part.begin for part in parts] == [0, *ends[:-1]]
            assert ends[-1] == len(whole.samples) == run["batch_size"]
            assert all(part.is_whole is (world_size == 1) for part in parts)

    @settings(max_examples=50)
    @given(shared=shared_runs(), data=st.data())
    def test_a_run_resumes_at_any_step_with_any_number_of_processes(self, shared, data):
        run, step_size, num_steps, world_size = shared
        start = data.draw(st.integers(0, num_steps))
        rank = data.draw(st.integers(0, world_size - 1))
        total = step_size * num_steps
        whole = list(TrainBatches(**run, stretch=range(total)))[
            start * step_size // run["batch_size"] :
        ]
        rest = TrainBatches(
            **run, stretch=range(start * step_size, total), rank=rank, world_size=world_size
        )
        assert [part.samples for part in rest] == [part.samples for part in whole]
        assert len(rest) == len(list(rest)) == len(whole)  # it can be read twice


class TestEvalBatches:
    @settings(max_examples=200)
    @given(
        num_samples=st.integers(0, 70), batch_size=st.integers(1, 12), world_size=st.integers(1, 6)
    )
    def test_processes_share_the_batches_of_one(self, num_samples, batch_size, world_size):
        alone = list(EvalBatches(num_samples, batch_size))
        pairs = [pair for part in alone for pair in part.samples]
        assert pairs == [(0, position) for position in range(num_samples)]
        assert all(len(part.samples) == batch_size for part in alone[:-1])
        by_rank = [
            EvalBatches(num_samples, batch_size, rank, world_size) for rank in range(world_size)
        ]
        for rank, batches in enumerate(by_rank):
            assert list(batches) == alone[rank::world_size]
            assert len(batches) == len(list(batches))
            assert all(part.is_whole and part.samples for part in batches)
        counts = Counter(pair for batches in by_rank for part in batches for pair in part.samples)
        assert counts == Counter(pairs)
        sizes = [len(batches) for batches in by_rank]
        assert max(sizes) - min(sizes) <= 1
