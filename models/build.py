"""From a config to a model."""

from ml_collections import ConfigDict

from models.vit import VisionTransformer


def build_model(config: ConfigDict, num_classes: int) -> VisionTransformer:
    """A freshly initialised float32 model on the CPU; same torch seed, same weights.

    Built on the CPU whatever the device, so that a seed means the same weights everywhere.

    Raises:
        ValueError: image size no multiple of the patch, width no multiple of the heads, unknown
            pool, or fewer than one class.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    return VisionTransformer(config, num_classes)
