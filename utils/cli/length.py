"""Decide what follows from the length of a run: steps, warm-up, a shortened recipe. No torch."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import FrozenConfigDict

from utils.cli.checks import check_warmup
from utils.cli.defaults import MAX_WARMUP_STEPS
from utils.cli.flags import DEFAULT_NUM_STEPS, DEFAULT_NUM_WORKERS
from utils.cli.recipes import RECIPES


def resolve_length(
    flags: FrozenConfigDict, num_samples: int, before: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return what depends on the number of training samples: steps, epochs, warm-up, workers.

    An epoch is `num_samples` samples; batches may span two epochs, so `epochs` may be a fraction.
    Where the run is shorter than its recipe, also what becomes of the recipe's values.

    Args:
        flags: flags of the run.
        num_samples: number of samples that are trained on.
        before: config of the run that is resumed; its own warm-up may be longer than it is now.

    Raises:
        InputError: the warm-up is longer than the run.
    """
    batch = flags.train_batch_size
    if flags.epochs is not None:
        num_steps = math.ceil(flags.epochs * num_samples / batch)
    else:
        num_steps = flags.num_steps or DEFAULT_NUM_STEPS
    changed: dict[str, Any] = {}
    if flags.recipe is not None and flags.resume is None:  # a resumed run has its values
        changed = shortened(flags.recipe.to_dict(), num_steps)
    warmup = changed.get("warmup_steps", flags.warmup_steps)
    if warmup is None:
        warmup = min(MAX_WARMUP_STEPS, num_steps // 10)
    if warmup != before.get("warmup_steps"):
        check_warmup(warmup, num_steps)
    length = {
        "num_steps": num_steps,
        "epochs": num_steps * batch / num_samples,
        **changed,
        "warmup_steps": warmup,
        "num_workers": resolve_workers(flags, flags.tiny_train_subset),
    }
    if changed:
        length["recipe"] = {**flags.recipe.to_dict(), "shortened": changed}
    return length


def resolve_workers(flags: FrozenConfigDict, tiny_subset: str | None) -> int:
    """Return the number of loader processes."""
    if flags.num_workers is not None:
        return flags.num_workers
    # Starting a worker costs seconds on macOS, more than loading a few images.
    return 0 if tiny_subset else DEFAULT_NUM_WORKERS


def shortened(recipe: Mapping[str, Any], num_steps: int) -> dict[str, Any]:
    """Return the values of a recipe that a run shorter than it must not take as they are.

    The warm-up keeps its share of the run, and is at least a tenth of it. The peak learning rate
    falls with the square root of the length below the shortest one that the recipe was tried at:
    as many steps at full rate may ruin weights that nothing has the time to mend. Below a tenth of
    the recipe's length its values for a short run hold. What was given by hand stays. Both rules
    are ours, measured in specs/008-weights-and-probe/research-settings.md.

    Args:
        recipe: record of the recipe, as `recipe_layer` returns it.
        num_steps: length of the run.
    """
    own, used = recipe["values"], RECIPES[recipe["name"]]
    kept = {*recipe["by_hand"], *recipe["left_out"]}
    length = own.get("num_steps", num_steps)
    changed: dict[str, Any] = {}
    if num_steps < length and "warmup_steps" in own:
        # Whole numbers: 0.1 * 70 is above 7.
        share = -(-num_steps * own["warmup_steps"] // length)
        changed["warmup_steps"] = max(share, -(-num_steps // 10))
    tried = used.tried_steps or length
    if num_steps < tried and "learning_rate" in own:
        rate = own["learning_rate"] * math.sqrt(num_steps / tried)
        changed["learning_rate"] = float(f"{rate:.3g}")  # a number that a person can type
    if 10 * num_steps < length:
        changed |= {flag: knob.value for flag, knob in used.short.items()}
    return {flag: value for flag, value in changed.items() if flag not in kept}


def describe_length(config: Mapping[str, Any], num_samples: int) -> list[str]:
    """Return what a run says of its length, and of what it changed of its recipe, as lines.

    Args:
        config: flags of the run with what `resolve_length` decided.
        num_samples: number of samples that are trained on.
    """
    lines = [
        f"{config['num_steps']} steps = {config['epochs']:.2f} epochs of {num_samples} samples at "
        f"batch {config['train_batch_size']}"
    ]
    recipe = config["recipe"]
    if config["resume"] is None and recipe is not None and "shortened" in recipe:
        changed = ", ".join(
            f"--{flag} {value} (the recipe's: {recipe['values'][flag]})"
            for flag, value in recipe["shortened"].items()
        )
        lines.append(
            f"recipe {recipe['name']}: this run has {config['num_steps']} of its "
            f"{recipe['values']['num_steps']} steps, so it takes {changed}"
        )
    return lines
