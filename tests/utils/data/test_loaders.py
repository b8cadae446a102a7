"""utils/data/loaders.py: order, randomness and bytes of what the loaders yield."""

import errno
import multiprocessing
import os
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from forked import CONTEXT
from helpers import loader_config, whole_part
from PIL import Image

from utils.data import batches
from utils.data.batches import Batch
from utils.data.images import openers
from utils.data.loaders import ImageDataset, eval_loader, make_loader, open_images, train_loader
from utils.data.presets import PRESETS, Augmentation
from utils.data.transforms import EvalView, TrainView
from utils.data_utils import seed_everything
from utils.errors import Alone, RunError
from utils.training.step_loader import BadImages, StepLoader

CPU = torch.device("cpu")
SIZE = 32


@pytest.fixture(scope="module")
def split(tmp_path_factory, make_split):
    """Seven photos of three classes; only to be read."""
    return make_split(tmp_path_factory.mktemp("photos"), [0, 1, 2, 0, 1, 2, 0])


def of_training(split, workers: int = 0, micro_batches: int = 5, batch: int = 3, **values):
    """As many micro-batches of a run that accumulates none."""
    config = loader_config(
        num_steps=micro_batches, train_batch_size=batch, num_workers=workers, **values
    )
    return train_loader(config, split, 1, CPU)


def of_evaluation(split, batch: int = 3, workers: int = 0, **values):
    return eval_loader(
        loader_config(eval_batch_size=batch, num_workers=workers, **values), split, CPU
    )


def train_dataset(split, seed: int = 1, **values) -> ImageDataset:
    images = open_images(loader_config(**values), split, "train")
    view = TrainView(PRESETS[values.get("preset", "vit")], SIZE, Augmentation())
    return ImageDataset(split, images, view, SIZE, seed)


def eval_dataset(split) -> ImageDataset:
    view = EvalView(PRESETS["vit"], SIZE)
    return ImageDataset(split, open_images(loader_config(), split, "eval"), view, SIZE, seed=0)


def size_of(split, position: int) -> list[int]:
    with Image.open(split.root / split.paths[position]) as image:
        return list(image.size)


def same(a, b) -> bool:
    if not isinstance(a, torch.Tensor):
        return a == b
    return torch.equal(a, b) and a.stride() == b.stride()


