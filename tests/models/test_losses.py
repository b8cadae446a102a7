"""The classification loss against its formula.

Shapes: B batch, C classes.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from small_models import SEEDS

from models.losses import classification_loss
from models.vit import ViTOutput


def output_of(logits: torch.Tensor) -> ViTOutput:
    return ViTOutput(logits, features=torch.zeros(len(logits), 4))


def random_case(batch: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, generator=generator)
    return logits.requires_grad_(), torch.randint(classes, (batch,), generator=generator)


@given(
    batch=st.integers(1, 6),
    classes=st.integers(1, 12),
    smoothing=st.floats(0, 0.99),
    seed=SEEDS,
)
@settings(max_examples=50, deadline=None)
def test_it_is_the_formula_and_so_is_its_gradient(batch, classes, smoothing, seed):
    logits, labels = random_case(batch, classes, seed)
    # The target is (1 - s) on the label plus s / C on every class (Szegedy et al. 2016).
    target = (1 - smoothing) * np.eye(classes)[labels.numpy()] + smoothing / classes
    log_probabilities = log_softmax(logits.detach().double().numpy(), axis=1)
    expected = -(target * log_probabilities).sum(axis=1).mean()

    loss = classification_loss(output_of(logits), labels, smoothing)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, abs=1e-5, rel=1e-5)
    loss.backward()
    gradient = (np.exp(log_probabilities) - target) / batch
    np.testing.assert_allclose(logits.grad.numpy(), gradient, atol=1e-6)


def test_there_is_no_smoothing_unless_asked_for():
    logits, labels = random_case(4, 3, 0)
    plain = classification_loss(output_of(logits), labels)
    assert torch.equal(plain, classification_loss(output_of(logits), labels, smoothing=0.0))
    assert not torch.equal(plain, classification_loss(output_of(logits), labels, smoothing=0.1))


def test_the_features_play_no_part():
    logits, labels = random_case(4, 3, 0)
    with_others = ViTOutput(logits, features=torch.full((4, 4), math.nan))
    loss = classification_loss(with_others, labels)
    assert torch.equal(loss, classification_loss(output_of(logits), labels))


def test_huge_logits_do_not_overflow():
    loss = classification_loss(output_of(torch.tensor([[1e4, -1e4]])), torch.tensor([1]))
    assert loss.item() == pytest.approx(2e4)


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
        classification_loss(output_of(torch.zeros(1, 3)), torch.tensor([label]))
