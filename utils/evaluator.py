"""Evaluations of a run: measure, log, and keep the best."""

from dataclasses import dataclass
from typing import Any

from ml_collections import FrozenConfigDict
from torch import nn
from torch.utils.data import DataLoader

from utils.checkpoint import Checkpoint, checkpoint_id, save_checkpoint
from utils.console import progress
from utils.data_utils import checkpoint_paths
from utils.engine import Evaluation, Normalizer, evaluate, whole_evaluation
from utils.interrupts import Stopped, stop_signal
from utils.metrics import summarize
from utils.presets import PRESETS
from utils.processes import (
    failing_together,
    from_main,
    gather_objects_on_main,
    gather_rows,
    is_main,
)
from utils.run import Run
from utils.training_state import TrainingState


@dataclass(frozen=True)
class Evaluator:
    """Evaluates models on the split of a run, in all its processes."""

    config: FrozenConfigDict
    loader: DataLoader
    normalize: Normalizer
    run: Run

    def __call__(
        self, model: nn.Module, step: int, selected_on: str
    ) -> tuple[Evaluation | None, dict[str, Any]]:
        """Evaluation and metrics of `model` after `step` optimizer steps.

        The evaluation is of the whole split in the process that writes, else None; the metrics are
        the same in all.

        Args:
            model: on the device of `normalize`.
            step: that its weights are of.
            selected_on: the split whose accuracy chose, or is to choose, these weights.

        Raises:
            RunError: an image cannot be decoded, or a logit is not finite.
            Stopped: a process was asked to stop.
        """
        config = self.config
        with (
            failing_together(),
            progress(len(self.loader.dataset), "eval", "img") as bar,
        ):
            own = evaluate(
                model,
                self.loader,
                self.normalize,
                PRESETS[config.preset],
                config.tta == "flip",
                bar,
            )
        stop = max(signum for (signum,) in gather_rows([stop_signal()]))
        if stop:
            raise Stopped(stop)
        evaluation, metrics = None, {}
        evaluations = gather_objects_on_main(own)
        with failing_together():
            if is_main():
                evaluation = whole_evaluation(evaluations, len(self.loader.dataset))
                metrics = {
                    "split": config.eval_split,
                    "selected_on": selected_on,
                    "step": step,
                    "tta": config.tta,
                    **summarize(evaluation.logits, evaluation.labels),
                }
        return evaluation, from_main(metrics)

    def export(self, evaluation: Evaluation, metrics: dict[str, Any], variant: str = "") -> None:
        """Write predictions, metrics and per-class table of a variant of the weights."""
        self.run.export(evaluation, metrics, self.config.export_logits, variant)


@dataclass(frozen=True)
class BestKeeper:
    """Evaluates the weights in training, and keeps them and their predictions if they are best."""

    evaluator: Evaluator
    models: dict[str, nn.Module]  # variants of the weights: raw ("") and averaged
    checkpoint: Checkpoint  # its fields that never change

    def __call__(self, state: TrainingState) -> None:
        """Evaluate at `state.step`; ties keep the earlier checkpoint.

        Nothing is logged, written or remembered before all variants are evaluated: what is
        interrupted is done again.
        """
        evaluator = self.evaluator
        split = evaluator.config.eval_split
        results = {
            variant: evaluator(model, state.step, selected_on=split)
            for variant, model in self.models.items()
        }
        is_better = False
        with failing_together():
            for variant, (evaluation, metrics) in results.items():
                evaluator.run.log_evaluation(metrics, state.step, variant, state.logged)
                best = state.best.get(variant)
                if best is None or metrics["accuracy"] > best["accuracy"]:
                    is_better = True
                    state.best[variant] = self._keep(variant, evaluation, metrics)
        state.evaluated, state.logged, state.pending = state.step, state.step, {}
        state.since_best = 0 if is_better else state.since_best + 1

    def _keep(
        self, variant: str, evaluation: Evaluation | None, metrics: dict[str, Any]
    ) -> dict[str, Any]:
        """Write the checkpoint of a variant and what came from its evaluation; its metrics."""
        # To the CPU once: the id and the file both read them there.
        weights = {k: v.detach().cpu() for k, v in self.models[variant].state_dict().items()}
        metrics = {**metrics, "checkpoint_id": checkpoint_id(weights)}
        if evaluation is not None:
            checkpoint = self.checkpoint._replace(
                step=metrics["step"], metrics=metrics, state_dict=weights
            )
            paths = checkpoint_paths(self.evaluator.run.paths, variant)
            save_checkpoint(paths.checkpoint, checkpoint)
            self.evaluator.export(evaluation, metrics, variant)
        return metrics
