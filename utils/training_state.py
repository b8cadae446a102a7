"""What changes during training besides model, optimizer and schedule. Imports no torch."""

from dataclasses import dataclass
from typing import Any


@dataclass
class TrainingState:
    """How far a run has come."""

    step: int = 0  # optimizer steps done
    best: dict[str, Any] | None = None  # metrics of the best evaluation so far
