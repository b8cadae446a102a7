"""Compute the losses of a model's output, and the class weights in them.

Shapes: B batch, C classes, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import FrozenConfigDict
from torch import Tensor

from models.vit import ViTOutput

# From features (n, D) and labels (n,) of this process to those of all processes, with gradients.
Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def classification_loss(
    output: ViTOutput, labels: Tensor, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy of `output.logits` (B, C) against `labels`, a scalar in nats.

    Args:
        output: output of a forward pass.
        labels: class indices, (B,) int64, or shares of the classes in mixed images, (B, C) float.
        smoothing: label smoothing in [0, 1) (Szegedy et al. 2016, section 7).
        class_weights: factors of the classes' losses, (C,). The sum is divided by B and not by the
            sum of weights, so that the mean over micro-batches is the mean over their batch.
    """
    if class_weights is None:
        return F.cross_entropy(output.logits, labels, label_smoothing=smoothing)
    total = F.cross_entropy(
        output.logits, labels, class_weights, label_smoothing=smoothing, reduction="sum"
    )
    return total / len(labels)


def contrastive_loss(features: Tensor, labels: Tensor, margin: float = 0.4) -> Tensor:
    """Return TransFG's contrastive loss (arXiv 2103.07976, equation 8), a scalar.

    It is the mean over all B x B pairs of samples: 1 - cos for the same class, and
    max(0, cos - margin) for different classes.

    Args:
        features: features of any length but zero, (B, D).
        labels: class indices, (B,) int64.
        margin: cosine up to which different classes cost nothing.
    """
    unit = F.normalize(features)
    cosine = unit @ unit.T  # (B, B)
    same = labels[:, None] == labels[None, :]
    # A product and not a choice by mask: boolean indexing would read the device.
    same = same.to(cosine.dtype)
    return (same * (1 - cosine) + (1 - same) * (cosine - margin).clamp_min(0)).mean()


class Objective(NamedTuple):
    """The loss that training minimises."""

    smoothing: float = 0.0
    class_weights: Tensor | None = None  # (C,)
    contrastive_weight: float = 0.0  # 0: only cross-entropy
    margin: float = 0.4

    def __call__(
        self,
        output: ViTOutput,
        labels: Tensor,
        targets: Tensor | None = None,
        share: float = 1.0,
        gather: Gather | None = None,
    ) -> Tensor:
        """Return cross-entropy, plus the weighted contrastive loss of the features, a scalar.

        The mean of the results of W processes, each for its samples, is the loss of all samples.

        Args:
            output: output of a forward pass.
            labels: class indices, (B,) int64.
            targets: shares of the classes in mixed images, (B, C), which replace the labels in the
                cross-entropy; None: images are not mixed.
            share: W times this process's share of all samples.
            gather: gathers features and labels of all processes for the contrastive loss; None:
                there is one process.
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


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """Return weights by the inverse of the classes' counts; their mean over `labels` is 1.

    Classes without samples get 1: they are not a target, but label smoothing gives them a share.

    Args:
        labels: class indices of the training samples, (samples,).
        num_classes: number of classes C.

    Returns:
        (C,) float32 on the CPU.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = len(labels) / (present.sum() * np.maximum(counts, 1))
    return torch.from_numpy(np.where(present, weights, 1.0).astype(np.float32))


def build_objective(
    config: FrozenConfigDict, labels: np.ndarray, num_classes: int, device: torch.device
) -> Objective:
    """Build what a training run minimises, by its flags.

    Args:
        config: the run's config.
        labels: class indices of the training samples, (samples,).
        num_classes: number of classes.
        device: device of the model.
    """
    class_weights = None
    if config.class_weights == "balanced":
        class_weights = balanced_class_weights(labels, num_classes).to(device)
    contrast = (config.contrastive_weight, config.contrastive_margin)
    return Objective(
        config.smoothing_value, class_weights, *(contrast if config.head == "parts" else ())
    )
