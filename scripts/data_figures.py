"""What `benchmark.py data` measures: the input pipeline against PIL's, on the real flowers.

Each contender is a `DataLoader` over the same images in the same order with one thread and no
worker, as one core of a machine sees it. Ours ends in uint8 batches, which the device normalises;
the ratios with normalising on this CPU are figures of their own.
"""

import argparse
import functools
import itertools
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.paired import Action, in_turn, ratio_of
from scripts.pil_pipelines import IMAGENET, PilImages, pil_transforms
from utils.errors import InputError
from utils.flag_types import positive_int

if TYPE_CHECKING:
    from ml_collections import FrozenConfigDict
    from torch.utils.data import DataLoader

    from utils.splits import Split

REPO = Path(__file__).resolve().parents[1]
# Promises of the issue: how many times as many images a second.
MIN_SPEEDUP = {
    "transfg": 4.0,
    "vit": 2.2,
    "transfg from ram": 10.0,
    "transfg from disk": 10.0,
    "vit from ram": 10.0,
    "vit from disk": 10.0,
}
IMG_SIZES = {"transfg": 448, "vit": 224}
BATCH = 32
MAX_DIFFERENCE = 1 / 255  # of range, of an eval image from PIL's
MAX_WAIT_FRACTION = 0.05
MAX_GROWTH_MB = 20.0  # of a loader process over the samples


def add_data_flags(command: argparse.ArgumentParser) -> None:
    """The flags of `benchmark.py data`."""
    command.add_argument(
        "--data_root", type=Path, help="of the real Flowers-102 (default: $DATA_ROOT)"
    )
    command.add_argument(
        "--images", type=positive_int, default=256, help="images a measurement reads"
    )
    command.add_argument(
        "--samples", type=positive_int, default=50_000, help="samples that memory is watched over"
    )
    command.add_argument("--steps", type=positive_int, default=60, help="training steps, batch 16")


def config_of(preset: str, num_steps: int, **changes: object) -> "FrozenConfigDict":
    """What loaders read of a config."""
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
    """Read a loader to its end."""
    return lambda: sum(1 for _ in loader)


def _repeat(action: Action, times: int) -> None:
    for _ in range(times):
        action()


