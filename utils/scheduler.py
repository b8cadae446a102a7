"""The optimizer and its learning-rate schedule."""

import math
from collections.abc import Callable, Collection

import torch
from ml_collections import FrozenConfigDict
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def build_optimizer(
    model: nn.Module, config: FrozenConfigDict, no_weight_decay: Collection[str]
) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over all parameters of `model`.

    Weight decay leaves alone what is a vector (biases, norms) and the names in `no_weight_decay`.
    Fused kernels: one launch a step on every device.
    """
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        is_spared = parameter.ndim <= 1 or name in no_weight_decay
        (spared if is_spared else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)


def lr_factor(decay_type: str, warmup_steps: int, num_steps: int) -> Callable[[int], float]:
    """What the peak learning rate is multiplied by at step 0, 1, ...

    Rises linearly to 1 over `warmup_steps` steps (the first step already moves), then falls to 0,
    reached one step after the last, along half a cosine or a line.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
        return 1 - progress if decay_type == "linear" else 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def build_scheduler(optimizer: torch.optim.Optimizer, config: FrozenConfigDict) -> LambdaLR:
    """The schedule of `config`; call its `step()` after every optimizer step."""
    return LambdaLR(optimizer, lr_factor(config.decay_type, config.warmup_steps, config.num_steps))
