"""Fine-tune a Vision Transformer: parse, check, wire, and the training loop in the open.

    python train.py --name demo --dataset synthetic --model_type testing --img_size 64 \
        --num_steps 300 --train_batch_size 32 --learning_rate 0.05

What a run reads and leaves behind: README.md. Imports that cost seconds (torch) stand inside the
functions: a wrong flag or path is refused before them.
"""

import functools
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import FrozenConfigDict

from models.configs import get_config, num_tokens, patch_sizes
from utils.config import check_freeze, parse_train_args, resolve_length, resolve_model
from utils.console import entrypoint, log, log_table, progress
from utils.data_utils import RunPaths, seed_everything
from utils.errors import InputError, named_failures
from utils.run_data import Data, carving_of, open_data, prepare_images
from utils.training_state import TrainingState

if TYPE_CHECKING:
    from models.losses import Objective
    from models.start import Start
    from models.vit import Backbone
    from utils.engine import Normalizer
    from utils.evaluator import BestKeeper
    from utils.run import Run
    from utils.steps import Steps


def plan_model(config: FrozenConfigDict, classes: Sequence[str]) -> "Start":
    """What the flags and the weights say of the model, which is not built yet.

    Raises:
        InputError: the weights cannot be used.
    """
    from models.pretrained import open_pretrained, own_pretrained
    from models.start import plan_start
    from utils.checkpoint import is_checkpoint, load_checkpoint

    if config.pretrained is None:
        log.warning("warning: no --pretrained: starting from random weights")
        return plan_start(config, None)
    path, keep_head = Path(config.pretrained), False
    if is_checkpoint(path):
        if config.pretrained_profile != "auto":
            raise InputError(
                f"--pretrained_profile {config.pretrained_profile}: {path} says itself how it was "
                "trained; use --pretrained_profile auto"
            )
        own = load_checkpoint(path)
        weights = own_pretrained(own.state_dict, own.model_config, own.normalization)
        keep_head = own.classes == list(classes)
    else:
        weights = open_pretrained(path, config.pretrained_profile)
    if weights.assumed:
        log.warning("warning: %s; --pretrained_profile says otherwise", weights.assumed)
    return plan_start(config, weights, keep_head)


@contextmanager
def refused_weights_are_input_errors(config: FrozenConfigDict) -> Iterator[None]:
    """`models` knows no command line: what it cannot use becomes one line that names the flag."""
    from models.profiles import ProfileError
    from models.weight_files import WeightsError

    try:
        yield
    except (WeightsError, ProfileError, OSError) as error:
        raise InputError(f"--pretrained {config.pretrained}: {error}") from error


def build_model(config: FrozenConfigDict, start: "Start", num_classes: int) -> "Backbone":
    """The model with its weights, on the CPU; logs what was loaded."""
    from models.start import build_start

    model, report = build_start(config, start, num_classes)
    if report is not None:
        title = f"pretrained {config.pretrained}: layout {start.weights.layout}"
        log_table(title, {**report.summary(), "notes": "; ".join(start.weights.notes) or "none"})
    return model


def train_loop(
    config: FrozenConfigDict,
    state: TrainingState,
    model: "Backbone",
    objective: "Objective",
    steps: "Steps",
    normalize: "Normalizer",
    run: "Run",
    keep_best: "BestKeeper",
) -> float:
    """Train to `config.num_steps`, evaluating now and then and after the last step.

    Returns:
        The share of the time that training waited for images.
    """
    from models.recompute import recomputed
    from utils.engine import TrainMeter, train_step
    from utils.scheduler import build_optimizer, build_scheduler

    is_joint = config.contrastive_scope == "effective"
    joint_forward = functools.partial(recomputed, model) if is_joint else None
    optimizer = build_optimizer(model, config, model.no_weight_decay(), model.layer_of)
    scheduler = build_scheduler(optimizer, config)
    meter = TrainMeter(state.step)
    model.train()
    with progress(config.num_steps, "train", "step") as bar:
        while state.step < config.num_steps:
            (learning_rate, *_) = scheduler.get_last_lr()
            micro_batches = next(steps)
            result = None
            if micro_batches:
                result = train_step(
                    model, objective, optimizer, micro_batches, normalize, config.max_grad_norm,
                    joint_forward,
                )  # fmt: skip
            else:  # all images are bad: nothing has a gradient, so nothing moves
                optimizer.step()
            scheduler.step()
            state.step += 1
            meter.add(result, steps.waited)
            bar.update()

            is_last = state.step == config.num_steps
            is_eval_due = is_last or state.step % config.eval_every == 0
            if meter.results and (is_eval_due or state.step % config.log_every == 0):
                # The only reading of the device: a reading a step would cost more than the step.
                scalars = {**meter.read(), "lr": learning_rate}
                wait_fraction = scalars.pop("wait_fraction")
                run.log_scalars("train", scalars, state.step)
                run.log_scalars("data", {"wait_fraction": wait_fraction}, state.step)
                bar.set_postfix(loss=f"{scalars['loss']:.4f}", lr=f"{learning_rate:.2e}")
                if bar.disable:  # no terminal, no bar: a line instead
                    shown = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
                    log.info("step %d/%d  %s", state.step, config.num_steps, shown)
            if is_eval_due:
                keep_best(state)
                meter.restart()  # an evaluation is no training time
    return meter.wait_fraction


