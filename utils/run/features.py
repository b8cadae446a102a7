"""Give a run the features of its images, computed once and kept in the cache's folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import FrozenConfigDict
from torch import nn

from utils.cli.flags import CACHE_FOLDER
from utils.data.batches import Normalizer
from utils.data.splits import Split
from utils.evaluation.features import Features, Trunk, features_of
from utils.run.checkpoint import trunk_id


def features_of_run(
    model: nn.Module,
    config: FrozenConfigDict,
    split: Split,
    normalize: Normalizer,
    note_bad: Callable[[Sequence[tuple[str, str]]], None],
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
    return features_of(trunk, config, split, cache_dir, note_bad)
