"""Losses over a model's output; the model itself knows none."""

import torch.nn.functional as F
from torch import Tensor

from models.vit import ViTOutput


def classification_loss(output: ViTOutput, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of `output.logits` (B, C) against `labels` (B,), a scalar in nats.

    Args:
        output: of a model's forward pass.
        labels: class indices, int64.
        smoothing: label smoothing in [0, 1) (Szegedy et al. 2016, section 7).
    """
    return F.cross_entropy(output.logits, labels, label_smoothing=smoothing)
