"""Fine-tune a Vision Transformer: parse, check, wire, and the training loop in the open.

    python train.py --name demo --dataset synthetic --model_type testing --img_size 64 \
        --num_steps 300 --train_batch_size 32 --learning_rate 0.05

What a run reads and leaves behind: README.md. Imports that cost seconds (torch) stand inside the
functions: a wrong flag or path is refused before them.
"""

import utils.environment  # isort: split

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import FrozenConfigDict

from models.configs import get_config, num_tokens, patch_sizes
from utils.config import check_freeze, parse_train_args, resolve_length, resolve_model
from utils.console import log, log_table, progress_bar, show_training
from utils.data_utils import RunPaths, seed_everything
from utils.dataset import Data, carving_of, open_data, prepare_images
from utils.entrypoint import entrypoint, less_memory, named_failures
from utils.errors import InputError
from utils.processes import failing_together, joined_processes, main_first, on_main, world_size
from utils.training.progress import Progress

if TYPE_CHECKING:
    from models.build import ModelPlan
    from models.losses import Objective
    from models.pretrained.weights import Pretrained
    from models.vit import Backbone
    from utils.run.resume import ResumePoint
    from utils.run.session import Session


def find_past(config: FrozenConfigDict) -> "ResumePoint | None":
    """What the run goes on from, the same in all processes; None for a new one."""
    if config.resume is None:
        return None
    from utils.run.resume import open_resume_point

    return on_main(open_resume_point, config)


def starting_weights(config: FrozenConfigDict) -> "Pretrained | None":
    """Read the weights of `--pretrained`; None without the flag.

    Raises:
        InputError: the file is damaged, or contradicts another flag.
        WeightsError: the weights cannot be used.
        ProfileError: a file beside the weights cannot be used.
    """
    from models.pretrained.weights import open_pretrained, own_pretrained
    from utils.run.checkpoint import is_checkpoint, load_checkpoint

    if config.pretrained is None:
        if config.resume is None:
            log.warning("warning: no --pretrained: starting from random weights")
        return None
    path = Path(config.pretrained)
    if not is_checkpoint(path):
        weights = open_pretrained(path, config.pretrained_profile)
        if weights.assumed:
            log.warning("warning: %s; --pretrained_profile says otherwise", weights.assumed)
        return weights
    if config.pretrained_profile != "auto":
        raise InputError(
            f"--pretrained_profile {config.pretrained_profile}: {path} says itself how it was "
            "trained; use --pretrained_profile auto"
        )
    own = load_checkpoint(path)
    return own_pretrained(own.state_dict, own.model_config, own.normalization, own.classes)


def build_planned_model(
    config: FrozenConfigDict, classes: Sequence[str]
) -> "tuple[ModelPlan, Backbone]":
    """Plan the model that flags and weights ask for, and build it on the CPU.

    Raises:
        InputError: the weights cannot be used.
    """
    from models.build import plan_model
    from models.pretrained.formats import WeightsError
    from models.pretrained.profiles import ProfileError

    try:
        plan = plan_model(config, starting_weights(config), classes)
        model, report = plan.build()
    except (WeightsError, ProfileError, OSError) as error:
        raise InputError(f"--pretrained {config.pretrained}: {error}") from error
    if report is not None:
        title = f"pretrained {config.pretrained}: layout {plan.weights.layout}"
        log_table(title, {**report.summary(), "notes": "; ".join(plan.weights.notes) or "none"})
    return plan, model


def train_loop(
    config: FrozenConfigDict, state: Progress, objective: "Objective", session: "Session"
) -> None:
    """Train to the end, evaluating and saving now and then and after the last step."""
    from utils.training.train_step import train_step

    learner, meter = session.learner, session.meter
    if state.saved is None:
        session.saver.save(state)  # a disk that is too small is to say so now
    with progress_bar(config.num_steps, "train", "step") as bar:
        bar.update(state.step)
        while True:
            if state.is_eval_due(config):
                session.best_keeper.update(state)
                session.saver.save(state)
                meter.restart()  # neither is training time
            if state.is_over(config):
                break
            (learning_rate, *_) = learner.scheduler.get_last_lr()
            step = next(session.steps)
            result = train_step(learner, objective, step, session.normalize, config.max_grad_norm)
            learner.advance()
            state.step += 1
            meter.add(result, session.steps.waited)
            bar.update()

            is_eval_due = state.is_eval_due(config)
            if meter and (is_eval_due or state.step % config.log_every == 0):
                # The only reading of the device: a reading a step would cost more than the step.
                scalars = {**meter.read(), "lr": learning_rate}
                with failing_together():
                    session.run.log_training(scalars, state.step)
                state.pending = scalars if is_eval_due else {}
                show_training(scalars, state.step, bar)
            if state.step % config.save_every == 0 and not is_eval_due:
                session.saver.save(state)


