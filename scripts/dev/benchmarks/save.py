"""What `benchmark.py save` measures: the price of saving the whole state of a run."""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from scripts.dev.benchmarks.timing import in_turn
from utils.flags import DEFAULT_SAVE_EVERY

MODEL_TYPE, BATCH, IMG_SIZE = "ViT-B_16", 16, 224
MAX_SHARE = 0.02  # of the time of training


def measure_save(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The time of saving the state of a ViT-B_16 beside that of its training steps."""
    import torch

    from models.build import build_model
    from models.configs import get_config, patch_sizes
    from models.losses import Objective
    from models.pretrained.profiles import GOOGLE
    from utils.config import parse_train_args
    from utils.data.batches import Batch, Normalizer
    from utils.data_utils import RunPaths
    from utils.run.snapshot import Header, SnapshotStore
    from utils.training.learner import build_learner
    from utils.training.random_state import RandomState
    from utils.training.step_loader import StepBatches
    from utils.training.train_step import train_step

    device = torch.device("cpu")
    config = parse_train_args(
        ["--name", "save", "--dataset", "synthetic", "--num_steps", "1000", "--warmup_steps", "0"],
        patch_sizes(),
    )
    model = build_model(get_config(MODEL_TYPE, IMG_SIZE), num_classes=102)
    learner = build_learner(model, config)
    images = torch.randint(0, 256, (BATCH, 3, IMG_SIZE, IMG_SIZE), dtype=torch.uint8)
    batch = Batch(images, torch.arange(BATCH), torch.arange(BATCH), torch.zeros(BATCH, 2))
    step, normalize = StepBatches([batch], [[BATCH]]), Normalizer(GOOGLE.normalization, device)

    def train() -> None:
        train_step(learner, Objective(), step, normalize, 1.0)
        learner.advance()

    with tempfile.TemporaryDirectory() as folder:
        paths = RunPaths(Path(folder), "save")
        store = SnapshotStore(paths, keep=1)
        header = Header("id", 0, 0, 0, {}, {}, {})
        parts = {"learner": learner, "random_state": RandomState(device)}

        def save() -> None:
            store.save(header, parts)

        times = in_turn({"step": train, "save": save}, args.pairs)
        size = paths.last.stat().st_size
    step_seconds, save_seconds = (statistics.median(times[name]) for name in ("step", "save"))
    shares = [
        save / (DEFAULT_SAVE_EVERY * step + save)
        for step, save in zip(times["step"], times["save"], strict=True)
    ]
    share = statistics.median(shares)
    figures = {
        "save_every": DEFAULT_SAVE_EVERY,
        "batch": BATCH,
        "state_bytes": size,
        "step_seconds": step_seconds,
        "save_seconds": save_seconds,
        "share": share,
        "share_range": [min(shares), max(shares)],
        # With faster steps the share grows; at this many seconds a step it is what is promised.
        "step_seconds_at_promise": save_seconds * (1 / MAX_SHARE - 1) / DEFAULT_SAVE_EVERY,
    }
    missed = [] if share < MAX_SHARE * (1 + args.tolerance) else [f"saving takes {share:.1%}"]
    return figures, missed
