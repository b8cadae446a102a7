"""What the loop of a training run works with, wired; everything that writes is behind its lock."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ml_collections import FrozenConfigDict

from utils.console import log
from utils.data.batches import Normalizer, ids_of_step
from utils.data.loaders import eval_loader, train_loader
from utils.data_utils import RunPaths, derive_seed
from utils.dataset import Data
from utils.dist_util import experiment_of
from utils.evaluation.evaluate import Evaluator
from utils.processes import failing_together, rank, world_size
from utils.run.best import BestKeeper
from utils.run.checkpoint import Checkpoint
from utils.run.resume import ResumePoint
from utils.run.snapshot import Saver, Snapshots
from utils.run.writer import RunWriter, own_run
from utils.signals import Stopped, stop_by, stop_requests
from utils.training.ddp import warm_up_exchange
from utils.training.learner import Learner
from utils.training.meter import TrainMeter
from utils.training.progress import Progress
from utils.training.step_loader import BadImages, StepLoader


@dataclass(frozen=True)
class Session:
    """A training run at work, in one of its processes."""

    run: RunWriter
    learner: Learner
    steps: StepLoader
    normalize: Normalizer
    meter: TrainMeter
    best_keeper: BestKeeper
    saver: Saver
    skipped: BadImages


@contextmanager
def open_session(
    config: FrozenConfigDict,
    data: Data,
    learner: Learner,
    micro_batches: int,
    checkpoint: Checkpoint,
    stamp: dict[str, Any],
    past: ResumePoint | None,
    state: Progress,
    device: torch.device,
) -> Iterator[Session]:
    """Make the first writes, and wire what trains, for the length of the block.

    If a process is asked to stop, the state is saved before the block is left.

    Args:
        config: of the run, all resolved.
        data: to train and to evaluate on.
        learner: with its model on the device.
        micro_batches: of an optimizer step.
        checkpoint: the fields that never change; the rest is empty.
        stamp: of the run.
        past: that it goes on from, or None.
        state: how far it is.
        device: that each of them uses.

    Raises:
        InputError: another process writes this run.
        RunError: something cannot be written, or a cache not be built.
        KeyboardInterrupt: the run was stopped by SIGINT.
        Terminated: by SIGTERM.
    """
    paths = RunPaths(Path(config.output_dir), config.name)
    normalize = Normalizer(checkpoint.normalization, device)
    train, evaluated = data.train.split, data.eval.split
    skipped = BadImages(config.skip_bad_images, past.snapshot.skipped if past else ())
    logged_until = None if past is None else past.logged_until
    snapshots = Snapshots(paths, config.keep)

    def make_newest() -> None:
        """A state that was chosen becomes the newest before the scalars after it are forgotten."""
        if past is not None and past.is_chosen:
            snapshots.save(past.snapshot)

    with own_run(paths, stamp, evaluated, logged_until, make_newest) as run:
        with failing_together():
            train_batches = train_loader(config, train, micro_batches, device, state.step)
            eval_batches = eval_loader(config, evaluated, device)
            experiment = experiment_of(config)
        ids_of = functools.partial(ids_of_step, train, config.seed, config.train_batch_size)
        meter = TrainMeter(state.step, ids_of)
        saver = Saver(
            config,
            experiment,
            data.facts(config),
            run,
            snapshots,
            learner,
            meter,
            skipped,
            len(train),
            device,
        )
        learner.model.train()
        if world_size() > 1:
            blank = torch.zeros(1, 3, config.img_size, config.img_size, device=device)
            warm_up_exchange(learner.shared, blank)
            # Dropout is to differ from process to process.
            torch.manual_seed(derive_seed(config.seed, "process", rank()))
        if past is not None:
            saver.restore(past.snapshot)
        with failing_together():
            run.log_training(state.pending, state.step)
        evaluator = Evaluator(config, eval_batches, normalize)
        session = Session(
            run,
            learner,
            StepLoader(train_batches, micro_batches, skipped),
            normalize,
            meter,
            BestKeeper(evaluator, run, learner.variants(), checkpoint),
            saver,
            skipped,
        )
        try:
            # Not before: building a cache is to end at the first signal.
            with stop_requests():
                try:
                    yield session
                except Stopped as stopped:
                    if state.saved != state.step:
                        saver.save(state)
                    log.info("stopped by %s after step %d; --resume goes on", stopped, state.step)
                    raise stop_by(stopped.signum) from stopped
        finally:
            run.write_stamp(skipped_images=skipped.facts())
