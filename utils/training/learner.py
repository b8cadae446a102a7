"""Hold what training changes: the model, its optimizer and schedule, its averaged weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from ml_collections import FrozenConfigDict
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from utils.data_utils import EMA, EMA_RULE
from utils.errors import InputError
from utils.schema import dict_of, fields, is_count, is_dict, list_of
from utils.training.ddp import exchange_gradients
from utils.training.optimizer import build_optimizer, build_scheduler


def build_ema(model: nn.Module, decay: float | None, is_warmed_up: bool) -> AveragedModel | None:
    """Return an exponential moving average of the weights of `model`, or None without a decay.

    The first update takes the weights as they are; each later one keeps a share of the average.

    Args:
        model: model on its device.
        decay: share that an update keeps.
        is_warmed_up: whether the share follows `EMA_RULE` and rises to `decay`, so that the average
            of a short run is not that of its first weights.
    """
    if decay is None:
        return None
    if not is_warmed_up:
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    ema = AveragedModel(model)

    def update(averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        n = int(ema.n_averaged)  # on the CPU: reading it waits for no device
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, _)

    ema.multi_avg_fn = update
    return ema


def build_learner(model: nn.Module, config: FrozenConfigDict) -> "Learner":
    """Return the learner of `model`, which is on its device, by the flags of a run."""
    optimizer = build_optimizer(model, config, model.no_weight_decay(), model.layer_of)
    return Learner(
        model,
        exchange_gradients(model),
        optimizer,
        build_scheduler(optimizer, config),
        build_ema(model, config.ema_decay, config.get("ema_rule") == EMA_RULE),
        config.contrastive_scope == "effective",
    )


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _fits(state: Mapping[str, Any], own: Mapping[str, torch.Tensor]) -> bool:
    """Return whether `state` has the tensors of `own`: names, shapes and types."""
    return state.keys() == own.keys() and all(
        _is_tensor(state[key]) and (state[key].shape, state[key].dtype) == (t.shape, t.dtype)
        for key, t in own.items()
    )


# What the optimizers keep for a parameter: tensors of its shape, and the number of steps.
_KEPT = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "step"),
    torch.optim.SGD: ("momentum_buffer",),
}


def _kept_of(parameter: torch.Tensor, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return what an optimizer keeps for a parameter, without numbers."""
    like = torch.empty_like(parameter, device="meta")
    count = torch.empty((), device="meta")
    return {name: count if name == "step" else like for name in names}


@dataclass(frozen=True)
class Learner:
    """Model, optimizer, schedule and averaged weights of a run."""

    model: nn.Module
    shared: nn.Module  # the same model, as all processes train it together
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    ema: AveragedModel | None
    is_joint: bool = False  # whether a step's loss is over all its micro-batches together

    STATE: ClassVar = {
        "model": dict_of(_is_tensor),
        "optimizer": fields({"state": is_dict, "param_groups": list_of(is_dict)}),
        "scheduler": is_dict,
        "ema": dict_of(_is_tensor),
    }

    def variants(self) -> dict[str, nn.Module]:
        """Return the models to evaluate: raw weights, and averaged ones if there are any."""
        return {"": self.model, **({} if self.ema is None else {EMA: self.ema.module})}

    def advance(self) -> float:
        """Set the next learning rate and update the averaged weights, after an optimizer step.

        Returns:
            The peak group's learning rate of the step that was done.
        """
        learning_rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return learning_rate

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain data, on the devices where they are."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "ema": {} if self.ema is None else self.ema.state_dict(),
        }

    def _optimizer_fits(self, state: Mapping[str, Any]) -> bool:
        groups = self.optimizer.state_dict()["param_groups"]
        if [group.get("params") for group in state["param_groups"]] != [
            g["params"] for g in groups
        ]:
            return False
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        kept = _KEPT[type(self.optimizer)]
        return set(state["state"]) <= set(range(len(parameters))) and all(
            is_dict(entry) and (not entry or _fits(entry, _kept_of(parameters[index], kept)))
            for index, entry in state["state"].items()
        )

    def _schedule_fits(self, state: Mapping[str, Any]) -> bool:
        own = self.scheduler.state_dict()
        return is_count(state.get("last_epoch")) and all(
            type(state.get(key)) is type(value) for key, value in own.items()
        )

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Check that `load_state_dict` can take `state`.

        Raises:
            InputError: it is of another model or optimizer.
        """
        fits = {
            "model": _fits(state["model"], self.model.state_dict()),
            "optimizer": self._optimizer_fits(state["optimizer"]),
            "scheduler": self._schedule_fits(state["scheduler"]),
            "ema": self.ema is None or _fits(state["ema"], self.ema.state_dict()),
        }
        wrong = [name for name, does_fit in fits.items() if not does_fit]
        if wrong:
            raise InputError(
                f"--resume: the snapshot has no {', '.join(wrong)} that fits this run's; resume "
                "from an earlier one by --resume PATH"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, with the hyper-parameters that this learner was built with."""
        groups, base_lrs = self.optimizer.param_groups, self.scheduler.base_lrs
        chosen = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        self.model.load_state_dict(state["model"])
        own = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": own})
        own = self.scheduler.state_dict()
        self.scheduler.load_state_dict({key: state["scheduler"][key] for key in own})
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        # Learning rate, decay or length of the run may be others than when the state was saved.
        self.scheduler.base_lrs = base_lrs
        for group, values in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(values)
        rates = [
            base_lr * factor(self.scheduler.last_epoch)
            for base_lr, factor in zip(base_lrs, self.scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.scheduler._last_lr = rates