def contenders(split: "Split", cache_dir: str) -> dict[str, Action]:
    """Every pipeline, over all images of `split` once."""
    import torch
    from torch.utils.data import DataLoader

    from utils.decode import decode
    from utils.engine import Normalizer
    from utils.pipeline import train_loader

    cpu = torch.device("cpu")
    paths = [split.path_of(position) for position in range(len(split))]
    actions: dict[str, Action] = {"decode alone": lambda: [decode(path) for path in paths]}
    for name, transform in pil_transforms().items():
        actions[f"PIL {name}"] = all_of(DataLoader(PilImages(paths, transform), BATCH))
    for preset in IMG_SIZES:
        for cache in ("none", "ram", "disk"):
            config = config_of(preset, len(split) // BATCH, cache=cache, cache_dir=cache_dir)
            name = preset if cache == "none" else f"{preset} from {cache}"
            actions[name] = all_of(train_loader(config, split, 1, cpu))
        normalize = Normalizer(dict(zip(("mean", "std"), IMAGENET, strict=True)), cpu)
        shape = (BATCH, 3, IMG_SIZES[preset], IMG_SIZES[preset])
        batch = torch.zeros(shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        actions[f"normalize {preset}"] = functools.partial(
            _repeat, functools.partial(normalize, batch), len(split) // BATCH
        )
    return actions


def measure_speed(
    split: "Split", rounds: int, tolerance: float = 0.0
) -> tuple[dict[str, Any], list[str]]:
    """Images a second of every pipeline; ours over theirs; decoding over ours."""
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
        name: ratio_of(times[f"PIL {name.partition(' from')[0]}"], times[name])
        for name in MIN_SPEEDUP
    }
    same_crops = ratio_of(times["PIL vit, same crops"], times["vit"])
    on_the_cpu = {
        name: ratio_of(
            times[f"PIL {name}"],
            [a + b for a, b in zip(times[name], times[f"normalize {name}"], strict=True)],
        )["ratio"]
        for name in IMG_SIZES
    }
    bounds = {name: ratio_of(times["decode alone"], times[name])["ratio"] for name in IMG_SIZES}
    missed = [
        f"{name} is {speedups[name]['ratio']:.2f} times PIL's, not {least}"
        for name, least in MIN_SPEEDUP.items()
        if speedups[name]["ratio"] < least * (1 - tolerance)
    ]
    figures = {
        "images_per_second_per_core": rates,
        "times_as_fast_as_pil": speedups,
        "times_as_fast_where_the_cpu_normalizes_too": on_the_cpu,
        "vit_over_pil_with_the_same_crops": same_crops,
        "share_of_the_speed_of_decoding_alone": bounds,
    }
    return figures, missed


# --- Looks ----------------------------------------------------------------------------------------


def measure_difference(split: "Split") -> tuple[dict[str, float], list[str]]:
    """Mean absolute difference of eval images from PIL's, in [0, 1], with the same filter."""
    import torch
    from PIL import Image
    from torchvision import transforms as T

    from utils.pipeline import eval_loader

    references = {
        "transfg": [T.Resize((600, 600)), T.CenterCrop(448)],
        "vit": [T.Resize(256), T.CenterCrop(224)],
    }
    figures = {}
    for preset, steps in references.items():
        reference = T.Compose([*steps, T.PILToTensor()])
        total = 0.0
        for batch in eval_loader(config_of(preset, 1), split, torch.device("cpu")):
            for image, position in zip(batch.images, batch.positions.tolist(), strict=True):
                with Image.open(split.path_of(position)) as photo:
                    expected = reference(photo.convert("RGB"))
                total += float((image.float() - expected.float()).abs().mean()) / 255
        figures[preset] = total / len(split)
    missed = [
        f"eval images of {name} differ from PIL's by {value * 255:.2f}/255"
        for name, value in figures.items()
        if value >= MAX_DIFFERENCE
    ]
    return figures, missed


# --- Memory ---------------------------------------------------------------------------------------


def _private_kilobytes(pid: int) -> int:
    if sys.platform == "darwin":
        command = ["ps", "-o", "rss=", "-p", str(pid)]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def private_megabytes(pids: list[int]) -> float | None:
    """Memory that processes share with nobody, in MB; None where the system does not say.

    On macOS what they have in memory at all: there they are spawned, so that nothing of the main
    process could be copied by a write.
    """
    try:
        return sum(map(_private_kilobytes, pids)) / 1024
    except OSError:
        return None


def peak_megabytes() -> float:
    """The most memory that this process has had, in MB."""
    units = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units


def measure_memory(split: "Split", samples: int) -> tuple[dict[str, Any], list[str]]:
    """What two loader processes hold for themselves, at a fifth of the samples and at the end.

    The split's lists are repeated to 500,000 samples, so that copies of them would show; images are
    small ones, so that many samples take seconds.
    """
    import numpy as np
    import torch
    from PIL import Image

    from utils.pipeline import train_loader
    from utils.readers.listing import TEXT
    from utils.splits import Split as SplitClass

    count = 500_000
    with tempfile.TemporaryDirectory() as folder:
        for number in range(64):
            color = (4 * number, 255 - 3 * number, 128)
            Image.new("RGB", (32, 32), color).save(f"{folder}/{number:02d}.png")
        ids = np.array([f"a sample with a name of usual length {i}" for i in range(count)], TEXT)
        paths = np.array([f"{i % 64:02d}.png" for i in range(count)], TEXT)
        labels = np.arange(count) % len(split.classes)
        many = SplitClass("drawn", "train", Path(folder), split.classes, ids, paths, labels)
        config = config_of("vit", -(-samples // BATCH), img_size=16, num_workers=2)
        loader = train_loader(config, many, 1, torch.device("cpu"))
        batches = iter(loader)
        pids = [worker.pid for worker in batches._workers]
        readings = []
        fifth = max(1, len(loader) // 5)
        for _ in range(5):
            for _ in itertools.islice(batches, fifth):
                pass
            readings.append(private_megabytes(pids))
        del batches
    if None in readings:
        return {"private_mb": None}, ["the memory of loader processes cannot be read here"]
    growth = readings[-1] - readings[0]
    missed = [f"loader processes grow by {growth:.0f} MB"] if growth > MAX_GROWTH_MB else []
    return {"samples": samples, "private_mb_at_each_fifth": readings, "growth_mb": growth}, missed


# --- Waiting --------------------------------------------------------------------------------------


def measure_wait(data_root: Path, steps: int) -> tuple[dict[str, Any], list[str]]:
    """`data/wait_fraction` of a real training run: ViT-Ti_16, 224 px, batch 16, two workers."""
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
    missed = [f"training waits {fraction:.1%} of its time"] if fraction > MAX_WAIT_FRACTION else []
    return {"steps": steps, "wait_fraction": fraction, "cores": os.cpu_count()}, missed


# --- All of it ------------------------------------------------------------------------------------


def chosen_images(split: "Split", count: int) -> "Split":
    """About `count` images from all over `split`, in whole batches.

    Raises:
        InputError: that is less than a batch.
    """
    spread = split.select(range(0, len(split), max(1, len(split) // count)))
    whole = spread.select(range(len(spread) // BATCH * BATCH))
    if not len(whole):
        raise InputError(f"--images {count} is under a batch of {BATCH}")
    return whole


def sections(args: argparse.Namespace) -> Iterator[tuple[str, tuple[dict[str, Any], list[str]]]]:
    """Name and outcome of each part.

    Raises:
        InputError: there are no flowers, or too few.
    """
    from utils.data_flags import resolve_data_root
    from utils.dataset import get_spec, open_split

    root = Path(resolve_data_root("flower102", args.data_root, REPO))
    split = open_split(get_spec("flower102"), root, "train")
    chosen = chosen_images(split, args.images)
    yield "speed", measure_speed(chosen, args.pairs, args.tolerance)
    yield "eval_difference", measure_difference(chosen)
    yield "memory", measure_memory(split, args.samples)
    yield "waiting", measure_wait(root.resolve(), args.steps)


def measure_data(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The input pipeline against PIL's on the real flowers: speed, looks, memory, waiting."""
    figures, missed = {}, []
    for name, (found, failures) in sections(args):
        figures[name] = found
        missed += failures
    figures["peak_rss_mb"] = peak_megabytes()
    return figures, missed