def train(config: FrozenConfigDict, data: Data, state: TrainingState, command: str) -> None:
    """Wire everything, make the first writes, train, summarise."""
    from models.losses import build_objective
    from utils.class_weights import class_weights
    from utils.dist_util import build_env_stamp, choose_device, config_hash
    from utils.engine import Normalizer
    from utils.evaluator import BestKeeper, Evaluator
    from utils.micro_batches import plan_micro_batches
    from utils.pipeline import eval_loader, train_loader
    from utils.run import Run
    from utils.steps import Skipped, Steps

    classes = data.train_split.classes
    device, reason = choose_device(config.device, config.prefer_mps)
    log.info("device %s (%s)", device, reason)
    seed_everything(config.seed)
    with refused_weights_are_input_errors(config):
        start = plan_model(config, classes)
        model = build_model(config, start, len(classes))
    config = resolve_model(config, start.model_config.to_dict(), start.normalization)
    micro_batches = plan_micro_batches(config, num_tokens(start.model_config), device)
    skipped = Skipped(config.skip_bad_images)
    facts = {
        **data.facts(config), "normalization": start.normalization,
        "micro_batches": micro_batches, "skipped_images": skipped.facts(),
    }  # fmt: skip
    stamp = build_env_stamp(config, command, device, facts)
    splits, used = (data.train_split, data.eval_split), (data.train.split, data.eval.split)
    prepare_images(config, splits, used, config.skip_bad_images)

    run = Run(RunPaths(Path(config.output_dir), config.name), stamp, data.eval.split)
    model.to(device)
    normalize = Normalizer(start.normalization, device)
    train_batches = train_loader(config, data.train.split, micro_batches, device)
    eval_batches = eval_loader(config, data.eval.split, device)
    steps = Steps(train_batches, micro_batches, skipped)
    carving = carving_of(config)
    checkpoint_fields = {
        "model_type": config.model_type,
        "model_config": start.model_config.to_dict(),
        "dataset": config.dataset,
        "classes": list(classes),
        "img_size": config.img_size,
        "preset": config.preset,
        "carving": {} if carving is None else carving._asdict(),
        "normalization": start.normalization,
        "config_hash": config_hash(config),
    }
    keep_best = BestKeeper(
        Evaluator(config, eval_batches, normalize, run), model, checkpoint_fields
    )  # fmt: skip
    objective = build_objective(config, class_weights(config, data.train.split, device))
    try:
        waited = train_loop(config, state, model, objective, steps, normalize, run, keep_best)
    finally:
        run.write_stamp(skipped_images=skipped.facts())
    run.finish(state.best, data_wait_fraction=waited, skipped_images=len(skipped.ids))


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Argv to a finished run."""
    config = parse_train_args(argv, patch_sizes())
    check_freeze(config, get_config(config.model_type).depth)
    data = open_data(config)
    config = resolve_length(config, len(data.train.split))
    log.info(
        "%d steps = %.2f epochs of %d samples at batch %d",
        config.num_steps, config.epochs, len(data.train.split), config.train_batch_size,
    )  # fmt: skip
    state = TrainingState()
    checkpoint = RunPaths(Path(config.output_dir), config.name).checkpoint

    def where() -> str:
        last_good = checkpoint if state.best is not None else "none"
        return f"after step {state.step}, last good checkpoint: {last_good}"

    with named_failures(where):
        train(config, data, state, f"train.py {shlex.join(argv)}")


if __name__ == "__main__":
    sys.exit(main())
