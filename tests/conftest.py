"""Fixtures that several rooms share: drawn flowers, real flowers, one finished training run."""

import json
import os
import shlex
from pathlib import Path

import pytest

import eval as eval_entrypoint
import train as train_entrypoint
from utils import synthetic
from utils.data_utils import RunPaths
from utils.flowers import is_layout

REPO = Path(__file__).resolve().parent.parent

# As small as a run can be while everything happens: two evaluations, warm-up, several batches.
TINY_TRAIN = (
    "--model_type testing --img_size 32 --num_steps 4 --eval_every 2 --train_batch_size 4 "
    "--eval_batch_size 2 --num_workers 0 --device cpu"
)
TINY_EVAL = "--eval_batch_size 2 --num_workers 0 --device cpu"


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch):
    """Tests say where their data is; what the shell exports must not matter."""
    monkeypatch.delenv("DATA_ROOT", raising=False)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """The synthetic flowers, drawn once. Read only: copy what you damage."""
    root = tmp_path_factory.mktemp("drawn") / "flowers"
    synthetic.draw(root)
    return root


def _real_flowers() -> Path | None:
    parents = [os.environ.get("DATA_ROOT"), REPO.parent / "shared" / "data"]
    for parent in filter(None, parents):
        for root in (Path(parent), Path(parent) / "flower102"):
            if is_layout(root):
                return root
    return None


REAL_FLOWERS = _real_flowers()


@pytest.fixture(scope="session")
def real_flowers() -> Path:
    """The real Flowers-102, train and val images at least."""
    if REAL_FLOWERS is None:
        pytest.skip("the real Flowers-102 is not here: export DATA_ROOT=/path/to/its/parent")
    return REAL_FLOWERS


def train(flags: str, *more: str) -> int:
    """Run train.py's main on a line of flags; the exit code."""
    return train_entrypoint.main([*shlex.split(flags), *map(str, more)])


def evaluate(flags: str, *more: str) -> int:
    """Run eval.py's main on a line of flags; the exit code."""
    return eval_entrypoint.main([*shlex.split(flags), *map(str, more)])


def rows_of(paths: RunPaths) -> list[dict]:
    """The prediction rows of a run."""
    return [json.loads(line) for line in paths.predictions.read_text("utf-8").splitlines()]


def read_json(path: Path) -> dict:
    """The JSON object in a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def files_below(folder: Path) -> set[Path]:
    """Everything below a folder, relative to it; empty if it is not there."""
    return {path.relative_to(folder) for path in folder.rglob("*")} if folder.exists() else set()


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag to (step, value) pairs of the TensorBoard events in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, drawn) -> RunPaths:
    """A finished tiny training run on the drawn flowers. Read only."""
    output = tmp_path_factory.mktemp("finished")
    code = train(
        f"--name run --dataset synthetic {TINY_TRAIN} --tiny_train_subset synthetic_tiny "
        "--tiny_infer_subset synthetic_tiny",
        "--data_root", drawn, "--output_dir", output,
    )  # fmt: skip
    assert code == 0
    return RunPaths(output, "run")
