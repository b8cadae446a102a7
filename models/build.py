"""Build models: from a config, from flags and weights, and from a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from ml_collections import ConfigDict, FrozenConfigDict
from torch import Tensor

from models.configs import POOL_READS, ModelConfigError, complete_config, get_config
from models.pretrained.formats import WeightsError
from models.pretrained.load import HEAD_KEYS, LoadReport, load_pretrained
from models.pretrained.profiles import GOOGLE, PROFILES
from models.pretrained.weights import Pretrained, adapt_config
from models.transfg import TransFG
from models.vit import Backbone, VisionTransformer


def build_model(config: ConfigDict, num_classes: int) -> Backbone:
    """Build a model with initial float32 weights on the CPU: equal seeds give equal weights.

    Raises:
        ModelConfigError: there are no classes.
    """
    if num_classes < 1:
        raise ModelConfigError(f"model config: num_classes is {num_classes}, not at least 1")
    model = TransFG if config.head == "parts" else VisionTransformer
    return model(config, num_classes)


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state_dict.items()}


def rebuild_model(
    model_config: Mapping[str, Any], classes: Sequence[str], state_dict: Mapping[str, Tensor]
) -> Backbone:
    """Build the model of a checkpoint with its weights, on the CPU.

    Args:
        model_config: model config as the checkpoint holds it.
        classes: class names of the head.
        state_dict: weights by name.

    Raises:
        WeightsError: the config cannot be used, or the weights are of another model.
    """
    try:
        config = complete_config(model_config)
        if config.depth > len(state_dict):  # a thousand blocks take seconds to build
            raise WeightsError("does not hold the weights of the model it describes")
        with torch.device("meta"):  # shapes without memory: a config can ask for any amount
            expected = _shapes(build_model(config, len(classes)).state_dict())
    except ModelConfigError as error:
        raise WeightsError(f"has an unusable {error}") from error
    if _shapes(state_dict) != expected:
        raise WeightsError("does not hold the weights of the model it describes")
    model = build_model(config, len(classes))
    model.load_state_dict(state_dict)
    return model


def freeze(model: Backbone, what: str) -> None:
    """Exclude some parameters of `model` from training.

    Args:
        model: model whose parameters are all trainable.
        what: "none"; "backbone": all but the head, with part selection also but the part block and
            its norm; a number N: the embeddings and the first N blocks.

    Raises:
        ValueError: `what` is none of these, or the model has fewer blocks.
    """
    if what == "none":
        return
    if what != "backbone" and not (what.isdecimal() and 1 <= int(what) <= model.depth):
        raise ValueError(f"cannot freeze {what!r} of a model of {model.depth} blocks")
    for name, parameter in model.named_parameters():
        is_frozen = (
            model.is_backbone(name) if what == "backbone" else (model.layer_of(name) <= int(what))
        )
        parameter.requires_grad_(not is_frozen)


class ModelPlan(NamedTuple):
    """The model that flags and weights ask for, decided and checked before it is built."""

    config: ConfigDict  # model config
    normalization: dict[str, Any]  # mean and std per RGB channel
    num_classes: int
    weights: Pretrained | None  # None: random initial weights
    keep_head: bool  # whether the weights' classes are the run's, by name
    flags: FrozenConfigDict  # the run's config

    @property
    def decided(self) -> dict[str, Any]:
        """What of the run's config it decides."""
        return {"model": self.config.to_dict(), "normalization": self.normalization}

    def build(self) -> tuple[Backbone, LoadReport | None]:
        """Build the model with its weights, on the CPU.

        Returns:
            The model, and what became of each of the weights (None without weights).

        Raises:
            WeightsError: weights are missing or have another shape.
        """
        model = build_model(self.config, self.num_classes)
        model.grad_checkpointing = self.flags.grad_checkpointing
        freeze(model, self.flags.freeze)
        if self.weights is None:
            return model, None
        report = load_pretrained(
            model,
            self.weights,
            self.keep_head,
            self.flags.pos_resample,
            self.flags.part_init or "pretrained",
        )
        return model, report


def with_class_order(weights: Pretrained, classes: Sequence[str]) -> Pretrained:
    """Return weights whose head has the same classes in the order of `classes`."""
    rows = [weights.classes.index(name) for name in classes]
    head = {key: weights.tensors[key][rows] for key in HEAD_KEYS if key in weights.tensors}
    return weights._replace(tensors={**weights.tensors, **head}, classes=tuple(classes))


# What of a model config the weights decide that a run started from.
_OF_WEIGHTS = {
    *("class_token", "pos_class_token", "num_registers", "pre_norm", "layer_scale", "pool"),
    *("layer_norm_eps", "activation"),
}


def plan_resumed_model(
    flags: FrozenConfigDict,
    model_config: Mapping[str, Any],
    normalization: Mapping[str, Any],
    num_classes: int,
) -> ModelPlan:
    """Return the plan of the model that a snapshot describes; it has the weights, too.

    Args:
        flags: the run's config.
        model_config: model config as the snapshot holds it.
        normalization: mean and std per RGB channel, as the snapshot holds them.
        num_classes: number of classes of the dataset.

    Raises:
        ModelConfigError: the model config cannot be used, or is not of the model of the flags.
    """
    config, asked = complete_config(model_config), _config_of(flags)
    wrong = [key for key in asked if config[key] != asked[key] and key not in _OF_WEIGHTS]
    if wrong:
        raise ModelConfigError(f"model config: {', '.join(wrong)} is not that of the flags")
    return ModelPlan(config, dict(normalization), num_classes, None, False, flags)


def _config_of(flags: FrozenConfigDict) -> ConfigDict:
    return get_config(
        flags.model_type,
        flags.img_size,
        head=flags.head,
        patch_stride=flags.slide_step,
        dropout=flags.dropout,
        drop_path=flags.drop_path,
    )


def plan_model(
    flags: FrozenConfigDict, weights: Pretrained | None, classes: Sequence[str]
) -> ModelPlan:
    """Decide which model `flags` and `weights` ask for.

    Args:
        flags: the run's config.
        weights: weights to start from; None: random ones, with the normalisation of the profile
            that the flags name, or else Google's.
        classes: class names of the dataset in index order.

    Raises:
        WeightsError: the weights are of another size, or lack what the head needs.
    """
    config = _config_of(flags)
    if weights is None:
        profile, keep_head = PROFILES.get(flags.pretrained_profile, GOOGLE), False
    else:
        config, profile = adapt_config(config, weights), weights.profile
        keep_head = sorted(weights.classes or ()) == sorted(classes)
        pool = weights.architecture["pool"]
        if keep_head and config.head == "parts" and pool != config.pool:
            keep_head = False
            note = f"its head reads {' and '.join(POOL_READS[pool])}, so --head parts starts anew"
            weights = weights._replace(notes=(*weights.notes, note))
        if keep_head:
            weights = with_class_order(weights, classes)
    return ModelPlan(config, profile.normalization, len(classes), weights, keep_head, flags)
