"""Fine-tune a Vision Transformer: parse, check, wire, and the training loop in the open.

    python train.py --name demo --dataset synthetic --model_type testing --img_size 64 \
        --num_steps 300 --train_batch_size 32 --learning_rate 0.05

What a run reads and leaves behind: README.md. Imports that cost seconds (torch) stand inside the
functions: a wrong flag or path is refused before them.
"""

import functools
import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import FrozenConfigDict

from models.configs import get_config, num_tokens, patch_sizes
from utils.config import parse_train_args, resolve_length
from utils.console import entrypoint, log, progress
from utils.data_utils import RunPaths, Subset, open_subset, prepare_images, seed_everything
from utils.dataset import Split
from utils.errors import InputError, named_failures

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader

    from utils.engine import Normalizer
    from utils.run import Run


@dataclass
class Data:
    """The splits of a run and the parts of them that it uses."""

    train_split: Split
    eval_split: Split
    train: Subset
    eval: Subset

    def facts(self) -> dict[str, Any]:
        """What the env stamp says of the data."""
        evaluated = {f"eval_{k}": v for k, v in self.eval_split.identity().items() if k != "name"}
        return {
            "dataset": {**self.train_split.identity(), **evaluated},
            "tiny_train_subset": self.train.identity,
            "tiny_infer_subset": self.eval.identity,
        }


@dataclass
class TrainingState:
    """What changes during training besides model, optimizer and schedule."""

    step: int = 0  # optimizer steps done
    best: dict[str, Any] | None = None  # metrics of the best evaluation so far


@dataclass
class Evaluator:
    """Evaluates the model in training, and keeps it and its predictions if it is the best yet."""

    config: FrozenConfigDict
    model: "nn.Module"
    loader: "DataLoader"
    normalize: "Normalizer"
    run: "Run"
    checkpoint_fields: dict[str, Any]  # of utils.checkpoint.Checkpoint, those that never change

    def __call__(self, state: TrainingState) -> None:
        """Evaluate at `state.step`; ties keep the earlier checkpoint."""
        from utils.checkpoint import Checkpoint, checkpoint_id, save_checkpoint
        from utils.engine import evaluate
        from utils.metrics import summarize

        with progress(len(self.loader.dataset), "eval", "img") as bar:
            evaluation = evaluate(self.model, self.loader, self.normalize, bar)
        metrics = {"split": self.config.eval_split, "step": state.step}
        metrics |= summarize(evaluation.logits, evaluation.labels)
        self.run.log_evaluation(metrics, state.step)
        if state.best is not None and metrics["accuracy"] <= state.best["accuracy"]:
            return
        # To the CPU once: the id and the file both read them there.
        weights = {key: value.detach().cpu() for key, value in self.model.state_dict().items()}
        metrics["checkpoint_id"] = checkpoint_id(weights)
        save_checkpoint(
            self.run.paths.checkpoint,
            Checkpoint(
                **self.checkpoint_fields, step=state.step, metrics=metrics, state_dict=weights
            ),
        )
        self.run.export(evaluation, metrics, self.config.export_logits)
        state.best = metrics


def open_data(config: FrozenConfigDict) -> Data:
    """Read the lists of both splits; no image is opened."""
    train_split, train = open_subset(config, "train")
    eval_split, evaluated = open_subset(config, "eval")
    shared = len(set(train.split.ids) & set(evaluated.split.ids))
    if shared:
        log.warning("warning: %d evaluated samples are also trained on", shared)
    return Data(train_split, eval_split, train, evaluated)


def load_weights(
    model: "nn.Module", config: FrozenConfigDict, classes: Sequence[str]
) -> dict[str, Any]:
    """Start `model` from a checkpoint of ours; returns that checkpoint's normalisation."""
    from models.pretrained import load_pretrained
    from utils.checkpoint import load_checkpoint

    path = Path(config.pretrained)
    checkpoint = load_checkpoint(path)
    theirs, ours = (f"{its.model_type} at {its.img_size} px" for its in (checkpoint, config))
    if theirs != ours:
        raise InputError(f"--pretrained {path} is {theirs}, not {ours}")
    try:
        report = load_pretrained(model, checkpoint.state_dict, checkpoint.classes == list(classes))
    except ValueError as error:
        raise InputError(f"--pretrained {path} does not fit {ours}: {error}") from error
    log.info(
        "pretrained %s: %d loaded, %d new, %d unused",
        path, len(report.loaded), len(report.new), len(report.unused),
    )  # fmt: skip
    return checkpoint.normalization


