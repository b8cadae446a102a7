"""Fine-tune a Vision Transformer: plan, start, the loop, finish.

    python train.py --name demo --dataset synthetic --model_type testing --img_size 64 \
        --num_steps 300 --train_batch_size 32 --learning_rate 0.05

What a run reads and leaves behind: README.md. Imports that cost seconds (torch) stand inside the
functions: a wrong flag or path is refused before them.
"""

import utils.environment  # isort: split

import functools
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import FrozenConfigDict

from models.configs import ModelConfigError, get_config, model_names, num_tokens
from models.pretrained.zoo import ZOO
from utils.cli.resolve import (
    describe_length,
    parse_train,
    resolve_config,
    resolve_length,
    run_to_resume,
)
from utils.console import log, log_table, progress_bar, show_training
from utils.dataset import Data, dataset_names, open_data, prepare_images
from utils.entrypoint import entrypoint, less_memory, named_failures, refused
from utils.processes import failing_together, joined_processes
from utils.run.folder import (
    check_can_be_resumed,
    check_images_stay,
    check_run_can_start,
    where_it_failed,
)
from utils.training.progress import Progress

if TYPE_CHECKING:
    from models.build import ModelPlan
    from models.pretrained.weights import Pretrained
    from models.vit import Backbone
    from utils.data_utils import RunPaths
    from utils.hub import Fetched
    from utils.run.session import Plan, ResumePoint, TrainingRun
    from utils.run.weights import Past


def read_resume_point(asked: "tuple[RunPaths, str] | None") -> "ResumePoint | None":
    """Read the snapshot to resume from, if a run is to be resumed; all processes call it together.

    Raises:
        InputError: it cannot be used.
        RunError: memory ran out.
    """
    if asked is None:
        return None
    from utils.run.session import open_resume_point

    with named_failures(lambda: "reading the snapshot of --resume", lambda: "end other programs"):
        return open_resume_point(*asked)


def read_weights(
    found: "Fetched", profile: str, key: str | None = None
) -> "tuple[Pretrained, Past]":
    """Read the weights of `--pretrained`, and what earlier training has left in them.

    Raises:
        InputError: the file is damaged, or contradicts another flag.
        WeightsError: the weights cannot be used.
        ProfileError: a file beside the weights cannot be used.
    """
    from models.pretrained.weights import open_pretrained, own_pretrained
    from utils.run.weights import Past, load_own

    own = load_own(found.path, profile, key)
    if own is None:
        row = ZOO.get(found.record.get("name"))
        known = None if row is None else row.profile
        return open_pretrained(found.path, profile, key, known), Past(found.record)
    weights = own_pretrained(own.state_dict, own.model_config, own.normalization, own.classes)
    past = Past(
        own.public_weights,
        own.known_images.trained,
        own.fitted_on,
        own.model_config.get("head", "token"),
        own.known_images.of_head,
    )
    return weights, past


def check_weights(path: Path, profile: str, key: str | None, model_type: str) -> None:
    """Raise if the weights in a file are of another model type.

    Raises:
        InputError: they are, or cannot be used.
    """
    from models.pretrained.weights import ProfileError, WeightsError, adapt_config
    from utils.run.weights import find_weights

    with refused(f"--pretrained {path}:", WeightsError, ProfileError, OSError):
        found = find_weights(str(path), ZOO)
        adapt_config(get_config(model_type), read_weights(found, profile, key)[0])


def build_planned_model(
    config: FrozenConfigDict, found: "Fetched | None", classes: Sequence[str]
) -> "tuple[ModelPlan, Backbone, Past]":
    """Plan the model that flags and weights ask for, and build it on the CPU.

    Returns:
        Plan, model, and what earlier training has left in its weights.

    Raises:
        InputError: the weights cannot be used.
    """
    from models.build import plan_model
    from models.pretrained.weights import ProfileError, WeightsError
    from utils.run.weights import Past

    weights, past = None, Past()
    with refused(f"--pretrained {config.pretrained}:", WeightsError, ProfileError, OSError):
        if found is not None:
            weights, past = read_weights(found, config.pretrained_profile, config.pretrained_key)
            if weights.assumed:
                log.warning("warning: %s; --pretrained_profile says otherwise", weights.assumed)
            if past.fitted_on and config.head != past.head:
                note = (
                    f"its head was fitted by a probe with --head {past.head}, so --head "
                    f"{config.head} starts anew"
                )
                weights = weights._replace(classes=None, notes=(*weights.notes, note))
        else:
            log.warning("warning: no --pretrained: starting from random weights")
        plan = plan_model(config, weights, classes)
        model, report = plan.build()
    if report is not None:
        title = f"pretrained {config.pretrained}: layout {plan.weights.layout}"
        log_table(title, {**report.summary(), "notes": "; ".join(plan.weights.notes) or "none"})
    return plan, model, past


