"""Measure what exchanging gradients costs beside computing them, where you would train:

    torchrun --nproc_per_node=2 scripts/dev/benchmarks/exchange.py --batch_size 4

Prints the bytes of the gradients, and the median seconds of an all-reduce of them alone, of a train
step of this process alone, and of the same step with the exchange, all measured in turn.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # torchrun starts the file, not a module of the repo
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from models.configs import model_names
from scripts.dev.benchmarks.timing import in_turn
from scripts.dev.benchmarks.training import new_learner, random_step
from utils.console import Parser, log_table
from utils.entrypoint import entrypoint
from utils.errors import InputError
from utils.flag_types import positive_int
from utils.processes import joined_processes, world_size


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Measure and print.

    Raises:
        InputError: it was not started by torchrun.
    """
    parser = Parser(description=__doc__.splitlines()[0].rstrip(":"))
    add = parser.add_argument
    add("--model_type", default="ViT-B_16", choices=model_names(), help="name of the architecture")
    add("--img_size", type=positive_int, default=224, help="image side in pixels")
    add("--batch_size", type=positive_int, default=4, help="images of each process")
    add("--rounds", type=positive_int, default=5, help="number of rounds that count")
    args = parser.parse_args(argv)
    with joined_processes():
        if world_size() == 1:
            raise InputError("one process exchanges nothing; start exchange.py with torchrun")
        import torch
        import torch.distributed as dist

        from utils.training.ddp import exchange_gradients

        alone = new_learner(args.model_type, args.img_size)
        together = replace(alone, shared=exchange_gradients(alone.model))
        step = random_step(args.img_size, args.batch_size)
        gradients = torch.zeros(sum(weights.numel() for weights in alone.model.parameters()))
        actions = {
            "all-reduce alone": lambda: dist.all_reduce(gradients),
            "step alone": lambda: step(alone),
            "step with exchange": lambda: step(together),
        }
        times = in_turn(actions, args.rounds)
        seconds = {name: f"{statistics.median(values):.3f} s" for name, values in times.items()}
        what = f"{world_size()} processes, {args.model_type}, {args.img_size} px"
        log_table(
            f"{what}, {args.batch_size} images each, medians of {args.rounds} rounds",
            {"gradients": f"{gradients.nbytes / 1e6:.1f} MB", **seconds},
        )


if __name__ == "__main__":
    sys.exit(main())
