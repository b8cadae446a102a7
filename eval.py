"""Evaluate a checkpoint: everything about the model comes from the checkpoint itself.

    python eval.py --name demo_eval --checkpoint output/demo/checkpoints/ckpt.bin

It writes what a training run writes but a checkpoint. Imports that cost seconds (torch) stand
inside the functions: a wrong flag or path is refused before them.
"""

import utils.environment  # isort: split

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import FrozenConfigDict

from models.configs import model_names
from utils.cli.flags import experiment_of
from utils.cli.resolve import parse_eval, resolve_config, resolve_from_checkpoint
from utils.console import log
from utils.data.subsets import warn_of_trained
from utils.data_utils import RunPaths
from utils.dataset import choose_images, dataset_names, open_eval_data, prepare_images
from utils.entrypoint import entrypoint, less_memory, named_failures
from utils.errors import InputError
from utils.files import sha256_file
from utils.processes import failing_together, is_main, joined_processes
from utils.run.folder import check_images_stay, check_run_can_start

if TYPE_CHECKING:
    import torch

    from models.vit import Backbone
    from utils.data.splits import Split
    from utils.run.checkpoint import Checkpoint


def load_model(checkpoint: "Checkpoint", path: str) -> "Backbone":
    """Build the model of a checkpoint with its weights, on the CPU.

    Raises:
        InputError: the checkpoint's weights are not of the model that it describes.
    """
    from models.build import rebuild_model
    from models.pretrained.formats import WeightsError

    try:
        return rebuild_model(checkpoint.model_config, checkpoint.classes, checkpoint.state_dict)
    except WeightsError as error:
        raise InputError(f"checkpoint {path} {error}; name a run's ckpt.bin") from error


def selected_on(checkpoint: "Checkpoint") -> str | None:
    """Return the split by which a checkpoint was chosen: a probe evaluates another one."""
    return checkpoint.metrics.get("selected_on", checkpoint.metrics.get("split"))


class Plan(NamedTuple):
    """All decisions of an evaluation."""

    config: FrozenConfigDict
    split: "Split"  # the samples to evaluate
    device: "torch.device"
    model: "Backbone"  # on the device
    checkpoint: "Checkpoint"
    stamp: dict[str, Any]
    trained_on: int | str  # images to evaluate that were trained on; "unknown" of old checkpoints


def plan_evaluation(flags: FrozenConfigDict, command: str) -> Plan:
    """Decide and check everything; writes only images that are still to be drawn or unpacked."""
    from utils.dist_util import build_env_stamp, open_device
    from utils.run.checkpoint import checkpoint_id, load_checkpoint
    from utils.run.weights import Past

    with failing_together():
        checkpoint = load_checkpoint(Path(flags.checkpoint))
        told = resolve_from_checkpoint(flags, checkpoint._asdict())
        data = open_eval_data(flags, checkpoint._asdict())
        check_images_stay(flags, data.full_eval)
        device = open_device(flags)
        model = load_model(checkpoint, flags.checkpoint).to(device)
    (digests,) = prepare_images(data, {**flags, **told})
    with failing_together():
        data, trained_on = choose_images(data, digests, checkpoint.known_images)
        trained_on = say_what_is_known(flags, checkpoint, trained_on, len(data.eval))
        model_told = {"model": checkpoint.model_config, "normalization": checkpoint.normalization}
        model_told |= Past(checkpoint.public_weights).decided
        config = resolve_config(flags, told, data.decided, model_told)
        facts = {
            **data.facts(),
            "selected_on": selected_on(checkpoint),
            "normalization": checkpoint.normalization,
            "checkpoint": str(Path(config.checkpoint).resolve()),
            "checkpoint_sha256": sha256_file(Path(config.checkpoint)),
            "checkpoint_id": checkpoint_id(checkpoint.state_dict),
        }
        stamp = build_env_stamp(config, experiment_of(config), command, device, facts)
    return Plan(config, data.eval, device, model, checkpoint, stamp, trained_on)


def say_what_is_known(
    flags: FrozenConfigDict, checkpoint: "Checkpoint", trained_on: int, images: int
) -> int | str:
    """Log how far the figures can be trusted.

    Args:
        flags: flags of the evaluation.
        checkpoint: the checkpoint to evaluate.
        trained_on: number of the images to evaluate that it knows to be trained on.
        images: number of images to evaluate.

    Returns:
        That number, or "unknown": an older checkpoint knows of none.
    """
    if checkpoint.older_rules:
        log.warning("warning: %s %s", flags.checkpoint, checkpoint.older_rules)
        return "unknown"
    warn_of_trained(trained_on, images)
    return trained_on


def evaluate(plan: Plan) -> None:
    """Make the first writes, evaluate, write the rest, and say how good it is."""
    from utils.data.batches import Normalizer
    from utils.data.loaders import eval_loader
    from utils.evaluation.evaluate import Evaluator
    from utils.evaluation.features import write_features
    from utils.run.features import features_of_run
    from utils.run.lock import locked_run
    from utils.run.scalars import EventLog
    from utils.run.writer import RunWriter
    from utils.training.step_loader import BadImages

    config, split, step = plan.config, plan.split, plan.checkpoint.step
    paths = RunPaths(Path(config.output_dir), config.name)
    writer = RunWriter(paths, plan.stamp, split, EventLog())
    with locked_run(paths, config.take_over) as renew_lock:
        with failing_together():
            writer.begin()
        with failing_together():
            loader = eval_loader(config, split, plan.device)
        normalize = Normalizer(plan.checkpoint.normalization, plan.device)
        bad_images = BadImages(config.skip_bad_images)
        evaluator = Evaluator(config, loader, normalize, bad_images.note)
        evaluation, metrics = evaluator.evaluate(plan.model, step, selected_on(plan.checkpoint))
        metrics |= {
            "checkpoint_id": plan.stamp["checkpoint_id"],
            "trained_on_images": plan.trained_on,
        }
        with failing_together():
            features = None
            if config.export_features:
                told = config, split, normalize, bad_images.note
                features = features_of_run(plan.model, *told)
            renew_lock()
            if features is not None and is_main():
                write_features(paths.features, features)
            writer.log_evaluation(metrics)
            writer.write_evaluation(evaluation, metrics, config.export_logits)
            writer.write_stamp(skipped_images=bad_images.facts())
            writer.finish({"": metrics})


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Argv to a finished evaluation."""
    with joined_processes():
        with failing_together():
            choices = {"dataset": dataset_names(), "model_type": model_names()}
            flags = parse_eval(argv, choices)
            check_run_can_start(flags)
        with named_failures(
            lambda: f"evaluating {flags.checkpoint}, which is whole", lambda: less_memory(flags)
        ):
            evaluate(plan_evaluation(flags, f"eval.py {shlex.join(argv)}"))


if __name__ == "__main__":
    sys.exit(main())
