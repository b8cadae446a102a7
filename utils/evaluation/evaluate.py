"""Evaluate a model on a split, in one process or in several, without writing a file.

Shapes: S samples, C classes, H heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from ml_collections import FrozenConfigDict
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.console import progress_bar
from utils.data.batches import Normalizer
from utils.data.presets import PRESETS, Preset, crop_to_image
from utils.errors import RunError
from utils.evaluation.metrics import summarize
from utils.processes import (
    failing_together,
    from_main,
    gather_objects,
    gather_objects_on_main,
    gather_rows,
    is_main,
)
from utils.signals import Stopped, stop_signal, until_stop


class Evaluation(NamedTuple):
    """What a model says of samples of a split, on the CPU."""

    logits: np.ndarray  # (S, C) float32
    labels: np.ndarray  # (S,) int64
    # (S, H, 2) float64: the point that each head looked at, as fractions of the original image's
    # width and height; None if the model selects no parts.
    parts: np.ndarray | None
    positions: np.ndarray  # (S,) int64, positions of the samples in the split


Bad = tuple[str, str]  # id and trouble of an image left out; without an id, trouble of a cache


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    normalize: Normalizer,
    preset: Preset,
    flips: bool = False,
    bar: tqdm | None = None,
    bad: list[Bad] | None = None,
) -> Evaluation | None:
    """Return logits and selected parts of the samples that the loader yields; None without any.

    It ends early when the run is asked to stop. The model is put into eval mode and back into the
    mode it was in.

    Args:
        model: model on the device of `normalize`.
        loader: loader of batches.
        normalize: normalizer that also moves images to the device.
        preset: preset by which the images were cropped.
        flips: whether logits are the mean over each image and its mirror image; parts are always
            the image's own.
        bar: progress bar that counts samples.
        bad: takes what the loader tells of images and caches.

    Raises:
        RunError: an image cannot be decoded.
    """
    was_training = model.training
    model.eval()
    logits, parts, labels, positions, sizes = [], [], [], [], []
    for batch in until_stop(loader):
        if bad is not None:
            bad.extend(batch.bad)
        if not len(batch.labels):
            continue
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


def whole_evaluation(
    evaluations: Sequence[Evaluation | None], num_samples: int, skipped: int = 0
) -> Evaluation:
    """Return the evaluations of all processes as one, in split order.

    Args:
        evaluations: evaluation of each process; None if it had no sample.
        num_samples: number of samples in the split.
        skipped: number of them that were left out.

    Raises:
        RunError: a sample is missing or there twice, or a logit is not finite.
    """
    there = [evaluation for evaluation in evaluations if evaluation is not None]
    columns = [
        None if column[0] is None else np.concatenate(column) for column in zip(*there, strict=True)
    ]
    seen = Evaluation(*columns) if columns else None
    order = np.argsort(seen.positions, kind="stable") if seen else np.arange(0)
    expected = num_samples - skipped
    if not expected:
        raise RunError(f"none of the {num_samples} images to evaluate can be decoded")
    is_whole = seen is not None and len(np.unique(seen.positions)) == len(order) == expected
    if not is_whole or seen.positions.max() >= num_samples:
        raise RunError(f"evaluated {len(order)} samples, expected {expected}, each once")
    if not np.isfinite(seen.logits).all():
        bad = int((~np.isfinite(seen.logits)).any(axis=1).sum())
        raise RunError(f"logits of {bad} of {len(order)} evaluated samples are not finite")
    return Evaluation(*(None if column is None else column[order] for column in seen))


@dataclass(frozen=True)
class Evaluator:
    """Evaluate models on the split of a run, in all its processes."""

    config: FrozenConfigDict
    loader: DataLoader
    normalize: Normalizer
    note_bad: Callable[[Sequence[Bad]], None]  # is told of images left out; raises if too many are

    def evaluate(
        self, model: nn.Module, step: int, selected_on: str
    ) -> tuple[Evaluation | None, dict[str, Any]]:
        """Return the evaluation of `model` on the whole split, and its metrics.

        Only the main process gets the evaluation, the others None; all get the metrics.

        Args:
            model: model on the device of `normalize`.
            step: number of optimizer steps that its weights have had.
            selected_on: the split whose accuracy chose, or is to choose, these weights.

        Raises:
            RunError: an image cannot be decoded, more are bad than may be, or a logit is not
                finite.
            Stopped: a process was asked to stop.
        """
        config = self.config
        num_samples, bad = len(self.loader.dataset), []
        with failing_together(), progress_bar(num_samples, "eval", "img") as bar:
            own = evaluate(
                model,
                self.loader,
                self.normalize,
                PRESETS[config.preset],
                config.tta == "flip",
                bar,
                bad,
            )
        stop = max(signum for (signum,) in gather_rows([stop_signal()]))
        if stop:
            raise Stopped(stop)
        bad = [each for part in gather_objects(bad) for each in part]
        self.note_bad(bad)
        skipped = sum(sample_id != "" for sample_id, _ in bad)
        evaluation, metrics = None, {}
        evaluations = gather_objects_on_main(own)
        with failing_together():
            if is_main():
                evaluation = whole_evaluation(evaluations, num_samples, skipped)
                metrics = {
                    "split": config.eval_split,
                    "selected_on": selected_on,
                    "step": step,
                    "tta": config.tta,
                    **summarize(evaluation.logits, evaluation.labels),
                    "skipped_images": skipped,
                }
        return evaluation, from_main(metrics)
