"""Record how far training is, and decide what is due. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ml_collections import FrozenConfigDict

from utils.schema import dict_of, fields, is_count, is_finite, is_json, is_text

METRICS = {"split": is_text, "step": is_count, "accuracy": is_finite}  # the ones that are read


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # optimizer steps done
    evaluated: int = 0  # the step that was last evaluated
    # Metrics of the best evaluation so far, of the raw weights ("") and the averaged ones ("ema").
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    since_best: int = 0  # evaluations since the last better one
    saved: int | None = None  # the step of the newest snapshot on disk, which knows it itself
    is_torn: bool = False  # in the middle of a change: what fails now leaves no state to be saved

    STATE: ClassVar = {
        "step": is_count,
        "evaluated": is_count,
        "best": dict_of(lambda value: is_json(value) and fields(METRICS)(value)),
        "since_best": is_count,
    }

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold a block that changes the state of a run; if it fails, the state is half changed."""
        self.is_torn = True
        yield
        self.is_torn = False

    def is_eval_due(self, config: FrozenConfigDict) -> bool:
        """Return whether the weights of this step are to be evaluated and have not been."""
        is_time = self.step == config.num_steps or self.step % config.eval_every == 0
        return is_time and self.evaluated < self.step

    def is_log_due(self, config: FrozenConfigDict) -> bool:
        """Return whether the scalars of training are to be read after this step."""
        return self.is_eval_due(config) or self.step % config.log_every == 0

    def is_save_due(self, config: FrozenConfigDict) -> bool:
        """Return whether to save after this step; an evaluation saves anyway."""
        return self.step % config.save_every == 0 and not self.is_eval_due(config)

    def is_over(self, config: FrozenConfigDict) -> bool:
        """Return whether training ends here: all steps are done, or patience has run out."""
        return self.step >= config.num_steps or self.is_out_of_patience(config)

    def is_out_of_patience(self, config: FrozenConfigDict) -> bool:
        """Return whether `--patience` evaluations were no better than one before."""
        return config.patience is not None and self.since_best >= config.patience

    def forget_best(self, *variants: str) -> None:
        """Forget the best evaluations of these variants of the weights; one is due again."""
        for variant in variants:
            self.best.pop(variant, None)
        self.evaluated = 0  # even if all steps are done
        self.since_best = 0  # patience must not end the run before

    @property
    def is_save_left(self) -> bool:
        """Return whether the state is whole, and not on disk."""
        return not self.is_torn and self.saved != self.step

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept, as plain data."""
        return {key: getattr(self, key) for key in self.STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for key in self.STATE:
            setattr(self, key, state[key])
