"""A run on disk, as both entrypoints write it: first writes, scalars, evaluations, summary."""

from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from utils.console import log, log_table
from utils.data_utils import RunPaths, keep_previous_run, write_retention
from utils.dataset import write_labelmap
from utils.engine import Evaluation
from utils.export import export_evaluation
from utils.files import write_json
from utils.splits import Split

# The scalars of an evaluation, of the metrics that `utils.metrics.summarize` gives.
EVAL_SCALARS = ("loss", "accuracy", "top5", "mean_per_class_accuracy", "macro_f1")


class Run:
    """The folder of one run: what it says of itself, its scalars, its evaluations."""

    def __init__(self, paths: RunPaths, stamp: Mapping[str, Any], split: Split) -> None:
        """Make the first writes; a previous run of the same name is moved aside.

        Args:
            paths: where.
            stamp: from `build_env_stamp`.
            split: that is evaluated.
        """
        kept = keep_previous_run(paths)
        if kept is not None:
            log.info("kept the previous run %s as %s", paths.name, kept.run)
        self.paths = paths
        self.split = split
        self.stamp = dict(stamp)
        self.write_stamp(predictions_digest="none")
        write_labelmap(paths.labelmap, split)
        write_retention(paths, has_checkpoint="checkpoint" not in stamp)
        self.writer = SummaryWriter(str(paths.tensorboard))

    def write_stamp(self, **facts: object) -> None:
        """Write the stamp with more `facts`, or later ones."""
        self.stamp.update(facts)
        write_json(self.paths.env_stamp, self.stamp)

    def log_scalars(self, phase: str, scalars: Mapping[str, float], step: int) -> None:
        """Write TensorBoard scalars `<phase>/<name>` at `step` optimizer steps."""
        for name, value in scalars.items():
            self.writer.add_scalar(f"{phase}/{name}", value, step)

    def log_evaluation(self, metrics: Mapping[str, Any], step: int) -> None:
        """Write the scalars of an evaluation and log a line."""
        scalars = {name: metrics[name] for name in EVAL_SCALARS}
        self.log_scalars("eval", scalars, step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scalars.items())
        log.info("eval step %d  %s  %s", step, self.split.name, shown)

    def export(
        self,
        evaluation: Evaluation,
        metrics: Mapping[str, Any],
        export_logits: bool,
    ) -> None:
        """Write predictions, metrics and per-class table, and stamp the predictions digest."""
        digest = export_evaluation(self.paths, evaluation, self.split, metrics, export_logits)
        self.write_stamp(predictions_digest=digest)

    def finish(self, metrics: Mapping[str, Any], **facts: object) -> None:
        """Close the scalars and log where everything is, how good it is, and more `facts`."""
        self.writer.close()
        log_table(f"artifacts of {self.paths.name}", self.paths.artifacts())
        log_table(f"metrics on {metrics['split']}", {**metrics, **facts})
        if metrics["selected_on"] == metrics["split"] == "test":
            log.warning(
                "warning: selected on test: the checkpoint was chosen by this accuracy, so it is "
                "too high an estimate for new images"
            )
