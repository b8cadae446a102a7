"""Weights of the classes in the loss, by how many samples they have.

Shapes: C classes.
"""

import numpy as np
import torch
from ml_collections import FrozenConfigDict
from torch import Tensor

from utils.splits import Split


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(C,) float32 weights by the inverse of the classes' counts; their mean over `labels` is 1.

    Classes without samples get 1: they are no sample's target, but label smoothing has a share for
    them.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = len(labels) / (present.sum() * np.maximum(counts, 1))
    return np.where(present, weights, 1.0).astype(np.float32)


def class_weights(config: FrozenConfigDict, train: Split, device: torch.device) -> Tensor | None:
    """The weights of `--class_weights` for the samples trained on, (C,) on `device`, or None."""
    if config.class_weights == "none":
        return None
    weights = balanced_class_weights(train.labels, len(train.classes))
    return torch.from_numpy(weights).to(device)
