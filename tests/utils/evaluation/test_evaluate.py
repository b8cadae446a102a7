"""Check one evaluation by the real `testing` model, in one process and put together of several."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import loader_config, random_model, whole_part
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.pretrained.profiles import GOOGLE
from utils.data.batches import EvalBatches, Normalizer
from utils.data.loaders import eval_loader
from utils.data.presets import PRESETS, crop_to_image
from utils.errors import RunError
from utils.evaluation.evaluate import Evaluation, evaluate, whole_evaluation
from utils.signals import stop_requests, stop_signal

CPU = torch.device("cpu")
SIZE, CLASSES = 32, 5
NORMALIZE = Normalizer(GOOGLE.normalization, CPU)
VIT = PRESETS["vit"]


@pytest.fixture
def model():
    return random_model(SIZE, CLASSES)


@pytest.fixture
def split(tmp_path, make_split):
    return make_split(tmp_path, [0, 1, 2, 3, 4, 0, 1], num_classes=CLASSES)


def loader_of(split, batch_size: int = 3) -> DataLoader:
    return eval_loader(loader_config(eval_batch_size=batch_size, img_size=SIZE), split, CPU)


class TestEvaluate:
    def test_gives_logits_of_every_sample_in_order(self, model, split):
        loader, bar = loader_of(split), tqdm(disable=True)
        shown = []
        bar.update = shown.append
        evaluation = evaluate(model, loader, NORMALIZE, VIT, bar=bar)
        assert shown == [3, 3, 1]
        assert evaluation.labels.tolist() == split.labels.tolist()
        assert (evaluation.logits.shape, evaluation.logits.dtype) == ((7, CLASSES), np.float32)
        assert evaluation.labels.dtype == np.int64
        assert evaluation.parts is None  # the model selects none
        model.eval()
        for position in range(7):
            image = loader.dataset.__getitems__(whole_part([(0, position)])).images
            with torch.no_grad():
                alone = model(NORMALIZE(image)).logits[0].numpy()
            assert np.allclose(evaluation.logits[position], alone, atol=1e-5)

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_gives_parts_on_the_original_image(self, split, batch_size):
        """Photos of several sizes: each sample's points go back by its own."""
        model = random_model(SIZE, CLASSES, head="parts")
        loader = loader_of(split, batch_size)
        parts = evaluate(model, loader, NORMALIZE, VIT).parts
        assert (parts.shape, parts.dtype) == ((7, 4, 2), np.float64)
        model.eval()
        seen = set()
        for position in range(7):
            sample = loader.dataset.__getitems__(whole_part([(0, position)]))
            with torch.no_grad():
                square = model(NORMALIZE(sample.images)).parts.numpy()
            expected = crop_to_image(square, sample.sizes.numpy(), SIZE, VIT)[0]
            assert np.array_equal(parts[position], expected)
            assert ((expected > 0) & (expected < 1)).all()
            seen.add(tuple(sample.sizes[0].tolist()))
        assert len(seen) > 3

    @pytest.mark.parametrize("training", [True, False])
    def test_restores_the_mode_and_leaves_the_model_alone(self, model, split, training):
        model.train(training)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modes = []
        handle = model.register_forward_hook(lambda module, *_: modes.append(module.training))
        evaluate(model, loader_of(split, 4), NORMALIZE, VIT)
        handle.remove()
        assert modes == [False, False]
        assert all(module.training is training for module in model.modules())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_leaves_out_bad_images_and_tells_of_them(self, model, split, batch_size):
        """One of a batch, and a batch of which it is all."""
        for position in (1, 6):
            Path(split.path_of(position)).write_bytes(b"")
        config = loader_config(eval_batch_size=batch_size, img_size=SIZE, skip_bad_images=2)
        bad = []
        evaluation = evaluate(model, eval_loader(config, split, CPU), NORMALIZE, VIT, bad=bad)
        assert evaluation.positions.tolist() == [0, 2, 3, 4, 5]
        assert evaluation.labels.tolist() == split.labels[[0, 2, 3, 4, 5]].tolist()
        assert [sample_id for sample_id, _ in bad] == split.ids[[1, 6]].tolist()

    def test_of_no_sample_is_none(self, model, split):
        """More processes than batches: the last one gets none."""
        loader = loader_of(split)
        dataset, batches = loader.dataset, EvalBatches(7, 3, rank=3, world_size=4)
        loader = DataLoader(dataset, batch_sampler=batches, collate_fn=loader.collate_fn)
        assert evaluate(model, loader, NORMALIZE, VIT) is None

    def test_ends_after_the_batch_in_which_the_run_is_asked_to_stop(self, model, split):
        class Bar:
            def update(self, n):
                os.kill(os.getpid(), signal.SIGTERM)

        with stop_requests():
            evaluation = evaluate(model, loader_of(split), NORMALIZE, VIT, bar=Bar())
            assert stop_signal() == signal.SIGTERM
        assert evaluation.positions.tolist() == [0, 1, 2]


def evaluation_of(positions: list[int], parts: bool = False) -> Evaluation:
    """One whose numbers say their position."""
    column = np.array(positions, dtype=np.int64)
    logits = np.repeat(column[:, None], CLASSES, axis=1).astype(np.float32)
    points = np.repeat(column[:, None, None], 2, axis=2).astype(np.float64) if parts else None
    return Evaluation(logits, column % CLASSES, points, column)


class TestWholeEvaluation:
    @pytest.mark.parametrize("parts", [False, True])
    @settings(max_examples=50)
    @given(data=st.data())
    def test_is_in_split_order(self, parts, data):
        order = data.draw(st.permutations(range(9)))
        cuts = sorted(data.draw(st.lists(st.integers(0, 9), min_size=2, max_size=2)))
        pieces = [order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] :]]
        each = [evaluation_of(piece, parts) if piece else None for piece in pieces]
        whole = whole_evaluation(each, 9)
        expected = evaluation_of(list(range(9)), parts)
        assert all(
            (one is None and other is None) or np.array_equal(one, other)
            for one, other in zip(whole, expected, strict=True)
        )

    @pytest.mark.parametrize(
        "pieces", [[[0, 1], [2, 3]], [[0, 1, 2], [2, 3, 4]], [[0] * 5], [[0, 1, 2, 3, 5]], []]
    )
    def test_refuses_samples_missing_or_repeated(self, pieces):
        count = sum(map(len, pieces))
        with pytest.raises(RunError, match=f"evaluated {count} samples, expected 5, each once"):
            whole_evaluation([evaluation_of(piece) for piece in pieces], 5)

    def test_without_bad_images_is_whole_if_those_are_known(self):
        pieces = [evaluation_of([4, 0]), evaluation_of([2])]
        assert whole_evaluation(pieces, 5, skipped=2).positions.tolist() == [0, 2, 4]
        with pytest.raises(RunError, match="evaluated 3 samples, expected 4, each once"):
            whole_evaluation(pieces, 5, skipped=1)
        with pytest.raises(RunError, match="none of the 5 images to evaluate can be decoded"):
            whole_evaluation([None], 5, skipped=5)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_refuses_logits_that_are_not_finite(self, bad):
        evaluation = evaluation_of([0, 1, 2])
        evaluation.logits[1, 2] = bad
        with pytest.raises(RunError, match=r"logits of 1 of 3 evaluated samples are not finite"):
            whole_evaluation([evaluation], 3)
