"""Keep the best weights of a run and their predictions."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from utils.data_utils import checkpoint_paths
from utils.evaluation.evaluate import Evaluation, Evaluator
from utils.processes import failing_together
from utils.run.checkpoint import checkpoint_id, save_checkpoint
from utils.run.writer import RunWriter
from utils.training.progress import Progress


@dataclass(frozen=True)
class BestKeeper:
    """Evaluate the weights in training, and keep them and their predictions if they are best."""

    evaluator: Evaluator
    writer: RunWriter
    models: dict[str, nn.Module]  # variants of the weights: raw ("") and averaged
    about: dict[str, Any]  # the fields of a checkpoint that stay the same
    trained_on: int  # evaluated images that were trained on

    def update(self, progress: Progress) -> None:
        """Evaluate at `progress.step`; ties keep the earlier checkpoint.

        Nothing is logged, written or remembered before all variants are evaluated: what is
        interrupted is done again.
        """
        evaluator = self.evaluator
        split = evaluator.config.eval_split
        results = {
            variant: evaluator.evaluate(model, progress.step, selected_on=split)
            for variant, model in self.models.items()
        }
        is_better = False
        with progress.changing(), failing_together():
            for variant, (evaluation, metrics) in results.items():
                self.writer.log_evaluation(metrics, variant)
                best = progress.best.get(variant)
                if best is None or metrics["accuracy"] > best["accuracy"]:
                    is_better = True
                    progress.best[variant] = self._keep(variant, evaluation, metrics)
        self.writer.events.mark_evaluated(progress.step)
        progress.evaluated = progress.step
        progress.since_best = 0 if is_better else progress.since_best + 1

    def _keep(
        self, variant: str, evaluation: Evaluation | None, metrics: dict[str, Any]
    ) -> dict[str, Any]:
        """Write the checkpoint of a variant and its evaluation; return its metrics."""
        # To the CPU once: the id and the file both read them there.
        weights = {k: v.detach().cpu() for k, v in self.models[variant].state_dict().items()}
        metrics = {
            **metrics,
            "checkpoint_id": checkpoint_id(weights),
            "trained_on_images": self.trained_on,
        }
        if evaluation is not None:
            path = checkpoint_paths(self.writer.paths, variant).checkpoint
            save_checkpoint(path, self.about, metrics, weights)
            export_logits = self.evaluator.config.export_logits
            self.writer.write_evaluation(evaluation, metrics, export_logits, variant)
        return metrics
