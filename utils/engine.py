"""One training step, one evaluation. Knows no writer and no file.

Shapes: B batch, S samples, C classes, H heads.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.errors import RunError
from utils.pipeline import Batch
from utils.presets import Preset, crop_to_image
from utils.processes import Gather, Processes
from utils.steps import Step

# (model output, labels, shares of the classes or None, share of the samples, gather) to a scalar
Loss = Callable[[NamedTuple, Tensor, Tensor | None, float, Gather | None], Tensor]
Forward = Callable[[Tensor], NamedTuple]  # images to model output


class StepResult(NamedTuple):
    """Of one optimizer step, on the device: reading it is for the caller to time."""

    # Scalar; its mean over the processes is the mean over the step's samples.
    loss: Tensor
    correct: Tensor  # samples of this process whose top-1 was right, scalar int64
    grad_norm: Tensor  # before it was clipped, scalar
    samples: int  # of all processes


class Evaluation(NamedTuple):
    """Of samples of a split, on the CPU."""

    logits: np.ndarray  # (S, C) float32
    labels: np.ndarray  # (S,) int64
    # (S, H, 2) float64, relative to the original image: what each head looked at; None if the model
    # selects no parts.
    parts: np.ndarray | None
    positions: np.ndarray  # (S,) int64, in the split


class Normalizer:
    """uint8 images to float32 model input on the device: the one place that does it."""

    def __init__(self, normalization: Mapping[str, Sequence[float]], device: torch.device) -> None:
        self.device = device
        mean, std = (torch.tensor(normalization[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.scale = (1 / (255 * std)).to(device)
        self.shift = (-mean / std).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 on the CPU to the same shape, float32, contiguous, on the device."""
        # non_blocking can corrupt data on MPS (pytorch #189690) and pays only from pinned memory.
        # Batches come channels last; contiguous before MPS sees them (mistakes with other layouts).
        images = images.contiguous().to(self.device, non_blocking=self.device.type == "cuda")
        return images.float() * self.scale + self.shift


def _joined(outputs: Sequence[NamedTuple]) -> NamedTuple:
    """The outputs of micro-batches as the output of their batch; a field that is None stays so."""
    columns = zip(*outputs, strict=True)
    return type(outputs[0])(*(None if c[0] is None else torch.cat(c) for c in columns))


def train_step(
    model: nn.Module,
    loss_fn: Loss,
    optimizer: torch.optim.Optimizer,
    step: Step,
    normalize: Normalizer,
    max_grad_norm: float,
    joint_forward: Forward | None = None,
    processes: Processes = Processes(),  # noqa: B008 - frozen: one process
) -> StepResult:
    """One optimizer step over micro-batches; nothing is read back from the device.

    Args:
        model: in training mode, as `processes.wrap` gives it.
        loss_fn: of the samples that it is given together.
        optimizer: of the model's parameters.
        step: its micro-batches; each weighs as many as it has samples.
        normalize: brings images to the device.
        max_grad_norm: the gradient is clipped to this L2 norm.
        joint_forward: the model's forward pass, remembering nothing but its output. If given, the
            loss is over all micro-batches together, whatever their number: their outputs are
            cached, and each is computed again when its gradient arrives (Gao et al. 2021,
            arXiv 2101.06983, section 3.2). If None, the loss is the mean over micro-batches.
        processes: that train together.
    """
    samples = sum(map(sum, step.counts))
    if joint_forward is not None and len(step.micro_batches) > 1:
        loss, correct = _joint_pass(model, loss_fn, step, normalize, joint_forward, processes)
    else:
        loss, correct = 0.0, 0
        last = len(step.micro_batches) - 1
        for number, (batch, counts) in enumerate(zip(*step, strict=True)):
            # Gradients meet once a step, in the last backward pass.
            exchange = nullcontext() if number == last else processes.without_exchange(model)
            with exchange:
                output = model(normalize(batch.images))
                own_loss, own_correct = _judge(loss_fn, output, [batch], counts, processes)
                own_loss = own_loss / (samples / sum(counts))
                own_loss.backward()
            loss = loss + own_loss.detach()
            correct = correct + own_correct
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, correct, grad_norm, samples)


