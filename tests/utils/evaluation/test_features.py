"""utils/evaluation/features.py: computed once, to the last bit, whatever happens in between."""

import functools
import json
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import CONTEXT
from helpers import loader_config, random_model

from models.pretrained.profiles import GOOGLE
from utils.data.batches import Normalizer
from utils.data.loaders import eval_loader, train_loader
from utils.data.sample_datasets import FeatureDataset
from utils.data.splits import Split
from utils.errors import RunError
from utils.evaluation import features
from utils.evaluation.features import BATCH, Features, Trunk, features_of
from utils.training.step_loader import BadImages

SIZE, IMAGES = 32, 2 * BATCH + 6
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def split(tmp_path_factory, make_split) -> Split:
    return make_split(tmp_path_factory.mktemp("photos"), [i % 3 for i in range(IMAGES)])


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(features, "SHARD", BATCH)


def config_of(**values: object):
    config = loader_config(img_size=SIZE, eval_batch_size=7, **values)
    return type(config)({**config, "normalization": GOOGLE.normalization})


class Counted:
    """A model, and how many batches of its features were computed."""

    def __init__(self, weights: str = "abc", **fields: object) -> None:
        self.model, self.batches = random_model(SIZE, 3, **fields), 0
        self.trunk = Trunk(self.model, weights, Normalizer(GOOGLE.normalization, CPU))
        compute = self.model.all_features

        def counted(images: torch.Tensor) -> torch.Tensor:
            self.batches += 1
            return compute(images)

        self.model.all_features = counted


def of(split: Split, folder: Path, counted: Counted | None = None, bad: int = 0, **values):
    """The features of a split as they are computed or read."""
    note = BadImages(bad).note
    config = config_of(skip_bad_images=bad, **values)
    load = functools.partial(eval_loader, config, split, CPU)
    return features_of((counted or Counted()).trunk, config, split, folder, load, note)


@pytest.fixture(scope="module")
def reference(split, tmp_path_factory) -> np.ndarray:
    """Computed at one go."""
    return np.array(of(split, tmp_path_factory.mktemp("reference")).values)


def equal(found: Features, reference: np.ndarray) -> bool:
    return found.values.dtype == np.float32 and np.array_equal(found.values, reference)


def files_of(folder: Path) -> tuple[Path, Path]:
    (listed,) = folder.glob("*/shards.json")
    return listed.with_name("features.bin"), listed


def listed_in(folder: Path) -> set[str]:
    return {*json.loads(files_of(folder)[1].read_text("utf-8"))["shards"]}


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({"num_registers": 2}, ("token", "mean")),
        ({"pool": "map", "class_token": False}, ("map", "mean")),
        ({"pool": "avg"}, ("avg",)),
        ({"head": "parts"}, ("parts",)),
    ],
)
def test_are_what_heads_read(split, tmp_path, fields, kinds):
    counted = Counted(**fields)
    model = counted.model.train()
    found = of(split, tmp_path, counted)
    assert model.training
    assert (found.kinds, found.ids) == (kinds, split.ids.tolist())
    assert found.values.shape == (IMAGES, len(kinds), 64)
    if "mean" in kinds:
        seen = []
        model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        batches = list(eval_loader(config_of(), split, CPU))  # of 7
        heads = [model.eval()(counted.trunk.normalize(b.images)).features for b in batches]
        np.testing.assert_allclose(found.values[:, 0], torch.cat(heads), atol=1e-5)
        if "mean" in kinds:
            seen.clear()
            for batch in batches:
                model.all_features(counted.trunk.normalize(batch.images))
            tokens = torch.cat(
                [each for each in seen if each.ndim == 3]
            )  # not the class token alone
            patches = tokens[:, -4:]  # registers are before them
            np.testing.assert_allclose(found.values[:, 1], patches.mean(dim=1), atol=1e-5)


def test_are_computed_once_whatever_loads_the_images(split, reference, tmp_path):
    counted = Counted()
    for _ in range(2):
        assert equal(of(split, tmp_path / "a", counted), reference)
        assert counted.batches == 3
    values = {"num_workers": 2, "cache": "disk", "cache_dir": str(tmp_path / "images")}
    assert equal(of(split, tmp_path / "b", **values), reference)


def test_other_weights_images_or_views_are_other_features(split, reference, tmp_path):
    of(split, tmp_path)
    of(split, tmp_path, Counted(weights="abd"))
    of(split, tmp_path, preset="transfg")
    of(split.select(list(range(40))), tmp_path)
    assert len([*tmp_path.glob("*/shards.json")]) == 4
    counted = Counted()
    assert equal(of(split, tmp_path, counted, preset="center"), reference)  # sees as vit
    assert counted.batches == 0


# --- Interruptions --------------------------------------------------------------------------------


