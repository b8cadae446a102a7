"""Flags that mean something only next to others. Imports no torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from utils.errors import InputError

DEFAULT_SLIDE_STEP = 12


class Dependence(NamedTuple):
    """What a flag needs to mean anything, and its default then."""

    needs: Mapping[str, tuple[str, ...]]  # other flags, and their values that do (empty: any)
    default: Any
    unmet_value: Any = None  # what the config holds where the need is not met

    def unmet(self, values: Mapping[str, Any]) -> str | None:
        """The first need that `values` does not meet, as a flag to type, or None."""
        for flag, meanings in self.needs.items():
            if meanings and values[flag] not in meanings:
                return f"--{flag} {meanings[0]}"
            if values[flag] is None:
                return f"--{flag}"
        return None


# Given without what they need they are refused, not ignored.
DEPENDENT = {
    "slide_step": Dependence({"split": ("overlap",)}, DEFAULT_SLIDE_STEP),
    "contrastive_weight": Dependence({"head": ("parts",)}, 1.0),
    "contrastive_margin": Dependence({"head": ("parts",)}, 0.4),
    "contrastive_scope": Dependence({"head": ("parts",)}, "micro"),
    "layer_decay": Dependence({"optimizer": ("adamw",)}, 1.0),
    # Under AdamW too the config holds 0.9: configs and hashes from before stay what they are.
    "momentum": Dependence({"optimizer": ("sgd",)}, 0.9, unmet_value=0.9),
    "pos_resample": Dependence({"pretrained": ()}, "bicubic"),
    "part_init": Dependence({"pretrained": (), "head": ("parts",)}, "pretrained"),
}


def means_nothing(flag: str, values: Mapping[str, Any]) -> bool:
    """Whether a flag means nothing next to these values of others."""
    return flag in DEPENDENT and DEPENDENT[flag].unmet(values) is not None


def resolve_dependent_flags(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the defaults of flags that depend on another one.

    Raises:
        InputError: such a flag was given without the other one.
    """
    settled = dict(values)
    for flag, dependence in DEPENDENT.items():
        unmet = dependence.unmet(values)
        if unmet is not None and values[flag] is not None:
            raise InputError(f"--{flag} means nothing without {unmet}")
        if values[flag] is None:
            settled[flag] = dependence.default if unmet is None else dependence.unmet_value
    return settled
