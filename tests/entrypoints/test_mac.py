"""What a machine without MPS can prove about a Mac: device choice and loader processes.

What runs on the device is in `test_mac_device.py`.
"""

import pytest
import torch
from helpers import loader_config

from utils.data.catalog import get_spec
from utils.data.loaders import eval_loader, train_loader
from utils.dataset import open_split
from utils.dist_util import choose_device
from utils.errors import InputError
from utils.training.micro_batches import fit_micro_batches

CPU, MPS = torch.device("cpu"), torch.device("mps")

# --- Choice of the device -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "prefer_mps", "there", "chosen"),
    [
        ("auto", True, {"mps"}, "mps"),
        ("auto", False, {"mps"}, "cpu"),
        ("auto", True, set(), "cpu"),
        ("auto", False, set(), "cpu"),
        ("auto", True, {"cuda"}, "cpu"),
        ("auto", False, {"cuda"}, "cpu"),
        ("auto", True, {"mps", "cuda"}, "mps"),
        ("auto", False, {"mps", "cuda"}, "cpu"),
        ("mps", True, {"mps"}, "mps"),
        ("mps", False, {"mps"}, "mps"),
        ("cpu", True, {"mps"}, "cpu"),
        ("cuda", True, {"mps", "cuda"}, "cuda"),
    ],
)
def test_the_device_that_is_chosen(monkeypatch, requested, prefer_mps, there, chosen):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    device, reason = choose_device(requested, prefer_mps)
    assert device == torch.device(chosen)
    expected = {
        ("auto", "mps"): "preferred and available",
        ("auto", "cpu"): "MPS is not available" if prefer_mps else "MPS is not preferred",
    }
    assert reason == expected.get((requested, chosen), "as asked")


@pytest.mark.parametrize(
    ("requested", "there", "listed"),
    [("mps", {"cuda"}, "cpu, cuda"), ("cuda", {"mps"}, "cpu, mps"), ("mps", set(), "cpu")],
)
def test_a_named_device_must_be_there(monkeypatch, requested, there, listed):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    message = f"^--device {requested} is not available here; available: {listed}$"
    with pytest.raises(InputError, match=message):
        choose_device(requested, prefer_mps=True)


# --- Loader processes: macOS spawns them ----------------------------------------------------------


@pytest.fixture(scope="module")
def split(drawn):
    return open_split(get_spec("synthetic"), drawn, "train")


@pytest.mark.parametrize(("device", "pinned"), [("mps", False), ("cpu", False), ("cuda", True)])
def test_memory_is_pinned_for_cuda_alone(split, device, pinned):
    loaders = (
        train_loader(loader_config(num_workers=2), split, 1, torch.device(device)),
        eval_loader(loader_config(num_workers=2), split, torch.device(device)),
    )
    assert [loader.pin_memory for loader in loaders] == [pinned, pinned]
    assert all(loader.persistent_workers for loader in loaders)  # spawning costs seconds


class TestMicroBatchesOnMps:
    """Weight gradients are wrong there once batch x tokens reaches 32,767.

    448 px are 785 tokens, and 1370 where patches overlap (`--slide_step 12`).
    """

    @pytest.mark.parametrize("may_split", [True, False])
    def test_up_to_the_limit_and_elsewhere_it_is_as_asked(self, may_split):
        for batch, count, tokens in ((41, 1, 785), (82, 2, 785), (1, 1, 32766), (46, 2, 1370)):
            assert fit_micro_batches(MPS, batch, count, tokens, may_split) == count
        assert fit_micro_batches(CPU, 10_000, 1, 10_000, may_split) == 1
        with pytest.raises(InputError, match=r"wrong gradients; use a smaller --img_size$"):
            fit_micro_batches(MPS, 4, 4, 32767, may_split)  # one image alone is too large

    @pytest.mark.parametrize(
        ("batch_size", "micro_batches", "num_tokens", "fits"),
        [
            (42, 1, 785, 2),
            (43, 1, 785, 43),  # a prime
            (512, 2, 785, 16),
            (24, 1, 1370, 2),
            (90, 3, 1370, 5),  # not a multiple of what was asked
        ],
    )
    def test_beyond_it_is_cut_or_the_flag_that_fits_is_named(
        self, batch_size, micro_batches, num_tokens, fits
    ):
        assert fit_micro_batches(MPS, batch_size, micro_batches, num_tokens, True) == fits
        advice = f"--gradient_accumulation_steps {fits} or --contrastive_scope effective"
        with pytest.raises(InputError, match=f"wrong gradients; use {advice}$"):
            fit_micro_batches(MPS, batch_size, micro_batches, num_tokens, False)
