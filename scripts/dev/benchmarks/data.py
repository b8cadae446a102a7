"""Measure the input pipeline on the real flowers: its speed against PIL's, and training's wait.

Each contender is a `DataLoader` over the same images in the same order, with one thread and no
loader process, as one core of a machine sees it. Ours ends in uint8 batches, which the device
normalizes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.dev.benchmarks.pil_pipelines import PilImages, pil_transforms
from scripts.dev.benchmarks.timing import Action, in_turn, ratio_of
from utils.errors import InputError
from utils.flag_types import positive_int

if TYPE_CHECKING:
    from ml_collections import FrozenConfigDict
    from torch.utils.data import DataLoader

    from utils.data.splits import Split

REPO = Path(__file__).resolve().parents[3]
# The two promises of specs/003-datasets-and-input/spec.md.
MIN_SPEEDUP = 2.0  # times as many images a second as the PIL pipeline
MAX_WAIT_FRACTION = 0.01  # of the training time
IMG_SIZES = {"transfg": 448, "vit": 224}
BATCH = 32  # images


def add_data_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of `benchmark.py data`."""
    command.add_argument(
        "--data_root", type=Path, help="folder of the real Flowers-102 (default: $DATA_ROOT)"
    )
    command.add_argument(
        "--images", type=positive_int, default=256, help="images a measurement reads"
    )
    command.add_argument("--steps", type=positive_int, default=60, help="training steps, batch 16")


def config_of(preset: str, num_steps: int, **changes: object) -> "FrozenConfigDict":
    """Build the part of a config that loaders read."""
    from ml_collections import FrozenConfigDict

    defaults = {
        "preset": preset,
        "img_size": IMG_SIZES[preset],
        "augment": "none",
        "random_erasing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "num_steps": num_steps,
        "train_batch_size": BATCH,
        "eval_batch_size": BATCH,
        "seed": 42,
        "num_workers": 0,
        "cache": "none",
        "cache_dir": None,
        "skip_bad_images": 0,
    }
    return FrozenConfigDict({**defaults, **changes})


# --- Speed ----------------------------------------------------------------------------------------


def all_of(loader: "DataLoader") -> Action:
    """Return an action that reads a loader to its end."""
    return lambda: sum(1 for _ in loader)


def contenders(split: "Split", cache_dir: str) -> dict[str, Action]:
    """Return every pipeline as an action that reads all images of `split` once."""
    import torch
    from torch.utils.data import DataLoader

    from utils.data.decode import decode
    from utils.data.loaders import train_loader

    paths = [split.path_of(position) for position in range(len(split))]
    actions: dict[str, Action] = {"decode alone": lambda: [decode(path) for path in paths]}
    for preset, transform in pil_transforms().items():
        actions[f"PIL {preset}"] = all_of(DataLoader(PilImages(paths, transform), BATCH))
        for cache in ("none", "disk"):
            config = config_of(preset, len(split) // BATCH, cache=cache, cache_dir=cache_dir)
            name = preset if cache == "none" else f"{preset} from disk"
            actions[name] = all_of(train_loader(config, split, 1, torch.device("cpu")))
    return actions


def measure_speed(
    split: "Split", rounds: int, tolerance: float = 0.0
) -> tuple[dict[str, Any], list[str]]:
    """Measure images a second of every pipeline, and ours over PIL's.

    Args:
        split: images to read.
        rounds: number of pairs.
        tolerance: share by which a speed may miss its promise.

    Returns:
        The figures, and a sentence for each promise that is missed.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            times = in_turn(contenders(split, folder), rounds)
    finally:
        torch.set_num_threads(threads)
    rates = {name: len(split) / ratio_of(t, t)["a_seconds"] for name, t in times.items()}
    speedups = {
        name: ratio_of(times[f"PIL {preset}"], times[name])
        for preset in IMG_SIZES
        for name in (preset, f"{preset} from disk")
    }
    missed = [
        f"{preset} is {speedups[preset]['ratio']:.2f} times PIL's, not {MIN_SPEEDUP:g}"
        for preset in IMG_SIZES
        if speedups[preset]["ratio"] < MIN_SPEEDUP * (1 - tolerance)
    ]
    return {"images_per_second_per_core": rates, "times_as_fast_as_pil": speedups}, missed


# --- Waiting --------------------------------------------------------------------------------------


def measure_wait(data_root: Path, steps: int) -> tuple[dict[str, Any], list[str]]:
    """Measure `data/wait_fraction` of a training run: ViT-Ti_16, 224 px, batch 16, two workers."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "train.py",
            "--name",
            "wait",
            "--dataset",
            "flower102",
            "--data_root",
            str(data_root),
            "--model_type",
            "ViT-Ti_16",
            "--img_size",
            "224",
            "--num_workers",
            "2",
            "--num_steps",
            str(steps),
            "--eval_every",
            str(steps),
            "--log_every",
            str(steps),
            "--tiny_infer_subset",
            "flower102_tiny",
            "--output_dir",
            folder,
            "--device",
            "cpu",
        ]
        done = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True)
    (line,) = [text for text in done.stdout.splitlines() if "data_wait_fraction" in text]
    fraction = float(line.split()[-1])
    missed = [f"training waits {fraction:.2%} of its time"] if fraction > MAX_WAIT_FRACTION else []
    return {"steps": steps, "wait_fraction": fraction, "cores": os.cpu_count()}, missed


# --- All of it ------------------------------------------------------------------------------------


def chosen_images(split: "Split", count: int) -> "Split":
    """Select about `count` images from all over `split`, in whole batches.

    Raises:
        InputError: `count` is less than a batch.
    """
    spread = split.select(range(0, len(split), max(1, len(split) // count)))
    whole = spread.select(range(len(spread) // BATCH * BATCH))
    if not len(whole):
        raise InputError(f"--images {count} is under a batch of {BATCH}")
    return whole


def measure_data(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Measure the input pipeline on the real flowers: speed against PIL's, training's wait.

    Raises:
        InputError: the flowers are absent, or `--images` is under a batch.
    """
    from utils.data.catalog import get_spec
    from utils.data_flags import resolve_data_root
    from utils.dataset import open_split

    root = Path(resolve_data_root("flower102", args.data_root, REPO))
    split = chosen_images(open_split(get_spec("flower102"), root, "train"), args.images)
    speed, too_slow = measure_speed(split, args.pairs, args.tolerance)
    waiting, too_long = measure_wait(root.resolve(), args.steps)
    return {"speed": speed, "waiting": waiting}, [*too_slow, *too_long]
