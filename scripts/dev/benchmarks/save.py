"""Measure what saving the snapshots of a run costs beside its train steps."""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.dev.benchmarks.timing import Figure, in_turn
from utils.cli.flags import DEFAULT_SAVE_EVERY

if TYPE_CHECKING:
    from utils.training.learner import Learner

MODEL_TYPE, BATCH, IMG_SIZE = "ViT-B_16", 16, 224
MAX_SHARE = 0.02  # of the time of training


def _training() -> tuple["Learner", Callable[[], None]]:
    """Return a new learner, SGD with momentum, and its train step on random images."""
    import torch

    from models.build import build_model
    from models.configs import get_config
    from models.losses import Objective
    from models.pretrained.profiles import GOOGLE
    from utils.data.batches import Batch, Normalizer
    from utils.training.learner import Learner
    from utils.training.step_loader import StepBatches
    from utils.training.train_step import train_step

    model = build_model(get_config(MODEL_TYPE, IMG_SIZE), num_classes=BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    learner = Learner(model, model, optimizer, schedule, None)
    images = torch.randint(0, 256, (BATCH, 3, IMG_SIZE, IMG_SIZE), dtype=torch.uint8)
    batch = Batch(images, torch.arange(BATCH), torch.arange(BATCH), torch.zeros(BATCH, 2))
    batches = StepBatches([batch], [[BATCH]])
    normalize = Normalizer(GOOGLE.normalization, torch.device("cpu"))
    return learner, lambda: train_step(learner, Objective(), batches, normalize, 1.0)


def _times(pairs: int) -> tuple[dict[str, list[float]], int]:
    """Return the seconds of a train step and of saving, in turn, and the bytes of a snapshot."""
    import torch

    from utils.data_utils import RunPaths
    from utils.run.snapshot import Header, SnapshotStore
    from utils.training.random_state import RandomState

    learner, step = _training()

    with tempfile.TemporaryDirectory() as folder:
        paths = RunPaths(Path(folder), "save")
        store = SnapshotStore(paths, keep=1)
        header = Header("id", 0, 0, 0, {}, {}, {})
        parts = {"learner": learner, "random_state": RandomState(torch.device("cpu"))}

        def save() -> None:
            store.save(header, parts)

        times = in_turn({"step": step, "save": save}, pairs)
        return times, paths.last.stat().st_size


def measure_save(args: argparse.Namespace) -> tuple[Figure, list[str]]:
    """Measure the time of saving a snapshot of a ViT-B_16 beside that of its train steps."""
    times, size = _times(args.pairs)
    shares = [
        save / (DEFAULT_SAVE_EVERY * step + save)
        for step, save in zip(times["step"], times["save"], strict=True)
    ]
    share, save_seconds = statistics.median(shares), statistics.median(times["save"])
    figures = {
        "save_every": DEFAULT_SAVE_EVERY,
        "batch": BATCH,
        "snapshot_bytes": size,
        "step_seconds": statistics.median(times["step"]),
        "save_seconds": save_seconds,
        "share": share,
        "share_range": [min(shares), max(shares)],
        # With faster steps the share grows; at this many seconds a step it is what is promised.
        "step_seconds_at_promise": save_seconds * (1 / MAX_SHARE - 1) / DEFAULT_SAVE_EVERY,
    }
    missed = [] if share < MAX_SHARE * (1 + args.tolerance) else [f"saving takes {share:.1%}"]
    return figures, missed
