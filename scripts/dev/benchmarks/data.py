"""Measure the input pipeline on the real flowers: its speed against PIL's, and training's wait.

Each contender is a `DataLoader` over the same images in the same order, with one thread and no
loader process, as one core of a machine sees it. Ours ends in uint8 batches, which the device
normalizes.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.dev.benchmarks.pil_pipelines import PilImages, pil_transforms
from scripts.dev.benchmarks.timing import Action, Figure, in_turn, ratio_of
from utils.errors import InputError

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
WAITING_RUN = shlex.split(
    "--name wait --dataset flower102 --tiny_infer_subset flower102_tiny --model_type ViT-Ti_16 "
    "--img_size 224 --train_batch_size 16 --num_workers 2 --device cpu"
)


# --- Speed ----------------------------------------------------------------------------------------


def config_of(preset: str, num_steps: int, *cache_flags: str) -> "FrozenConfigDict":
    """Return the config of a run that reads its images in this process."""
    from models.configs import get_config
    from utils.cli.resolve import parse_train

    flags = f"--name data --dataset synthetic --preset {preset} --img_size {IMG_SIZES[preset]}"
    flags += f" --num_steps {num_steps} --train_batch_size {BATCH} --num_workers 0"
    models = {"ViT-B_16": get_config("ViT-B_16")}
    choices = {"dataset": ["synthetic"], "model_type": models, "pretrained": {}}
    return parse_train([*flags.split(), *cache_flags], choices)


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
    from_disk = ("--cache", "disk", "--cache_dir", cache_dir)
    for preset, transform in pil_transforms().items():
        actions[f"PIL {preset}"] = all_of(DataLoader(PilImages(paths, transform), BATCH))
        for name, cache_flags in ((preset, ()), (f"{preset} from disk", from_disk)):
            config = config_of(preset, len(split) // BATCH, *cache_flags)
            actions[name] = all_of(train_loader(config, split, 1, torch.device("cpu")))
    return actions


def measure_speed(split: "Split", rounds: int, tolerance: float = 0.0) -> tuple[Figure, list[str]]:
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
    rates = {name: len(split) / statistics.median(seconds) for name, seconds in times.items()}
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


def measure_wait(data_root: Path, steps: int) -> tuple[Figure, list[str]]:
    """Measure `data/wait_fraction` of a training run: ViT-Ti_16, 224 px, batch 16, two workers."""
    command = [sys.executable, "train.py", *WAITING_RUN, "--data_root", str(data_root)]
    for flag in ("--num_steps", "--eval_every", "--log_every"):
        command += [flag, str(steps)]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--output_dir", folder]
        done = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True)
    (line,) = [text for text in done.stdout.splitlines() if "data_wait_fraction" in text]
    fraction = float(line.split()[-1])
    missed = [f"training waits {fraction:.2%} of its time"] if fraction > MAX_WAIT_FRACTION else []
    return {"steps": steps, "wait_fraction": fraction, "cores": os.cpu_count()}, missed


# --- All of it ------------------------------------------------------------------------------------


def chosen_images(split: "Split", count: int) -> "Split":
    """Return about `count` images from all over `split`, in whole batches.

    Raises:
        InputError: `count` is less than a batch.
    """
    spread = split.select(range(0, len(split), max(1, len(split) // count)))
    whole = spread.select(range(len(spread) // BATCH * BATCH))
    if not len(whole):
        raise InputError(f"--images {count} is under a batch of {BATCH}")
    return whole


def measure_data(args: argparse.Namespace) -> tuple[Figure, list[str]]:
    """Measure the input pipeline on the real flowers: speed against PIL's, training's wait.

    Raises:
        InputError: the flowers are absent, or `--images` is under a batch.
    """
    from utils.data.catalog import get_spec
    from utils.dataset import open_split, resolve_data_root

    given = None if args.data_root is None else str(args.data_root)
    root = Path(resolve_data_root("flower102", given, str(REPO)))
    split = chosen_images(open_split(get_spec("flower102"), root, "train"), args.images)
    speed, too_slow = measure_speed(split, args.pairs, args.tolerance)
    waiting, too_long = measure_wait(root.resolve(), args.steps)
    return {"speed": speed, "waiting": waiting}, [*too_slow, *too_long]
