"""The model that a run starts from: what flags and weights decide together.

Planned before it is built, so that bad weights are refused before anything else is done.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from models.build import build_model, freeze
from models.configs import get_config
from models.pretrained.load import LoadReport, load_pretrained
from models.pretrained.profiles import GOOGLE, PROFILES
from models.pretrained.weights import Pretrained, adapt_config
from models.vit import Backbone


class Start(NamedTuple):
    """A model and the weights that it starts from."""

    model_config: ConfigDict
    normalization: dict[str, Any]  # mean and std per RGB channel
    weights: Pretrained | None  # None: random
    keep_head: bool  # the weights' classes are the run's, in the same order


def plan_start(
    config: FrozenConfigDict, weights: Pretrained | None, keep_head: bool = False
) -> Start:
    """The model that the flags in `config` and the weights ask for.

    Args:
        config: of a training run.
        weights: to start from; None: random, with the normalisation of the profile that is named,
            or Google's.
        keep_head: whether the weights' head is for the run's classes.

    Raises:
        WeightsError: the weights are of another size, or lack what the head needs.
    """
    model_config = get_config(
        config.model_type,
        config.img_size,
        head=config.head,
        patch_stride=config.slide_step,
        dropout=config.dropout,
        drop_path=config.drop_path,
    )
    if weights is None:
        profile = PROFILES.get(config.pretrained_profile, GOOGLE)
        return Start(model_config, profile.normalization, None, False)
    adapted = adapt_config(model_config, weights)
    return Start(adapted, weights.profile.normalization, weights, keep_head)


def build_start(
    config: FrozenConfigDict, start: Start, num_classes: int
) -> tuple[Backbone, LoadReport | None]:
    """The model of a plan with its weights, on the CPU, and what was loaded.

    Raises:
        WeightsError: weights are missing or of another shape.
    """
    model = build_model(start.model_config, num_classes)
    model.grad_checkpointing = config.grad_checkpointing
    freeze(model, config.freeze)
    if start.weights is None:
        return model, None
    report = load_pretrained(
        model,
        start.weights,
        start.keep_head,
        config.pos_resample,
        config.part_init or "pretrained",
    )
    return model, report
