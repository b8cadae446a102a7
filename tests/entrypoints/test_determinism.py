"""Check that the same run gives the same bits, whatever the number of loader processes."""

import pytest
from helpers import TINY_TRAIN, read_json, train

from utils.data_utils import RunPaths

# Over the whole drawn data, so that batches span epochs.
RUN = (
    f"--name run --dataset synthetic {TINY_TRAIN} --train_batch_size 48 --num_steps 6 "
    "--eval_every 3 --eval_batch_size 32"
)


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    """Runs with more flags; returns the paths."""

    def call(*more) -> RunPaths:
        output = tmp_path_factory.mktemp("run")
        assert train(RUN, "--data_root", drawn, "--output_dir", output, *more) == 0
        return RunPaths(output, "run")

    return call


@pytest.fixture(scope="module")
def reference(run):
    return run()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_equal_runs_give_equal_files(reference, run, num_workers):
    again = run("--num_workers", num_workers)
    assert again.checkpoint.read_bytes() == reference.checkpoint.read_bytes()
    assert again.metrics.read_bytes() == reference.metrics.read_bytes()
    stamps = [read_json(paths.env_stamp) for paths in (again, reference)]
    assert stamps[0]["predictions_digest"] == stamps[1]["predictions_digest"]
    assert stamps[0]["config_hash"] == stamps[1]["config_hash"]
    assert stamps[0]["run_id"] != stamps[1]["run_id"]


def test_another_seed_gives_another_run(reference, run):
    assert run("--seed", 43).checkpoint.read_bytes() != reference.checkpoint.read_bytes()
