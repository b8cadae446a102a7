"""Evaluations of a run: measure, log, and keep the best."""

from dataclasses import dataclass
from typing import Any

from ml_collections import FrozenConfigDict
from torch import nn
from torch.utils.data import DataLoader

from utils.checkpoint import Checkpoint, checkpoint_id, save_checkpoint
from utils.console import progress
from utils.engine import Evaluation, Normalizer, evaluate
from utils.metrics import summarize
from utils.presets import PRESETS
from utils.run import Run
from utils.training_state import TrainingState


@dataclass(frozen=True)
class Evaluator:
    """Evaluates models on the split of a run, and logs how good they are."""

    config: FrozenConfigDict
    loader: DataLoader
    normalize: Normalizer
    run: Run

    def __call__(
        self, model: nn.Module, step: int, selected_on: str
    ) -> tuple[Evaluation, dict[str, Any]]:
        """Evaluation and metrics of `model` after `step` optimizer steps.

        Args:
            model: on the device of `normalize`.
            step: that its weights are of.
            selected_on: the split whose accuracy chose, or is to choose, these weights.
        """
        config = self.config
        with progress(len(self.loader.dataset), "eval", "img") as bar:
            evaluation = evaluate(
                model, self.loader, self.normalize, PRESETS[config.preset], config.tta == "flip",
                bar,
            )  # fmt: skip
        metrics = {
            "split": config.eval_split, "selected_on": selected_on, "step": step,
            "tta": config.tta, **summarize(evaluation.logits, evaluation.labels),
        }  # fmt: skip
        self.run.log_evaluation(metrics, step)
        return evaluation, metrics

    def export(self, evaluation: Evaluation, metrics: dict[str, Any]) -> None:
        """Write predictions, metrics and per-class table."""
        self.run.export(evaluation, metrics, self.config.export_logits)


@dataclass(frozen=True)
class BestKeeper:
    """Evaluates the model in training, and keeps it and its predictions if it is the best yet."""

    evaluator: Evaluator
    model: nn.Module
    checkpoint_fields: dict[str, Any]  # of Checkpoint, those that never change

    def __call__(self, state: TrainingState) -> None:
        """Evaluate at `state.step`; ties keep the earlier checkpoint."""
        split = self.evaluator.config.eval_split
        evaluation, metrics = self.evaluator(self.model, state.step, selected_on=split)
        if state.best is not None and metrics["accuracy"] <= state.best["accuracy"]:
            return
        # To the CPU once: the id and the file both read them there.
        weights = {key: value.detach().cpu() for key, value in self.model.state_dict().items()}
        metrics["checkpoint_id"] = checkpoint_id(weights)
        checkpoint = Checkpoint(
            **self.checkpoint_fields, step=state.step, metrics=metrics, state_dict=weights
        )
        save_checkpoint(self.evaluator.run.paths.checkpoint, checkpoint)
        self.evaluator.export(evaluation, metrics)
        state.best = metrics
