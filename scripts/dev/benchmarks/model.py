"""Measure time and memory of our models beside those of others. Needs requirements-dev.txt."""

import argparse
import gc
import math
from collections.abc import Iterable, Mapping

from scripts.dev.benchmarks.contenders import EVAL, TRAIN, Contender, Contenders
from scripts.dev.benchmarks.timing import Figure, in_turn, peak_bytes, ratio_of
from utils.console import log

PART_SIZE, PART_BATCH = 448, 2
PLAIN_SIZE, PLAIN_BATCH = 224, 8

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


def _times(models: Mapping[str, Contender], step: str, pairs: int) -> dict[str, list[float]]:
    """Return the seconds of a step of each model; an evaluation gets three rounds a pair."""
    log.info("%s: %s", step, ", ".join(models))
    actions = {name: model.action(step) for name, model in models.items()}
    return in_turn(actions, pairs if step == TRAIN else 3 * pairs)


def _ratios(
    models: Mapping[str, Contender], comparison: str, steps: Iterable[str], pairs: int
) -> Figure:
    """Return the figure of each step for a comparison of two models, `A_over_B`."""
    compared = {name: models[name] for name in comparison.split("_over_")}
    return {
        f"{comparison}_{step}": ratio_of(*_times(compared, step, pairs).values()) for step in steps
    }


def _memory(contender: Contender) -> int:
    """Return the peak bytes of a train step above weights, gradients and momentum."""
    contender.train_step(keep_gradients=True)  # from here on gradients and momentum exist
    return peak_bytes(lambda: contender.train_step(keep_gradients=True))


def part_figures(pairs: int) -> tuple[Figure, dict[str, float]]:
    """Measure the part model at 448 px beside timm's plain ViT and the naive part model.

    Returns:
        The figures, and the ratios of memory.
    """
    contenders = Contenders(PART_SIZE, PART_BATCH)
    models = {"part": contenders.ours("parts"), "timm": contenders.timm()}
    figures = _ratios(models, "part_over_timm", (TRAIN, EVAL), pairs)
    del models["timm"]
    models["checkpointed"] = contenders.ours("parts", grad_checkpointing=True)
    figures |= _ratios(models, "checkpointed_over_part", (TRAIN,), pairs)
    memory = {"checkpointed": _memory(models.pop("checkpointed"))}
    gc.collect()
    models["naive"] = contenders.naive()
    figures |= _ratios(models, "naive_over_part", (TRAIN, EVAL), pairs)
    memory |= {name: _memory(model) for name, model in models.items()}
    ratios = {
        f"{name}_over_naive_memory": memory[name] / memory["naive"]
        for name in ("part", "checkpointed")
    }
    return {**figures, "peak_bytes": memory}, ratios


def plain_figures(pairs: int) -> Figure:
    """Measure the plain model at 224 px beside three libraries' ViT-B/16, in the same rounds."""
    contenders = Contenders(PLAIN_SIZE, PLAIN_BATCH)
    models = {
        "plain": contenders.ours("token"),
        "timm": contenders.timm(),
        "transformers": contenders.transformers(),
        "torchvision": contenders.torchvision(),
    }
    figures = {}
    for step in (TRAIN, EVAL):
        times = _times(models, step, pairs)
        plain = times.pop("plain")
        for name, seconds in times.items():
            figures[f"plain_over_{name}_{step}"] = ratio_of(plain, seconds)
    return figures


def missed_promises(ratios: Mapping[str, float], tolerance: float = 0.0) -> list[str]:
    """Return a sentence for each promise that is missed.

    Args:
        ratios: measured figures by name.
        tolerance: share by which times, not memory, may miss their promise.
    """
    missed = []
    for name in (*AT_MOST, *AT_LEAST):
        ratio, slack = ratios[name], 0.0 if name.endswith("memory") else tolerance
        if ratio > AT_MOST.get(name, math.inf) * (1 + slack):
            missed.append(f"{name} is {ratio:.3f}, over {AT_MOST[name]:.3f}")
        if ratio < AT_LEAST.get(name, 0.0) * (1 - slack):
            missed.append(f"{name} is {ratio:.3f}, under {AT_LEAST[name]:.3f}")
    return missed


def measure_model(args: argparse.Namespace) -> tuple[Figure, list[str]]:
    """Measure time and memory of our models beside those of others."""
    detail, ratios = part_figures(args.pairs)
    gc.collect()
    detail |= plain_figures(args.pairs)
    gc.collect()
    ratios |= {name: figure["ratio"] for name, figure in detail.items() if "ratio" in figure}
    return {"ratios": ratios, "detail": detail}, missed_promises(ratios, args.tolerance)
