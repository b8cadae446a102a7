"""What `tests/utils/test_processes.py` has two processes do.

Each writes what it got into `<FOLDER>/<rank>.json`. Everything is asked for in one go: starting
takes longer than all of it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from models.losses import contrastive_loss
from utils.errors import Alone, InputError, RunError
from utils.processes import Processes, joined_processes

WIDTH, CLASSES, MARGIN = 5, 3, 0.2
# Samples by process: equal, unequal either way, none here, none there.
COUNTS = ((3, 3), (4, 1), (1, 4), (0, 3), (3, 0), (1, 1))
FAILURES = {
    "input": InputError("--flag is wrong"),
    "run": RunError("image a.jpg cannot be decoded"),
    "lost": Alone("another process is gone"),
    "os": OSError(28, "No space left on device", "/x"),
    "memory": MemoryError("out of memory"),
    "loader": RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
    "lines": RunError("one\n  two"),
}


def samples(count: int, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels, always the same."""
    generator = torch.Generator().manual_seed(count)
    inputs = torch.randn(count, width, generator=generator)
    return inputs, torch.randint(0, CLASSES, (count,), generator=generator)


def layer() -> nn.Linear:
    """A small model, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Linear(WIDTH, WIDTH)


def own_samples(counts: Sequence[int], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of one process; where it has none, a blank one that does not count."""
    inputs, labels = samples(sum(counts))
    begin = sum(counts[:rank])
    if not counts[rank]:
        return torch.zeros(1, WIDTH), torch.zeros(1, dtype=torch.int64)
    mine = slice(begin, begin + counts[rank])
    return inputs[mine], labels[mine]


def exchanged(processes: Processes) -> dict:
    rank = processes.rank
    return {
        "all_objects": processes.all_objects({"rank": rank, "text": "x" * (rank * 1000)}),
        "objects_for_main": processes.objects_for_main([rank, None]),
        "from_main": processes.from_main({"value": f"of {rank}", "none": None}),
        "all_rows": processes.all_rows([rank, -rank, 2**40 + rank]),
        "one_row": processes.all_rows([rank]),
        "sum": processes.sum(torch.tensor([[rank + 1.0, 0.5], [float("nan"), -rank]])).tolist(),
        "sum_of_counts": processes.sum(torch.tensor([rank + 1, 10])).tolist(),
    }


def failed_together(processes: Processes) -> dict:
    """What each process gets where one or both fail."""
    got = {}
    for name, failure in FAILURES.items():
        for who in ((0,), (1,), (0, 1)):
            try:
                with processes.together():
                    if processes.rank in who:
                        raise failure
            except (InputError, RunError) as error:
                own = error.__cause__ is failure
                got[f"{name} {who}"] = [type(error).__name__, str(error), own]
    try:
        with processes.together():
            if processes.rank == 0:
                raise RunError("of the first")
            raise InputError("of the second")
    except (InputError, RunError) as error:
        got["both"] = [type(error).__name__, str(error)]
    with processes.together():
        got["none"] = True
    try:
        processes.raise_first(RunError("of the second") if processes.rank else None)
    except RunError as error:
        got["raise_first"] = str(error)
    processes.raise_first(None)
    return got


def main_first(processes: Processes, folder: Path) -> dict:
    """The others see what the first one made, also if it failed."""
    with processes.main_first():
        seen = (folder / "made").exists()
        if processes.is_main:
            (folder / "made").write_text("x", encoding="utf-8")
    failure = None
    try:
        with processes.together(), processes.main_first():
            if processes.is_main:
                (folder / "made again").write_text("x", encoding="utf-8")
                raise RunError("it failed")
            seen_again = (folder / "made again").exists()
    except RunError as error:
        failure = str(error)
    return {"seen": seen, "seen_again": processes.is_main or seen_again, "failure": failure}


def gathered(processes: Processes, counts: Sequence[int]) -> dict:
    """The contrastive loss of all samples, and its gradients by two ways."""
    inputs, labels = own_samples(counts, processes.rank)
    features = inputs.clone().requires_grad_()
    all_features, all_labels = processes.gather(counts)(features, labels)
    loss = contrastive_loss(all_features, all_labels, MARGIN)
    loss.backward()
    model = processes.wrap(layer())
    outputs = model(inputs)
    contrastive_loss(*processes.gather(counts)(outputs, labels), MARGIN).backward()
    return {
        "features": all_features.tolist(),
        "labels": all_labels.tolist(),
        "loss": loss.item(),
        "gradient": features.grad.tolist(),
        "weights": [parameter.grad.tolist() for parameter in model.parameters()],
    }


def accumulated(processes: Processes) -> list:
    """Gradients of two backward passes of which the last is exchanged."""
    model = processes.wrap(layer())
    inputs, _ = own_samples((3, 3), processes.rank)
    with processes.without_exchange(model):
        model(inputs[:1]).square().sum().backward()
    model(inputs[1:]).square().sum().backward()
    return [parameter.grad.tolist() for parameter in model.parameters()]


def main(argv: Sequence[str]) -> int:
    (folder,) = map(Path, argv)
    with joined_processes() as processes:
        got = {
            "is": [processes.world_size, processes.rank, processes.local_rank],
            "is_main": processes.is_main,
            "several": processes.several,
            "exchanged": exchanged(processes),
            "failed": failed_together(processes),
            "main_first": main_first(processes, folder),
            "gathered": [gathered(processes, counts) for counts in COUNTS],
            "accumulated": accumulated(processes),
        }
    (folder / f"{processes.rank}.json").write_text(json.dumps(got), encoding="utf-8")
    return 0
