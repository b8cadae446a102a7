"""The losses against their formulas.

Shapes: B batch, C classes, D width.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict
from scipy.special import log_softmax
from small_models import SEEDS

from models.losses import (
    Objective,
    balanced_class_weights,
    build_objective,
    classification_loss,
    contrastive_loss,
)
from models.vit import ViTOutput

SETTINGS = settings(max_examples=50)
BATCHES, CLASSES = st.integers(1, 6), st.integers(1, 12)


def output_of(logits: torch.Tensor) -> ViTOutput:
    return ViTOutput(logits, features=torch.zeros(len(logits), 4))


def random_case(batch: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, generator=generator)
    return logits.requires_grad_(), torch.randint(classes, (batch,), generator=generator)


def random_features(batch: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    return features.requires_grad_()


def random_weights(classes: int, seed: int) -> torch.Tensor:
    return 0.1 + 2 * torch.rand(classes, generator=torch.Generator().manual_seed(seed))


# --- Cross-entropy --------------------------------------------------------------------------------


@given(
    batch=BATCHES,
    classes=CLASSES,
    smoothing=st.floats(0, 0.99),
    has_weights=st.booleans(),
    seed=SEEDS,
)
@SETTINGS
def test_cross_entropy_and_its_gradient_are_the_formula(
    batch, classes, smoothing, has_weights, seed
):
    logits, labels = random_case(batch, classes, seed)
    weights = random_weights(classes, seed) if has_weights else None
    # The target is (1 - s) on the label plus s / C on every class (Szegedy et al. 2016). Every term
    # of the cross-entropy, the smoothing's too, has the factor of its own class.
    target = (1 - smoothing) * np.eye(classes)[labels.numpy()] + smoothing / classes
    if weights is not None:
        target = target * weights.double().numpy()
    log_probabilities = log_softmax(logits.detach().double().numpy(), axis=1)
    expected = -(target * log_probabilities).sum(axis=1).mean()

    loss = classification_loss(output_of(logits), labels, smoothing, weights)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, abs=1e-5, rel=1e-5)
    loss.backward()
    gradient = np.exp(log_probabilities) * target.sum(axis=1, keepdims=True) - target
    np.testing.assert_allclose(logits.grad.numpy(), gradient / batch, atol=2e-6)


# --- Class weights --------------------------------------------------------------------------------


@given(
    micro_batches=st.integers(1, 4),
    size=st.integers(1, 4),
    classes=CLASSES,
    smoothing=st.floats(0, 0.99),
    seed=SEEDS,
)
@SETTINGS
def test_the_mean_over_micro_batches_is_the_mean_over_the_batch(
    micro_batches, size, classes, smoothing, seed
):
    logits, labels = random_case(micro_batches * size, classes, seed)
    weights = random_weights(classes, seed)
    whole = classification_loss(output_of(logits), labels, smoothing, weights)
    pieces = [
        classification_loss(output_of(part), its_labels, smoothing, weights)
        for part, its_labels in zip(logits.split(size), labels.split(size), strict=True)
    ]
    mean = torch.stack(pieces).mean()
    torch.testing.assert_close(mean, whole)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (mean, whole)]
    torch.testing.assert_close(*gradients)


# --- Contrastive loss -----------------------------------------------------------------------------


def contrast_of_the_paper_s_code(
    features: torch.Tensor, labels: torch.Tensor, margin: float
) -> torch.Tensor:
    """TransFG, equation 8, as TACJu/TransFG computes it: with a loop and writing by a mask."""
    unit = F.normalize(features)
    cosine = unit.mm(unit.t())
    positive = torch.stack([labels == label for label in labels]).to(cosine.dtype)
    negative_cosine = cosine - margin
    negative_cosine[negative_cosine < 0] = 0
    loss = ((1 - cosine) * positive).sum() + (negative_cosine * (1 - positive)).sum()
    return loss / len(labels) ** 2


@given(
    batch=st.integers(1, 8),
    width=st.integers(1, 6),
    classes=st.integers(1, 4),
    margin=st.floats(-0.99, 0.99),
    seed=SEEDS,
)
@SETTINGS
def test_the_contrastive_loss_is_the_paper_s_and_so_is_its_gradient(
    batch, width, classes, margin, seed
):
    features = random_features(batch, width, seed)
    labels = random_case(batch, classes, seed)[1]
    loss = contrastive_loss(features, labels, margin)
    assert loss.shape == ()
    theirs = contrast_of_the_paper_s_code(features, labels, margin)
    torch.testing.assert_close(loss, theirs, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(each, features)[0] for each in (loss, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


def test_the_margin_is_0_4_unless_asked_for_another():
    labels = torch.arange(2)

    def loss_at(cosine: float, **margin: float) -> float:
        features = torch.tensor([[1, 0], [cosine, math.sqrt(1 - cosine**2)]])
        return contrastive_loss(features, labels, **margin).item()

    # Two of the four pairs are of different classes.
    assert loss_at(0.9) == pytest.approx(0.5 / 2, abs=1e-6)
    assert loss_at(0.5) == pytest.approx(0.1 / 2, abs=1e-6)
    assert loss_at(0.3) == pytest.approx(0, abs=1e-6)
    assert loss_at(0.3, margin=0.1) == pytest.approx(0.2 / 2, abs=1e-6)
    assert Objective().margin == 0.4


# --- What training minimises ----------------------------------------------------------------------


def random_output(seed: int) -> tuple[ViTOutput, torch.Tensor]:
    logits, labels = random_case(6, 3, seed)
    return ViTOutput(logits, random_features(6, 4, seed).float()), labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", [None, torch.tensor([0.5, 1.0, 3.0])])
def test_without_contrast_an_objective_is_cross_entropy_exactly(smoothing, class_weights):
    output, labels = random_output(0)
    # Features that would spoil a sum, even with the weight 0.
    output = output._replace(features=torch.full((6, 4), math.nan))
    objective = Objective(smoothing, class_weights, contrastive_weight=0.0)
    expected = classification_loss(output, labels, smoothing, class_weights)
    assert torch.equal(objective(output, labels), expected)
    assert torch.equal(Objective()(output, labels), F.cross_entropy(output.logits, labels))


@pytest.mark.parametrize("margin", [0.4, -0.5])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_an_objective_is_the_sum_of_its_losses(weight, margin):
    output, labels = random_output(0)
    class_weights = random_weights(3, 0)
    objective = Objective(0.1, class_weights, weight, margin)
    target = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
    cross_entropy = -(target * class_weights * output.logits.log_softmax(dim=1)).sum() / 6
    contrast = contrast_of_the_paper_s_code(output.features, labels, margin).item()
    loss = objective(output, labels)
    assert loss.item() == pytest.approx(cross_entropy.item() + weight * contrast, abs=1e-6)
    assert contrast > 0.1


# --- Class weights by the classes' counts ---------------------------------------------------------


@given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=200), more=st.integers(0, 5))
@settings(max_examples=100)
def test_balanced_weights_give_every_class_the_same_total(labels, more):
    labels, classes = np.array(labels), max(labels) + 1 + more
    weights = balanced_class_weights(labels, classes)
    assert (weights.shape, weights.dtype) == ((classes,), torch.float32)
    assert weights[labels].mean().item() == pytest.approx(1, rel=1e-5)
    counts = np.bincount(labels, minlength=classes)
    assert (weights[counts == 0] == 1).all()
    # n / (present classes * count): what sklearn's compute_class_weight("balanced") gives.
    present = counts[counts > 0]
    expected = len(labels) / (len(present) * present)
    assert weights[counts > 0].numpy() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_flags_of_a_run_become_its_objective(balanced):
    fields = {
        "smoothing_value": 0.1,
        "contrastive_weight": 0.5,
        "contrastive_margin": 0.3,
        "class_weights": "balanced" if balanced else "none",
    }
    labels = np.array([0, 0, 0, 2, 2, 3])
    parts, plain = (
        build_objective(FrozenConfigDict({"head": head, **fields}), labels, 5, torch.device("cpu"))
        for head in ("parts", "token")
    )
    for objective in (parts, plain):
        weights = objective.class_weights
        if balanced:
            assert weights.tolist() == pytest.approx([6 / 9, 1, 6 / 6, 6 / 3, 1], rel=1e-6)
        else:
            assert weights is None
    assert (parts.smoothing, *parts[2:]) == (0.1, 0.5, 0.3)
    # A plain model has no contrastive loss, whatever the flags are.
    assert (plain.smoothing, plain.contrastive_weight) == (0.1, 0)
