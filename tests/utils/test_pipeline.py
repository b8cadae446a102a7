"""utils/pipeline.py: order, randomness and bytes of what the loaders yield."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.data_utils import seed_everything
from utils.errors import RunError, one_line
from utils.pipeline import (
    Batch,
    ImageDataset,
    TrainSampler,
    eval_loader,
    eval_transform,
    train_loader,
    train_transform,
)

CPU = torch.device("cpu")
SIZE = 32


@pytest.fixture(scope="module")
def split(tmp_path_factory, make_split):
    """Seven photos of three classes; only to be read."""
    return make_split(tmp_path_factory.mktemp("photos"), [0, 1, 2, 0, 1, 2, 0])


def of_training(split, workers: int = 0, micro_batches: int = 5, batch: int = 3, seed: int = 42):
    return train_loader(split, SIZE, batch, micro_batches, seed, workers, CPU)


def equal(one: list[Batch], two: list[Batch]) -> bool:
    """To the last bit and laid out alike: the order of a kernel's sums depends on both."""
    return len(one) == len(two) and all(
        torch.equal(a, b) and a.stride() == b.stride() for left, right in zip(one, two, strict=True)
        for a, b in zip(left, right, strict=True)
    )  # fmt: skip


class TestTrainSampler:
    @settings(max_examples=200, deadline=None)
    @given(samples=st.integers(1, 40), total=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
    def test_sees_every_sample_equally_often(self, samples, total, seed):
        sampler = TrainSampler(samples, total, seed)
        drawn = list(sampler)
        assert len(drawn) == len(sampler) == total
        assert drawn == list(sampler)
        counts = Counter(position for _, position in drawn)
        assert set(counts) <= set(range(samples))
        assert max(counts.values()) - min(counts.get(i, 0) for i in range(samples)) <= 1
        for start in range(0, total, samples):
            epoch = drawn[start : start + samples]
            assert {number for number, _ in epoch} == {start // samples}
            assert len({position for _, position in epoch}) == len(epoch)

    def test_shuffles_every_epoch_anew(self):
        drawn = [position for _, position in TrainSampler(50, 150, seed=1)]
        epochs = [drawn[:50], drawn[50:100], drawn[100:]]
        assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in [*epochs, range(50)]}) == 4

    def test_depends_on_its_seed_alone(self):
        torch.manual_seed(1)
        one = list(TrainSampler(50, 60, seed=1))
        torch.manual_seed(2)
        assert list(TrainSampler(50, 60, seed=1)) == one
        assert list(TrainSampler(50, 60, seed=2)) != one

    def test_a_longer_run_starts_as_the_shorter(self):
        assert list(TrainSampler(7, 100, seed=3))[:20] == list(TrainSampler(7, 20, seed=3))


class TestTransforms:
    @pytest.mark.parametrize("transform", [train_transform, eval_transform])
    @pytest.mark.parametrize("img_size", [16, 64, 224])
    @pytest.mark.parametrize("size", [(1, 1), (300, 40), (40, 300), (224, 224), (7, 5)])
    def test_give_square_uint8(self, transform, img_size, size):
        pixels = transform(img_size)(Image.new("RGB", size, (10, 200, 30)))
        assert type(pixels) is torch.Tensor
        assert (pixels.shape, pixels.dtype) == ((3, img_size, img_size), torch.uint8)
        assert (pixels == torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None]).all()

    def test_of_evaluation_keep_the_center(self):
        image = Image.new("RGB", (80, 40), (0, 0, 0))
        image.paste((250, 250, 250), (20, 0, 60, 40))  # the middle square
        pixels = eval_transform(32)(image)
        assert (pixels > 200).float().mean() > 0.99

    def test_of_evaluation_are_not_random(self, split):
        image = Image.open(split.root / split.paths[0])
        assert torch.equal(eval_transform(SIZE)(image), eval_transform(SIZE)(image))

    def test_of_training_are_random(self, split):
        image = Image.open(split.root / split.paths[0])
        transform = train_transform(SIZE)
        assert not torch.equal(transform(image), transform(image))


