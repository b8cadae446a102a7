"""One training step, one evaluation. Knows no writer and no file.

Shapes: B batch, S samples, C classes, H heads.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.errors import RunError
from utils.pipeline import Batch, crop_to_image

Loss = Callable[[NamedTuple, Tensor], Tensor]  # (model output, labels) to a scalar
Forward = Callable[[Tensor], NamedTuple]  # images to model output


class StepResult(NamedTuple):
    """Of one optimizer step, on the device: reading it is for the caller to time."""

    loss: Tensor  # mean over the step's samples, scalar
    correct: Tensor  # samples whose top-1 was right, scalar int64


class TrainMeter:
    """Sums over the steps since the last reading; the device is read only when asked."""

    def __init__(self, step: int, batch_size: int) -> None:
        self.step = step
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forget what was added, and start the clock again."""
        self.results: list[StepResult] = []
        self.started = time.perf_counter()

    def add(self, result: StepResult) -> None:
        """Count one more step."""
        self.results.append(result)
        self.step += 1

    def read(self) -> dict[str, float]:
        """Mean loss, accuracy and images per second since the last reading.

        Raises:
            RunError: the loss of a step is not finite; names the first such step.
        """
        # One reading: counts of a window are far below 2**24, where float32 stops being exact.
        columns = [(result.loss, result.correct.float()) for result in self.results]
        losses, correct = zip(*torch.stack([torch.stack(c) for c in columns]).tolist(), strict=True)
        images = len(losses) * self.batch_size
        for step, loss in enumerate(losses, start=self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise RunError(f"the loss of step {step} is {loss}; try a lower --learning_rate")
        seconds = time.perf_counter() - self.started
        self.restart()
        return {
            "loss": math.fsum(losses) / len(losses),
            "accuracy": sum(correct) / images,
            "images_per_second": images / seconds,
        }


class Evaluation(NamedTuple):
    """Of every sample of a split, in split order, on the CPU."""

    logits: np.ndarray  # (S, C) float32
    labels: np.ndarray  # (S,) int64
    # (S, H, 2) float64, relative to the original image: what each head looked at; None if the model
    # selects no parts.
    parts: np.ndarray | None = None


class Normalizer:
    """uint8 images to float32 model input on the device: the one place that does it."""

    def __init__(self, normalization: Mapping[str, Sequence[float]], device: torch.device) -> None:
        self.device = device
        mean, std = (torch.tensor(normalization[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.scale = (1 / (255 * std)).to(device)
        self.shift = (-mean / std).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 on the CPU to the same shape, float32, on the device."""
        # non_blocking can corrupt data on MPS (pytorch #189690) and pays only from pinned memory.
        images = images.to(self.device, non_blocking=self.device.type == "cuda")
        return images.float() * self.scale + self.shift


def _joined(outputs: Sequence[NamedTuple]) -> NamedTuple:
    """The outputs of micro-batches as the output of their batch; a field that is None stays so."""
    columns = zip(*outputs, strict=True)
    return type(outputs[0])(*(None if c[0] is None else torch.cat(c) for c in columns))


def train_step(
    model: nn.Module,
    loss_fn: Loss,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    normalize: Normalizer,
    max_grad_norm: float,
    joint_forward: Forward | None = None,
) -> StepResult:
    """One optimizer step over equally large micro-batches; nothing is read back from the device.

    Args:
        model: in training mode.
        loss_fn: of the samples that it is given together.
        optimizer: of the model's parameters.
        micro_batches: of one optimizer step.
        normalize: brings images to the device.
        max_grad_norm: the gradient is clipped to this L2 norm.
        joint_forward: the model's forward pass, remembering nothing but its output. If given, the
            loss is over all micro-batches together, whatever their number: their outputs are
            cached, and each is computed again when its gradient arrives (Gao et al. 2021,
            arXiv 2101.06983, section 3.2). If None, the loss is the mean over micro-batches.
    """
    labels = [batch.labels.to(normalize.device) for batch in micro_batches]
    if joint_forward is not None and len(micro_batches) > 1:
        output = _joined([joint_forward(normalize(batch.images)) for batch in micro_batches])
        labels = torch.cat(labels)
        loss = loss_fn(output, labels)
        loss.backward()
        total_loss, correct = loss.detach(), _num_correct(output, labels)
    else:
        total_loss, correct = 0.0, 0
        for batch, batch_labels in zip(micro_batches, labels, strict=True):
            output = model(normalize(batch.images))
            loss = loss_fn(output, batch_labels) / len(micro_batches)
            loss.backward()
            total_loss = total_loss + loss.detach()
            correct = correct + _num_correct(output, batch_labels)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(total_loss, correct)


def _num_correct(output: NamedTuple, labels: Tensor) -> Tensor:
    """Samples whose top-1 is right, on the device."""
    return (output.logits.detach().argmax(dim=1) == labels).sum()


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: DataLoader, normalize: Normalizer, bar: tqdm | None = None
) -> Evaluation:
    """Logits and selected parts of every sample of the loader's dataset, in split order.

    The model is put into eval mode and back into the mode it was in.

    Raises:
        RunError: the loader did not yield each sample once in order, an image cannot be decoded,
            or a logit is not finite.
    """
    was_training = model.training
    model.eval()
    logits, parts, labels, positions, sizes = [], [], [], [], []
    for batch in loader:
        output = model(normalize(batch.images))
        logits.append(output.logits)  # stays on the device: no sync a batch
        if output.parts is not None:
            parts.append(output.parts)
        labels.append(batch.labels)
        positions.append(batch.positions)
        sizes.append(batch.sizes)
        img_size = batch.images.shape[-1]
        if bar is not None:
            bar.update(len(batch.labels))
    model.train(was_training)
    seen = torch.cat(positions)
    if not torch.equal(seen, torch.arange(len(loader.dataset))):
        raise RunError(f"evaluated {len(seen)} samples, expected {len(loader.dataset)} in order")
    all_logits = torch.cat(logits).cpu().numpy()
    if not np.isfinite(all_logits).all():
        bad = int((~np.isfinite(all_logits)).any(axis=1).sum())
        raise RunError(f"logits of {bad} of {len(seen)} evaluated samples are not finite")
    points = None
    if parts:
        points = crop_to_image(torch.cat(parts).cpu().numpy(), torch.cat(sizes).numpy(), img_size)
    return Evaluation(all_logits, torch.cat(labels).numpy(), points)