def build_resumed_model(
    config: FrozenConfigDict, before: Mapping[str, Any], classes: Sequence[str]
) -> "tuple[ModelPlan, Backbone, Past]":
    """Build the model of the run that is resumed; its weights come from the snapshot, later.

    Args:
        config: config of the flags.
        before: config of the snapshot, which knows the images that weights were trained on.
        classes: class names.

    Raises:
        InputError: the snapshot describes a model that cannot be.
    """
    from models.build import plan_resumed_model
    from utils.run.weights import Past

    with refused("--resume: the snapshot has an unusable", ModelConfigError):
        plan = plan_resumed_model(config, before["model"], before["normalization"], len(classes))
    return plan, plan.build()[0], Past(before.get("public_weights", {}))


def plan_run(
    flags: FrozenConfigDict,
    data: Data,
    progress: Progress,
    resume: "ResumePoint | None",
    command: str,
) -> "Plan":
    """Decide and check everything; writes only images that are still to be drawn or unpacked."""
    from utils.run.session import begin_plan, complete_plan, with_images
    from utils.run.weights import check_head_is_unbiased, find_weights

    start, device = begin_plan(flags, progress, resume)
    digests, changes, before = None, {}, {}
    samples = len(data.train)
    if resume is not None:
        # First, since what changed decides what is trained on.
        digests = prepare_images(data, flags)
        with failing_together():
            data, digests, changes = start.images.resume(flags, data, digests)
        before = resume.header.config
        # The run is as long as it was, with some images more or less.
        samples = round(before["num_steps"] * before["train_batch_size"] / before["epochs"])
        build = functools.partial(build_resumed_model, before=before)
    else:
        build = functools.partial(build_planned_model, found=find_weights(flags.pretrained, ZOO))
    with failing_together():
        config = resolve_config(flags, resolve_length(flags, samples, before))
        for line in describe_length(config, samples):
            log.info("%s", line)
        model_plan, model, past = build(config, classes=data.train.classes)
        config = resolve_config(config, data.decided, model_plan.decided | past.decided)
        tokens = num_tokens(model_plan.config)
        plan = complete_plan(config, data, start, device, model, tokens, command)
    if digests is None:
        digests = prepare_images(data, flags)
    with failing_together():
        if model_plan.keep_head:
            check_head_is_unbiased(past, config.pretrained, data, digests)
        return with_images(plan, digests, past.trained_images, changes)


def train(plan: "Plan", run: "TrainingRun") -> None:
    """Train to the end; evaluate and save now and then and after the last step."""
    from models.losses import build_objective
    from utils.training.train_step import train_step

    config, progress = plan.config, plan.start.progress
    learner, meter = run.learner, run.meter
    split = plan.data.train
    objective = build_objective(config, split.labels, len(split.classes), plan.device)
    if plan.start.resume is not None:
        log.info("resuming at step %d of %d", progress.step, config.num_steps)
    if progress.saved is None:
        run.save()  # a disk that is too small says so now
    with progress_bar(config.num_steps, "train", "step", progress.step) as bar:
        while True:
            if progress.is_eval_due(config):
                run.best_keeper.update(progress)
                run.save()
                meter.restart()  # neither is training time
            if progress.is_over(config):
                break
            step = next(run.steps)
            with progress.changing():
                result = train_step(learner, objective, step, run.normalize, config.max_grad_norm)
                learning_rate = learner.advance()
                progress.step += 1
                meter.add(result, run.steps.waited)
            bar.update()
            if meter and progress.is_log_due(config):
                # The only reading of the device: a reading a step would cost more than the step.
                show_training(run.log_training(learning_rate), progress.step, bar)
            if progress.is_save_due(config):
                run.save()


def finish(plan: "Plan", run: "TrainingRun") -> None:
    """Say how training ended, and where everything lies."""
    config, progress = plan.config, plan.start.progress
    if progress.is_out_of_patience(config):
        log.info("ended at step %d: %d evaluations were no better", progress.step, config.patience)
    run.best_keeper.vouch(progress)
    with failing_together():
        run.writer.finish(
            progress.best,
            data_wait_fraction=run.meter.wait_fraction,
            skipped_images=len(plan.start.bad_images.ids),
        )


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Argv to a finished run."""
    with joined_processes():
        with failing_together():
            configs = {name: get_config(name) for name in model_names()}
            choices = {"dataset": dataset_names(), "model_type": configs, "pretrained": ZOO}
            asked = run_to_resume(argv, choices)
            if asked is not None:
                check_can_be_resumed(*asked)
        resume = read_resume_point(asked)
        with failing_together():
            run = None if resume is None else resume.header._asdict()
            flags = parse_train(argv, choices, check_weights, run)
            is_new = resume is None or resume.stamp is None
            check_run_can_start(flags, is_resumed=not is_new)
            data = open_data(flags)
            if is_new:
                check_images_stay(flags, data.full_train, data.full_eval)
        progress = Progress()
        with named_failures(lambda: where_it_failed(flags, progress), lambda: less_memory(flags)):
            from utils.run.session import start

            plan = plan_run(flags, data, progress, resume, f"train.py {shlex.join(argv)}")
            with start(plan) as run:
                train(plan, run)
                finish(plan, run)


if __name__ == "__main__":
    sys.exit(main())