def train(
    config: FrozenConfigDict,
    data: Data,
    past: "ResumePoint | None",
    state: Progress,
    command: str,
) -> None:
    """Check the rest, make the first writes, train, summarise."""
    from models.losses import build_objective
    from utils.dist_util import build_env_stamp, choose_device, config_hash, with_session
    from utils.run.checkpoint import Checkpoint
    from utils.run.resume import check_same_run, computes_otherwise, resolve_best
    from utils.run.session import open_session
    from utils.training.learner import build_learner
    from utils.training.micro_batches import plan_micro_batches

    classes = data.train_split.classes
    with failing_together():
        device, reason = choose_device(config.device, config.prefer_mps, world_size())
        log.info("device %s (%s)", device, reason)
        seed_everything(config.seed)
        plan, model = build_planned_model(config, classes)
        config = resolve_model(config, plan.config.to_dict(), plan.normalization)
        tokens = num_tokens(plan.config)
        micro_batches = plan_micro_batches(config, tokens, device, world_size())
        changes = check_same_run(config, data.facts(config), past.snapshot) if past else {}
    facts = {
        **data.facts(config),
        "normalization": plan.normalization,
        "micro_batches": micro_batches,
    }
    with failing_together():
        stamp = build_env_stamp(config, command, device, facts)
    if past is not None:
        is_other = bool(changes) or computes_otherwise(past, stamp)
        resolve_best(state, RunPaths(Path(config.output_dir), config.name), is_other)
    with failing_together(), main_first():
        splits, used = (data.train_split, data.eval_split), (data.train.split, data.eval.split)
        prepare_images(config, splits, used, config.skip_bad_images)

    carving = carving_of(config)
    checkpoint = Checkpoint(
        model_type=config.model_type,
        model_config=plan.config.to_dict(),
        dataset=config.dataset,
        classes=list(classes),
        img_size=config.img_size,
        preset=config.preset,
        carving={} if carving is None else carving._asdict(),
        normalization=plan.normalization,
        step=0,
        metrics={},
        config_hash=config_hash(config),
        state_dict={},
    )
    learner = build_learner(model.to(device), config)
    objective = build_objective(config, data.train.split.labels, len(classes), device)
    with open_session(
        config,
        data,
        learner,
        micro_batches,
        checkpoint,
        with_session(stamp, state.step, past and past.stamp),
        past,
        state,
        device,
    ) as session:
        train_loop(config, state, objective, session)
        if state.is_out_of_patience(config):
            log.info("ended at step %d: %d evaluations were no better", state.step, config.patience)
        with failing_together():
            session.run.finish(
                state.best,
                data_wait_fraction=session.meter.wait_fraction,
                skipped_images=len(session.skipped.ids),
            )


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Argv to a finished run."""
    with joined_processes():
        with failing_together():
            config = parse_train_args(argv, patch_sizes())
            check_freeze(config, get_config(config.model_type).depth)
            data = open_data(config)
        state = Progress()
        checkpoint = RunPaths(Path(config.output_dir), config.name).checkpoint

        def where() -> str:
            last_good = checkpoint if state.best else "none"
            resume = "" if state.saved is None else f"; --resume goes on from step {state.saved}"
            return f"after step {state.step}, last good checkpoint: {last_good}{resume}"

        with named_failures(where, lambda: less_memory(config)):
            past = find_past(config)
            if past is not None:
                state = past.state()
            earlier = None if past is None else past.snapshot.config
            config = resolve_length(config, len(data.train.split), earlier)
            log.info(
                "%d steps = %.2f epochs of %d samples at batch %d",
                config.num_steps,
                config.epochs,
                len(data.train.split),
                config.train_batch_size,
            )
            train(config, data, past, state, f"train.py {shlex.join(argv)}")


if __name__ == "__main__":
    sys.exit(main())
