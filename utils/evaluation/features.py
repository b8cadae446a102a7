"""Compute the features of a split once, what heads read of its images, and keep them on disk.

    <cache_dir>/<key>/features.bin   (S, F, D) float32: F kinds of features of S images
    <cache_dir>/<key>/shards.json    SHA-256 of each shard that is whole; what the features are
    <cache_dir>/<key>/ids.json       the S sample ids
    <cache_dir>/<key>.lock           locked by who computes as long as it lives

The key covers everything that the numbers depend on: the images as a cache of them does, weights,
model, size, view, kind of device, threads. Batches have one shape, and a shard is whole batches, so
where a computation was killed changes no bit. A shard is listed after it is synced; what is not
listed, or damaged since, is computed. So is, each time, a shard with an image that cannot be
decoded, since the cause may lie outside the file.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from ml_collections import FrozenConfigDict
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.console import log, progress_bar
from utils.data.batches import BatchShare, EvalBatches, Normalizer
from utils.data.cache import cache_content, cache_key, locked
from utils.data.presets import PRESETS
from utils.data.splits import Split
from utils.errors import RunError, one_line
from utils.files import naming, open_atomic, open_regular, read_regular, sync, write_json
from utils.ownership import make_folder
from utils.signals import started

NoteBad = Callable[[Sequence[tuple[str, str]]], None]  # is told id and trouble of bad images

FORMAT = 1  # raise it when the numbers or their layout change
BATCH = 32  # images at a time; the last batch is filled up
SHARD = 4 * BATCH  # images; what a kill loses at most
# Fields of a model config that change no feature: which of them the head reads, and what is random
# in training. So a probe's checkpoint has the features of the weights that it was fitted on.
NOT_OF_THE_TRUNK = {"pool", "dropout", "drop_path"}
VALUES_FILE, LIST_FILE, IDS_FILE = "features.bin", "shards.json", "ids.json"


class Features(NamedTuple):
    """What heads may read of the N images of a split that can be decoded, in split order."""

    kinds: tuple[str, ...]  # of the F features: POOL_READS in models/configs.py says what they are
    ids: list[str]  # (N,) sample ids
    labels: np.ndarray  # (N,) int64
    positions: np.ndarray  # (N,) int64, positions in the split
    values: np.ndarray  # (N, F, D) float32, mapped from the disk

    def of(self, kinds: Sequence[str]) -> np.ndarray:
        """Return the (N, len(kinds) * D) float32 features of some kinds, concatenated.

        Raises:
            ValueError: there is no such kind.
        """
        if tuple(kinds) == self.kinds:
            return self.values.reshape(len(self.ids), -1)  # still mapped, as a single kind is
        if len(kinds) == 1:
            return self.values[:, self.kinds.index(kinds[0])]
        return np.concatenate([self.of([kind]) for kind in kinds], axis=1)


class Trunk(NamedTuple):
    """A model without its head, and what its features depend on besides."""

    model: nn.Module  # on the device of `normalize`; has `feature_kinds` and `all_features`
    weights: str  # identity of its weights, the head's aside
    normalize: Normalizer


# --- On the disk ----------------------------------------------------------------------------------


class _Store:
    """The shards in a folder; only who holds its lock may use it."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], about: Mapping[str, Any]) -> None:
        make_folder(folder)
        self.values, self.list = folder / VALUES_FILE, folder / LIST_FILE
        self.shape, self.about = shape, about
        self.image_bytes = 4 * shape[1] * shape[2]
        self.whole = self._whole()

    def _whole(self) -> dict[str, str]:
        """Return the SHA-256 of the shards that are listed and intact, by number."""
        try:
            listed = json.loads(read_regular(self.list))["shards"]
            with open_regular(self.values) as file:
                return {n: sha for n, sha in listed.items() if sha == self._sha256(file, int(n))}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}  # absent, or overwritten by something else

    def _sha256(self, file: BinaryIO, number: int) -> str:
        file.seek(number * SHARD * self.image_bytes)
        return hashlib.sha256(file.read(SHARD * self.image_bytes)).hexdigest()

    def is_whole(self, part: BatchShare) -> bool:
        """Return whether a batch lies in a shard that is whole."""
        return str(part.samples[0][1] // SHARD) in self.whole

    def write(self, number: int, rows: np.ndarray, is_to_stay: bool) -> None:
        """Write a shard's (n, F, D) rows; list it once it is on the disk itself, if it may stay."""
        try:
            self.values.touch()
            with self.values.open("r+b") as file:
                file.seek(number * SHARD * self.image_bytes)
                file.write(rows.tobytes())
                file.flush()
                sync(file.fileno())
        except OSError as error:
            why = error.strerror or one_line(error)
            raise RunError(f"{self.values} cannot be written ({why})") from error
        if is_to_stay:
            self.whole[str(number)] = hashlib.sha256(rows.tobytes()).hexdigest()
            write_json(self.list, {**self.about, "shards": self.whole})

    def read(self) -> np.ndarray:
        """Map all values."""
        return np.memmap(self.values, np.float32, "r", shape=self.shape)


# --- Computation ----------------------------------------------------------------------------------


@torch.no_grad()
def _batch_features(trunk: Trunk, images: Tensor, places: Tensor) -> Tensor:
    """Return the (n, F, D) features of n images, each at its place in a batch of fixed size."""
    batch = torch.zeros(BATCH, *images.shape[1:], dtype=images.dtype)
    batch[places] = images
    return trunk.model.all_features(trunk.normalize(batch)).cpu()[places]


def _computed(
    trunk: Trunk, loader: DataLoader, parts: Sequence[BatchShare], note_bad: NoteBad
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield positions and features of what can be decoded of each of some batches."""
    for part, batch in zip(parts, started(loader), strict=True):
        note_bad(batch.bad)
        places = batch.positions - part.samples[0][1]
        yield batch.positions, _batch_features(trunk, batch.images, places)


def _fill(
    store: _Store,
    parts: Sequence[BatchShare],
    computed: Iterator[tuple[Tensor, Tensor]],
) -> np.ndarray:
    """Write the shards of some batches; return the positions of images that have no features."""
    total, lost = store.shape[0], []
    done = total - sum(len(part.samples) for part in parts)
    with progress_bar(total, "features", "img", done) as bar:
        for part, (positions, values) in zip(parts, computed, strict=True):
            number, first = divmod(part.samples[0][1], SHARD)
            if first == 0:
                begin = number * SHARD
                rows = np.full((min(SHARD, total - begin), *store.shape[1:]), np.nan, np.float32)
            rows[positions - begin] = values
            missing = {position for _, position in part.samples} - {*positions.tolist()}
            lost.extend(sorted(missing))
            bar.update(len(part.samples))
            if part.samples[-1][1] == begin + len(rows) - 1:
                store.write(number, rows, not any(position >= begin for position in lost))
    return np.array(lost, dtype=np.int64)


def features_of(
    trunk: Trunk,
    config: FrozenConfigDict,
    split: Split,
    cache_dir: Path,
    load: Callable[[Sequence[BatchShare]], DataLoader],
    note_bad: NoteBad,
) -> Features:
    """Return the features of a split, after computing what of them is not on the disk.

    Of several processes the first that comes computes; the others wait for it.

    Args:
        trunk: the model.
        config: config of the run, with size, preset, model config and normalisation.
        split: samples of the features.
        cache_dir: folder of all caches.
        load: builds a loader of some batches of the split, as evaluation sees its images.
        note_bad: is told of images that cannot be decoded; raises if they are too many.

    Raises:
        RunError: an image cannot be decoded, a feature is not finite, or the disk is full.
    """
    preset, model = PRESETS[config.preset], trunk.model
    content = {
        "features": FORMAT,
        "weights": trunk.weights,
        "model": {key: v for key, v in config.model.items() if key not in NOT_OF_THE_TRUNK},
        "kinds": model.feature_kinds,
        "normalization": config.normalization.to_dict(),
        "view": {"squash": preset.squash, "side": preset.eval_side(config.img_size)},
        "device": trunk.normalize.device.type,
        "threads": torch.get_num_threads(),
    }
    key = cache_key(split, cache_content(split, content))
    about = {"dataset": split.dataset, "split": split.name}
    shape = (len(split), len(model.feature_kinds), config.model.embed_dim)
    with naming(cache_dir / key), locked(cache_dir / f"{key}.lock"):
        store = _Store(cache_dir / key, shape, {**about, "images": len(split), **content})
        parts = [part for part in EvalBatches(len(split), BATCH) if not store.is_whole(part)]
        lost = np.empty(0, np.int64)
        ids_file = cache_dir / key / IDS_FILE
        if not ids_file.exists():
            write_json(ids_file, split.ids.tolist())
        if parts:
            was_training = model.training
            model.eval()
            lost = _fill(store, parts, _computed(trunk, load(parts), parts, note_bad))
            model.train(was_training)
        values = store.read()
    kept = np.delete(np.arange(len(split)), lost)
    values = values[kept] if len(lost) else values
    # By shards, since the answer for all values at once is a quarter of them, in memory.
    starts = range(0, len(values), SHARD)
    if not all(np.isfinite(values[start : start + SHARD]).all() for start in starts):
        raise RunError(f"features of {split.name} are not finite; are the weights damaged?")
    log.info("features: %s of %d images in %s", split.name, len(kept), cache_dir / key)
    ids, labels = split.ids[kept].tolist(), np.asarray(split.labels)[kept]
    return Features(model.feature_kinds, ids, labels, kept, values)


def write_features(path: Path, features: Features) -> None:
    """Write the values as a NumPy file, and their ids and kinds as JSON beside it."""
    with open_atomic(path) as file:
        header = np.lib.format.header_data_from_array_1_0(features.values)
        np.lib.format.write_array_header_1_0(file, header)
        # Not by np.save: on a full disk it says how much it wrote, and not that the disk is full.
        file.write(features.values.reshape(-1).view(np.uint8))
    write_json(path.with_suffix(".json"), {"kinds": features.kinds, "ids": features.ids})
