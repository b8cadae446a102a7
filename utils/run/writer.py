"""A run on disk, as both entrypoints write it: first writes, scalars, evaluations, summary."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from utils.console import log, log_table
from utils.data.splits import Split
from utils.data_utils import RunPaths, checkpoint_paths
from utils.dataset import write_labelmap
from utils.evaluation.evaluate import Evaluation
from utils.evaluation.predictions import export_evaluation
from utils.files import remove_unfinished, write_json
from utils.processes import failing_together, is_main
from utils.run.folder import keep_previous_run, write_retention
from utils.run.lock import run_lock
from utils.run.scalars import Scalars

# The scalars of an evaluation, of the metrics that `utils.evaluation.metrics.summarize` gives.
EVAL_SCALARS = ("loss", "accuracy", "top5", "mean_per_class_accuracy", "macro_f1")


class RunWriter:
    """The folder of one run: what it says of itself, its scalars, its evaluations.

    Of several processes one writes; in the others every method does nothing.
    """

    def __init__(
        self,
        paths: RunPaths,
        stamp: Mapping[str, Any],
        split: Split,
        logged_until: int | None = None,
    ) -> None:
        """Make the first writes.

        Args:
            paths: where.
            stamp: from `build_env_stamp`.
            split: that is evaluated.
            logged_until: the last step whose scalars stay, of the run of this name that goes on.
                None: it is a new one, and a previous one of the same name is moved aside.
        """
        self.paths = paths
        self.split = split
        self.stamp = dict(stamp)
        self.writes = is_main()
        if not self.writes:
            return
        if logged_until is None:
            kept = keep_previous_run(paths)
            if kept is not None:
                log.info("kept the previous run %s as %s", paths.name, kept.run)
            self.stamp["predictions_digest"] = "none"
        else:
            remove_unfinished(paths.run)
        self.write_stamp(status="unfinished")
        write_labelmap(paths.labelmap, split)
        write_retention(paths, has_checkpoint="checkpoint" not in stamp)
        self.scalars = Scalars(paths.tensorboard, logged_until)

    def write_stamp(self, **facts: object) -> None:
        """Write the stamp with more `facts`, or later ones."""
        self.stamp.update(facts)
        if self.writes:
            write_json(self.paths.env_stamp, self.stamp)

    def log_scalars(self, phase: str, scalars: Mapping[str, float], step: int) -> None:
        """Write TensorBoard scalars `<phase>/<name>` at `step` optimizer steps."""
        if self.writes:
            self.scalars.add(phase, scalars, step)

    def log_training(self, scalars: Mapping[str, float], step: int) -> None:
        """Write the scalars of training at `step` optimizer steps.

        Args:
            scalars: as `TrainMeter.read` gives them, and the learning rate as `lr`; or none.
            step: optimizer steps.
        """
        for name, value in scalars.items():
            phase = "data" if name == "wait_fraction" else "train"
            self.log_scalars(phase, {name: value}, step)

    def flush(self) -> None:
        """Have the scalars on the disk."""
        if self.writes:
            self.scalars.flush()

    def log_evaluation(
        self, metrics: Mapping[str, Any], step: int, variant: str = "", logged: int = -1
    ) -> None:
        """Write the scalars of an evaluation of a variant of the weights, and log a line.

        Args:
            metrics: as `Evaluator` gives them.
            step: optimizer steps.
            variant: of the weights.
            logged: the step whose evaluation has been written before.
        """
        scalars = {name: metrics[name] for name in EVAL_SCALARS}
        phase = "_".join(filter(None, ("eval", variant)))
        if step > logged:
            self.log_scalars(phase, scalars, step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scalars.items())
        log.info("%s step %d  %s  %s", phase, step, self.split.name, shown)

    def export(
        self,
        evaluation: Evaluation,
        metrics: Mapping[str, Any],
        export_logits: bool,
        variant: str = "",
    ) -> None:
        """Write predictions, metrics and per-class table, and stamp the predictions digest."""
        if not self.writes:
            return
        paths = checkpoint_paths(self.paths, variant)
        digest = export_evaluation(paths, evaluation, self.split, metrics, export_logits)
        self.write_stamp(**{"_".join(filter(None, (variant, "predictions_digest"))): digest})

    def close(self) -> None:
        """Let go of the scalars' file."""
        if self.writes:
            self.scalars.close()

    def finish(self, best: Mapping[str, Mapping[str, Any]], **facts: object) -> None:
        """Say in the stamp that the run ended, and log where everything is and how good it is.

        Args:
            best: metrics by variant of the weights.
            facts: more to say.
        """
        self.close()
        self.write_stamp(status="finished")
        log_table(f"artifacts of {self.paths.name}", self.paths.artifacts())
        for variant, metrics in best.items():
            of = " of the averaged weights" if variant else ""
            log_table(f"metrics{of} on {metrics['split']}", {**metrics, **facts})
        raw = best[""]
        if raw["selected_on"] == raw["split"] == "test":
            log.warning(
                "warning: selected on test: the checkpoint was chosen by this accuracy, so it is "
                "too high an estimate for new images"
            )


@contextmanager
def own_run(
    paths: RunPaths,
    stamp: Mapping[str, Any],
    split: Split,
    logged_until: int | None = None,
    before: Callable[[], None] = lambda: None,
) -> Iterator[RunWriter]:
    """A run that no other process writes as long as the block lasts; makes the first writes.

    Args:
        paths: where.
        stamp: from `build_env_stamp`.
        split: that is evaluated.
        logged_until: as in `RunWriter`.
        before: called by the process that writes, once no other does, before its first writes.

    Raises:
        InputError: another process writes this run.
        RunError: something cannot be written.
    """
    with ExitStack() as held:
        with failing_together():
            if is_main():
                held.enter_context(run_lock(paths.lock, paths.name))
                before()
            run = RunWriter(paths, stamp, split, logged_until)
        yield run