class TestImageDataset:
    def test_yields_image_label_and_position(self, split):
        dataset = ImageDataset(split, eval_transform(SIZE), seed=0)
        assert len(dataset) == 7
        for position in range(7):
            sample = dataset[0, position]
            assert (sample.labels, sample.positions) == (split.labels[position], position)
            assert sample.images.shape == (3, SIZE, SIZE)

    def test_randomness_depends_on_seed_epoch_and_sample_alone(self, split):
        def image(seed, epoch, position, among=split):
            dataset = ImageDataset(among, train_transform(SIZE), seed)
            return dataset[epoch, position].images

        first = image(1, 0, 3)
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 - must not matter
        image(1, 7, 2)
        assert torch.equal(image(1, 0, 3), first)
        assert torch.equal(image(1, 0, 1, among=split.select([2, 3])), first)  # by id
        for other in (image(2, 0, 3), image(1, 1, 3)):
            assert not torch.equal(other, first)

    def test_leaves_the_global_generator_as_it_was(self, split):
        dataset = ImageDataset(split, train_transform(SIZE), seed=1)
        state = torch.get_rng_state()
        dataset[0, 0]
        assert torch.equal(torch.get_rng_state(), state)

    def test_puts_the_generator_back_after_a_failure(self, split):
        dataset = ImageDataset(split, train_transform(2**31), seed=1)
        state = torch.get_rng_state()
        with pytest.raises((RuntimeError, OverflowError, MemoryError, TypeError), match=r"."):
            dataset[0, 0]
        assert torch.equal(torch.get_rng_state(), state)

    def test_can_be_sent_to_a_spawned_worker(self, split):
        dataset = ImageDataset(split, train_transform(SIZE), seed=1)
        copy = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(copy[2, 4].images, dataset[2, 4].images)


class TestTrainLoader:
    def test_yields_full_batches_only(self, split):
        batches = list(of_training(split, micro_batches=6, batch=4))
        assert [batch.images.shape for batch in batches] == [(4, 3, SIZE, SIZE)] * 6
        for batch in batches:
            assert batch.images.dtype == torch.uint8
            assert batch.labels.dtype == batch.positions.dtype == torch.int64
            assert batch.labels.tolist() == split.labels[batch.positions.numpy()].tolist()

    def test_fills_a_batch_that_is_larger_than_the_split(self, split):
        batches = list(of_training(split, micro_batches=2, batch=10))
        counts = Counter(torch.cat([batch.positions for batch in batches]).tolist())
        assert sum(counts.values()) == 20
        assert set(counts.values()) <= {2, 3}
        of_one = list(of_training(split.select([2]), micro_batches=2, batch=3))
        assert [batch.positions.tolist() for batch in of_one] == [[0, 0, 0]] * 2

    @pytest.mark.parametrize("batch", [1, 3])
    def test_yields_the_same_bytes_for_any_number_of_workers(self, split, batch):
        seed_everything(1)
        alone = list(of_training(split, workers=0, batch=batch))
        seed_everything(2)
        assert equal(alone, list(of_training(split, workers=2, batch=batch)))

    def test_yields_other_bytes_for_another_seed_and_another_epoch(self, split):
        batches = list(of_training(split, micro_batches=2, batch=7))
        assert sorted(batches[0].positions.tolist()) == sorted(batches[1].positions.tolist())
        first, second = (batch.images[batch.positions.argsort()] for batch in batches)
        assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not equal(batches, list(of_training(split, micro_batches=2, batch=7, seed=43)))

    def test_cuts_one_stream_of_samples_whatever_the_accumulation(self, split):
        wide = list(of_training(split, micro_batches=3, batch=4))
        narrow = list(of_training(split, micro_batches=6, batch=2))
        for field in range(3):
            one, two = (
                torch.cat([batch[field] for batch in batches]) for batches in (wide, narrow)
            )
            assert torch.equal(one, two)


class TestEvalLoader:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_yields_every_sample_once_in_order(self, split, workers):
        loader = eval_loader(split, SIZE, 3, workers, CPU)
        for _ in range(2):  # a second evaluation asks the same workers again
            batches = list(loader)
            assert [len(batch.labels) for batch in batches] == [3, 3, 1]
            assert torch.cat([batch.positions for batch in batches]).tolist() == list(range(7))
            assert torch.cat([batch.labels for batch in batches]).tolist() == split.labels.tolist()

    def test_yields_the_same_images_for_any_batch_size(self, split):
        one, two = (
            torch.cat([batch.images for batch in eval_loader(split, SIZE, size, 0, CPU)])
            for size in (2, 7)
        )
        assert torch.equal(one, two)


class TestGlobalGenerator:
    """Loading draws nothing from it: else the number of workers would change what a model draws."""

    @pytest.mark.parametrize("workers", [0, 2])
    def test_is_untouched_by_loaders(self, split, workers):
        state = torch.get_rng_state()
        list(of_training(split, workers=workers, micro_batches=2))
        list(eval_loader(split, SIZE, 4, workers, CPU))
        assert torch.equal(torch.get_rng_state(), state)


class TestDamage:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("content", [b"", b"text", None])
    def test_names_the_image_on_one_line(self, tmp_path, make_split, workers, content):
        split = make_split(tmp_path, [0, 1, 0, 1])
        path = split.root / split.paths[2]
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        loader = eval_loader(split, SIZE, 1, workers, CPU)
        with pytest.raises(RunError, match=r"photo_002.jpg") as caught:
            list(loader)
        if workers:  # else the garbage collector does it, which takes ten seconds
            loader._iterator._shutdown_workers()
        line = one_line(caught.value)
        assert line.startswith(f"image {path} cannot be decoded (")
        assert "Traceback" not in line
