"""Losses over a model's output; the model itself knows none.

Shapes: B batch, C classes, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from ml_collections import FrozenConfigDict
from torch import Tensor

from models.vit import ViTOutput

# (features (n, D), labels (n,)) of this process to those of all processes, with gradients
Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def classification_loss(
    output: ViTOutput, labels: Tensor, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of `output.logits` (B, C) against `labels`, a scalar in nats.

    Args:
        output: of a model's forward pass.
        labels: (B,) int64 class indices, or (B, C) float shares of the classes of mixed images.
        smoothing: label smoothing in [0, 1) (Szegedy et al. 2016, section 7).
        class_weights: (C,) factors of the classes' losses. Divided by B and not by the weights'
            sum, so that the mean over a batch is the mean over its micro-batches.
    """
    if class_weights is None:
        return F.cross_entropy(output.logits, labels, label_smoothing=smoothing)
    total = F.cross_entropy(
        output.logits, labels, class_weights, label_smoothing=smoothing, reduction="sum"
    )
    return total / len(labels)


def contrastive_loss(features: Tensor, labels: Tensor, margin: float = 0.4) -> Tensor:
    """TransFG's contrastive loss (arXiv 2103.07976, equation 8), a scalar.

    Mean over all B x B pairs: 1 - cos for the same class, max(0, cos - margin) for different ones.
    It sees only the samples that it is given together.

    Args:
        features: (B, D), of any length but zero.
        labels: (B,) class indices, int64.
        margin: similarity up to which different classes cost nothing.
    """
    unit = F.normalize(features)
    cosine = unit @ unit.T  # (B, B)
    same = labels[:, None] == labels[None, :]
    # A product and not a choice by mask: boolean indexing would read the device.
    same = same.to(cosine.dtype)
    return (same * (1 - cosine) + (1 - same) * (cosine - margin).clamp_min(0)).mean()


class Objective(NamedTuple):
    """What training minimises: (model output, labels, shares of mixed images) to a scalar."""

    smoothing: float = 0.0
    class_weights: Tensor | None = None  # (C,)
    contrastive_weight: float = 0.0  # 0: cross-entropy alone
    margin: float = 0.4

    def __call__(
        self,
        output: ViTOutput,
        labels: Tensor,
        targets: Tensor | None = None,
        share: float = 1.0,
        gather: Gather | None = None,
    ) -> Tensor:
        """Cross-entropy, and with a weight above 0 the contrastive loss of the features.

        The mean of what W processes get, each for its samples, is the loss of all samples.

        Args:
            output: of a model's forward pass.
            labels: (B,) int64.
            targets: (B, C) shares of the classes, where images are mixed; then they count.
            share: W times the share that this process has of the samples of all.
            gather: brings the samples of all processes together, which the contrastive loss
                compares; None for one process.
        """
        wanted = labels if targets is None else targets
        loss = share * classification_loss(output, wanted, self.smoothing, self.class_weights)
        if self.contrastive_weight:
            compared = (output.features, labels)
            if gather is not None:
                compared = gather(*compared)
            contrast = contrastive_loss(*compared, self.margin)
            loss = loss + self.contrastive_weight * contrast
        return loss


def build_objective(config: FrozenConfigDict, class_weights: Tensor | None) -> Objective:
    """What a training run minimises, by its flags.

    Args:
        config: of the run.
        class_weights: (C,) on the model's device, or None.
    """
    if config.head == "token":
        return Objective(config.smoothing_value, class_weights)
    return Objective(
        config.smoothing_value, class_weights, config.contrastive_weight, config.contrastive_margin
    )
