"""Choose the defaults that fit the optimizer and the weights, each with its source. No torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

MAX_WARMUP_STEPS = 500
MAE_RATE = "MAE's ViT-B command has 6e-5 at a batch of 32"


class Knob(NamedTuple):
    """The value of one flag, and its source."""

    value: Any
    source: str


class Fit(NamedTuple):
    """Defaults of a flag under one optimizer."""

    new: Knob  # the trained weights are random: all of them, or the head on a frozen backbone
    pretrained: Knob  # pretrained weights are trained, and too high a rate would ruin them


_TRIED = "ours, tried on the flowers with DINOv2 ViT-S/14"
FITS: Mapping[str, Mapping[str, Fit]] = MappingProxyType(
    {
        "learning_rate": {
            "sgd": Fit(
                new=Knob(0.03, "TransFG code, train.py default; ViT paper, table 4"),
                pretrained=Knob(0.003, f"ViT paper, table 4: one of its four; {_TRIED}"),
            ),
            "adamw": Fit(
                new=Knob(1e-3, "torch's default; ViT paper, table 3, Adam on ImageNet"),
                pretrained=Knob(1e-4, f"{_TRIED}; {MAE_RATE}"),
            ),
        },
        "layer_decay": {
            "adamw": Fit(
                new=Knob(1.0, "no decay: no layer has learned anything yet"),
                pretrained=Knob(0.75, "MAE paper, table 9; BEiT and MAE fine-tuning"),
            ),
        },
    }
)


def fitting_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that depend on other flags, by flag.

    Args:
        values: values of the flags `optimizer`, `pretrained` and `freeze`.
    """
    is_at_risk = values["pretrained"] is not None and values["freeze"] != "backbone"
    return {
        flag: (fit.pretrained if is_at_risk else fit.new).value
        for flag, by_optimizer in FITS.items()
        for fit in [by_optimizer.get(values["optimizer"])]
        if fit is not None
    }


def described_defaults(flag: str) -> str:
    """Return the defaults of a flag as its help says them."""
    return "; ".join(
        f"with {optimizer} {fit.new.value}, or {fit.pretrained.value} where pretrained weights "
        "are trained"
        for optimizer, fit in FITS[flag].items()
    )
