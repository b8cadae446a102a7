"""utils/training/train_step.py: one training step, one evaluation, by the real `testing` model."""

import copy
import os
import signal

import numpy as np
import pytest
import torch
from helpers import loader_config, step_of, whole_part
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from models.build import build_model
from models.configs import get_config
from models.losses import Objective
from models.pretrained.profiles import GOOGLE
from utils.data.batches import Batch, Normalizer
from utils.data.loaders import eval_loader
from utils.data.presets import PRESETS, crop_to_image
from utils.errors import RunError
from utils.evaluation.evaluate import Evaluation, evaluate, whole_evaluation
from utils.signals import stop_requests, stop_signal
from utils.training.learner import Learner
from utils.training.train_step import train_step

CPU = torch.device("cpu")
SIZE, CLASSES = 32, 5
NORMALIZE = Normalizer(GOOGLE.normalization, CPU)
LOSS = Objective()
VIT = PRESETS["vit"]


@pytest.fixture
def model():
    """The `testing` model with a head that is not zero, so that every weight has a gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model(get_config("testing", SIZE), CLASSES)
        torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def batch_of(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return Batch(images, labels, torch.arange(count), torch.full((count, 2), SIZE))


def cut(batch: Batch, parts: int) -> list[Batch]:
    return [Batch(*columns) for columns in zip(*(c.chunk(parts) for c in batch[:4]), strict=True)]


def loader_of(split, batch_size: int = 3) -> DataLoader:
    return eval_loader(loader_config(eval_batch_size=batch_size, img_size=SIZE), split, CPU)


def learner_of(model, lr=0.1, momentum=0.0, is_joint=False) -> Learner:
    """A learner without schedule and averaged weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    return Learner(model, model, optimizer, None, None, is_joint)


def step(model, micro_batches, lr=0.1, max_grad_norm=1e9, momentum=0.0):
    learner = learner_of(model, lr, momentum)
    return train_step(learner, LOSS, step_of(micro_batches), NORMALIZE, max_grad_norm)


def flat(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class TestNormalizer:
    @settings(max_examples=50, deadline=None)
    @given(
        mean=st.lists(st.floats(0, 1), min_size=3, max_size=3),
        std=st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
    )
    def test_is_x_over_255_minus_mean_over_std(self, mean, std):
        images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
        got = Normalizer({"mean": mean, "std": std}, CPU)(images)
        x = images.double() / 255
        expected = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
        assert (got.shape, got.dtype) == (images.shape, torch.float32)
        assert torch.allclose(got.double(), expected.double(), atol=1e-5, rtol=1e-5)

    def test_of_the_project_maps_to_minus_one_and_one(self):
        images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
        got = NORMALIZE(images).flatten(1)
        assert torch.allclose(got, torch.tensor([[-1.0] * 3, [1.0] * 3]), atol=1e-6)

    def test_leaves_its_input_alone(self):
        images = batch_of(2).images
        before = images.clone()
        NORMALIZE(images)
        assert torch.equal(images, before)


class TestTrainStep:
    @pytest.mark.parametrize("parts", [2, 4, 8])
    def test_accumulation_is_one_large_batch(self, model, parts):
        other, batch = copy.deepcopy(model), batch_of(8)
        whole, in_parts = step(model, [batch]), step(other, cut(batch, parts))
        assert torch.allclose(flat(model), flat(other), atol=1e-5)
        assert float(whole.loss) == pytest.approx(float(in_parts.loss), rel=1e-5)
        assert int(whole.correct) == int(in_parts.correct)

    def test_is_one_step_of_gradient_descent(self, model):
        batch, before = batch_of(6), flat(model)
        twin = copy.deepcopy(model)
        loss = LOSS(twin(NORMALIZE(batch.images)), batch.labels)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in twin.parameters()])
        result = step(model, [batch], lr=0.1)
        assert torch.allclose(flat(model), before - 0.1 * gradient, atol=1e-6)
        assert float(result.loss) == pytest.approx(loss.item())

    def test_reports_loss_and_hits_before_the_step(self, model):
        batch = batch_of(8)
        with torch.no_grad():
            logits = model(NORMALIZE(batch.images)).logits
        result = step(model, [batch])
        assert result.loss.shape == result.correct.shape == ()
        assert not result.loss.requires_grad
        assert int(result.correct) == int((logits.argmax(dim=1) == batch.labels).sum())

    @pytest.mark.parametrize("max_grad_norm", [1e-3, 0.1, 1.0])
    def test_clips_the_gradient_of_the_whole_batch(self, model, max_grad_norm):
        before = flat(model)
        step(model, cut(batch_of(8), 4), lr=1.0, max_grad_norm=max_grad_norm)
        moved = (flat(model) - before).norm().item()
        assert moved == pytest.approx(max_grad_norm, rel=2e-2)

    def test_does_not_clip_what_is_short(self, model):
        other, batch = copy.deepcopy(model), batch_of(8)
        step(model, [batch], max_grad_norm=1e4)
        step(other, [batch], max_grad_norm=1e9)
        assert torch.equal(flat(model), flat(other))

    def test_leaves_no_gradient_behind(self, model):
        step(model, [batch_of(4)])
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_without_a_sample_moves_nothing(self, model):
        before = flat(model)
        assert step(model, [], momentum=0.9) is None
        assert torch.equal(flat(model), before)

    def test_learns(self, model):
        learner, only = learner_of(model, lr=0.05), step_of([batch_of(8)])
        losses = [float(train_step(learner, LOSS, only, NORMALIZE, 1.0).loss) for _ in range(20)]
        assert losses[-1] < losses[0] / 2


