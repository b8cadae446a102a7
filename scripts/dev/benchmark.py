"""Measure what the project promises, in pairs: A B A B ..., medians of the ratios A / B.

    python scripts/dev/benchmark.py startup --check
    python scripts/dev/benchmark.py block --model_type ViT-Ti_16 --img_size 224
    python scripts/dev/benchmark.py model --json figures.json --check
    python scripts/dev/benchmark.py data --json figures.json --check
    python scripts/dev/benchmark.py save --pairs 3 --check

`--check` exits 1 if a promise is missed, `--json FILE` writes the figures.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import utils.environment  # isort: split

from scripts.dev.benchmarks.data import add_data_flags, measure_data
from scripts.dev.benchmarks.model import add_model_flags, measure_model
from scripts.dev.benchmarks.save import measure_save
from scripts.dev.benchmarks.timing import in_pairs
from utils.console import Parser
from utils.entrypoint import entrypoint
from utils.errors import InputError, RunError
from utils.files import write_json
from utils.flag_types import fraction, positive_int

REPO = Path(__file__).resolve().parents[2]
IMPORTS = "import torch, torchvision, torch.utils.tensorboard"
SMOKE_TRAINING = shlex.split(
    "--dataset synthetic --model_type testing --img_size 64 --num_steps 10 --eval_every 5 "
    "--train_batch_size 4 --eval_batch_size 2 --prefer_mps --tiny_train_subset synthetic_tiny "
    "--tiny_infer_subset synthetic_tiny"
)
MAX_SMOKE_RATIO = 1.5  # smoke training over importing torch, torchvision and TensorBoard
# Half a second where they take four, as they did where it was first measured; machines differ.
MAX_HELP_RATIO = 0.125


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
    if figures["smoke_vs_imports"]["ratio"] > MAX_SMOKE_RATIO * (1 + args.tolerance):
        missed.append(f"smoke training takes over {MAX_SMOKE_RATIO} times the imports")
    if figures["help_vs_imports"]["ratio"] > MAX_HELP_RATIO * (1 + args.tolerance):
        missed.append(f"train.py --help takes over {MAX_HELP_RATIO} times the imports")
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


def machine() -> dict[str, Any]:
    """Where the figures are from."""
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "torchvision", "timm", "transformers")
        if find_spec(name)
    }
    return {
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, fp32",
        "python": platform.python_version(),
        **versions,
        "note": f"{platform.machine()} figures; a Mac's differ",
    }


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Measure, print, and with `--check` judge.

    Raises:
        RunError: with `--check`, a promise is missed.
    """
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measures = {
        "startup": measure_startup,
        "block": measure_block,
        "model": measure_model,
        "data": measure_data,
        "save": measure_save,
    }
    for name, measure in measures.items():
        command = commands.add_parser(name, help=measure.__doc__.splitlines()[0])
        command.set_defaults(measure=measure)
        command.add_argument("--pairs", type=positive_int, default=7, help="counted pairs")
        command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
        command.add_argument("--check", action="store_true", help="exit 1 if a promise is missed")
        command.add_argument(
            "--tolerance",
            type=fraction,
            default=0.0,
            help="share by which a speed may miss its promise: other machines, others at work",
        )
        if name == "block":
            command.add_argument("--model_type", default="ViT-B_16", help="a registered model")
            command.add_argument("--img_size", type=int, default=224, help="pixels")
            command.add_argument("--batch_size", type=int, default=8, help="images a step")
        if name == "model":
            add_model_flags(command)
        if name == "data":
            add_data_flags(command)
    args = parser.parse_args(argv)
    if args.json is not None and not args.json.parent.is_dir():
        raise InputError(f"--json {args.json}: there is no folder {args.json.parent}")
    figures, missed = args.measure(args)
    report = {**machine(), **figures}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    if args.json:
        write_json(args.json, report)
    if args.check and missed:
        raise RunError("missed: " + "; ".join(missed))


if __name__ == "__main__":
    sys.exit(main())
