"""What the content of a weight file cannot tell: pixel statistics, LayerNorm eps, activation.

AugReg, DeiT, DINO and MAE files have equal names and want different pixels. Importing this needs no
torch.
"""

from typing import NamedTuple


class ProfileError(ValueError):
    """A file beside the weights that cannot be used; the message is one line and names it."""


class Profile(NamedTuple):
    """The pixel statistics that a model was trained with, and two constants of its layers."""

    mean: tuple[float, float, float]  # per RGB channel, of pixels scaled to [0, 1]
    std: tuple[float, float, float]
    layer_norm_eps: float
    activation: str  # name in models.layers.ACTIVATIONS

    @property
    def normalization(self) -> dict[str, tuple[float, ...]]:
        """Mean and standard deviation as config, checkpoint and stamp record them."""
        return {"mean": self.mean, "std": self.std}

    def describe(self) -> str:
        """Return the profile in words, for the log."""
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}, LayerNorm eps {self.layer_norm_eps:g}, {self.activation}"


_HALF = (0.5, 0.5, 0.5)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

GOOGLE = Profile(_HALF, _HALF, 1e-6, "gelu")
IMAGENET = Profile(_IMAGENET_MEAN, _IMAGENET_STD, 1e-6, "gelu")
CLIP = Profile(_CLIP_MEAN, _CLIP_STD, 1e-5, "gelu")  # LAION's
CLIP_QUICKGELU = CLIP._replace(activation="quick_gelu")  # OpenAI's, DFN's, MetaCLIP's
SIGLIP = Profile(_HALF, _HALF, 1e-6, "gelu")

# By the values of --pretrained_profile but "auto".
PROFILES = {
    "google": GOOGLE,
    "imagenet": IMAGENET,
    "clip": CLIP,
    "clip-quickgelu": CLIP_QUICKGELU,
    "siglip": SIGLIP,
}
AUTO = "auto"


def default_profile(
    layout: str, usual: Profile, has_pre_norm: bool, has_attention_pool: bool
) -> Profile:
    """Return the profile to assume for a file of which only the tensors are known.

    Args:
        layout: name of the file's layout.
        usual: profile that is usual for the layout.
        has_pre_norm: whether a norm stands before the blocks.
        has_attention_pool: whether the head reads a pool of all patches.
    """
    if layout == "timm" and has_attention_pool:
        return SIGLIP
    if layout == "timm" and has_pre_norm:
        return CLIP
    return usual
