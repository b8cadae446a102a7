"""Check one training step by the real `testing` model."""

import copy

import pytest
import torch
from helpers import random_model, step_of
from hypothesis import given, settings
from hypothesis import strategies as st

from models.losses import Objective
from models.pretrained.profiles import GOOGLE
from models.vit import Backbone
from utils.data.batches import Batch, Normalizer
from utils.training.learner import Learner
from utils.training.train_step import train_step

CPU = torch.device("cpu")
SIZE, CLASSES = 32, 5
NORMALIZE = Normalizer(GOOGLE.normalization, CPU)
LOSS = Objective()


@pytest.fixture
def model():
    return random_model(SIZE, CLASSES)


def batch_of(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return Batch(images, labels, torch.arange(count), torch.full((count, 2), SIZE))


def cut(batch: Batch, parts: int) -> list[Batch]:
    return [Batch(*columns) for columns in zip(*(c.chunk(parts) for c in batch[:4]), strict=True)]


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
    @settings(max_examples=50)
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

    def test_leaves_its_input_alone(self):
        images = batch_of(2).images
        before = images.clone()
        NORMALIZE(images)
        assert torch.equal(images, before)


class TestTrainStep:
    def test_accumulation_is_one_large_batch(self, model):
        other, batch = copy.deepcopy(model), batch_of(8)
        whole, in_parts = step(model, [batch]), step(other, cut(batch, 4))
        assert torch.allclose(flat(model), flat(other), atol=1e-5)
        assert float(whole.loss) == pytest.approx(float(in_parts.loss), rel=1e-5)
        assert int(whole.correct) == int(in_parts.correct)

    @pytest.mark.parametrize("is_joint", [False, True])
    def test_the_model_sees_the_patches_that_are_kept(self, model, is_joint):
        whole, kept = batch_of(4), torch.tensor([[0, 2], [1, 3], [0, 1], [2, 3]])
        twin = copy.deepcopy(model)
        LOSS(twin(NORMALIZE(whole.images), kept), whole.labels).backward()
        gradient = torch.cat([p.grad.flatten() for p in twin.parameters()])
        before, pairs = flat(model), zip(cut(whole, 2), kept.chunk(2), strict=True)
        batches = [batch._replace(kept=own) for batch, own in pairs]
        train_step(learner_of(model, is_joint=is_joint), LOSS, step_of(batches), NORMALIZE, 1e9)
        assert torch.allclose(flat(model), before - 0.1 * gradient, atol=1e-6)

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

    def test_clips_the_gradient_of_the_whole_batch_and_leaves_none_behind(self, model):
        before = flat(model)
        step(model, cut(batch_of(8), 4), lr=1.0, max_grad_norm=0.1)
        assert (flat(model) - before).norm().item() == pytest.approx(0.1, rel=2e-2)
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_does_not_clip_what_is_short(self, model):
        other, batch = copy.deepcopy(model), batch_of(8)
        step(model, [batch], max_grad_norm=1e4)
        step(other, [batch], max_grad_norm=1e9)
        assert torch.equal(flat(model), flat(other))

    def test_without_a_sample_moves_nothing(self, model):
        before = flat(model)
        assert step(model, [], momentum=0.9) is None
        assert torch.equal(flat(model), before)


def selecting_model(**fields) -> Backbone:
    """A model with part selection."""
    return random_model(SIZE, CLASSES, head="parts", **fields)


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
    @pytest.mark.parametrize("count", [1, 4])
    def test_does_not_depend_on_the_number_of_micro_batches(self, count, objective):
        model, batch = selecting_model(), batch_of(8)
        whole, expected = gradients_of(model, objective, [batch])
        joint, given = gradients_of(model, objective, cut(batch, count), "recomputed")
        assert float(joint.loss) == pytest.approx(float(whole.loss), rel=1e-5)
        assert int(joint.correct) == int(whole.correct)
        assert joint.loss.shape == joint.correct.shape == ()
        assert not joint.loss.requires_grad
        assert largest_difference(given, expected) < 1e-5

    @pytest.mark.parametrize("count", [2, 8])
    def test_is_another_than_the_mean_over_micro_batches(self, count):
        model, batch, objective = selecting_model(), batch_of(8), OBJECTIVES["contrast"]
        whole, expected = gradients_of(model, objective, [batch])
        micro, given = gradients_of(model, objective, cut(batch, count))
        assert abs(float(micro.loss) - float(whole.loss)) > 1e-3
        assert largest_difference(given, expected) > 0.1

    def test_of_a_mean_over_samples_is_the_accumulated_one(self):
        model, batch, objective = selecting_model(), batch_of(8), Objective(0.1, WEIGHTS)
        micro, expected = gradients_of(model, objective, cut(batch, 4))
        joint, given = gradients_of(model, objective, cut(batch, 4), "recomputed")
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
