"""Weights from elsewhere: what is taken, what is new, what is refused."""

import re

import pytest
import torch
from small_models import randomize, small_config

from models.build import build_model
from models.pretrained import HEAD_KEYS, LoadReport, load_pretrained

HEAD = ("head.bias", "head.weight")


def model_of(num_classes: int = 5, seed: int = 0, **sizes: int | str) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = build_model(small_config(**sizes), num_classes)
    randomize(model, seed)
    return model


def weights_of(num_classes: int = 5, **sizes: int | str) -> dict[str, torch.Tensor]:
    return model_of(num_classes, seed=1, **sizes).state_dict()


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_equal(given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(given, expected, rtol=0, atol=0)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_everything_is_kept_with_the_head(pool):
    model, weights = model_of(pool=pool), weights_of(pool=pool)
    report = load_pretrained(model, weights, keep_head=True)
    assert_equal(model.state_dict(), weights)
    assert report == LoadReport(loaded=tuple(sorted(weights)), new=(), unused=())


@pytest.mark.parametrize("num_classes", [5, 3])
def test_a_new_head_keeps_its_initial_values(num_classes):
    model, weights = model_of(num_classes), weights_of(num_classes=5)
    before = snapshot(model)
    report = load_pretrained(model, weights, keep_head=False)
    backbone = tuple(sorted(weights.keys() - HEAD_KEYS))
    assert report == LoadReport(loaded=backbone, new=HEAD, unused=HEAD)
    after = model.state_dict()
    assert_equal({key: after[key] for key in backbone}, {key: weights[key] for key in backbone})
    assert_equal({key: after[key] for key in HEAD}, {key: before[key] for key in HEAD})


def test_weights_without_a_head_do_for_a_new_one():
    weights = weights_of()
    backbone = {key: value for key, value in weights.items() if key not in HEAD_KEYS}
    report = load_pretrained(model_of(num_classes=3), backbone, keep_head=False)
    assert report == LoadReport(loaded=tuple(sorted(backbone)), new=HEAD, unused=())


@pytest.mark.parametrize("keep_head", [True, False])
def test_every_key_has_one_fate(keep_head):
    model, weights = model_of(), weights_of()
    report = load_pretrained(model, weights, keep_head)
    assert sorted((*report.loaded, *report.new)) == sorted(model.state_dict())
    assert sorted((*report.loaded, *report.unused)) == sorted(weights)


def test_the_parameters_are_written_in_place_and_share_nothing():
    model, weights = model_of(), weights_of()
    parameters = dict(model.named_parameters())
    load_pretrained(model, weights, keep_head=True)
    assert all(parameters[name] is value for name, value in model.named_parameters())
    taken = snapshot(model)
    for value in weights.values():
        value.zero_()
    assert_equal(model.state_dict(), taken)


def test_strided_and_other_float_weights_end_float32_and_contiguous():
    # MPS computes wrong with parameters that are not contiguous (pytorch #192212).
    weights = weights_of()
    strided = {k: v.mT.contiguous().mT if v.ndim > 1 else v for k, v in weights.items()}
    assert not strided["blocks.0.mlp.fc1.weight"].is_contiguous()
    model = model_of()
    load_pretrained(model, {k: v.double() for k, v in strided.items()}, keep_head=True)
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in model.parameters())
    assert_equal(model.state_dict(), weights)


# --- Refused --------------------------------------------------------------------------------------


def assert_refused(weights: dict, keep_head: bool, message: str, num_classes: int = 5) -> None:
    """Refused with `message`, and the model is as it was."""
    model = model_of(num_classes)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_pretrained(model, weights, keep_head)
    assert_equal(model.state_dict(), before)


@pytest.mark.parametrize("keep_head", [True, False])
@pytest.mark.parametrize("key", ["cls_token", "blocks.2.norm1.weight", "norm.bias"])
def test_a_missing_key_is_listed(key, keep_head):
    weights = weights_of()
    del weights[key]
    assert_refused(weights, keep_head, f"missing {key}")


def test_a_head_that_is_to_be_kept_must_be_there():
    weights = {key: value for key, value in weights_of().items() if key not in HEAD_KEYS}
    assert_refused(weights, True, "missing head.bias, missing head.weight")


@pytest.mark.parametrize("keep_head", [True, False])
@pytest.mark.parametrize("key", ["blocks.3.norm1.weight", "fc_norm.weight", "head.extra"])
def test_an_unexpected_key_is_listed(key, keep_head):
    weights = {**weights_of(), key: torch.zeros(1)}
    assert_refused(weights, keep_head, f"unexpected {key}")


@pytest.mark.parametrize("keep_head", [True, False])
def test_another_shape_is_listed(keep_head):
    weights = weights_of(img_size=64)
    assert_refused(weights, keep_head, "pos_embed is (1, 17, 64), not (1, 5, 64)")


@pytest.mark.parametrize("keep_head", [True, False])
def test_another_shape_of_as_many_numbers_is_listed(keep_head):
    key = "blocks.1.mlp.fc1.weight"
    weights = weights_of()
    weights[key] = weights[key].T
    assert_refused(weights, keep_head, f"{key} is (64, 128), not (128, 64)")


def test_a_head_of_other_classes_cannot_be_kept():
    message = "head.bias is (5,), not (3,), head.weight is (5, 64), not (3, 64)"
    assert_refused(weights_of(num_classes=5), True, message, num_classes=3)


def test_all_problems_are_listed_at_once():
    weights = {**weights_of(img_size=64), "pos": torch.zeros(1)}
    del weights["norm.bias"]
    message = "missing norm.bias, unexpected pos, pos_embed is (1, 17, 64), not (1, 5, 64)"
    assert_refused(weights, True, message)
