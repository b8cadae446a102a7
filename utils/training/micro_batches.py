"""Cut the batch of an optimizer step into micro-batches that the device can compute."""

from typing import TYPE_CHECKING

from ml_collections import FrozenConfigDict

from utils.console import log
from utils.errors import InputError

if TYPE_CHECKING:
    import torch

# Weight gradients are wrong on MPS where batch x tokens reaches 32,767 (pytorch #177116, #195163).
MAX_MPS_ROWS = 32_766


def fit_micro_batches(
    device: "torch.device",
    batch_size: int,
    micro_batches: int,
    num_tokens: int,
    may_split: bool,
    remedy: str = "--contrastive_scope effective",
) -> int:
    """Return the number of micro-batches with which MPS computes right weight gradients.

    Args:
        device: device of the run; any but MPS takes what was asked for.
        batch_size: samples of an optimizer step.
        micro_batches: number that was asked for.
        num_tokens: number of tokens of one image.
        may_split: whether smaller micro-batches leave the loss unchanged.
        remedy: flags with which they would leave it unchanged.

    Raises:
        InputError: they must be smaller and may not; names the `--gradient_accumulation_steps` that
            fits.
    """
    largest = MAX_MPS_ROWS // num_tokens
    if device.type != "mps" or batch_size // micro_batches <= largest:
        return micro_batches
    divisors = (n for n in range(1, batch_size + 1) if batch_size % n == 0)
    fits = next((n for n in divisors if batch_size // n <= largest), None)
    if fits is not None and may_split:
        return fits
    advice = "a smaller --img_size" if fits is None else f"--gradient_accumulation_steps {fits}"
    if not may_split and fits is not None:
        advice += f" or {remedy}"
    raise InputError(
        f"a micro-batch of {batch_size // micro_batches} images of {num_tokens} tokens is over "
        f"{MAX_MPS_ROWS} rows, for which MPS computes wrong gradients; use {advice}"
    )


# Samples that the contrastive loss should see together: with B of them, B of the B x B pairs are of
# a sample and itself and cost nothing, so that its weight is 1 - 1/B.
MIN_COMPARED = 8


def plan_micro_batches(
    config: FrozenConfigDict, num_tokens: int, device: "torch.device", world_size: int = 1
) -> int:
    """Return the micro-batches of a step: as asked, or more where the device needs them smaller.

    Warns where the contrastive loss compares few samples.

    Args:
        config: config of a training run.
        num_tokens: number of tokens of one image.
        device: device of the run.
        world_size: number of processes, which share each micro-batch.

    Raises:
        InputError: they must be smaller, and that would change the loss; or the processes cannot
            share them evenly.
    """
    asked, batch = config.gradient_accumulation_steps, config.train_batch_size
    compares = config.head == "parts" and config.contrastive_weight > 0
    is_joint = config.contrastive_scope == "effective"
    # The mean over samples is the mean over micro-batches; what compares or mixes samples is not.
    mixes = config.mixup > 0 or config.cutmix > 0
    leaves_loss = (not compares or is_joint) and not mixes
    remedy = "--mixup 0 --cutmix 0" if mixes else "--contrastive_scope effective"
    micro_batches = fit_micro_batches(device, batch, asked, num_tokens, leaves_loss, remedy)
    if micro_batches != asked:
        log.info(
            "%d micro-batches a step instead of %d: MPS computes wrong gradients for larger ones; "
            "the loss is the same",
            micro_batches,
            asked,
        )
    if batch // micro_batches % world_size:
        raise InputError(
            f"{world_size} processes cannot share micro-batches of {batch // micro_batches} images "
            f"evenly: --train_batch_size {batch}, {micro_batches} micro-batches"
        )
    compared = batch if is_joint else batch // micro_batches
    if compares and compared < MIN_COMPARED:
        advice = "" if compared == batch else " or --contrastive_scope effective"
        log.warning(
            "warning: the contrastive loss compares only %d samples at a time, and weighs less the "
            "fewer they are; use a larger --train_batch_size%s",
            compared,
            advice,
        )
    return micro_batches
