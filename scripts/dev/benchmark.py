"""Measure what the project promises, in pairs: A B A B ..., medians of the ratios A / B.

    python scripts/dev/benchmark.py startup --check
    python scripts/dev/benchmark.py block --model_type ViT-Ti_16 --img_size 224
    python scripts/dev/benchmark.py model --json figures.json --check
    python scripts/dev/benchmark.py data --json figures.json --check
    python scripts/dev/benchmark.py save --pairs 3 --check

With `--check` it exits 1 if a promise is missed.
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
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import utils.environment  # isort: split

from scripts.dev.benchmarks.contenders import CLASSES
from scripts.dev.benchmarks.data import measure_data
from scripts.dev.benchmarks.model import measure_model
from scripts.dev.benchmarks.save import measure_save
from scripts.dev.benchmarks.timing import Figure, in_pairs
from utils.cli.parser import Parser
from utils.cli.types import fraction, positive_int
from utils.entrypoint import entrypoint
from utils.errors import InputError, RunError
from utils.files import write_json
from utils.ownership import SIGNATURE, check_output_file

REPO = Path(__file__).resolve().parents[2]
IMPORTS = ("-c", "import torch, torchvision, torch.utils.tensorboard")
SMOKE_TRAINING = shlex.split(
    "train.py --name bench --dataset synthetic --model_type testing --img_size 64 --num_steps 10 "
    "--eval_every 5 --train_batch_size 4 --eval_batch_size 2 --prefer_mps "
    "--tiny_train_subset synthetic_tiny --tiny_infer_subset synthetic_tiny"
)
MAX_SMOKE_RATIO = 1.5  # smoke training over importing torch, torchvision and TensorBoard
# Half a second where they take four, as they did where it was first measured; machines differ.
MAX_HELP_RATIO = 0.125


def run_python(*arguments: str) -> None:
    """Run this Python with `arguments` in the repo; it must succeed."""
    subprocess.run([sys.executable, *arguments], cwd=REPO, check=True, capture_output=True)


def measure_startup(args: argparse.Namespace) -> tuple[Figure, list[str]]:
    """Measure the whole smoke training and `--help` against importing what training needs."""

    def imports() -> None:
        run_python(*IMPORTS)

    with tempfile.TemporaryDirectory() as folder:
        # Every run draws its data anew and finds no earlier run: the whole of a first smoke run.
        fresh = count()
        figures = {
            "smoke_vs_imports": in_pairs(
                lambda: run_python(*SMOKE_TRAINING, "--output_dir", f"{folder}/{next(fresh)}"),
                imports,
                args.pairs,
            ),
            "help_vs_imports": in_pairs(
                lambda: run_python("train.py", "--help"), imports, args.pairs
            ),
        }
    limits = {
        "smoke_vs_imports": (MAX_SMOKE_RATIO, "smoke training"),
        "help_vs_imports": (MAX_HELP_RATIO, "train.py --help"),
    }
    missed = [
        f"{what} takes over {limit} times as long as the imports"
        for name, (limit, what) in limits.items()
        if figures[name]["ratio"] > limit * (1 + args.tolerance)
    ]
    return figures, missed


def measure_block(args: argparse.Namespace) -> tuple[Figure, list[str]]:
    """Measure a train step with a full last block against one that computes the class token alone.

    Only the latter is in the model. It promises nothing.
    """
    import torch

    from models.build import build_model
    from models.configs import get_config
    from models.losses import classification_loss
    from models.vit import VisionTransformer, ViTOutput

    torch.manual_seed(0)
    model = build_model(get_config(args.model_type, args.img_size), CLASSES)
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size)
    labels = torch.randint(CLASSES, (args.batch_size,))

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


def machine() -> Figure:
    """Return where the figures are from."""
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


def _parser() -> Parser:
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
        add = command.add_argument
        pairs = 5 if name == "model" else 7
        add("--pairs", type=positive_int, default=pairs, help="number of pairs that count")
        add("--json", type=Path, metavar="FILE", help="file for the figures")
        add("--check", action="store_true", help="exit 1 if a promise is missed")
        add(
            "--tolerance",
            type=fraction,
            default=0.0,
            help="share by which a speed may miss its promise, for slower or busy machines",
        )
    add = commands.choices["block"].add_argument
    add("--model_type", default="ViT-B_16", help="name of the architecture")
    add("--img_size", type=positive_int, default=224, help="image side in pixels")
    add("--batch_size", type=positive_int, default=8, help="images of a step")
    add = commands.choices["data"].add_argument
    add("--data_root", type=Path, help="folder of the real Flowers-102 (default: $DATA_ROOT)")
    add("--images", type=positive_int, default=256, help="number of images that are read")
    add("--steps", type=positive_int, default=60, help="number of train steps, batch 16")
    return parser


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Measure, print, and with `--check` judge.

    Raises:
        InputError: a flag is wrong, or the data is absent.
        RunError: with `--check`, a promise is missed.
    """
    args = _parser().parse_args(argv)
    if args.json is not None and not args.json.parent.is_dir():
        raise InputError(f"--json {args.json}: the folder {args.json.parent} does not exist")
    if args.json is not None:
        check_output_file(args.json, "--json")
    figures, missed = args.measure(args)
    report = {**machine(), **figures}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    if args.json:
        write_json(args.json, {"about": SIGNATURE, **report})
    if args.check and missed:
        raise RunError("missed: " + "; ".join(missed))


if __name__ == "__main__":
    sys.exit(main())
