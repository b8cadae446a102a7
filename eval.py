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
from typing import TYPE_CHECKING

from ml_collections import FrozenConfigDict

from models.configs import model_names
from utils.config import parse_eval_args, resolve_from_checkpoint, resolve_model
from utils.console import log
from utils.data_utils import RunPaths, seed_everything
from utils.dataset import open_subset, prepare_images
from utils.entrypoint import entrypoint, less_memory, named_failures
from utils.errors import InputError
from utils.files import sha256_file
from utils.processes import failing_together, joined_processes, main_first, world_size

if TYPE_CHECKING:
    from models.vit import Backbone
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


def check_classes(checkpoint: "Checkpoint", dataset: str, classes: Sequence[str]) -> None:
    """Refuse a dataset whose classes are not the checkpoint's."""
    if checkpoint.classes != list(classes):
        raise InputError(
            f"--dataset {dataset} ({len(classes)} classes) contradicts the checkpoint's class "
            f"list, {checkpoint.dataset} ({len(checkpoint.classes)} classes)"
        )


def evaluate_checkpoint(config: FrozenConfigDict, command: str) -> None:
    """Check, wire, make the first writes, evaluate, export, summarise."""
    from utils.data.batches import Normalizer
    from utils.data.loaders import eval_loader
    from utils.dist_util import build_env_stamp, choose_device
    from utils.evaluation.evaluate import Evaluator
    from utils.run.checkpoint import checkpoint_id, load_checkpoint
    from utils.run.writer import own_run

    with failing_together():
        device, reason = choose_device(config.device, config.prefer_mps, world_size())
        log.info("device %s (%s)", device, reason)
        checkpoint = load_checkpoint(Path(config.checkpoint))
        config = resolve_from_checkpoint(config, checkpoint._asdict())
        config = resolve_model(config, checkpoint.model_config, checkpoint.normalization)
        split, subset = open_subset(config, "eval")
        check_classes(checkpoint, split.dataset, split.classes)
        seed_everything(config.seed)
        model = load_model(checkpoint, config.checkpoint).to(device)
    weights_id = checkpoint_id(checkpoint.state_dict)
    selected_on = checkpoint.metrics.get("split")
    facts = {
        "dataset": split.identity(),
        "carving": checkpoint.carving if config.val_fraction is not None else None,
        "selected_on": selected_on,
        "tiny_train_subset": "none",
        "tiny_infer_subset": subset.identity,
        "normalization": checkpoint.normalization,
        "checkpoint": str(Path(config.checkpoint).resolve()),
        "checkpoint_sha256": sha256_file(Path(config.checkpoint)),
        "checkpoint_id": weights_id,
    }
    with failing_together():
        stamp = build_env_stamp(config, command, device, facts)
    with failing_together(), main_first():
        prepare_images(config, (split,), (subset.split,))

    paths = RunPaths(Path(config.output_dir), config.name)
    with own_run(paths, stamp, subset.split) as run:
        with failing_together():
            loader = eval_loader(config, subset.split, device)
        normalize = Normalizer(checkpoint.normalization, device)
        evaluator = Evaluator(config, loader, normalize)
        evaluation, metrics = evaluator.evaluate(model, checkpoint.step, selected_on)
        metrics["checkpoint_id"] = weights_id
        with failing_together():
            run.log_evaluation(metrics, checkpoint.step)
            run.export(evaluation, metrics, config.export_logits)
            run.finish({"": metrics})


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Argv to a finished evaluation."""
    with joined_processes():
        with failing_together():
            config = parse_eval_args(argv, model_names())
        with named_failures(
            lambda: f"evaluating {config.checkpoint}, which is whole", lambda: less_memory(config)
        ):
            evaluate_checkpoint(config, f"eval.py {shlex.join(argv)}")


if __name__ == "__main__":
    sys.exit(main())
