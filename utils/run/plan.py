"""Complete the plan of a training run: all decisions and checks before its first write."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ml_collections import FrozenConfigDict
from torch import nn

from utils.cli.flags import experiment_of
from utils.data_utils import RunPaths
from utils.dist_util import build_env_stamp, with_session
from utils.processes import world_size
from utils.run.resume import StartPoint, check_same_run, forget_lost_best, is_changed
from utils.training.micro_batches import plan_micro_batches

if TYPE_CHECKING:
    from utils.dataset import Data


@dataclass(frozen=True)
class Plan:
    """All decisions of a training run."""

    config: FrozenConfigDict
    experiment: dict[str, Any]  # what of the config enters its hash
    data: "Data"
    facts: dict[str, Any]  # identity of the data, for stamp and snapshots
    device: torch.device
    model: nn.Module  # on the CPU, with its starting weights
    about: dict[str, Any]  # the fields of a checkpoint that stay the same
    micro_batches: int  # of an optimizer step
    stamp: dict[str, Any]
    start: StartPoint

    @property
    def paths(self) -> RunPaths:
        """Where the run lies."""
        return RunPaths(Path(self.config.output_dir), self.config.name)


def complete_plan(
    config: FrozenConfigDict,
    data: "Data",
    start: StartPoint,
    device: torch.device,
    model: nn.Module,
    num_tokens: int,
    command: str,
) -> Plan:
    """Check the config against device and snapshot, and put together what is to be stamped.

    Args:
        config: config of the run, all resolved.
        data: data of the run.
        start: where training starts.
        device: device of the run.
        model: model on the CPU, with its starting weights.
        num_tokens: tokens of one image.
        command: command line as typed.

    Raises:
        InputError: a resumed run was started otherwise, or the device cannot train it as asked.
    """
    normalization = config.normalization.to_dict()
    experiment, facts = experiment_of(config), data.facts()
    micro_batches = plan_micro_batches(config, num_tokens, device, world_size())
    if start.resume is not None:
        check_same_run(config, experiment, facts, start.resume.header)
    of_model = {"normalization": normalization, "micro_batches": micro_batches}
    stamp = build_env_stamp(config, experiment, command, device, {**facts, **of_model})
    about = {
        "model_type": config.model_type,
        "model_config": config.model.to_dict(),
        "dataset": config.dataset,
        "classes": list(data.train.classes),
        "img_size": config.img_size,
        "preset": config.preset,
        "carving": facts["carving"] or {},
        "normalization": normalization,
        "config_hash": stamp["config_hash"],
    }
    earlier = None if start.resume is None else start.resume.stamp
    stamp = with_session(stamp, start.progress.step, earlier)
    return Plan(config, experiment, data, facts, device, model, about, micro_batches, stamp, start)


def check_best(plan: Plan) -> None:
    """Forget a best evaluation whose checkpoint is lost; all processes call it together."""
    resume = plan.start.resume
    if resume is not None:
        changed = is_changed(resume, plan.experiment, plan.stamp)
        forget_lost_best(plan.start.progress, plan.paths, changed)
