"""utils/pipeline.py: order, randomness and bytes of what the loaders yield; points and weights."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict
from PIL import ExifTags, Image

from utils.data_utils import seed_everything
from utils.errors import RunError, one_line
from utils.pipeline import (
    Batch,
    ImageDataset,
    TrainSampler,
    balanced_class_weights,
    class_weights,
    crop_to_image,
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


def size_of(split, position: int) -> list[int]:
    with Image.open(split.root / split.paths[position]) as image:
        return list(image.size)


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


def to_image(point: tuple[float, float], size: tuple[int, int], img_size: int) -> np.ndarray:
    """`crop_to_image` of one point of one image, in pixels of the image."""
    points = crop_to_image(np.array([[point]]), np.array([size]), img_size)
    assert (points.shape, points.dtype) == ((1, 1, 2), np.float64)
    return points[0, 0] * size


SIDES = st.integers(20, 400)
IMG_SIZES = st.sampled_from([16, 32, 33, 47, 64, 100, 150, 224])


class TestCropToImage:
    @settings(max_examples=150, deadline=None)
    @given(width=SIDES, height=SIDES, img_size=IMG_SIZES, data=st.data())
    def test_undoes_the_transform(self, width, height, img_size, data):
        """Of an image whose pixels say where they are, the transform's output says whence it is."""
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        crop = eval_transform(img_size)(torch.stack((x, y, x)))
        assert crop.shape == (3, img_size, img_size)
        column, row = (data.draw(st.integers(0, img_size - 1)) for _ in range(2))
        point = (column + 0.5) / img_size, (row + 0.5) / img_size
        found = to_image(point, (width, height), img_size)
        true = crop[:2, row, column].numpy()
        # Of a pixel of the crop: antialiasing moves a ramp by up to 0.07, a wrong offset by 1.
        pixel = min(width, height) / round(img_size * 8 / 7)
        assert np.abs(found - true).max() < 0.15 * pixel

    @pytest.mark.parametrize("size", [(300, 200), (200, 300), (257, 171), (171, 257), (240, 240)])
    @pytest.mark.parametrize("img_size", [64, 65, 96])
    def test_finds_a_mark_on_a_photo(self, size, img_size):
        """The same on a real uint8 photo: a white square, looked for by its center of mass."""
        for where in ((0.45, 0.3), (0.6, 0.7), (0.5, 0.5)):
            left, top = round(where[0] * size[0]), round(where[1] * size[1])
            image = Image.new("RGB", size)
            image.paste((255, 255, 255), (left, top, left + 20, top + 20))
            mass = eval_transform(img_size)(image)[0].double()
            mass /= mass.sum()
            centers = (torch.arange(img_size).double() + 0.5) / img_size
            point = float(mass.sum(0) @ centers), float(mass.sum(1) @ centers)
            found = to_image(point, size, img_size)
            assert np.abs(found - (left + 10, top + 10)).max() < 0.5

    @settings(max_examples=300, deadline=None)
    @given(
        width=st.integers(1, 5000), height=st.integers(1, 5000), img_size=st.integers(1, 1000),
        x=st.floats(0, 1), y=st.floats(0, 1),
    )  # fmt: skip
    @example(width=3, height=3, img_size=3, x=0.0, y=1.0)  # no pixel is cropped
    def test_stays_within_the_image(self, width, height, img_size, x, y):
        points = crop_to_image(np.array([[(x, y)]]), np.array([(width, height)]), img_size)
        assert ((points >= 0) & (points <= 1)).all()

    @settings(max_examples=300, deadline=None)
    @given(width=st.integers(1, 5000), height=st.integers(1, 5000), img_size=st.integers(1, 1000))
    @example(width=500, height=375, img_size=224)
    @example(width=375, height=500, img_size=224)
    def test_cuts_a_square_out_of_the_middle(self, width, height, img_size):
        size = np.array([(width, height)])
        corners = crop_to_image(np.array([[(0.0, 0.0), (1.0, 1.0)]]), size, img_size)[0]
        resized = round(img_size * 8 / 7)
        # Symmetric: what is cut off on either side differs by at most a pixel of the resized image.
        longest = np.array([max(1, resized * side // min(width, height)) for side in size[0]])
        lost_before, lost_after = corners[0] * longest, (1 - corners[1]) * longest
        assert np.abs(lost_before - lost_after).max() <= 1 + 1e-9
        # Square: as many pixels of the resized image on both sides.
        assert ((corners[1] - corners[0]) * longest).tolist() == pytest.approx([img_size] * 2)
        shorter = int(np.argmin(size[0]))
        assert (corners[1] - corners[0])[shorter] == pytest.approx(img_size / resized)

    def test_by_hand(self):
        """500 x 375 at 224: resized to 341 x 256; 58 columns (58.5, half to even) and 16 rows."""
        corners = np.array([[(0.0, 0.0), (1.0, 1.0)]])
        (landscape,) = crop_to_image(corners, np.array([(500, 375)]), 224)
        assert landscape.tolist() == [[58 / 341, 16 / 256], [282 / 341, 240 / 256]]
        (portrait,) = crop_to_image(corners, np.array([(375, 500)]), 224)
        assert portrait.tolist() == [[16 / 256, 58 / 341], [240 / 256, 282 / 341]]

    def test_keeps_samples_and_heads_apart(self):
        generator = np.random.default_rng(0)
        points = generator.uniform(0, 1, (5, 3, 2)).astype(np.float32)
        sizes = generator.integers(20, 300, (5, 2))
        together = crop_to_image(points, sizes, 64)
        for i in range(5):
            for h in range(3):
                alone = crop_to_image(points[i : i + 1, h : h + 1], sizes[i : i + 1], 64)
                assert np.array_equal(alone[0, 0], together[i, h])

    def test_grows_along_both_axes(self):
        points = np.array([[(0.2, 0.3), (0.4, 0.3), (0.2, 0.6)]])
        (first, right, down) = crop_to_image(points, np.array([(90, 40)]), 32)[0]
        assert right[0] > first[0]
        assert right[1] == first[1]
        assert down[1] > first[1]
        assert down[0] == first[0]


class TestClassWeights:
    @settings(max_examples=200, deadline=None)
    @given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=200), more=st.integers(0, 5))
    def test_average_to_one_over_the_labels(self, labels, more):
        labels, classes = np.array(labels), max(labels) + 1 + more
        weights = balanced_class_weights(labels, classes)
        assert (weights.shape, weights.dtype) == ((classes,), np.float32)
        assert weights[labels].mean() == pytest.approx(1, rel=1e-5)
        counts = np.bincount(labels, minlength=classes)
        assert (weights[counts == 0] == 1).all()
        # n / (present classes * count): what sklearn's compute_class_weight("balanced") gives.
        present = counts[counts > 0]
        expected = len(labels) / (len(present) * present)
        assert weights[counts > 0] == pytest.approx(expected, rel=1e-6)

    def test_by_hand(self):
        weights = balanced_class_weights(np.array([0, 0, 0, 2, 2, 3]), 5)
        assert weights.tolist() == pytest.approx([6 / 9, 1, 6 / 6, 6 / 3, 1], rel=1e-6)

    @settings(max_examples=50, deadline=None)
    @given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=50))
    def test_give_every_class_the_same_total(self, labels):
        weights = balanced_class_weights(np.array(labels), 5)
        totals = [float(weights[label]) * labels.count(label) for label in set(labels)]
        assert totals == pytest.approx([totals[0]] * len(totals), rel=1e-5)

    def test_of_equally_many_are_one(self):
        assert balanced_class_weights(np.array([1, 0, 2] * 7), 3).tolist() == [1, 1, 1]

    def test_of_a_run_are_those_of_its_samples_if_asked(self, tmp_path, make_split):
        labels = [0, 0, 0, 2, 2, 3]
        split = make_split(tmp_path, labels, num_classes=5, photos=False)
        assert class_weights(FrozenConfigDict({"class_weights": "none"}), split, CPU) is None
        weights = class_weights(FrozenConfigDict({"class_weights": "balanced"}), split, CPU)
        assert (weights.dtype, weights.device) == (torch.float32, CPU)
        assert weights.tolist() == balanced_class_weights(np.array(labels), 5).tolist()


