"""Do in two processes what `tests/utils/test_processes.py` looks at.

Each process writes what it got into `<FOLDER>/<rank>.json`. One start does everything, since
starting takes longer than all of it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from models.losses import contrastive_loss
from utils.errors import Alone, InputError, RunError
from utils.processes import (
    failing_together,
    from_main,
    gather_objects,
    gather_objects_on_main,
    gather_rows,
    hosts,
    is_main,
    joined_processes,
    main_first,
    on_main,
    raise_first_failure,
    rank,
    sum_by_rank,
    world_size,
)
from utils.training.ddp import exchange_gradients, gather_features, without_exchange

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
    """Return inputs and labels, always the same."""
    generator = torch.Generator().manual_seed(count)
    inputs = torch.randn(count, width, generator=generator)
    return inputs, torch.randint(0, CLASSES, (count,), generator=generator)


def layer() -> nn.Linear:
    """Return a small model, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Linear(WIDTH, WIDTH)


def own_samples(counts: Sequence[int], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the samples of one process; if it has none, a blank one that does not count."""
    inputs, labels = samples(sum(counts))
    begin = sum(counts[:rank])
    if not counts[rank]:
        return torch.zeros(1, WIDTH), torch.zeros(1, dtype=torch.int64)
    mine = slice(begin, begin + counts[rank])
    return inputs[mine], labels[mine]


def exchanged() -> dict:
    own = rank()
    return {
        "gather_objects": gather_objects({"rank": own, "text": "x" * (own * 1000)}),
        "gather_objects_on_main": gather_objects_on_main([own, None]),
        "from_main": from_main({"value": f"of {own}", "none": None}),
        "gather_rows": gather_rows([own, -own, 2**40 + own]),
        "one_row": gather_rows([own]),
        "sum": sum_by_rank(torch.tensor([[own + 1.0, 0.5], [float("nan"), -own]])).tolist(),
        "sum_of_counts": sum_by_rank(torch.tensor([own + 1, 10])).tolist(),
    }


def failed_together() -> dict:
    """Return what each process gets if one or both fail."""
    got = {}
    for name, failure in FAILURES.items():
        for who in ((0,), (1,), (0, 1)):
            try:
                with failing_together():
                    if rank() in who:
                        raise failure
            except (InputError, RunError) as error:
                own = error.__cause__ is failure
                got[f"{name} {who}"] = [type(error).__name__, str(error), own]
    try:
        with failing_together():
            if rank() == 0:
                raise RunError("of the first")
            raise InputError("of the second")
    except (InputError, RunError) as error:
        got["both"] = [type(error).__name__, str(error)]
    with failing_together():
        got["none"] = True
    try:
        raise_first_failure(RunError("of the second") if rank() else None)
    except RunError as error:
        got["raise_first_failure"] = str(error)
    raise_first_failure(None)
    return got


def done_on_main() -> dict:
    """Return the value or the failure of a function that only the main process calls."""
    calls = []

    def work(number: int, text: str) -> str:
        calls.append(number)
        if number < 0:
            raise InputError(f"{text} {number}")
        return f"{text} {number} of {rank()}"

    value, failure = on_main(work, 3, text="value"), None
    try:
        on_main(work, -1, text="bad")
    except InputError as error:
        failure = str(error)
    return {"value": value, "failure": failure, "calls": calls}


def done_main_first(folder: Path) -> dict:
    """Return whether the others see what the main process made, also if it failed."""
    with main_first():
        seen = (folder / "made").exists()
        if is_main():
            (folder / "made").write_text("x", encoding="utf-8")
    failure = None
    try:
        with failing_together(), main_first():
            if is_main():
                (folder / "made again").write_text("x", encoding="utf-8")
                raise RunError("it failed")
            seen_again = (folder / "made again").exists()
    except RunError as error:
        failure = str(error)
    return {"seen": seen, "seen_again": is_main() or seen_again, "failure": failure}


def gathered(counts: Sequence[int]) -> dict:
    """Return the contrastive loss of all samples, and the gradients of a model before it."""
    inputs, labels = own_samples(counts, rank())
    loss = contrastive_loss(*gather_features(counts)(inputs, labels), MARGIN)
    model = exchange_gradients(layer())
    outputs = model(inputs)
    contrastive_loss(*gather_features(counts)(outputs, labels), MARGIN).backward()
    return {
        "loss": loss.item(),
        "weights": [parameter.grad.tolist() for parameter in model.parameters()],
    }


def accumulated() -> list:
    """Return the gradients of two backward passes of which the last is exchanged."""
    model = exchange_gradients(layer())
    inputs, _ = own_samples((3, 3), rank())
    with without_exchange(model):
        model(inputs[:1]).square().sum().backward()
    model(inputs[1:]).square().sum().backward()
    return [parameter.grad.tolist() for parameter in model.parameters()]


def main(argv: Sequence[str]) -> int:
    (folder,) = map(Path, argv)
    with joined_processes():
        got = {
            "is": [world_size(), rank(), is_main()],
            "hosts": hosts(),
            "exchanged": exchanged(),
            "failed": failed_together(),
            "on_main": done_on_main(),
            "main_first": done_main_first(folder),
            "gathered": [gathered(counts) for counts in COUNTS],
            "accumulated": accumulated(),
        }
    (folder / f"{rank()}.json").write_text(json.dumps(got), encoding="utf-8")
    return 0
