"""Fit classifiers to the features of a frozen model, and keep the best linear one as its head.

    python scripts/probe.py --name flowers --dataset flower102 --data_root "$DATA_ROOT" \
        --model_type ViT-S_14 --pretrained dinov2.safetensors

It makes one pass over the images, and leaves what a training run leaves: `ckpt.bin` is a whole
model, whose head is the logistic regression, or else the nearest class mean. A table says how good
each method is. Repeating the command of an interrupted probe continues it.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils.environment  # isort: split

import numpy as np

from models.configs import get_config, model_names
from models.pretrained.zoo import ZOO
from scripts.probing.plan import Plan, open_probe_data, plan_probe
from utils.cli.resolve import parse_probe
from utils.console import log
from utils.data_utils import TRAIN_ALONE, checkpoint_paths
from utils.dataset import dataset_names
from utils.entrypoint import entrypoint, named_failures
from utils.errors import InputError, Terminated
from utils.processes import world_size
from utils.run.folder import check_images_stay, check_run_can_start

if TYPE_CHECKING:
    from utils.data.batches import Normalizer
    from utils.evaluation.features import Features
    from utils.probe.search import Found
    from utils.training.step_loader import BadImages

LESS_MEMORY = "a smaller --img_size, or --features class, needs less"


def extract(plan: Plan, normalize: "Normalizer", bad_images: "BadImages") -> "dict[str, Features]":
    """Return the features of every split that is used, by what it is for (two may be one)."""
    from utils.run.features import features_of_run

    splits = {"train": plan.data.train, "eval": plan.data.eval}
    if plan.val is not None:
        splits["val"] = plan.val.eval
    return {
        role: features_of_run(plan.model, plan.config, split, normalize, bad_images.note)
        for role, split in splits.items()
    }


def find(plan: Plan, features: "Mapping[str, Features]") -> "Found":
    """Fit everything that the flags ask for."""
    from utils.probe.methods import Pool
    from utils.probe.search import Pools, Wanted, search

    config = plan.config
    pools = {role: Pool(each.values, each.labels) for role, each in features.items()}
    wanted = Wanted(
        tuple(config.method.split(",")) if config.method else None,
        config.features,
        tuple(map(int, config.few_shot.split(","))) if config.few_shot else (),
        config.folds,
        config.seed,
    )
    asked = Pools(
        pools["train"],
        None if plan.judge is None else pools[plan.judge_role],
        pools["eval"],
        is_val_fitted=len(plan.fitted_on) > 1,
    )
    return search(asked, len(plan.data.train.classes), wanted)


def report_of(plan: Plan, found: "Found", features: "Mapping[str, Features]") -> dict[str, Any]:
    """Return what `probe.json` holds."""
    from utils.probe.report import make_report

    judge, evaluated = plan.judge, plan.data.eval.name
    labels = features[plan.judge_role].labels
    # A class with one image is judged by no fold.
    counted = len(labels) if judge else int((np.bincount(labels)[labels] > 1).sum())
    return make_report(
        found.rows,
        (judge.name if judge else f"folds of {plan.data.train.name}", counted),
        (evaluated, len(features["eval"].labels)),
        found.accuracies,
        head={
            "method": found.row.method,
            "features": found.row.features,
            "C": found.row.strength,
            "has_converged": found.head.has_converged,
        },
        fitted_on=plan.stamp["fitted_on"],
        few_shot=found.few_shot,
        folds=found.folds,
    )


def write_findings(
    plan: Plan, found: "Found", report: Mapping[str, Any], features: "Mapping[str, Features]"
) -> None:
    """Write the table, the picture of the learning curve and the out-of-fold probabilities."""
    from utils.files import write_json
    from utils.probe.report import draw_curves, write_folds

    paths = plan.paths
    if found.few_shot:
        draw_curves(paths.few_shot, found.few_shot, plan.data.eval.name)
    if found.out_of_fold is not None:
        fitted = [features[role] for role in ("train", "val")[: len(plan.fitted_on)]]
        ids = [sample_id for each in fitted for sample_id in each.ids]
        labels = np.concatenate([each.labels for each in fitted])
        write_folds(paths.folds, ids, labels, found.out_of_fold)
    write_json(paths.probe, report)


def probe(plan: Plan) -> None:
    """Make the first writes, compute features, fit, write the rest, and say how good it is."""
    from scripts.probing.head import HeadKeeper
    from utils.data.batches import Normalizer
    from utils.probe.report import say_report
    from utils.run.lock import locked_run
    from utils.run.scalars import EventLog
    from utils.run.writer import RunWriter
    from utils.training.step_loader import BadImages

    config, paths, evaluated = plan.config, plan.paths, plan.data.eval
    writer = RunWriter(paths, plan.stamp, evaluated, EventLog())
    with locked_run(paths, config.take_over) as renew_lock:
        writer.begin(step=-1, is_resumed=plan.is_resumed)  # the evaluation of step 0 is to come
        if plan.is_resumed:
            log.info("continuing the interrupted probe %s", paths.run)
        bad_images = BadImages(config.skip_bad_images)
        normalize = Normalizer(config.normalization.to_dict(), plan.device)
        features = extract(plan, normalize, bad_images)
        found = find(plan, features)
        of_eval = features["eval"]
        keeper = HeadKeeper(plan, of_eval, len(evaluated) - len(of_eval.ids))
        renew_lock()
        if found.head_of_train is not None:
            path = checkpoint_paths(paths, TRAIN_ALONE).checkpoint
            keeper.save(path, found.head_of_train, found.row, [plan.data.train])
        evaluation, metrics = keeper.save(paths.checkpoint, found.head, found.row, plan.fitted_on)
        writer.log_evaluation(metrics)
        writer.write_evaluation(evaluation, metrics, config.export_logits)
        report = report_of(plan, found, features)
        write_findings(plan, found, report, features)
        writer.write_stamp(skipped_images=bad_images.facts())
        say_report(report)
        writer.finish({"": metrics})


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Argv to a finished probe.

    Raises:
        InputError: a flag, the data or the weights are wrong; nothing is written.
        RunError: an image is damaged, the disk is full, or memory ran out.
    """
    if world_size() > 1:
        raise InputError("the probe runs in one process; start it without torchrun")
    configs = {name: get_config(name) for name in model_names()}
    choices = {"dataset": dataset_names(), "model_type": configs, "pretrained": ZOO}
    flags = parse_probe(argv, choices)
    check_run_can_start(flags)
    data, val = open_probe_data(flags)
    check_images_stay(flags, data.full_train, data.full_eval)
    with named_failures(
        lambda: f"probing {flags.pretrained}; the same command continues", lambda: LESS_MEMORY
    ):
        from train import build_planned_model
        from utils.dist_util import open_device
        from utils.run.weights import find_weights

        device = open_device(flags)
        found = find_weights(flags.pretrained, ZOO)
        built = build_planned_model(flags, found, data.train.classes)
        command = f"scripts/probe.py {shlex.join(argv)}"
        plan = plan_probe(flags, data, val, built, device, command)
        try:
            probe(plan)
        except (KeyboardInterrupt, Terminated):
            log.warning("warning: interrupted; the same command continues %s", plan.paths.run)
            raise


if __name__ == "__main__":
    sys.exit(main())
