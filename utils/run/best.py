"""Keep the best weights of a run and their predictions."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from utils.console import log
from utils.data_utils import RunPaths, checkpoint_paths
from utils.errors import InputError, RunError
from utils.evaluation.evaluate import Evaluation, Evaluator
from utils.processes import failing_together, on_main
from utils.run.checkpoint import checkpoint_id, load_checkpoint, save_checkpoint
from utils.run.writer import RunWriter
from utils.training.progress import Progress
from utils.training.trouble import Trouble


@dataclass(frozen=True)
class BestKeeper:
    """Evaluate the weights in training, and keep them and their predictions if they are best."""

    evaluator: Evaluator
    writer: RunWriter
    models: dict[str, nn.Module]  # variants of the weights: raw ("") and averaged
    about: dict[str, Any]  # the fields of a checkpoint that stay the same
    trained_on: int  # evaluated images that were trained on
    trouble: Trouble  # is told of each evaluation

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
                if evaluation is not None:
                    predicted = evaluation.logits.argmax(axis=1)
                    self.trouble.note_predictions(progress.step, predicted, evaluation.labels)
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
        weights = self._weights(variant)
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

    def _weights(self, variant: str) -> dict[str, Tensor]:
        """Return the weights in training, once on the CPU: a checkpoint's id and file need it."""
        return {k: v.detach().cpu() for k, v in self.models[variant].state_dict().items()}

    def vouch(self, progress: Progress) -> None:
        """Check all that the best evaluations left, and write again what is not as it was.

        After the last step; all processes call it together.

        Raises:
            RunError: a checkpoint is not what it was, and its weights are nowhere else.
        """
        for variant, metrics in progress.best.items():
            weights = on_main(self._weights_to_evaluate, variant, metrics)
            if weights is None:
                continue
            model = copy.deepcopy(self.models[variant])
            model.load_state_dict(weights)
            step, split = metrics["step"], metrics["selected_on"]
            evaluation, again = self.evaluator.evaluate(model, step, split)
            if any(value != metrics.get(key) for key, value in again.items()):
                log.warning(
                    "warning: evaluated again, the figures differ from the first ones: other flags "
                    "or another machine move the last digits"
                )
            with failing_together():
                if evaluation is not None:
                    export_logits = self.evaluator.config.export_logits
                    self.writer.write_evaluation(evaluation, metrics, export_logits, variant)

    def _weights_to_evaluate(
        self, variant: str, metrics: dict[str, Any]
    ) -> dict[str, Tensor] | None:
        """Return the best weights of a variant if files of their evaluation are damaged or gone."""
        weights = self._best_weights(variant, metrics)
        damaged = self.writer.damaged(variant)
        for path in damaged:
            log.warning("warning: %s is missing or was changed; it is written again", path)
        return weights if damaged else None

    def _best_weights(self, variant: str, metrics: dict[str, Any]) -> dict[str, Tensor]:
        """Return the best weights of a variant, from a checkpoint that is whole afterwards.

        Raises:
            RunError: it is not, and the weights in training are others.
        """
        path = checkpoint_paths(self.writer.paths, variant).checkpoint
        trouble = f"checkpoint {path} is not the one that was kept at step {metrics['step']}"
        try:
            kept = load_checkpoint(path)
            if kept.metrics == metrics:
                return kept.state_dict
        except InputError as error:
            trouble = str(error)
        weights = self._weights(variant)
        if checkpoint_id(weights) != metrics.get("checkpoint_id"):
            raise RunError(f"{trouble}. Bring it back, or --resume keeps the last weights as best")
        log.warning("warning: %s; it is written again", trouble)
        save_checkpoint(path, self.about, metrics, weights)
        return weights


def forget_lost_best(
    progress: Progress, paths: RunPaths, is_changed: bool, sessions: Iterable[Mapping[str, Any]]
) -> None:
    """Forget a best evaluation whose checkpoint does not exist any more, and warn.

    All processes call it together; only the main process reads.

    Args:
        progress: progress of the resumed run.
        paths: paths of the run.
        is_changed: whether flags or machine differ from the start before.
        sessions: what the stamp says of each start, this one too.
    """
    hashes = [session.get("config_hash") for session in sessions]
    lost = on_main(_lost_best, progress, paths, is_changed, hashes)
    if lost:
        progress.forget_best(*lost)


def _lost_best(
    progress: Progress, paths: RunPaths, is_changed: bool, hashes: Sequence[str | None]
) -> list[str]:
    """Return the variants of the weights whose best checkpoint does not exist any more.

    A checkpoint of a later step than the snapshot is fine, as long as nothing has changed: its
    evaluation will come again, with the same bits.
    """
    lost = []
    for variant, metrics in progress.best.items():
        path = checkpoint_paths(paths, variant).checkpoint
        try:
            checkpoint = load_checkpoint(path)
        except InputError as error:
            trouble = str(error)
        else:
            step, is_own = checkpoint.step, checkpoint.config_hash in hashes
            is_later = step > progress.step and not is_changed
            if is_own and (checkpoint.metrics == metrics or is_later):
                continue
            trouble = f"{path} is not the one that was kept at step {metrics['step']}"
            if step != metrics["step"]:
                trouble = f"{path} is of step {step}, not of step {metrics['step']}"
            if not is_own:
                trouble = f"{path} is of another run"
        log.warning("warning: %s; the best checkpoint starts anew", trouble)
        lost.append(variant)
    return lost
