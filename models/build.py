"""From a config to a model."""

from ml_collections import ConfigDict

from models.configs import HEADS
from models.transfg import TransFG
from models.vit import Backbone, VisionTransformer


def build_model(config: ConfigDict, num_classes: int) -> Backbone:
    """A freshly initialised float32 model on the CPU; same torch seed, same weights.

    Built on the CPU whatever the device, so that a seed means the same weights everywhere.

    Raises:
        ValueError: image size no multiple of the patch, width no multiple of the heads, unknown
            head, pool or activation, a part of the model that another needs is missing, or fewer
            than one class.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    if config.head not in HEADS:
        raise ValueError(f"unknown head {config.head!r}; known: {', '.join(HEADS)}")
    model = TransFG if config.head == "parts" else VisionTransformer
    return model(config, num_classes)


def freeze(model: Backbone, what: str) -> None:
    """Exclude a part of `model` from training.

    Args:
        model: all of it trainable.
        what: "none"; "backbone": all but what follows it (the head, with part selection the part
            block too); a number N: the embeddings and the first N blocks.

    Raises:
        ValueError: none of these, or more blocks than there are.
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
