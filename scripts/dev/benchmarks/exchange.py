"""How long processes exchange gradients beside how long they compute. Run it where you would train:

    torchrun --nproc_per_node=2 scripts/dev/benchmarks/exchange.py --batch_size 4

Prints, as the median over rounds: the bytes of the gradients, an all-reduce of them alone, a
training step of this process alone, and the same step with the exchange, all in turn.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # torchrun starts the file, not a module of the repo
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from models.configs import model_names
from scripts.dev.benchmarks.timing import in_turn
from utils.console import Parser, log, log_table
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
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model_type", default="ViT-B_16", choices=model_names(), help="a registered model"
    )
    parser.add_argument("--img_size", type=positive_int, default=224, help="pixels")
    parser.add_argument("--batch_size", type=positive_int, default=4, help="images a process")
    parser.add_argument("--rounds", type=positive_int, default=5, help="counted rounds")
    args = parser.parse_args(argv)
    with joined_processes():
        if world_size() == 1:
            raise InputError("one process exchanges nothing: start it with torchrun")
        import torch
        import torch.distributed as dist

        from models.build import build_model
        from models.configs import get_config
        from models.losses import Objective
        from models.pretrained.profiles import GOOGLE
        from utils.data.batches import Batch, Normalizer
        from utils.training.ddp import exchange_gradients
        from utils.training.learner import Learner
        from utils.training.step_loader import StepBatches
        from utils.training.train_step import train_step

        model = build_model(get_config(args.model_type, args.img_size), num_classes=102)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        alone = Learner(model, model, optimizer, schedule, None)
        together = Learner(model, exchange_gradients(model), optimizer, schedule, None)
        shape = (args.batch_size, 3, args.img_size, args.img_size)
        own = torch.zeros(args.batch_size, dtype=torch.int64)
        batch = Batch(torch.randint(0, 256, shape, dtype=torch.uint8), own, own, own)
        normalize = Normalizer(GOOGLE.normalization, torch.device("cpu"))
        gradients = torch.zeros(sum(parameter.numel() for parameter in model.parameters()))

        step = StepBatches([batch], [[args.batch_size] * world_size()])

        actions = {
            "all-reduce alone": lambda: dist.all_reduce(gradients),
            "step alone": lambda: train_step(alone, Objective(), step, normalize, 1.0),
            "step with exchange": lambda: train_step(together, Objective(), step, normalize, 1.0),
        }
        times = in_turn(actions, args.rounds)
        seconds = {name: f"{statistics.median(values):.3f} s" for name, values in times.items()}
        what = f"{world_size()} processes, {args.model_type}, {args.img_size} px"
        log_table(
            f"{what}, {args.batch_size} images each",
            {
                "gradients": f"{gradients.nbytes / 1e6:.1f} MB",
                **seconds,
            },
        )
        log.info("medians of %d rounds, by the first process", args.rounds)


if __name__ == "__main__":
    sys.exit(main())
