"""Plan a training run, and start it: make its first writes, and build what trains."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import FrozenConfigDict
from torch import nn

from utils.cli.flags import experiment_of, with_absolute_paths
from utils.console import log
from utils.data.batches import Normalizer, ids_of_step
from utils.data.digests import Digests, digest_set, union
from utils.data.subsets import count_trained, warn_of_trained
from utils.data_utils import RunPaths, derive_seed
from utils.dataset import Data
from utils.dist_util import NONE, build_env_stamp, open_device, with_session
from utils.errors import LoadingFailed, RunError
from utils.evaluation.evaluate import Evaluator
from utils.processes import failing_together, is_common_shortage, is_main, rank, world_size
from utils.run.best import BestKeeper, forget_lost_best
from utils.run.checkpoint import about_run, to_tensor
from utils.run.features import training_loaders
from utils.run.lock import locked_run
from utils.run.resume import (
    PARTS,
    ResumePoint,
    StartPoint,
    check_same_run,
    is_changed,
    open_start_point,
)
from utils.run.resume import open_resume_point as open_resume_point
from utils.run.run_images import stamped
from utils.run.snapshot import Header, Part, SnapshotStore
from utils.run.writer import RunWriter
from utils.signals import Stopped, stop_by, stop_requests
from utils.training.ddp import warm_up_exchange
from utils.training.learner import Learner, build_learner
from utils.training.meter import TrainMeter
from utils.training.micro_batches import plan_micro_batches
from utils.training.progress import Progress
from utils.training.random_state import RandomState
from utils.training.step_loader import StepLoader
from utils.training.trouble import Trouble


@dataclass(frozen=True)
class Plan:
    """All decisions of a training run."""

    config: FrozenConfigDict
    experiment: dict[str, Any]  # what of the config enters its hash
    data: Data
    facts: dict[str, Any]  # identity of the data, for stamp and snapshots
    device: torch.device
    model: nn.Module  # on the CPU, with its starting weights
    about: dict[str, Any]  # the fields of a checkpoint that stay the same
    micro_batches: int  # of an optimizer step
    stamp: dict[str, Any]
    start: StartPoint
    trained_on: int = 0  # images to evaluate that were trained on, by earlier runs too

    @property
    def paths(self) -> RunPaths:
        """Where the run lies."""
        return RunPaths(Path(self.config.output_dir), self.config.name)


def begin_plan(
    flags: FrozenConfigDict, progress: Progress, resume: ResumePoint | None
) -> tuple[StartPoint, torch.device]:
    """Take what the snapshot says, choose the device, and seed everything; all do so together.

    Nothing may draw random numbers until the model is built.

    Raises:
        InputError: the snapshot or the device cannot be used.
    """
    start = open_start_point(flags, progress, resume)
    with failing_together():
        return start, open_device(flags)


def complete_plan(
    config: FrozenConfigDict,
    data: Data,
    start: StartPoint,
    device: torch.device,
    model: nn.Module,
    num_tokens: int,
    command: str,
) -> Plan:
    """Check the config against device and snapshot, and put together what is to be stamped.

    Args:
        config: config of the run, all resolved.
        model: model on the CPU, with its starting weights.
        num_tokens: tokens of one image.
        command: command line as typed.

    Raises:
        InputError: a resumed run was started otherwise, or the device cannot train it as asked.
    """
    normalization = config.normalization.to_dict()
    experiment, facts = experiment_of(config, start.known), data.facts()
    micro_batches = plan_micro_batches(config, num_tokens, device, world_size())
    if start.resume is not None:
        check_same_run(config, experiment, facts, start.resume.header)
    of_model = {"normalization": normalization, "micro_batches": micro_batches}
    stamp = build_env_stamp(config, experiment, command, device, {**facts, **of_model})
    about = about_run(config, data.train.classes, facts["carving"], stamp["config_hash"])
    earlier = None if start.resume is None else start.resume.stamp
    stamp = with_session(stamp, start.progress.step, earlier)
    return Plan(config, experiment, data, facts, device, model, about, micro_batches, stamp, start)


def with_images(
    plan: Plan, digests: list[Digests], trained: np.ndarray, changes: Mapping[str, list[str]]
) -> Plan:
    """Return the plan with what checkpoints and stamp say of its images, once they are checked.

    Args:
        plan: plan of a run whose images were not looked at yet.
        digests: of the whole splits, train first.
        trained: set of the images that the weights of `--pretrained` were trained on.
        changes: ids of images that changed since the run was started, by what became of them.
    """
    data, images = plan.data, plan.start.images
    images.trained = union(images.trained, trained)
    images.add(data, digests)
    own, earlier = (
        count_trained(data.full_eval, data.eval, digests[1], known)
        for known in (images.trained, trained)
    )
    note = f" ({earlier} of them by the run of --pretrained)" if earlier else ""
    warn_of_trained(own, len(data.eval), note)
    about = {
        **plan.about,
        "trained_images": to_tensor(images.trained),
        "val_images": to_tensor(digest_set(digests[1])),
    }
    stamp = plan.stamp
    if changes:
        *sessions, last = stamp["sessions"]
        stamp = {**stamp, "sessions": [*sessions, {**last, "data_changes": stamped(changes)}]}
    return replace(plan, about=about, stamp=stamp, trained_on=own)


@dataclass(frozen=True)
class TrainingRun:
    """A training run at work, in one of its processes."""

    plan: Plan
    writer: RunWriter
    learner: Learner
    steps: StepLoader
    normalize: Normalizer
    meter: TrainMeter
    best_keeper: BestKeeper
    snapshots: SnapshotStore
    parts: dict[str, Part]  # as `PARTS` has them

    def save(self) -> None:
        """Save a snapshot; all processes call it together.

        Raises:
            RunError: it cannot be written, or a loss that was not read yet is not finite.
        """
        plan, step = self.plan, self.plan.start.progress.step
        epoch, samples = divmod(step * plan.config.train_batch_size, len(plan.data.train))
        with failing_together():
            beside = self.writer.keep_whole()
        header = Header(
            **beside,
            step=step,
            epoch=epoch,
            samples_of_epoch=samples,
            config=with_absolute_paths(plan.config.to_dict()),
            experiment=plan.experiment,
            data=plan.facts,
        )
        self.snapshots.save(header, self.parts)
        plan.start.progress.saved = step

    def log_training(self, learning_rate: float) -> dict[str, float]:
        """Read the meter, and write and return the scalars since its last reading."""
        progress, events = self.plan.start.progress, self.plan.start.events
        scalars = {**self.meter.read(), "lr": learning_rate}
        self.best_keeper.trouble.note_losses(progress.step, self.meter.last_losses)
        with failing_together():
            events.log_training(scalars, progress.step, progress.is_eval_due(self.plan.config))
        return scalars


@contextmanager
def start(plan: Plan) -> Iterator[TrainingRun]:
    """Start the planned run; save a snapshot if it is asked to stop, or images or room are lost.

    Raises:
        InputError: another process writes this run.
        RunError: something cannot be written, or a cache cannot be built.
        KeyboardInterrupt: the run was stopped by SIGINT.
        Terminated: the run was stopped by SIGTERM.
    """
    progress, resume = plan.start.progress, plan.start.resume
    if resume is not None:
        is_other = is_changed(resume, plan.experiment, plan.stamp)
        forget_lost_best(progress, plan.paths, is_other, plan.stamp["sessions"])
    learner = build_learner(plan.model.to(plan.device), plan.config)
    with failing_together():
        if resume is not None and is_main():
            learner.check_state(resume.states["learner"])
    writer = RunWriter(plan.paths, plan.stamp, plan.data.eval, plan.start.events)
    with locked_run(plan.paths, plan.config.take_over) as renew_lock:
        snapshots = SnapshotStore(plan.paths, plan.config.keep, renew_lock)
        with failing_together():
            # Before the scalars after it are forgotten.
            if resume is not None and resume.chosen is not None and is_main():
                snapshots.promote(resume.chosen)
            writer.begin(progress.step, is_resumed=resume is not None and resume.stamp is not None)
        run = _build_run(plan, learner, snapshots, writer)
        try:
            # Not before: building a cache is to end at the first signal.
            with stop_requests():
                try:
                    yield run
                except (Stopped, RunError, OSError, MemoryError, RuntimeError) as end:
                    is_whole = isinstance(end, Stopped | LoadingFailed) or is_common_shortage(end)
                    if is_whole and progress.is_save_left:
                        run.save()
                    if not isinstance(end, Stopped):
                        raise
                    log.info("stopped by %s after step %d; --resume continues", end, progress.step)
                    raise stop_by(end.signum) from end
        finally:
            writer.write_stamp(skipped_images=plan.start.bad_images.facts(), writer=NONE)


def _build_run(
    plan: Plan, learner: Learner, snapshots: SnapshotStore, writer: RunWriter
) -> TrainingRun:
    """Build what trains and evaluates, and restore the rest of a snapshot."""
    config, device, train = plan.config, plan.device, plan.data.train
    resume, step = plan.start.resume, plan.start.progress.step
    normalize = Normalizer(plan.about["normalization"], device)
    ids_of = functools.partial(ids_of_step, train, config.seed, config.train_batch_size)
    meter = TrainMeter(step, ids_of)
    learner.model.train()
    if world_size() > 1:
        blank = torch.zeros(1, 3, config.img_size, config.img_size, device=device)
        warm_up_exchange(learner.shared, blank)
        # Dropout is to differ from process to process.
        torch.manual_seed(derive_seed(config.seed, "process", rank()))
    late = {"learner": learner, "meter": meter, "random_state": RandomState(device)}
    if resume is not None:
        resume.restore(late)
    every = plan.start.parts | late
    bad_images = plan.start.bad_images
    told = config, plan.data, learner.model
    with failing_together():  # features need the weights
        train_batches, eval_batches = training_loaders(
            *told, plan.micro_batches, step, normalize, bad_images.note
        )
    meter.start_clock()  # features or a cache may have taken minutes
    evaluator = Evaluator(config, eval_batches, normalize, bad_images.note)
    trouble = Trouble(config, len(train.classes))
    return TrainingRun(
        plan,
        writer,
        learner,
        StepLoader(train_batches, plan.micro_batches, bad_images),
        normalize,
        meter,
        BestKeeper(evaluator, writer, learner.variants(), plan.about, plan.trained_on, trouble),
        snapshots,
        {name: every[name] for name in PARTS},
    )