def compute_and_wait(split: Split, folder: Path, at: str, number: int) -> None:
    """Compute in another process, up to where it waits to be killed."""
    features.SHARD = BATCH
    ours = getattr(features, at)
    calls = []

    def waiting(*args: object) -> None:
        calls.append(args)
        if len(calls) == number:
            (folder / "there").touch()
            signal.pause()
        ours(*args)

    setattr(features, at, waiting)
    torch.set_num_threads(1)
    of(split, folder)


@pytest.mark.parametrize(("at", "number"), [("sync", 2), ("write_json", 3)])
def test_a_killed_computation_goes_on(split, tmp_path, at, number):
    """Killed when the second shard is written but not synced, or synced but not listed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        process = CONTEXT.Process(target=compute_and_wait, args=(split, tmp_path, at, number))
        process.start()
        while not (tmp_path / "there").exists():
            assert process.is_alive()
            process.join(0.02)
        process.kill()
        process.join()
        assert listed_in(tmp_path) == {"0"}
        counted = Counted()
        found = of(split, tmp_path, counted)
        assert counted.batches == 2
        assert equal(found, of(split, tmp_path / "again").values)
        (ids,) = tmp_path.glob("*/ids.json")
        assert json.loads(ids.read_text("utf-8")) == found.ids
    finally:
        torch.set_num_threads(threads)


def test_two_at_once_compute_once(split, reference, tmp_path):
    counted, found = Counted(), []
    threads = [
        threading.Thread(target=lambda: found.append(of(split, tmp_path, counted)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [equal(each, reference) for each in found] == [True, True]
    assert counted.batches == 3


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "batches"),
    [
        (lambda values, listed: flip(values), 1),
        (lambda values, listed: values.write_bytes(values.read_bytes()[:-1]), 1),
        (lambda values, listed: values.unlink(), 3),
        (lambda values, listed: listed.unlink(), 3),
        (lambda values, listed: listed.write_text('{"shards": [1]}'), 3),
        (lambda values, listed: listed.write_bytes(b"\0" * 99), 3),
    ],
)
def test_what_was_damaged_is_computed_again(split, reference, tmp_path, damage, batches):
    of(split, tmp_path)
    damage(*files_of(tmp_path))
    counted = Counted()
    assert equal(of(split, tmp_path, counted), reference)
    assert counted.batches == batches


# --- Images and numbers that cannot be ------------------------------------------------------------


def test_a_bad_image_is_left_out_or_named(tmp_path, make_split):
    split = make_split(tmp_path, [i % 3 for i in range(IMAGES)])
    whole = np.array(of(split, tmp_path / "whole").values)
    (tmp_path / split.paths[40]).write_bytes(b"no image")
    with pytest.raises(RunError, match="photo_040"):
        of(split, tmp_path / "features")
    assert listed_in(tmp_path / "features") == {"0"}
    for _ in range(2):  # with the images of its shard, it is looked at again
        counted = Counted()
        found = of(split, tmp_path / "features", counted, bad=1)
        assert found.ids == [each for each in split.ids.tolist() if each != "photo_040"]
        assert equal(found, np.delete(whole, 40, axis=0))
    assert counted.batches == 1
    assert listed_in(tmp_path / "features") == {"0", "2"}


def test_are_served_in_the_batches_that_images_are(tmp_path, make_split):
    split = make_split(tmp_path, [i % 3 for i in range(IMAGES)])
    (tmp_path / split.paths[40]).write_bytes(b"no image")
    found = of(split, tmp_path / "features", bad=1)
    served = FeatureDataset(split, found.of(("token", "mean")), found.positions)
    config = config_of(skip_bad_images=1, num_steps=40)  # over two epochs
    for of_images, of_features in (
        (train_loader(config, split, 2, CPU, 3), train_loader(config, split, 2, CPU, 3, served)),
        (eval_loader(config, split, CPU), eval_loader(config, split, CPU, features=served)),
    ):
        for one, other in zip(of_images, of_features, strict=True):
            assert torch.equal(one.positions, other.positions)
            assert torch.equal(one.labels, other.labels)
            assert [name for name, _ in one.bad] == [name for name, _ in other.bad]
            expected = [found.positions.tolist().index(each) for each in one.positions.tolist()]
            assert np.array_equal(other.images, found.values[expected].reshape(-1, 128))
            assert np.array_equal(found.labels[expected], one.labels)


def test_numbers_that_are_not_finite_are_refused(split, tmp_path):
    counted = Counted()
    with torch.no_grad():
        counted.model.cls_token.fill_(float("nan"))
    with pytest.raises(RunError, match="of val are not finite"):
        of(split, tmp_path, counted)


def test_a_full_disk_is_named(split, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "sync", full)
    with pytest.raises(RunError, match=r"features\.bin cannot be written \(No space left"):
        of(split, tmp_path)
