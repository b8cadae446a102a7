"""Keep the best weights of a run and their predictions."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from utils.data_utils import checkpoint_paths
from utils.evaluation.evaluate import Evaluation, Evaluator
from utils.processes import failing_together
from utils.run.checkpoint import Checkpoint, checkpoint_id, save_checkpoint
from utils.run.writer import RunWriter
from utils.training.progress import Progress


@dataclass(frozen=True)
class BestKeeper:
    """Evaluates the weights in training, and keeps them and their predictions if they are best."""

    evaluator: Evaluator
    run: RunWriter
    models: dict[str, nn.Module]  # variants of the weights: raw ("") and averaged
    checkpoint: Checkpoint  # its fields that never change

    def update(self, state: Progress) -> None:
        """Evaluate at `state.step`; ties keep the earlier checkpoint.

        Nothing is logged, written or remembered before all variants are evaluated: what is
        interrupted is done again.
        """
        evaluator = self.evaluator
        split = evaluator.config.eval_split
        results = {
            variant: evaluator.evaluate(model, state.step, selected_on=split)
            for variant, model in self.models.items()
        }
        is_better = False
        with failing_together():
            for variant, (evaluation, metrics) in results.items():
                self.run.log_evaluation(metrics, state.step, variant, state.logged)
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
            paths = checkpoint_paths(self.run.paths, variant)
            save_checkpoint(paths.checkpoint, checkpoint)
            self.run.export(evaluation, metrics, self.evaluator.config.export_logits, variant)
        return metrics
