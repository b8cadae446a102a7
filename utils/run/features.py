"""Give a run the features of its images, computed once; train on them where they stay the same."""

import functools
from pathlib import Path

from ml_collections import FrozenConfigDict
from torch import nn
from torch.utils.data import DataLoader

from utils.cli.flags import CACHE_FOLDER
from utils.console import log
from utils.data.batches import Normalizer
from utils.data.loaders import eval_loader, train_loader
from utils.data.presets import has_constant_trunk
from utils.data.sample_datasets import FeatureDataset
from utils.data.splits import Split
from utils.dataset import Data
from utils.errors import Terminated
from utils.evaluation.features import Features, NoteBad, Trunk, features_of
from utils.run.checkpoint import trunk_id


def features_of_run(
    model: nn.Module,
    config: FrozenConfigDict,
    split: Split,
    normalize: Normalizer,
    note_bad: NoteBad,
) -> Features:
    """Return what heads may read of each image of a split, as evaluation sees it.

    What is on the disk is read; the rest is computed, in the order of the split, and a computation
    that was killed goes on where it was. Equal for any number of workers, any batch size and any
    head of the model. Takes no part in a collective: the first process that comes computes, the
    others wait at its lock.

    Args:
        model: model on the device of `normalize`, with its weights; its head is not used.
        config: config of the run. Read are `model` (model config), `normalization`, `img_size`,
            `preset` (evaluation's view), `num_workers`, `cache`, `cache_dir`, `output_dir`,
            `dataset`, `skip_bad_images`.
        split: samples of the features.
        normalize: normalizer with the config's normalisation, and the device.
        note_bad: is told of images that cannot be decoded (`BadImages.note`); they have no
            features.

    Raises:
        RunError: an image cannot be decoded, a feature is not finite, or the disk is full.
    """
    cache_dir = Path(config.cache_dir or Path(config.output_dir, CACHE_FOLDER))
    trunk = Trunk(model, trunk_id(model.state_dict()), normalize)
    load = functools.partial(eval_loader, config, split, normalize.device)
    return features_of(trunk, config, split, cache_dir, load, note_bad)


def training_loaders(
    config: FrozenConfigDict,
    data: Data,
    model: nn.Module,
    micro_batches: int,
    step: int,
    normalize: Normalizer,
    note_bad: NoteBad,
) -> tuple[DataLoader, DataLoader]:
    """Build the loaders of training and evaluation, of features where the trunk is constant.

    Args:
        config: config of the run.
        data: the run's splits.
        model: model on the device of `normalize`, with the weights of `step`.
        micro_batches: number of micro-batches of an optimizer step.
        step: number of optimizer steps already done.
        normalize: normalizer with the config's normalisation, and the device.
        note_bad: is told of images that cannot be decoded.

    Raises:
        RunError: as `features_of_run`, or a cache of images cannot be built.
    """
    train, evaluated = None, None
    if has_constant_trunk(config):
        log.info(
            "every image has the same features at every step: they are computed once, and training "
            "reads them instead of images"
        )

        def served(split: Split) -> FeatureDataset:
            try:
                features = features_of_run(model, config, split, normalize, note_bad)
            except (KeyboardInterrupt, Terminated):
                if step == 0:  # there is no snapshot yet
                    log.warning("warning: interrupted; start it again: what is computed is kept")
                raise
            return FeatureDataset(split, features.of(model.read_kinds), features.positions)

        train = served(data.train)
        evaluated = served(data.eval) if config.tta == "none" else None
    device = normalize.device
    return (
        train_loader(config, data.train, micro_batches, device, step, train),
        eval_loader(config, data.eval, device, features=evaluated),
    )