def equal(one: list[Batch], two: list[Batch]) -> bool:
    """To the last bit and laid out alike: the order of a kernel's sums depends on both."""
    return len(one) == len(two) and all(
        same(a, b)
        for left, right in zip(one, two, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def steps_of(loader, micro_batches: int, skipped: BadImages) -> StepLoader:
    return StepLoader(loader, micro_batches, skipped)


class TestImageDataset:
    def test_yields_images_labels_and_positions(self, split):
        dataset = eval_dataset(split)
        assert len(dataset) == 7
        batch = dataset.__getitems__(whole_part([(0, position) for position in (4, 0, 6)]))
        assert batch.positions.tolist() == [4, 0, 6]
        assert batch.labels.tolist() == split.labels[[4, 0, 6]].tolist()
        assert batch.images.shape == (3, 3, SIZE, SIZE)
        assert batch.sizes.tolist() == [size_of(split, position) for position in (4, 0, 6)]
        assert (batch.targets, batch.bad) == (None, ())

    def test_randomness_depends_on_seed_epoch_and_sample_alone(self, split):
        def image(seed, epoch, position, among=split, before=()):
            batch = train_dataset(among, seed).__getitems__(
                whole_part([*before, (epoch, position)])
            )
            return batch.images[-1]

        first = image(1, 0, 3)
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 - must not matter
        assert torch.equal(image(1, 0, 3, before=[(7, 2), (0, 0)]), first)
        assert torch.equal(image(1, 0, 1, among=split.select([2, 3])), first)  # by id
        for other in (image(2, 0, 3), image(1, 1, 3)):
            assert not torch.equal(other, first)

    def test_puts_the_generator_back_after_a_failure(self, tmp_path, make_split):
        split = make_split(tmp_path, [0, 1])
        (tmp_path / split.paths[1]).write_bytes(b"")
        state = torch.get_rng_state()
        with pytest.raises(RunError, match=r"photo_001"):
            train_dataset(split).__getitems__(whole_part([(0, 0), (0, 1)]))
        assert torch.equal(torch.get_rng_state(), state)


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

    def test_makes_each_sample_on_one_thread(self, split):
        """As workers do: the last bit of a large image's mean, as contrast takes it, needs it."""
        before, seen = torch.get_num_threads(), []
        loader = of_training(split)
        view = loader.dataset.view

        def watched(image: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return view(image)

        loader.dataset.view = watched
        torch.set_num_threads(3)
        try:
            assert len(list(loader)) == 5
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(before)
        assert seen == [1] * 15

    def test_yields_the_same_bytes_for_any_number_of_workers(self, split):
        """Of the preset with everything random in it."""
        values = {"preset": "strong", "augment": "trivialaugment", "random_erasing": 0.5}
        values |= {"mixup": 1.0, "cutmix": 1.0, "patch_dropout": 0.5}
        seed_everything(1)
        alone = list(of_training(split, workers=0, **values))
        for workers in (1, 4):
            seed_everything(workers)
            assert equal(alone, list(of_training(split, workers=workers, **values)))

    @pytest.mark.parametrize("cache", ["none", "disk"])
    def test_center_sees_what_evaluation_sees(self, split, tmp_path, cache):
        values = {"preset": "center", "cache": cache, "cache_dir": str(tmp_path)}
        evaluated = torch.cat([batch.images for batch in of_evaluation(split)])  # of vit
        seen = set()
        for batch in of_training(split, **values):
            assert torch.equal(batch.images, evaluated[batch.positions])
            seen |= {*batch.positions.tolist()}
        assert seen == {*range(7)}
        augmented = next(iter(of_training(split, **values, random_erasing=1.0)))
        assert not torch.equal(augmented.images, evaluated[augmented.positions])

    def test_draws_patches_after_all_else(self, split):
        """Of 2 x 2 patches, by the sample's own numbers: whoever else is in its batch."""
        whole, cheaper = (list(of_training(split, patch_dropout=share)) for share in (0.0, 0.5))
        assert all(batch.kept is None for batch in whole)
        assert {tuple(batch.kept.shape) for batch in cheaper} == {(3, 2)}
        assert len({tuple(kept) for batch in cheaper for kept in batch.kept.tolist()}) > 3
        assert equal(whole, [batch._replace(kept=None) for batch in cheaper])
        in_ones = of_training(split, micro_batches=15, batch=1, patch_dropout=0.5)
        kept = [torch.cat([batch.kept for batch in batches]) for batches in (cheaper, in_ones)]
        assert torch.equal(*kept)

    @pytest.mark.parametrize("cache", ["none", "disk"])
    def test_yields_the_same_bytes_from_spawned_workers(self, split, tmp_path, cache):
        """Which inherit nothing, as on a Mac."""
        alone = of_training(split, mixup=1.0)
        cached = of_training(split, mixup=1.0, cache=cache, cache_dir=str(tmp_path))
        method = "spawn" if cache == "none" else CONTEXT.get_start_method()
        loader = make_loader(cached.dataset, cached.batch_sampler, 1, CPU)
        loader.multiprocessing_context = method
        assert equal(list(alone), list(loader))

    @pytest.mark.parametrize("start", [1, 4])
    def test_starts_at_any_step(self, split, start):
        """Steps of 2 micro-batches of 3 images, so that epochs of 7 end within them."""
        config = loader_config(num_steps=5, train_batch_size=6, cutmix=1.0, mixup=1.0)
        whole = list(train_loader(config, split, 2, CPU))
        rest = list(train_loader(config, split, 2, CPU, start_step=start))
        assert equal(whole[2 * start :], rest)

    def test_mixes_by_seed_epoch_and_batch_alone(self, split):
        dataset = of_training(split, mixup=1.0).dataset
        indices = [(0, 1), (0, 2), (0, 3)]
        first = dataset.__getitems__(whole_part(indices))
        dataset.__getitems__(whole_part([(1, 1)]))
        assert equal([first], [dataset.__getitems__(whole_part(indices))])
        assert (first.targets.shape, first.targets.dtype) == ((3, 3), torch.float32)
        assert first.labels.tolist() == first.targets.argmax(1).tolist()
        other_epoch = dataset.__getitems__(whole_part([(1, 1), (1, 2), (1, 3)]))
        other_batch = dataset.__getitems__(whole_part([(0, 2), (0, 1), (0, 3)]))
        for other in (other_epoch, other_batch):
            assert not torch.equal(other.targets.sort(0).values, first.targets.sort(0).values)


class TestEvalLoader:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_yields_every_sample_once_in_order(self, split, workers):
        loader = of_evaluation(split, 3, workers)
        for _ in range(2):  # a second evaluation asks the same workers again
            batches = list(loader)
            assert [len(batch.labels) for batch in batches] == [3, 3, 1]
            assert torch.cat([batch.positions for batch in batches]).tolist() == list(range(7))
            assert torch.cat([batch.labels for batch in batches]).tolist() == split.labels.tolist()
            sizes = torch.cat([batch.sizes for batch in batches]).tolist()
            assert sizes == [size_of(split, position) for position in range(7)]
            assert len(set(map(tuple, sizes))) > 1


class TestCaches:
    @pytest.mark.parametrize(("preset", "workers"), [("transfg", 0), ("strong", 2)])
    def test_change_no_byte(self, tmp_path, make_split, preset, workers):
        # Larger than the resized images, so that there is something to keep.
        split = make_split(tmp_path, [0, 1, 2, 0, 1], size=(130, 110))
        values = {"preset": preset, "workers": workers, "img_size": SIZE}
        cached = {**values, "cache": "disk", "cache_dir": str(tmp_path / "cache")}
        assert equal(list(of_training(split, **values)), list(of_training(split, **cached)))
        assert equal(list(of_evaluation(split, **values)), list(of_evaluation(split, **cached)))


class TestProcesses:
    def test_end_by_one_sigterm_that_is_for_them_alone(self, split):
        """As Python ends them; what goes to the process group, the main process answers."""
        batches = iter(of_training(split, workers=2))
        for _ in range(2):  # one of each process
            next(batches)
        processes = multiprocessing.active_children()
        assert len(processes) == 2
        assert [os.getpgid(process.pid) for process in processes] == [p.pid for p in processes]
        for process in processes:
            process.terminate()
            process.join(10)
        assert [process.exitcode for process in processes] == [0, 0]


def refusal(error: Exception):
    def refuse(*_: object, **__: object) -> None:
        raise error

    return refuse


NO_ROOM = RuntimeError("unable to allocate shared memory(shm) for file </torch_7_8_9>: No space")


class TestShortage:
    """The loader processes are forks, and lack what is taken from this one."""

    @pytest.mark.parametrize(
        ("owner", "name", "value", "why"),
        [
            (torch.UntypedStorage, "_share_fd_cpu_", refusal(NO_ROOM), "No space"),
            (os, "dup", refusal(OSError(errno.EMFILE, "Too many open files")), "Too many"),
            (tempfile, "tempdir", "/nonexistent/" + 99 * "x", "No such file"),
            (tempfile, "mkdtemp", refusal(FileNotFoundError(2, "No usable")), "No usable"),
            (batches, "ENOUGH_FILES", 1 << 62, "files may be open"),
        ],
    )
    def test_of_what_shares_memory_changes_no_bit(
        self, split, monkeypatch, caplog, owner, name, value, why
    ):
        values = {"micro_batches": 4, "cutmix": 1.0}
        expected = list(of_training(split, **values))
        monkeypatch.setattr(batches, "_warned", [])
        made = multiprocessing.current_process()._config  # a folder for sockets, perhaps
        monkeypatch.delitem(made, "tempdir", raising=False)
        monkeypatch.setattr(owner, name, value)
        with caplog.at_level("WARNING", logger="fine_vit"):
            assert equal(list(of_training(split, workers=2, **values)), expected)
            assert equal(list(of_evaluation(split, 4, 1)), list(of_evaluation(split, 4)))
        (said,) = [each for each in caplog.messages if "through a pipe" in each]  # once
        assert why in said

    def test_one_batch_may_come_by_shared_memory_and_the_next_through_the_pipe(
        self, split, monkeypatch
    ):
        share, calls = torch.UntypedStorage._share_fd_cpu_, []

        def now_and_then(*args: object) -> object:
            calls.append(args)
            return share(*args) if len(calls) % 2 else refusal(NO_ROOM)()

        expected = list(of_training(split))
        monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", now_and_then)
        assert equal(list(of_training(split, workers=2)), expected)

    def test_of_anything_else_is_said_and_not_waited_for(self, split, monkeypatch):
        monkeypatch.setattr(batches, "_send_images", refusal(MemoryError("no room to pickle")))
        with pytest.raises(MemoryError, match="no room to pickle"):
            next(iter(of_training(split, workers=1)))

    @pytest.mark.parametrize(
        ("owner", "name", "number"), [(os, "fork", 0), (os, "fork", 1), (os, "pipe", 0)]
    )
    def test_of_processes_and_files_is_said_as_the_loaders_start(
        self, split, monkeypatch, capsys, owner, name, number
    ):
        real, calls = getattr(owner, name), []

        def call() -> object:
            calls.append(name)
            return real() if len(calls) <= number else refusal(BlockingIOError(11, "not now"))()

        monkeypatch.setattr(owner, name, call)
        loader = of_training(split, workers=2)
        with pytest.raises(Alone, match=r"loader processes cannot be started \(.*not now\)"):
            steps_of(loader, 1, BadImages(0))
        assert capsys.readouterr().err == ""
        assert not multiprocessing.active_children()

    @pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM])
    def test_makes_no_image_a_bad_one(self, split, monkeypatch, code):
        monkeypatch.setattr(openers, "open_file", refusal(OSError(code, os.strerror(code))))
        with pytest.raises(OSError, match=os.strerror(code)):
            list(steps_of(of_training(split, skip_bad_images=7), 1, BadImages(7)))


class TestGlobalGenerator:
    """Loading draws nothing from it: else the number of workers would change what a model draws."""

    @pytest.mark.parametrize("workers", [0, 2])
    def test_is_untouched_by_loaders(self, split, workers):
        state = torch.get_rng_state()
        list(of_training(split, workers=workers, micro_batches=2))
        list(of_evaluation(split, 4, workers))
        assert torch.equal(torch.get_rng_state(), state)


class TestDamage:
    @pytest.mark.parametrize(("workers", "cache"), [(0, "none"), (2, "disk")])
    def test_is_left_out_where_it_may_be(self, tmp_path, make_split, workers, cache, caplog):
        split = make_split(tmp_path, [0, 1, 0, 1])
        (tmp_path / split.paths[2]).write_bytes(b"text")
        values = {"workers": workers, "cache": cache, "cache_dir": str(tmp_path / "cache")}
        with pytest.raises(RunError, match=r"photo_002.jpg"):
            list(of_training(split, **values))
        loader = of_training(split, skip_bad_images=1, batch=4, micro_batches=3, **values)
        skipped = BadImages(1)
        with caplog.at_level("WARNING", logger="fine_vit"):
            steps = list(steps_of(loader, 1, skipped))
        assert [[len(batch.labels) for batch in step.micro_batches] for step in steps] == [[3]] * 3
        assert all(2 not in batch.positions for ((batch,), _) in steps)
        assert [step.counts for step in steps] == [[[3]]] * 3
        assert skipped.facts() == {"allowed": 1, "count": 1, "ids": ["photo_002"]}
        # Once, not each epoch; where an entrypoint ran before, INFO is captured too.
        (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert "left out photo_002" in message
        assert "photo_002.jpg" in message

    def test_leaves_the_others_as_they_were(self, tmp_path, make_split):
        split = make_split(tmp_path, [0, 1, 0, 1])
        whole = of_training(split, batch=4, skip_bad_images=1)
        before = next(iter(whole))
        (tmp_path / split.paths[2]).write_bytes(b"text")
        (after,) = list(of_training(split, batch=4, micro_batches=1, skip_bad_images=1))
        stays = before.positions != 2
        assert torch.equal(after.images, before.images[stays])
        assert torch.equal(after.positions, before.positions[stays])

    def test_of_a_whole_micro_batch_leaves_the_others(self, tmp_path, make_split):
        split = make_split(tmp_path, [0, 1])
        (tmp_path / split.paths[1]).write_bytes(b"")
        loader = of_training(split, batch=1, micro_batches=4, skip_bad_images=1)
        steps = list(steps_of(loader, 2, BadImages(1)))
        assert [len(step.micro_batches) for step in steps] == [1, 1]
        assert [step.counts for step in steps] == [[[1]], [[1]]]


class TestSteps:
    def test_cut_the_micro_batches_into_steps_and_measure_the_wait(self, split, monkeypatch):
        """Loading takes 0.25 s a micro-batch and training 10 s a step, by a clock of our own."""
        now = [0.0]
        monkeypatch.setattr("utils.training.step_loader.time.perf_counter", lambda: now[0])

        def loading() -> Iterator[Batch]:
            for batch in of_training(split, micro_batches=6, batch=2):
                now[0] += 0.25
                yield batch

        steps = steps_of(loading(), 3, BadImages(0))
        assert steps.waited == 0
        for step in steps:
            assert [len(batch.labels) for batch in step.micro_batches] == [2, 2, 2]
            assert steps.waited == 0.75
            now[0] += 10