def train_loop(
    config: FrozenConfigDict,
    state: TrainingState,
    model: "nn.Module",
    loader: "DataLoader",
    normalize: "Normalizer",
    run: "Run",
    evaluate_now: Evaluator,
) -> None:
    """Train to `config.num_steps`, evaluating now and then and after the last step."""
    from models.losses import classification_loss
    from utils.engine import TrainMeter, train_step
    from utils.scheduler import build_optimizer, build_scheduler

    loss_fn = functools.partial(classification_loss, smoothing=config.smoothing_value)
    optimizer = build_optimizer(model, config, model.no_weight_decay())
    scheduler = build_scheduler(optimizer, config)
    meter = TrainMeter(state.step, config.train_batch_size)
    batches = iter(loader)
    model.train()
    with progress(config.num_steps, "train", "step") as bar:
        while state.step < config.num_steps:
            (learning_rate, *_) = scheduler.get_last_lr()
            micro_batches = list(itertools.islice(batches, config.gradient_accumulation_steps))
            result = train_step(
                model, loss_fn, optimizer, micro_batches, normalize, config.max_grad_norm
            )
            scheduler.step()
            state.step += 1
            meter.add(result)
            bar.update()

            is_last = state.step == config.num_steps
            is_eval_due = is_last or state.step % config.eval_every == 0
            if is_eval_due or state.step % config.log_every == 0:
                # The only reading of the device: a reading a step would cost more than the step.
                scalars = {**meter.read(), "lr": learning_rate}
                run.log_scalars("train", scalars, state.step)
                bar.set_postfix(loss=f"{scalars['loss']:.4f}", lr=f"{learning_rate:.2e}")
                if bar.disable:  # no terminal, no bar: a line instead
                    shown = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
                    log.info("step %d/%d  %s", state.step, config.num_steps, shown)
            if is_eval_due:
                evaluate_now(state)
                meter.restart()  # an evaluation is no training time


def train(config: FrozenConfigDict, data: Data, state: TrainingState, command: str) -> None:
    """Wire everything, make the first writes, train, summarise."""
    from models.build import build_model
    from utils.dist_util import build_env_stamp, check_mps_batch, choose_device, config_hash
    from utils.engine import Normalizer
    from utils.pipeline import NORMALIZATION, eval_loader, train_loader
    from utils.run import Run

    classes, micro_batches = data.train_split.classes, config.gradient_accumulation_steps
    model_config = get_config(config.model_type, config.img_size)
    device, reason = choose_device(config.device, config.prefer_mps)
    log.info("device %s (%s)", device, reason)
    check_mps_batch(device, config.train_batch_size, micro_batches, num_tokens(model_config))

    seed_everything(config.seed)
    model = build_model(model_config, len(classes))
    normalization = NORMALIZATION
    if config.pretrained is None:
        log.warning("warning: no --pretrained: starting from random weights")
    else:
        normalization = load_weights(model, config, classes)
    facts = {**data.facts(), "normalization": normalization}
    stamp = build_env_stamp(config, command, device, facts)
    prepare_images(config, (data.train_split, data.eval_split), (data.train.split, data.eval.split))

    run = Run(RunPaths(Path(config.output_dir), config.name), stamp, data.eval.split)
    model.to(device)
    normalize = Normalizer(normalization, device)
    train_batches = train_loader(
        data.train.split, config.img_size, config.train_batch_size // micro_batches,
        config.num_steps * micro_batches, config.seed, config.num_workers, device,
    )  # fmt: skip
    eval_batches = eval_loader(
        data.eval.split, config.img_size, config.eval_batch_size, config.num_workers, device
    )
    checkpoint_fields = {
        "model_type": config.model_type,
        "model_config": model_config.to_dict(),
        "dataset": config.dataset,
        "classes": list(classes),
        "img_size": config.img_size,
        "normalization": normalization,
        "config_hash": config_hash(config),
    }
    evaluator = Evaluator(config, model, eval_batches, normalize, run, checkpoint_fields)
    train_loop(config, state, model, train_batches, normalize, run, evaluator)
    run.finish(state.best)


@entrypoint
def main(argv: Sequence[str]) -> None:
    """Argv to a finished run."""
    config = parse_train_args(argv, patch_sizes())
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
