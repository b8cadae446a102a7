"""One training step, one evaluation. Knows no writer and no file.

Shapes: B batch, S samples, C classes, H heads.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.ddp import Gather, gather_features, without_exchange
from utils.errors import RunError
from utils.interrupts import until_stop
from utils.learner import Learner
from utils.pipeline import Batch
from utils.presets import Preset, crop_to_image
from utils.processes import rank, world_size
from utils.steps import Step

# (model output, labels, shares of the classes or None, share of the samples, gather) to a scalar
Loss = Callable[[NamedTuple, Tensor, Tensor | None, float, Gather | None], Tensor]


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
    learner: Learner, objective: Loss, step: Step, normalize: Normalizer, max_grad_norm: float
) -> StepResult | None:
    """Make one optimizer step over micro-batches; nothing is read back from the device.

    The loss is the mean over micro-batches, each weighing as many as it has samples. If the learner
    is joint, it is the loss of all micro-batches together, whatever their number: their outputs are
    kept, and each is computed again when its gradient arrives (Gao et al. 2021, arXiv 2101.06983,
    section 3.2).

    Args:
        learner: learner with its model in training mode.
        objective: loss of the samples that it is given together.
        step: micro-batches of the step.
        normalize: brings images to the device.
        max_grad_norm: L2 norm to which the gradient is clipped.

    Returns:
        What the step reports; None if it has no sample: then nothing has a gradient and moves.
    """
    optimizer = learner.optimizer
    if not step.micro_batches:
        optimizer.step()
        return None
    if learner.is_joint and len(step.micro_batches) > 1:
        loss, correct = _joint_pass(learner, objective, step, normalize)
    else:
        loss, correct = _accumulating_pass(learner, objective, step, normalize)
    grad_norm = torch.nn.utils.clip_grad_norm_(learner.model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, correct, grad_norm, step.samples)


def _accumulating_pass(
    learner: Learner, objective: Loss, step: Step, normalize: Normalizer
) -> tuple[Tensor, Tensor]:
    """Add up the gradients of the micro-batches; return loss and number of right samples."""
    loss, correct = 0.0, 0
    last = len(step.micro_batches) - 1
    for number, (batch, counts) in enumerate(zip(*step, strict=True)):
        # Gradients meet once a step, in the last backward pass.
        exchange = nullcontext() if number == last else without_exchange(learner.shared)
        with exchange:
            output = learner.shared(normalize(batch.images))
            own_loss, own_correct = _judge(objective, output, [batch], counts)
            own_loss = own_loss / (step.samples / sum(counts))
            own_loss.backward()
        loss = loss + own_loss.detach()
        correct = correct + own_correct
    return loss, correct


def _joint_pass(
    learner: Learner, objective: Loss, step: Step, normalize: Normalizer
) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the loss of all micro-batches together; return as the above.

    The last one is not computed again: its backward pass is the first, and through the shared
    model, so that the processes exchange their gradients once.
    """
    counts = [sum(column) for column in zip(*step.counts, strict=True)]
    mine = [by_rank[rank()] for by_rank in step.counts]
    batches = [batch for batch, count in zip(step.micro_batches, mine, strict=True) if count]
    *first, last = batches or step.micro_batches[:1]
    outputs = [learner.model.checkpointed_forward(normalize(batch.images)) for batch in first]
    output = _joined([*outputs, learner.shared(normalize(last.images))])
    loss, correct = _judge(objective, output, [*first, last], counts)
    loss.backward()
    return loss.detach(), correct


def _judge(
    objective: Loss, output: NamedTuple, batches: Sequence[Batch], counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the loss of the samples of all processes, and how many are right in this process.

    Args:
        objective: loss of the samples.
        output: model output for this process's samples.
        batches: batches of these samples.
        counts: samples by rank; if there are none here, `output` is that of a blank image.
    """
    device = output.logits.device
    labels = torch.cat([batch.labels for batch in batches]).to(device)
    targets = None
    if batches[0].targets is not None:
        targets = torch.cat([batch.targets for batch in batches]).to(device)
    own = counts[rank()]
    share = own * world_size() / sum(counts)
    loss = objective(output, labels, targets, share, gather_features(counts))
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
) -> Evaluation | None:
    """Logits and selected parts of the samples that the loader yields; None if there are none.

    It ends early when the run is asked to stop. The model is put into eval mode and back into the
    mode it was in.

    Args:
        model: on the device of `normalize`.
        loader: of batches.
        normalize: brings images to the device.
        preset: by which the images were cropped.
        flips: whether logits are the mean over each image and its mirror image; parts are the
            image's own.
        bar: counts samples.

    Raises:
        RunError: an image cannot be decoded.
    """
    was_training = model.training
    model.eval()
    logits, parts, labels, positions, sizes = [], [], [], [], []
    for batch in until_stop(loader):
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
