"""Build the optimizer and its learning-rate schedule."""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from ml_collections import FrozenConfigDict
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def build_optimizer(
    model: nn.Module,
    config: FrozenConfigDict,
    no_weight_decay: Collection[str],
    layer_of: Callable[[str], int],
) -> torch.optim.Optimizer:
    """Build SGD with momentum or AdamW over the parameters of `model` that are not frozen.

    Weight decay leaves out vectors (biases, norms) and the names in `no_weight_decay`. Kernels are
    fused: one launch a step on every device.

    Args:
        model: model to train.
        config: optimizer, learning rate, momentum, weight decay and layer decay.
        no_weight_decay: names of parameters without weight decay.
        layer_of: distance from the input of a named parameter, in layers. With
            `config.layer_decay` the learning rate of a layer is that factor of the next layer's
            (Clark et al. 2020, ELECTRA; as BEiT and MAE fine-tune). The first group of the
            optimizer has the peak rate.

    Raises:
        ValueError: every parameter is frozen, or the optimizer is unknown.
    """
    layer_decay = config.layer_decay
    has_decay = layer_decay is not None and layer_decay != 1.0
    layers = {name: layer_of(name) if has_decay else 0 for name, _ in model.named_parameters()}
    top = max(layers.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        has_no_decay = parameter.ndim <= 1 or name in no_weight_decay
        distance = top - layers[name]  # to the layer with the peak rate
        scale = layer_decay**distance if has_decay else 1.0
        empty = {
            "params": [],
            "weight_decay": 0.0 if has_no_decay else config.weight_decay,
            "lr": config.learning_rate * scale,
        }
        groups.setdefault((distance, has_no_decay), empty)["params"].append(parameter)
    if not groups:
        raise ValueError("every parameter is frozen")
    ordered = [groups[key] for key in sorted(groups)]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(ordered, lr=config.learning_rate, fused=True)
    if config.optimizer == "sgd":
        momentum = config.momentum
        return torch.optim.SGD(ordered, lr=config.learning_rate, momentum=momentum, fused=True)
    raise ValueError(f"{config.optimizer!r} is not an optimizer: use sgd or adamw")


def lr_factor(decay_type: str, warmup_steps: int, num_steps: int) -> Callable[[int], float]:
    """Return the factor of the peak learning rate as a function of the step, from 0.

    It rises linearly to 1 over `warmup_steps` steps and is above 0 at the first. Then it falls
    along half a cosine or a line, and reaches 0 one step after the last.

    Raises:
        ValueError: the decay is neither cosine nor linear.
    """
    if decay_type not in ("cosine", "linear"):
        raise ValueError(f"{decay_type!r} is not a decay: use cosine or linear")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
        return 1 - progress if decay_type == "linear" else 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def build_scheduler(optimizer: torch.optim.Optimizer, config: FrozenConfigDict) -> LambdaLR:
    """Build the schedule of `config`; call its `step()` after every optimizer step."""
    return LambdaLR(optimizer, lr_factor(config.decay_type, config.warmup_steps, config.num_steps))
