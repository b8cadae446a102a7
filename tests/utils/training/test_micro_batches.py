"""Check how a batch is cut into micro-batches, and what is said of it.

How many images MPS can take at a time is tested in `tests/entrypoints/test_mac.py`.
"""

import logging

import pytest
import torch
from ml_collections import FrozenConfigDict

from utils.errors import InputError
from utils.training.micro_batches import plan_micro_batches

CPU, MPS = torch.device("cpu"), torch.device("mps")
TOKENS = 785  # of 448 px: MPS takes 41 images at a time

TOKEN = {
    "head": "token",
    "contrastive_weight": None,
    "contrastive_scope": None,
}
MICRO = {"head": "parts", "contrastive_weight": 1.0, "contrastive_scope": "micro"}
JOINT = {**MICRO, "contrastive_scope": "effective"}
UNCOMPARED = {**MICRO, "contrastive_weight": 0.0}


@pytest.fixture
def plan(caplog):
    """Plans a run; gives the number of micro-batches and the lines of the log."""

    def call(kind: dict, batch: int, micro_batches: int = 1, device: torch.device = CPU):
        config = FrozenConfigDict(
            {
                "train_batch_size": batch,
                "gradient_accumulation_steps": micro_batches,
                "mixup": 0.0,
                "cutmix": 0.0,
                **kind,
            }
        )
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="fine_vit"):
            planned = plan_micro_batches(config, TOKENS, device)
        return planned, [record.getMessage() for record in caplog.records]

    return call


@pytest.mark.parametrize("kind", [TOKEN, MICRO, JOINT, UNCOMPARED])
@pytest.mark.parametrize("device", [CPU, MPS])
def test_what_fits_is_as_asked_and_nothing_is_said(plan, kind, device):
    assert plan(kind, 16, 2, device) == (2, [])
    assert plan(kind, 41, 1, device) == (1, [])


@pytest.mark.parametrize("kind", [TOKEN, JOINT, UNCOMPARED])
def test_what_leaves_the_loss_alone_is_cut_on_mps(plan, kind):
    count, lines = plan(kind, 84, 2, MPS)
    assert count == 3
    assert lines == [
        "3 micro-batches a step instead of 2: MPS computes wrong gradients for larger ones; the "
        "loss is the same"
    ]
    assert plan(kind, 84, 2, CPU) == (2, [])


def test_what_would_change_the_loss_is_refused_on_mps(plan):
    message = r"use --gradient_accumulation_steps 3 or --contrastive_scope effective$"
    with pytest.raises(InputError, match=message):
        plan(MICRO, 84, 2, MPS)
    assert plan(MICRO, 84, 2, CPU) == (2, [])


@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("kind", [MICRO, JOINT])
def test_a_small_batch_is_warned_of(plan, kind, batch):
    _, (line,) = plan(kind, batch)
    assert line.startswith(f"warning: the contrastive loss compares only {batch} samples at a time")
    assert line.endswith("use a larger --train_batch_size")  # the scope would not help


@pytest.mark.parametrize(("batch", "count", "compared"), [(8, 2, 4), (64, 16, 4), (14, 2, 7)])
def test_small_micro_batches_are_warned_of(plan, batch, count, compared):
    _, (line,) = plan(MICRO, batch, count)
    assert f" compares only {compared} samples at a time" in line
    assert line.endswith("use a larger --train_batch_size or --contrastive_scope effective")
    assert plan(JOINT, batch, count) == (count, [])


@pytest.mark.parametrize("kind", [TOKEN, UNCOMPARED])
def test_what_compares_nothing_is_not_warned_of(plan, kind):
    assert plan(kind, 2) == (1, [])


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_what_mixes_samples_is_refused_on_mps(plan, kind):
    """Micro-batches are mixed one by one: smaller ones would be other images."""
    message = r"use --gradient_accumulation_steps 4 or --mixup 0 --cutmix 0$"
    with pytest.raises(InputError, match=message):
        plan({**TOKEN, kind: 0.2}, 128, device=MPS)
    assert plan({**TOKEN, kind: 0.2}, 128, 4, device=MPS)[0] == 4
