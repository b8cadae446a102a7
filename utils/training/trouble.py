"""Warn once of a run that learns nothing: its loss is that of guessing, or it says one class."""

import math
from collections.abc import Sequence

import numpy as np
from ml_collections import FrozenConfigDict

from utils.console import log

WINDOW = 50  # steps: what is looked at begins as many after the warm-up, and covers as many
FEWEST = 10  # predictions of which a share says something
ONE_CLASS = 0.9  # share of predictions that are one class where something is wrong
COMMON = 0.8  # unless that class has this share of the images


class Trouble:
    """What has been said of a run that learns nothing."""

    def __init__(self, config: FrozenConfigDict, num_classes: int) -> None:
        """Watch a run.

        Args:
            config: config of the run.
            num_classes: number of classes.
        """
        self.config = config
        self.num_classes = num_classes
        self.is_said = False

    @property
    def is_plain(self) -> bool:
        """Whether the training loss is the cross-entropy of the labels and nothing else."""
        config = self.config
        is_mixed = config.mixup or config.cutmix or config.smoothing_value
        is_weighted = config.class_weights != "none" or config.contrastive_weight
        return not (is_mixed or is_weighted)

    def note_losses(self, step: int, losses: Sequence[float]) -> None:
        """Look at the mean training losses of the last steps.

        Args:
            step: number of optimizer steps done.
            losses: losses of the last of them, at most `WINDOW`, in nats.
        """
        if self._is_early(step) or len(losses) < WINDOW or not self.is_plain:
            return
        loss, guessing = math.fsum(losses) / len(losses), math.log(self.num_classes)
        if loss >= guessing:
            self._warn(
                step,
                f"the training loss, {loss:.3f} over the last {len(losses)} steps, is not below "
                f"that of guessing, ln({self.num_classes} classes) = {guessing:.3f}",
            )

    def note_predictions(self, step: int, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Look at the predictions of an evaluation.

        Args:
            step: number of optimizer steps done.
            predicted: predicted class indices, (samples,).
            labels: true ones, (samples,).
        """
        if self._is_early(step) or self.num_classes < 2 or len(predicted) < FEWEST:
            return
        common = int(np.bincount(predicted).argmax())
        share, true_share = ((each == common).mean() for each in (predicted, labels))
        if share >= ONE_CLASS and true_share < COMMON:
            self._warn(
                step,
                f"{share:.0%} of the predictions are one class, number {common}, which "
                f"{true_share:.1%} of the images have",
            )

    def _is_early(self, step: int) -> bool:
        return step < self.config.warmup_steps + WINDOW

    def _warn(self, step: int, what: str) -> None:
        """Warn, but only once."""
        if self.is_said:
            return
        self.is_said = True
        rate = self.config.learning_rate
        blamed = "may be too high"
        if self.config.pretrained is not None:
            blamed = "may have ruined the pretrained weights"
        log.warning(
            "warning: after step %d %s: the learning rate %s; start again with a lower "
            "--learning_rate, such as %.2g instead of %.2g, or with more --warmup_steps than %d",
            step,
            what,
            blamed,
            rate / 10,
            rate,
            self.config.warmup_steps,
        )
