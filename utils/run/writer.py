"""Write what a run leaves: stamp, labelmap, retention note, scalars, evaluations, summary."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.console import log, log_table
from utils.data.splits import Split, labelmap
from utils.data_utils import RunPaths, checkpoint_paths
from utils.dist_util import NONE
from utils.errors import RunError
from utils.evaluation.evaluate import Evaluation
from utils.evaluation.predictions import export_evaluation
from utils.files import kind_of, remove_unfinished, sha256_file, write_json
from utils.ownership import is_ours
from utils.processes import is_main
from utils.run.folder import check_only_ours, keep_previous_run, write_retention
from utils.run.lock import this_process
from utils.run.scalars import EVAL_SCALARS, EventLog


class RunWriter:
    """The folder of one run, as both entrypoints write it.

    Of several processes the main one writes; in the others every method does nothing.
    """

    def __init__(
        self, paths: RunPaths, stamp: Mapping[str, Any], split: Split, events: EventLog
    ) -> None:
        """Describe the run; writes nothing.

        Args:
            paths: paths of the run.
            stamp: what `build_env_stamp` returns.
            split: the split that is evaluated.
            events: its scalars, not yet open.
        """
        self.paths = paths
        self.split = split
        self.stamp = dict(stamp)
        self.events = events

    def begin(self, step: int = 0, is_resumed: bool = False) -> None:
        """Make the first writes; only the owner of the run's lock may.

        Args:
            step: optimizer steps done.
            is_resumed: whether the run of this name is resumed. If not, a previous run of the name
                is moved aside.

        Raises:
            InputError: what stands there is not a run; nothing is moved.
        """
        if not is_main():
            return
        earlier = self.paths.output_dir.glob(f"{self.paths.name}~*")
        for folder in (self.paths.run, *(each for each in earlier if is_ours(each))):
            remove_unfinished(folder)
        if not is_resumed:
            check_only_ours(self.paths)  # once more: somebody may have been quick
            kept = keep_previous_run(self.paths)
            if kept is not None:
                log.info("kept the previous run %s as %s", self.paths.name, kept.run)
            self.stamp["predictions_digest"] = "none"
        self.stamp |= {"status": "unfinished", "writer": this_process()}
        for write in self._descriptions().values():
            write()
        self.write_stamp()  # once more: a disk on which files cannot be replaced says so now
        self.events.open(self.paths.tensorboard, step, is_resumed)

    def _descriptions(self) -> dict[Path, Callable[[], None]]:
        """Return the files that say what the run is, with what writes each."""
        split, paths = self.split, self.paths
        made = (paths.checkpoint, paths.probe if "fitted_on" in self.stamp else paths.last)
        if "checkpoint" in self.stamp:  # it evaluates that of another run
            made = (paths.features,) if self._exports_features else ()
        return {
            paths.env_stamp: self.write_stamp,
            paths.labelmap: lambda: write_json(
                paths.labelmap, labelmap(split.dataset, split.classes, split.parents)
            ),
            paths.retention: lambda: write_retention(paths, made),
        }

    def keep_whole(self) -> dict[str, Any]:
        """Put the scalars on the disk, and write again what somebody removed of the first writes.

        Returns:
            What a snapshot has of the files beside it.

        Raises:
            OSError: they could not be written.
        """
        events = self.events.flush()
        for path, write in self._descriptions().items() if is_main() else ():
            if kind_of(path, follow=False) is None:
                log.warning("warning: %s was removed; it is written again", path)
                write()
        return {"run_id": self.stamp["run_id"], "stamp": {**self.stamp, "events": events}}

    def write_stamp(self, **facts: object) -> None:
        """Write the stamp with more `facts`, or later ones."""
        self.stamp.update(facts)
        if is_main():
            write_json(self.paths.env_stamp, self.stamp)

    def log_evaluation(self, metrics: Mapping[str, Any], variant: str = "") -> None:
        """Write the scalars of an evaluation of a variant of the weights, and log a line."""
        phase = "_".join(filter(None, ("eval", variant)))
        self.events.log_evaluation(phase, metrics, metrics["step"])
        shown = "  ".join(f"{name} {metrics[name]:.4f}" for name in EVAL_SCALARS)
        log.info("%s step %d  %s  %s", phase, metrics["step"], self.split.name, shown)

    def write_evaluation(
        self,
        evaluation: Evaluation,
        metrics: Mapping[str, Any],
        export_logits: bool,
        variant: str = "",
    ) -> None:
        """Write predictions, metrics and per-class table, and stamp their digests."""
        if not is_main():
            return
        paths = checkpoint_paths(self.paths, variant)
        digest = export_evaluation(paths, evaluation, self.split, metrics, export_logits)
        artifacts = {name: sha256_file(path) for name, path in self._written(variant).items()}
        self.write_stamp(
            artifacts={**self.stamp.get("artifacts", {}), **artifacts},
            **{"_".join(filter(None, (variant, "predictions_digest"))): digest},
        )

    @property
    def _exports_features(self) -> bool:
        return bool(self.stamp.get("config", {}).get("export_features"))

    def _written(self, variant: str) -> dict[str, Path]:
        """Return the files that an evaluation writes, by their names in the run's folder."""
        paths = checkpoint_paths(self.paths, variant)
        files = [paths.predictions, paths.metrics, paths.per_class]
        if self._exports_features:
            files += [paths.features, paths.features.with_suffix(".json")]
        return {path.relative_to(paths.run).as_posix(): path for path in files}

    def damaged(self, variant: str) -> list[Path]:
        """Return which files of a variant's evaluation are not there as they were written."""
        digests = self.stamp.get("artifacts", {})
        return [
            path
            for name, path in self._written(variant).items()
            if kind_of(path, follow=False) != "file" or sha256_file(path) != digests.get(name)
        ]

    def _chance(self) -> str:
        """Return the accuracy that needs no model, in words."""
        num_classes, labels = len(self.split.classes), self.split.labels
        commonest = np.bincount(labels).max() / len(labels)
        return (
            f"{1 / num_classes:.4f} (accuracy of guessing among {num_classes} classes; of always "
            f"naming the commonest: {commonest:.4f})"
        )

    def finish(self, best: Mapping[str, Mapping[str, Any]], **facts: object) -> None:
        """Write into the stamp that the run ended, and log where everything is and how good it is.

        Args:
            best: metrics by variant of the weights.
            facts: more rows of the table of metrics.

        Raises:
            RunError: a file of the evaluation is gone, or was changed.
        """
        self.keep_whole()
        self.events.close()
        if is_main():
            for path in (path for variant in best for path in self.damaged(variant)):
                raise RunError(f"{path} was changed or removed by another program; run this again")
            for write in self._descriptions().values():  # nor need these be as they were
                write()
        self.write_stamp(status="finished", writer=NONE)
        log_table(f"artifacts of {self.paths.name}", self.paths.artifacts())
        for variant, metrics in best.items():
            of = " of the averaged weights" if variant else ""
            rows = {**metrics, "chance level": self._chance(), **facts}
            log_table(f"metrics{of} on {metrics['split']}", rows)
        raw = best[""]
        if raw["selected_on"] == raw["split"] == "test":
            log.warning(
                "warning: selected on test: the checkpoint was chosen by this accuracy, so it is "
                "too high an estimate for new images"
            )
