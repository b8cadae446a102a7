"""What changes during training besides model, optimizer and schedule. Imports no torch."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ml_collections import FrozenConfigDict


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # optimizer steps done
    evaluated: int = 0  # the step that was last evaluated
    # Metrics of the best evaluation so far, of the raw weights and, as "ema", of the averaged ones.
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    since_best: int = 0  # evaluations without a better one
    saved: int | None = None  # the step of the newest state on disk
    # Scalars of training that were logged at `step`, as long as its evaluation is to come: a run
    # that goes on from here logs all of that step anew.
    pending: dict[str, float] = field(default_factory=dict)
    logged: int = 0  # the step whose evaluation TensorBoard has; it may have to be done again

    def is_eval_due(self, config: FrozenConfigDict) -> bool:
        """Whether the weights of this step are to be evaluated, and have not been."""
        is_time = self.step == config.num_steps or self.step % config.eval_every == 0
        return is_time and self.evaluated < self.step

    def is_over(self, config: FrozenConfigDict) -> bool:
        """Whether training ends here: all steps done, or no better evaluation for too long."""
        return self.step >= config.num_steps or self.is_out_of_patience(config)

    def is_out_of_patience(self, config: FrozenConfigDict) -> bool:
        """Whether as many evaluations as `--patience` were no better than one before."""
        return config.patience is not None and self.since_best >= config.patience

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
