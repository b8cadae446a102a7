"""The same run gives the same bits, whatever the number of loader processes (contracts, 7)."""

import pytest
from helpers import TINY_TRAIN, read_json, train

from utils.data_utils import RunPaths


def run(drawn, output, *more):
    """A run over the whole drawn data, so that batches span epochs; its paths."""
    code = train(
        f"--name run --dataset synthetic {TINY_TRAIN}",
        "--data_root",
        drawn,
        "--output_dir",
        output,
        "--train_batch_size",
        48,
        "--num_steps",
        6,
        "--eval_every",
        3,
        "--eval_batch_size",
        32,
        *more,
    )
    assert code == 0
    return RunPaths(output, "run")


@pytest.fixture(scope="module")
def reference(drawn, tmp_path_factory):
    return run(drawn, tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_equal_runs_give_equal_files(reference, drawn, tmp_path, num_workers):
    again = run(drawn, tmp_path, "--num_workers", num_workers)
    assert again.checkpoint.read_bytes() == reference.checkpoint.read_bytes()
    assert again.metrics.read_bytes() == reference.metrics.read_bytes()
    stamps = [read_json(paths.env_stamp) for paths in (again, reference)]
    assert stamps[0]["predictions_digest"] == stamps[1]["predictions_digest"]
    assert stamps[0]["config_hash"] == stamps[1]["config_hash"]
    assert stamps[0]["run_id"] != stamps[1]["run_id"]


def test_another_seed_gives_another_run(reference, drawn, tmp_path):
    other = run(drawn, tmp_path, "--seed", 43)
    assert other.checkpoint.read_bytes() != reference.checkpoint.read_bytes()
