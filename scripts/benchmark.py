"""Measure what the project promises, in pairs: A B A B ..., medians of the ratios A / B.

    python scripts/benchmark.py startup --check
    python scripts/benchmark.py block --model_type ViT-Ti_16 --img_size 224

Absolute times of a shared machine are noise; the ratio within a pair is not. `--check` exits 1 if
a promise is missed, `--json FILE` writes the figures.
"""

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.console import Parser, entrypoint
from utils.errors import RunError
from utils.files import write_json

REPO = Path(__file__).resolve().parents[1]
IMPORTS = "import torch, torchvision, torch.utils.tensorboard"
SMOKE_TRAINING = shlex.split(
    "--dataset synthetic --model_type testing --img_size 64 --num_steps 10 --eval_every 5 "
    "--train_batch_size 4 --eval_batch_size 2 --prefer_mps --tiny_train_subset synthetic_tiny "
    "--tiny_infer_subset synthetic_tiny"
)
MAX_SMOKE_RATIO = 1.5  # smoke training over importing torch, torchvision and TensorBoard
MAX_HELP_SECONDS = 0.5


def seconds_of(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_pairs(
    a: Callable[[], object], b: Callable[[], object], pairs: int
) -> dict[str, float | list[float]]:
    """Time `a` and `b` in turn, after one uncounted pair.

    Returns:
        The median seconds of each and the median, lowest and highest ratio a / b.
    """
    a()
    b()
    times = [(seconds_of(a), seconds_of(b)) for _ in range(pairs)]
    ratios = [time_a / time_b for time_a, time_b in times]
    return {
        "a_seconds": statistics.median(time_a for time_a, _ in times),
        "b_seconds": statistics.median(time_b for _, time_b in times),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def run_python(*arguments: str) -> Callable[[], object]:
    """A call that runs this Python with `arguments` in the repo, and must succeed."""
    return lambda: subprocess.run(
        [sys.executable, *arguments], cwd=REPO, check=True, capture_output=True
    )


def measure_startup(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The whole smoke training and `--help` against importing what training needs."""
    with tempfile.TemporaryDirectory() as folder:
        train = ["train.py", "--name", "bench", *SMOKE_TRAINING, "--output_dir"]
        # Every run draws its data anew and finds no earlier run: the whole of a first smoke run.
        fresh = iter(range(10_000))
        smoke = lambda: run_python(*train, f"{folder}/{next(fresh)}")()  # noqa: E731
        figures = {
            "smoke_vs_imports": in_pairs(smoke, run_python("-c", IMPORTS), args.pairs),
            "help_vs_imports": in_pairs(
                run_python("train.py", "--help"), run_python("-c", IMPORTS), args.pairs
            ),
        }
    missed = []
    if figures["smoke_vs_imports"]["ratio"] > MAX_SMOKE_RATIO:
        missed.append(f"smoke training takes over {MAX_SMOKE_RATIO} times the imports")
    if figures["help_vs_imports"]["a_seconds"] > MAX_HELP_SECONDS:
        missed.append(f"train.py --help takes over {MAX_HELP_SECONDS} s")
    return figures, missed


def measure_block(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """A training step whose last block computes the class token alone, against the full block."""
    import torch

    from models.build import build_model
    from models.configs import get_config
    from models.losses import classification_loss
    from models.vit import VisionTransformer, ViTOutput

    torch.manual_seed(0)
    config = get_config(args.model_type, args.img_size)
    model = build_model(config, num_classes=102)
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size)
    labels = torch.randint(102, (args.batch_size,))

    def full_forward(vit: VisionTransformer) -> ViTOutput:
        x = vit._tokens(images)
        for block in vit.blocks:
            x = block(x)
        features = vit.norm(x)[:, 0]
        return ViTOutput(vit.head(features), features)

    def step(forward: Callable[[VisionTransformer], ViTOutput]) -> None:
        classification_loss(forward(model), labels).backward()
        model.zero_grad(set_to_none=True)

    figures = in_pairs(
        lambda: step(full_forward), lambda: step(lambda vit: vit(images)), args.pairs
    )
    return {"full_vs_class_token": figures}, []


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Measure, print, and with `--check` judge.

    Raises:
        RunError: with `--check`, a promise is missed.
    """
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, measure in (("startup", measure_startup), ("block", measure_block)):
        command = commands.add_parser(name, help=measure.__doc__)
        command.set_defaults(measure=measure)
        command.add_argument("--pairs", type=int, default=7, help="counted pairs")
        command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
        command.add_argument("--check", action="store_true", help="exit 1 if a promise is missed")
        if name == "block":
            command.add_argument("--model_type", default="ViT-B_16", help="a registered model")
            command.add_argument("--img_size", type=int, default=224, help="pixels")
            command.add_argument("--batch_size", type=int, default=8, help="images a step")
    args = parser.parse_args(argv)
    figures, missed = args.measure(args)
    report = {"machine": platform.platform(), "python": platform.python_version(), **figures}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    if args.json:
        write_json(args.json, report)
    if args.check and missed:
        raise RunError("missed: " + "; ".join(missed))


if __name__ == "__main__":
    sys.exit(main())
