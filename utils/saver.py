"""When and what a run saves of itself to go on from."""

from dataclasses import dataclass
from typing import Any

import torch
from ml_collections import FrozenConfigDict

from utils.learner import Learner
from utils.meter import TrainMeter
from utils.processes import (
    failing_together,
    gather_objects_on_main,
    is_main,
    rank,
    world_size,
)
from utils.rng import rng_state, set_rng_state
from utils.run import Run
from utils.snapshot import Snapshot, Snapshots
from utils.steps import Skipped
from utils.training_state import TrainingState


@dataclass(frozen=True)
class Saver:
    """Saves the state of a run, and puts a run into a saved state."""

    config: FrozenConfigDict
    experiment: dict[str, Any]  # `experiment_of(config)` when the run began: files may change
    data: dict[str, Any]  # identity of the splits and subsets
    run: Run
    snapshots: Snapshots
    learner: Learner
    meter: TrainMeter
    skipped: Skipped
    num_samples: int  # of an epoch
    device: torch.device

    def save(self, state: TrainingState) -> None:
        """Write the state, in the process that writes; the others pass their part on.

        Raises:
            RunError: it cannot be written, or a loss that was not read yet is not finite.
        """
        meter = self.meter.state_dict()
        generators = gather_objects_on_main(rng_state(self.device))
        seen = state.step * self.config.train_batch_size
        with failing_together():
            if is_main():
                self.run.flush()
                self.snapshots.save(
                    Snapshot(
                        run_id=self.run.stamp["run_id"],
                        config=self.config.to_dict(),
                        experiment=self.experiment,
                        data=self.data,
                        position={
                            "step": state.step,
                            "epoch": seen // self.num_samples,
                            "samples_of_epoch": seen % self.num_samples,
                        },
                        training=state.to_dict(),
                        learner=self.learner.state_dict(),
                        rng=generators,
                        meter=meter,
                        skipped=list(self.skipped.ids),
                    )
                )
        state.saved = state.step

    def restore(self, snapshot: Snapshot) -> None:
        """Put learner, meter and random generators into the state of `snapshot`, and empty it."""
        self.learner.load_state_dict(snapshot.learner)
        snapshot.learner.clear()  # gigabytes that nobody needs any more
        self.meter.load_state_dict(snapshot.meter)
        # Another number of processes draws other numbers; those of the model's start will do.
        if len(snapshot.rng) == world_size():
            set_rng_state(snapshot.rng[rank()], self.device)