def _joint_pass(
    model: nn.Module,
    loss_fn: Loss,
    step: Step,
    normalize: Normalizer,
    joint_forward: Forward,
    processes: Processes,
) -> tuple[Tensor, Tensor]:
    """The gradient of the loss over all micro-batches together; loss and number of right samples.

    The last one is not computed again: its backward pass is the first, and through `model`, so that
    the processes exchange their gradients once.
    """
    counts = [sum(column) for column in zip(*step.counts, strict=True)]
    mine = [each[processes.rank] for each in step.counts]
    batches = [batch for batch, count in zip(step.micro_batches, mine, strict=True) if count]
    *first, last = batches or step.micro_batches[:1]
    outputs = [joint_forward(normalize(batch.images)) for batch in first]
    output = _joined([*outputs, model(normalize(last.images))])
    loss, correct = _judge(loss_fn, output, [*first, last], counts, processes)
    loss.backward()
    return loss.detach(), correct


def _judge(
    loss_fn: Loss,
    output: NamedTuple,
    batches: Sequence[Batch],
    counts: Sequence[int],
    processes: Processes,
) -> tuple[Tensor, Tensor]:
    """The loss of the samples that the processes have together, and how many are right here.

    Args:
        loss_fn: of the samples.
        output: of this process's.
        batches: that they are in.
        counts: samples by process; if there are none here, `output` is that of a blank image.
        processes: that train together.
    """
    device = output.logits.device
    labels = torch.cat([batch.labels for batch in batches]).to(device)
    targets = None
    if batches[0].targets is not None:
        targets = torch.cat([batch.targets for batch in batches]).to(device)
    own = counts[processes.rank]
    share = own * processes.world_size / sum(counts)
    loss = loss_fn(output, labels, targets, share, processes.gather(counts))
    right = (output.logits.detach().argmax(dim=1) == labels)[:own]
    return loss, right.sum()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    normalize: Normalizer,
    preset: Preset,
    flips: bool = False,
    bar: tqdm | None = None,
    watched: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> Evaluation | None:
    """Logits and selected parts of the samples that the loader yields; None if there are none.

    The model is put into eval mode and back into the mode it was in.

    Args:
        model: on the device of `normalize`.
        loader: of batches.
        normalize: brings images to the device.
        preset: by which the images were cropped.
        flips: whether logits are the mean over each image and its mirror image; parts are the
            image's own.
        bar: counts samples.
        watched: passes batches on, and may end early.

    Raises:
        RunError: an image cannot be decoded.
    """
    was_training = model.training
    model.eval()
    logits, parts, labels, positions, sizes = [], [], [], [], []
    for batch in watched(loader):
        images = normalize(batch.images)
        output = model(images)
        batch_logits = output.logits
        if flips:
            batch_logits = (batch_logits + model(images.flip(-1)).logits) / 2
        logits.append(batch_logits)  # stays on the device: no sync a batch
        if output.parts is not None:
            parts.append(output.parts)
        labels.append(batch.labels)
        positions.append(batch.positions)
        sizes.append(batch.sizes)
        img_size = batch.images.shape[-1]
        if bar is not None:
            bar.update(len(batch.labels))
    model.train(was_training)
    if not logits:
        return None
    points = None
    if parts:
        points = crop_to_image(
            torch.cat(parts).cpu().numpy(), torch.cat(sizes).numpy(), img_size, preset
        )
    return Evaluation(
        torch.cat(logits).cpu().numpy(),
        torch.cat(labels).numpy(),
        points,
        torch.cat(positions).numpy(),
    )


def whole_evaluation(evaluations: Sequence[Evaluation | None], num_samples: int) -> Evaluation:
    """The evaluations of all processes as one, in split order.

    Args:
        evaluations: of each process; None where it had no sample.
        num_samples: of the split.

    Raises:
        RunError: not each sample is there once, or a logit is not finite.
    """
    there = [evaluation for evaluation in evaluations if evaluation is not None]
    columns = [
        None if column[0] is None else np.concatenate(column) for column in zip(*there, strict=True)
    ]
    seen = Evaluation(*columns) if columns else None
    order = np.argsort(seen.positions, kind="stable") if seen else np.arange(0)
    if seen is None or not np.array_equal(seen.positions[order], np.arange(num_samples)):
        raise RunError(f"evaluated {len(order)} samples, expected {num_samples}, each once")
    if not np.isfinite(seen.logits).all():
        bad = int((~np.isfinite(seen.logits)).any(axis=1).sum())
        raise RunError(f"logits of {bad} of {len(order)} evaluated samples are not finite")
    return Evaluation(*(None if column is None else column[order] for column in seen))
