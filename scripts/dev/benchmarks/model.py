"""What `benchmark.py model` measures. Needs requirements-dev.txt.

Time and memory of our models beside those of `scripts/dev/benchmarks/contenders.py`.
"""

import argparse
import gc
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.dev.benchmarks.contenders import EVAL, TRAIN, Contender, Contenders
from scripts.dev.benchmarks.timing import in_turn, peak_bytes, ratio_of
from utils.console import log
from utils.errors import InputError

PART_SIZE, PART_BATCH = 448, 2
PLAIN_SIZE, PLAIN_BATCH = 224, 8
GROWTH_SIZES, GROWTH_BATCH = (224, 448, 672), 1

# What is promised: the figure, at most or at least a value (x86, 2 cores, fp32).
AT_MOST = {
    "part_over_timm_train": 1.0,
    "part_over_timm_eval": 1.15,
    "part_over_naive_memory": 1 / 3,
    "checkpointed_over_naive_memory": 0.1,
    "checkpointed_over_part_train": 1.35,
    "plain_over_timm_train": 1.0,
    "plain_over_timm_eval": 1.0,
    "plain_over_transformers_train": 1.0,
    "plain_over_transformers_eval": 1.0,
    "plain_over_torchvision_train": 1.0,
    "plain_over_torchvision_eval": 1.0,
}
AT_LEAST = {"naive_over_part_train": 1.6, "naive_over_part_eval": 2.2}


def _rounds(step: str, pairs: int) -> int:
    """Rounds to time a step in: an evaluation takes a third of a training step."""
    return pairs if step == TRAIN else 3 * pairs


def _memory(contender: Contender) -> int:
    """Peak bytes of a training step above weights, gradients and momentum."""
    contender.keeping_step()  # from here on gradients and momentum exist
    return peak_bytes(contender.keeping_step)


def _against(
    a: Contender, b: Contender, steps: Iterable[str], pairs: int
) -> dict[str, dict[str, Any]]:
    """Ratios a / b of the named steps, timed in turn."""
    figures = {}
    for step in steps:
        times = in_turn({"a": a.actions()[step], "b": b.actions()[step]}, _rounds(step, pairs))
        figures[step] = ratio_of(times["a"], times["b"])
    return figures


def part_figures(pairs: int) -> tuple[dict[str, Any], dict[str, float]]:
    """The part model at 448 px beside timm's plain ViT and the naive part model."""
    contenders = Contenders(PART_SIZE, PART_BATCH)
    part = contenders.ours("parts")
    detail: dict[str, Any] = {}

    def against(name: str, other: Contender, part_is_first: bool, steps: Iterable[str]) -> None:
        log.info("%s at %d px, batch %d", name, PART_SIZE, PART_BATCH)
        a, b = (part, other) if part_is_first else (other, part)
        for step, figure in _against(a, b, steps, pairs).items():
            detail[f"{name}_{step}"] = figure

    against("part_over_timm", contenders.timm(), True, (TRAIN, EVAL))
    checkpointed = contenders.ours("parts", grad_checkpointing=True)
    against("checkpointed_over_part", checkpointed, False, (TRAIN,))
    memory = {"checkpointed": _memory(checkpointed)}
    del checkpointed
    gc.collect()
    naive = contenders.naive()
    against("naive_over_part", naive, False, (TRAIN, EVAL))
    memory |= {"part": _memory(part), "naive": _memory(naive)}
    detail["peak_bytes"] = memory
    ratios = {
        "part_over_naive_memory": memory["part"] / memory["naive"],
        "checkpointed_over_naive_memory": memory["checkpointed"] / memory["naive"],
    }
    return detail, ratios


