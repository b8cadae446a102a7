"""Build the data loaders that feed training and evaluation."""

import functools
import sys
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing.queues import Queue
from pathlib import Path

import torch
from ml_collections import FrozenConfigDict
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from utils.data.batches import Batch, BatchShare, EvalBatches, TrainBatches
from utils.data.cache import open_cache
from utils.data.image_checks import USERS_OWN
from utils.data.images.openers import BadImage
from utils.data.presets import PRESETS, Augmentation
from utils.data.resized_images import CachedImages, FileImages
from utils.data.sample_datasets import FeatureDataset, ImageDataset
from utils.data.splits import Split
from utils.data.transforms import EvalView, Mixing, PatchDropout, TrainView
from utils.data_utils import seed_worker
from utils.errors import NOT_STARTED, Alone, RunError, is_out_of_memory, one_line
from utils.processes import rank, world_size


def _as_it_is(batch: Batch) -> Batch:
    """Return the batch: the dataset hands out whole batches, nothing is to be collated."""
    return batch


def _hand_over(queue: Queue, error: Exception, sent: tuple[int, Batch]) -> None:
    """Send what kept a batch from being sent; Python prints it and drops the batch.

    The main process would wait for it for ever.
    """
    queue.put((sent[0], ExceptionWrapper((type(error), error, error.__traceback__))))


def _begin_worker(worker_id: int) -> None:
    """Prepare a loader process."""
    seed_worker(worker_id)
    Queue._on_queue_feeder_error = _hand_over


class _Loader(DataLoader):
    """A DataLoader that says in one line that its processes cannot be started."""

    def __iter__(self) -> Iterator[Batch]:
        """Start the processes, if there are any.

        Raises:
            Alone: no process, thread, open file or semaphore can be had.
        """
        try:
            return super().__iter__()
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            # What torch tidies up of a loader half begun raises an error that Python would print.
            hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
            traceback.clear_frames(error.__traceback__)
            sys.unraisablehook = hook
            raise Alone(f"loader {NOT_STARTED} ({one_line(error)})") from error


def make_loader(
    dataset: ImageDataset | FeatureDataset,
    batches: Iterable[BatchShare],
    num_workers: int,
    device: torch.device,
) -> DataLoader:
    """Build a loader of `batches`, in their order.

    Args:
        dataset: source of the samples.
        batches: parts of batches for this process.
        num_workers: number of loader processes; changes no batch.
        device: device of the model.
    """
    return _Loader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=_as_it_is,
        # Without its own, each pass over the loader would draw from the global generator.
        generator=torch.Generator().manual_seed(dataset.seed),
        worker_init_fn=_begin_worker,
        pin_memory=device.type == "cuda",  # only there: MPS warns and gains nothing
    )


def _remedy(config: FrozenConfigDict, is_training: bool = False) -> str:
    """Return what to do about a bad image; within a run, to resume it."""
    mend = "replace or remove it" if config.dataset in USERS_OWN else "fetch it again"
    skip = "leave it out by --skip_bad_images 1"
    if is_training:
        mend += " and resume with --allow_change data"
        skip += " --allow_change skip_bad_images"
    return f"{mend}, or {skip}"


def open_images(config: FrozenConfigDict, split: Split, phase: str) -> FileImages | CachedImages:
    """Open the resized images of `split`, from their files or from a cache that is built if absent.

    Args:
        config: config of the run.
        split: samples whose images are opened.
        phase: `train` or `eval`.

    Raises:
        RunError: a cache must be built, and an image is bad or there is no room.
    """
    preset = PRESETS[config.preset]
    size_of = preset.train_size if phase == "train" else preset.eval_size
    files = FileImages(split, functools.partial(size_of, config.img_size))
    may_be_bad = config.skip_bad_images > 0
    if config.cache == "disk":
        side = preset.train_side if phase == "train" else preset.eval_side
        geometry = {"phase": phase, "squash": preset.squash, "side": side(config.img_size)}
        try:
            return open_cache(Path(config.cache_dir), files, geometry, may_be_bad)
        except BadImage as error:
            raise RunError(f"{error}; {_remedy(config)}") from error
    return files


def _patch_dropout(config: FrozenConfigDict) -> PatchDropout | None:
    """Return what chooses the patches of a training image; None: it keeps all."""
    if not config.patch_dropout:
        return None
    model = config.model
    side = (model.img_size - model.patch_size) // model.patch_stride + 1
    return PatchDropout(config.patch_dropout, side**2)


def train_loader(
    config: FrozenConfigDict,
    split: Split,
    micro_batches: int,
    device: torch.device,
    start_step: int = 0,
    features: FeatureDataset | None = None,
) -> DataLoader:
    """Build a loader of this process's part of the micro-batches of a run, in shuffled order.

    Args:
        config: config of the run.
        split: samples of training.
        micro_batches: number of micro-batches of an optimizer step.
        device: device of the model.
        start_step: number of optimizer steps already done.
        features: serves the samples instead of images.

    Raises:
        RunError: as `open_images`.
    """
    step_size = config.train_batch_size
    batches = TrainBatches(
        len(split),
        config.seed,
        range(start_step * step_size, config.num_steps * step_size),
        step_size // micro_batches,
        rank(),
        world_size(),
    )
    if features is not None:
        return make_loader(features, batches, 0, device)
    augmentation = Augmentation(config.augment, config.random_erasing, config.mixup, config.cutmix)
    dataset = ImageDataset(
        split,
        open_images(config, split, "train"),
        TrainView(PRESETS[config.preset], config.img_size, augmentation),
        config.img_size,
        config.seed,
        Mixing(augmentation, len(split.classes)),
        _patch_dropout(config),
        leaves_out_bad=config.skip_bad_images > 0,
        remedy=_remedy(config, is_training=True),
    )
    return make_loader(dataset, batches, config.num_workers, device)


def eval_loader(
    config: FrozenConfigDict,
    split: Split,
    device: torch.device,
    batches: Iterable[BatchShare] | None = None,
    features: FeatureDataset | None = None,
) -> DataLoader:
    """Build a loader of whole batches in split order, of which each process gets some.

    Every sample is in one batch; the last may be smaller, and so are those with bad images.

    Args:
        config: config of the run.
        split: samples of the evaluation.
        device: device of the model.
        batches: batches to yield instead.
        features: serves the samples instead of images.

    Raises:
        RunError: as `open_images`.
    """
    # Features are computed before a run that begins has a snapshot to resume from.
    is_training = batches is None and "num_steps" in config
    if batches is None:
        batches = EvalBatches(len(split), config.eval_batch_size, rank(), world_size())
    if features is not None:
        return make_loader(features, batches, 0, device)
    view = EvalView(PRESETS[config.preset], config.img_size)
    images = open_images(config, split, "eval")
    leaves_out_bad = config.skip_bad_images > 0
    dataset = ImageDataset(
        split,
        images,
        view,
        config.img_size,
        seed=0,
        leaves_out_bad=leaves_out_bad,
        remedy=_remedy(config, is_training),
    )
    return make_loader(dataset, batches, config.num_workers, device)
