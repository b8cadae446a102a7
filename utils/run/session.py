"""Start a planned training run: make its first writes, and wire what trains."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from utils.console import log
from utils.data.batches import Normalizer, ids_of_step
from utils.data.loaders import eval_loader, train_loader
from utils.data_utils import derive_seed
from utils.dataset import labelmap
from utils.evaluation.evaluate import Evaluator
from utils.processes import failing_together, is_main, rank, world_size
from utils.run.best import BestKeeper
from utils.run.lock import locked_run
from utils.run.plan import Plan
from utils.run.resume import PARTS
from utils.run.snapshot import Header, Part, SnapshotStore
from utils.run.writer import RunWriter
from utils.signals import Stopped, stop_by, stop_requests
from utils.training.ddp import warm_up_exchange
from utils.training.learner import Learner, build_learner
from utils.training.meter import TrainMeter
from utils.training.random_state import RandomState
from utils.training.step_loader import StepLoader


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
        seen = step * plan.config.train_batch_size
        epoch, samples = divmod(seen, len(plan.data.train))
        header = Header(
            run_id=self.writer.stamp["run_id"],
            step=step,
            epoch=epoch,
            samples_of_epoch=samples,
            config=plan.config.to_dict(),
            experiment=plan.experiment,
            data=plan.facts,
        )
        with failing_together():
            plan.start.events.flush()
        self.snapshots.save(header, self.parts)
        plan.start.progress.saved = step

    def evaluate_and_keep_best(self) -> None:
        """Evaluate all variants of the weights, and keep those that are best."""
        self.best_keeper.update(self.plan.start.progress)

    def log_training(self, learning_rate: float) -> dict[str, float]:
        """Read the meter, and write and return the scalars since its last reading."""
        progress, events = self.plan.start.progress, self.plan.start.events
        scalars = {**self.meter.read(), "lr": learning_rate}
        with failing_together():
            is_eval_due = progress.is_eval_due(self.plan.config)
            events.log_training(scalars, progress.step, is_eval_due)
        return scalars


@contextmanager
def start(plan: Plan) -> Iterator[TrainingRun]:
    """Start the planned run, and save a snapshot when it is asked to stop.

    Raises:
        InputError: another process writes this run.
        RunError: something cannot be written, or a cache cannot be built.
        KeyboardInterrupt: the run was stopped by SIGINT.
        Terminated: the run was stopped by SIGTERM.
    """
    progress, resume = plan.start.progress, plan.start.resume
    learner = build_learner(plan.model.to(plan.device), plan.config)
    snapshots = SnapshotStore(plan.paths, plan.config.keep)
    split = plan.data.eval
    classes = labelmap(split.dataset, split.classes, split.parents)
    writer = RunWriter(plan.paths, plan.stamp, split, classes, plan.start.events)
    with locked_run(plan.paths):
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
                except Stopped as stopped:
                    if progress.saved != progress.step:
                        run.save()
                    log.info(
                        "stopped by %s after step %d; --resume continues", stopped, progress.step
                    )
                    raise stop_by(stopped.signum) from stopped
        finally:
            writer.write_stamp(skipped_images=plan.start.bad_images.facts())


def _build_run(
    plan: Plan, learner: Learner, snapshots: SnapshotStore, writer: RunWriter
) -> TrainingRun:
    """Build what trains and evaluates, and restore the rest of a snapshot."""
    config, device, train = plan.config, plan.device, plan.data.train
    resume, step = plan.start.resume, plan.start.progress.step
    normalize = Normalizer(plan.about["normalization"], device)
    with failing_together():
        train_batches = train_loader(config, train, plan.micro_batches, device, step)
        eval_batches = eval_loader(config, plan.data.eval, device)
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
    evaluator = Evaluator(config, eval_batches, normalize)
    return TrainingRun(
        plan,
        writer,
        learner,
        StepLoader(train_batches, plan.micro_batches, plan.start.bad_images),
        normalize,
        meter,
        BestKeeper(evaluator, writer, learner.variants(), plan.about),
        snapshots,
        {name: every[name] for name in PARTS},
    )