def plain_figures(pairs: int) -> dict[str, Any]:
    """The plain model at 224 px beside three libraries' ViT-B/16, all in the same rounds."""
    contenders = Contenders(PLAIN_SIZE, PLAIN_BATCH)
    models = {
        "plain": contenders.ours("token"),
        "timm": contenders.timm(),
        "transformers": contenders.transformers(),
        "torchvision": contenders.torchvision(),
    }
    figures = {}
    for step in (TRAIN, EVAL):
        log.info("plain models at %d px, batch %d: %s", PLAIN_SIZE, PLAIN_BATCH, step)
        actions = {name: model.actions()[step] for name, model in models.items()}
        times = in_turn(actions, _rounds(step, pairs))
        plain = times.pop("plain")
        for name, seconds in times.items():
            figures[f"plain_over_{name}_{step}"] = ratio_of(plain, seconds)
    return figures


def _growth(rounds: int) -> list[dict[str, float | int | str]]:
    """Seconds and peak bytes of a training step from 224 to 672 px, for three models."""
    rows = []
    for size in GROWTH_SIZES:
        log.info("growth: %d px, batch %d", size, GROWTH_BATCH)
        contenders = Contenders(size, GROWTH_BATCH)
        builders = {
            "plain": lambda c=contenders: c.ours("token"),
            "part": lambda c=contenders: c.ours("parts"),
            "naive": contenders.naive,
        }
        models = {name: build() for name, build in builders.items()}
        times = in_turn({name: model.train_step for name, model in models.items()}, rounds)
        rows += [
            {
                "model": name,
                "img_size": size,
                "batch_size": GROWTH_BATCH,
                "seconds": statistics.median(times[name]),
                "peak_bytes": _memory(model),
            }
            for name, model in models.items()
        ]
        del models
        gc.collect()
    return rows


def plot_growth(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw time and peak memory against the image size, a line a model."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(rows)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    columns = (("seconds", 1.0, "a training step, s"), ("peak_bytes", 1e-9, "peak memory, GB"))
    for axis, (column, scale, label) in zip(axes, columns, strict=True):
        for name in dict.fromkeys(row["model"] for row in rows):
            own = [row for row in rows if row["model"] == name]
            values = [row[column] * scale for row in own]
            axis.plot([row["img_size"] for row in own], values, marker="o", label=name)
        axis.set(xlabel="image side, px", ylabel=label, xticks=GROWTH_SIZES, ylim=(0, None))
        axis.legend(frameon=False)
    figure.suptitle(f"ViT-B/16, batch {rows[0]['batch_size']}, fp32, 2 x86 cores", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `benchmark.py model` beside those of every benchmark."""
    parser.set_defaults(pairs=5)
    parser.add_argument(
        "--growth",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure from 224 to 672 px (default: on)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the growth there (.png)")


def missed_promises(ratios: Mapping[str, float], tolerance: float = 0.0) -> list[str]:
    """The promises that figures miss, in words.

    Args:
        ratios: by name.
        tolerance: share by which times, not memory, may miss them.
    """

    def slack(name: str) -> float:
        return 0.0 if name.endswith("memory") else tolerance

    limits = [
        (name, limit, "over")
        for name, limit in AT_MOST.items()
        if ratios[name] > limit * (1 + slack(name))
    ] + [
        (name, limit, "under")
        for name, limit in AT_LEAST.items()
        if ratios[name] < limit * (1 - slack(name))
    ]
    return [f"{name} is {ratios[name]:.3f}, {how} {limit:.3f}" for name, limit, how in limits]


def measure_model(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Time and memory of our models beside others'.

    Raises:
        InputError: `--plot` without the growth, or in a folder that is not there.
    """
    if args.plot is not None and not (args.growth and args.plot.parent.is_dir()):
        raise InputError(f"--plot {args.plot} needs the growth and an existing folder")
    detail, ratios = part_figures(args.pairs)
    gc.collect()
    detail |= plain_figures(args.pairs)
    gc.collect()
    ratios |= {name: figure["ratio"] for name, figure in detail.items() if "ratio" in figure}
    figures = {"ratios": ratios, "detail": detail}
    if args.growth:
        figures["growth"] = _growth(rounds=3)
        if args.plot is not None:
            plot_growth(figures["growth"], args.plot)
    return figures, missed_promises(ratios, args.tolerance)