class TestImageDataset:
    def test_yields_image_label_and_position(self, split):
        dataset = ImageDataset(split, eval_transform(SIZE), seed=0)
        assert len(dataset) == 7
        for position in range(7):
            sample = dataset[0, position]
            assert (sample.labels, sample.positions) == (split.labels[position], position)
            assert sample.images.shape == (3, SIZE, SIZE)
            with Image.open(split.root / split.paths[position]) as image:
                assert sample.sizes.tolist() == list(image.size)

    @pytest.mark.parametrize("orientation", [None, *range(1, 9)])
    def test_gives_the_size_of_the_upright_image(self, tmp_path, make_split, orientation):
        split = make_split(tmp_path, [0, 1])
        path = split.root / split.paths[1]
        exif = Image.Exif()
        if orientation is not None:
            exif[ExifTags.Base.Orientation] = orientation
        Image.new("RGB", (50, 30)).save(path, exif=exif)
        sample = ImageDataset(split, eval_transform(SIZE), seed=0)[0, 1]
        lies_on_its_side = orientation in (5, 6, 7, 8)
        assert sample.sizes.tolist() == ([30, 50] if lies_on_its_side else [50, 30])

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
            assert batch.labels.dtype == batch.positions.dtype == batch.sizes.dtype == torch.int64
            assert batch.sizes.shape == (4, 2)
            assert batch.sizes.tolist() == [size_of(split, i) for i in batch.positions.tolist()]
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
        for field in range(len(Batch._fields)):
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
            sizes = torch.cat([batch.sizes for batch in batches]).tolist()
            assert sizes == [size_of(split, position) for position in range(7)]
            assert len(set(map(tuple, sizes))) > 1

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
