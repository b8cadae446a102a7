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
from utils.pipeline import Batch
from utils.presets import Preset, crop_to_image

# (model output, labels, shares of the classes or None) to a scalar
Loss = Callable[[NamedTuple, Tensor, Tensor | None], Tensor]
Forward = Callable[[Tensor], NamedTuple]  # images to model output


class StepResult(NamedTuple):
    """Of one optimizer step, on the device: reading it is for the caller to time."""

    loss: Tensor  # mean over the step's samples, scalar
    correct: Tensor  # samples whose top-1 was right, scalar int64
    samples: int


class TrainMeter:
    """Sums over the steps since the last reading; the device is read only when asked."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.total_seconds = self.total_waited = 0.0  # of all readings
        self.restart()

    def restart(self) -> None:
        """Forget what was added, and start the clock again."""
        self.results: list[StepResult] = []
        self.result_steps: list[int] = []  # that they are of
        self.waited = 0.0
        self.started = time.perf_counter()

    def add(self, result: StepResult | None, waited: float) -> None:
        """Count one more step.

        Args:
            result: None if every image of the step was bad.
            waited: seconds that the step waited for its images.
        """
        if result is not None:
            self.results.append(result)
            self.result_steps.append(self.step + 1)
        self.waited += waited
        self.step += 1

    @property
    def wait_fraction(self) -> float:
        """Of the seconds of all readings, the share that was waiting for images."""
        return self.total_waited / self.total_seconds if self.total_seconds else 0.0

    def read(self) -> dict[str, float]:
        """Mean loss, accuracy, images per second and wait fraction since the last reading.

        There must be a result.

        Raises:
            RunError: the loss of a step is not finite; names the first such step.
        """
        # One reading: counts of a window are far below 2**24, where float32 stops being exact.
        columns = [(result.loss, result.correct.float()) for result in self.results]
        losses, correct = zip(*torch.stack([torch.stack(c) for c in columns]).tolist(), strict=True)
        images = sum(result.samples for result in self.results)
        for step, loss in zip(self.result_steps, losses, strict=True):
            if not math.isfinite(loss):
                raise RunError(f"the loss of step {step} is {loss}; try a lower --learning_rate")
        seconds = time.perf_counter() - self.started
        waited = self.waited
        self.total_seconds += seconds
        self.total_waited += waited
        self.restart()
        return {
            "loss": math.fsum(losses) / len(losses),
            "accuracy": sum(correct) / images,
            "images_per_second": images / seconds,
            "wait_fraction": waited / seconds,
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
    micro_batches: Sequence[Batch],
    normalize: Normalizer,
    max_grad_norm: float,
    joint_forward: Forward | None = None,
) -> StepResult:
    """One optimizer step over micro-batches; nothing is read back from the device.

    Args:
        model: in training mode.
        loss_fn: of the samples that it is given together.
        optimizer: of the model's parameters.
        micro_batches: of one optimizer step, none empty; each weighs as many as it has samples.
        normalize: brings images to the device.
        max_grad_norm: the gradient is clipped to this L2 norm.
        joint_forward: the model's forward pass, remembering nothing but its output. If given, the
            loss is over all micro-batches together, whatever their number: their outputs are
            cached, and each is computed again when its gradient arrives (Gao et al. 2021,
            arXiv 2101.06983, section 3.2). If None, the loss is the mean over micro-batches.
    """
    labels = [batch.labels.to(normalize.device) for batch in micro_batches]
    targets = [
        None if batch.targets is None else batch.targets.to(normalize.device)
        for batch in micro_batches
    ]
    samples = sum(map(len, labels))
    if joint_forward is not None and len(micro_batches) > 1:
        output = _joined([joint_forward(normalize(batch.images)) for batch in micro_batches])
        labels = torch.cat(labels)
        loss = loss_fn(output, labels, None if targets[0] is None else torch.cat(targets))
        loss.backward()
        total_loss, correct = loss.detach(), _num_correct(output, labels)
    else:
        total_loss, correct = 0.0, 0
        for batch, batch_labels, shares in zip(micro_batches, labels, targets, strict=True):
            output = model(normalize(batch.images))
            loss = loss_fn(output, batch_labels, shares) / (samples / len(batch_labels))
            loss.backward()
            total_loss = total_loss + loss.detach()
            correct = correct + _num_correct(output, batch_labels)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(total_loss, correct, samples)


def _num_correct(output: NamedTuple, labels: Tensor) -> Tensor:
    """Samples whose top-1 is right, on the device."""
    return (output.logits.detach().argmax(dim=1) == labels).sum()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    normalize: Normalizer,
    preset: Preset,
    flips: bool = False,
    bar: tqdm | None = None,
) -> Evaluation:
    """Logits and selected parts of every sample of the loader's dataset, in split order.

    The model is put into eval mode and back into the mode it was in.

    Args:
        model: on the device of `normalize`.
        loader: of batches in split order.
        normalize: brings images to the device.
        preset: by which the images were cropped.
        flips: whether logits are the mean over each image and its mirror image; parts are the
            image's own.
        bar: counts samples.

    Raises:
        RunError: the loader did not yield each sample once in order, an image cannot be decoded,
            or a logit is not finite.
    """
    was_training = model.training
    model.eval()
    logits, parts, labels, positions, sizes = [], [], [], [], []
    for batch in loader:
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
    seen = torch.cat(positions)
    if not torch.equal(seen, torch.arange(len(loader.dataset))):
        raise RunError(f"evaluated {len(seen)} samples, expected {len(loader.dataset)} in order")
    all_logits = torch.cat(logits).cpu().numpy()
    if not np.isfinite(all_logits).all():
        bad = int((~np.isfinite(all_logits)).any(axis=1).sum())
        raise RunError(f"logits of {bad} of {len(seen)} evaluated samples are not finite")
    points = None
    if parts:
        points = crop_to_image(
            torch.cat(parts).cpu().numpy(), torch.cat(sizes).numpy(), img_size, preset
        )
    return Evaluation(all_logits, torch.cat(labels).numpy(), points)