def selecting_model(**fields):
    """The `testing` model with part selection, every weight away from where it starts."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model(get_config("testing", SIZE, head="parts", **fields), CLASSES)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def gradients_of(model, objective, micro_batches, joint=None, seed=0):
    """The loss and the gradient of every parameter, as the optimizer meets them.

    `joint` is None (the mean over micro-batches), "recomputed" as in training, or "remembered".
    """
    model = copy.deepcopy(model)
    if joint == "remembered":
        model.checkpointed_forward = model.forward
    learner = learner_of(model, is_joint=joint is not None)
    met = {}

    def note(*_):
        met.update({name: p.grad.clone() for name, p in model.named_parameters()})

    learner.optimizer.register_step_pre_hook(note)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        result = train_step(learner, objective, step_of(micro_batches), NORMALIZE, 1e9)
    return result, met


def largest_difference(given, expected) -> float:
    """Between two sets of gradients, each relative to the largest entry of its tensor."""
    assert given.keys() == expected.keys()
    differences = [
        ((given[name] - gradient).abs().max() / gradient.abs().max()).item()
        for name, gradient in expected.items()
    ]
    return max(differences)


WEIGHTS = torch.tensor([0.3, 2.0, 1.0, 0.7, 1.6])
OBJECTIVES = {
    "contrast": Objective(contrastive_weight=1.0),
    "weighted": Objective(0.0, WEIGHTS, 1.0, 0.2),
    "smoothed": Objective(0.1, None, 0.5, -0.1),
    "all": Objective(0.2, WEIGHTS, 2.0, 0.0),
}


class TestJointStep:
    """The loss over all micro-batches together, each computed again for its gradient."""

    @pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
    @pytest.mark.parametrize("count", [1, 2, 4, 8])
    def test_does_not_depend_on_the_number_of_micro_batches(self, count, objective):
        model, batch = selecting_model(), batch_of(8)
        whole, expected = gradients_of(model, objective, [batch])
        joint, given = gradients_of(model, objective, cut(batch, count), "recomputed")
        assert float(joint.loss) == pytest.approx(float(whole.loss), rel=1e-5)
        assert int(joint.correct) == int(whole.correct)
        assert joint.loss.shape == joint.correct.shape == ()
        assert not joint.loss.requires_grad
        assert largest_difference(given, expected) < 1e-5

    @pytest.mark.parametrize("count", [2, 4, 8])
    def test_is_another_than_the_mean_over_micro_batches(self, count):
        model, batch, objective = selecting_model(), batch_of(8), OBJECTIVES["contrast"]
        whole, expected = gradients_of(model, objective, [batch])
        micro, given = gradients_of(model, objective, cut(batch, count))
        assert abs(float(micro.loss) - float(whole.loss)) > 1e-3
        assert largest_difference(given, expected) > 0.1

    @pytest.mark.parametrize("count", [2, 8])
    def test_of_a_mean_over_samples_is_the_accumulated_one(self, count):
        model, batch, objective = selecting_model(), batch_of(8), Objective(0.1, WEIGHTS)
        micro, expected = gradients_of(model, objective, cut(batch, count))
        joint, given = gradients_of(model, objective, cut(batch, count), "recomputed")
        assert float(joint.loss) == pytest.approx(float(micro.loss), rel=1e-6)
        assert largest_difference(given, expected) < 1e-5

    @pytest.mark.parametrize("fields", [{"dropout": 0.3}, {"drop_path": 0.5}])
    @pytest.mark.parametrize("grad_checkpointing", [False, True])
    def test_draws_again_what_it_drew(self, fields, grad_checkpointing):
        model, micro_batches = selecting_model(**fields), cut(batch_of(8), 4)
        model.grad_checkpointing = grad_checkpointing
        objective = OBJECTIVES["all"]
        joint, given = gradients_of(model, objective, micro_batches, "recomputed")
        model.grad_checkpointing = False
        kept, expected = gradients_of(model, objective, micro_batches, "remembered")
        assert float(joint.loss) == float(kept.loss)
        assert largest_difference(given, expected) < 1e-6
        other, _ = gradients_of(model, objective, micro_batches, "remembered", seed=1)
        assert float(other.loss) != float(kept.loss)

    def test_leaves_the_generator_where_one_pass_leaves_it(self):
        """Else what the next step draws would depend on how memory is saved."""
        model, micro_batches = selecting_model(dropout=0.3), cut(batch_of(8), 4)
        states = []
        for joint in ("recomputed", "remembered"):
            twin = copy.deepcopy(model)
            if joint == "remembered":
                twin.checkpointed_forward = twin.forward
            learner = learner_of(twin, is_joint=True)
            torch.manual_seed(0)
            train_step(learner, OBJECTIVES["all"], step_of(micro_batches), NORMALIZE, 1.0)
            states.append(torch.get_rng_state())
        assert torch.equal(*states)

    def test_remembers_one_piece(self):
        """The last, whose backward pass is the first; the others are computed again one by one."""

        def remembered(micro_batches, joint) -> int:
            saved = {}  # by address; held, so that no address is used twice

            def pack(tensor):
                owner = tensor if tensor._base is None else tensor._base
                if not isinstance(owner, torch.nn.Parameter):
                    saved[tensor.untyped_storage().data_ptr()] = tensor
                return tensor

            model = selecting_model()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                gradients_of(model, OBJECTIVES["contrast"], micro_batches, joint)
            return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())

        batch = batch_of(8)
        joint = remembered(cut(batch, 4), "recomputed")
        kept = remembered(cut(batch, 4), "remembered")
        whole = remembered([batch], None)
        images = NORMALIZE(batch.images).nbytes
        piece = remembered(cut(batch, 4)[-1:], None)
        assert images < joint
        assert joint - images < 1.2 * piece < (kept - images) / 2
        assert kept == pytest.approx(whole, rel=0.1)

    def test_clips_and_leaves_no_gradient_behind(self):
        model = selecting_model()
        before = flat(model)
        learner = learner_of(model, lr=1.0, is_joint=True)
        only = step_of(cut(batch_of(8), 4))
        train_step(learner, OBJECTIVES["contrast"], only, NORMALIZE, 0.1)
        assert (flat(model) - before).norm().item() == pytest.approx(0.1, rel=2e-2)
        assert all(parameter.grad is None for parameter in model.parameters())


class TestEvaluate:
    @pytest.fixture
    def split(self, tmp_path, make_split):
        return make_split(tmp_path, [0, 1, 2, 3, 4, 0, 1], num_classes=CLASSES)

    def test_gives_logits_of_every_sample_in_order(self, model, split):
        loader = loader_of(split)
        evaluation = evaluate(model, loader, NORMALIZE, VIT)
        assert evaluation.labels.tolist() == split.labels.tolist()
        assert (evaluation.logits.shape, evaluation.logits.dtype) == ((7, CLASSES), np.float32)
        assert evaluation.labels.dtype == np.int64
        model.eval()
        for position in range(7):
            image = loader.dataset.__getitems__(whole_part([(0, position)])).images
            with torch.no_grad():
                alone = model(NORMALIZE(image)).logits[0].numpy()
            assert np.allclose(evaluation.logits[position], alone, atol=1e-5)

    def test_of_a_model_without_parts_has_none(self, model, split):
        assert evaluate(model, loader_of(split), NORMALIZE, VIT).parts is None

    @pytest.mark.parametrize("batch_size", [1, 3, 7])
    def test_gives_parts_on_the_original_image(self, split, batch_size):
        """Photos of several sizes: each sample's points go back by its own."""
        model = selecting_model()
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
        before = flat(model).clone()
        modes = []
        handle = model.register_forward_hook(lambda module, *_: modes.append(module.training))
        evaluate(model, loader_of(split, 4), NORMALIZE, VIT)
        handle.remove()
        assert modes == [False, False]
        assert all(module.training is training for module in model.modules())
        assert torch.equal(flat(model), before)
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_moves_the_bar_by_every_sample(self, model, split):
        class Bar:
            n = 0

            def update(self, n):
                self.n += n

        bar = Bar()
        evaluate(model, loader_of(split), NORMALIZE, VIT, bar=bar)
        assert bar.n == 7

    def test_of_no_sample_is_none(self, model, split):
        loader = loader_of(split)
        loader.batch_sampler.firsts = range(0)
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
    @settings(max_examples=50, deadline=None)
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

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_refuses_logits_that_are_not_finite(self, bad):
        evaluation = evaluation_of([0, 1, 2])
        evaluation.logits[1, 2] = bad
        with pytest.raises(RunError, match=r"logits of 1 of 3 evaluated samples are not finite"):
            whole_evaluation([evaluation], 3)
