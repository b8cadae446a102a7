"""How the batch of an optimizer step is cut into micro-batches, and what that does to the loss."""

import torch
from ml_collections import FrozenConfigDict

from utils.console import log
from utils.dist_util import fit_micro_batches
from utils.errors import InputError

# Samples that the contrastive loss should see together: with B of them, B of the B x B pairs are of
# a sample and itself and cost nothing, so that its weight is 1 - 1/B.
MIN_COMPARED = 8


def plan_micro_batches(
    config: FrozenConfigDict, num_tokens: int, device: torch.device, world_size: int = 1
) -> int:
    """Micro-batches an optimizer step: as asked, or more where the device needs them smaller.

    Warns where the contrastive loss compares few samples.

    Args:
        config: of a training run.
        num_tokens: of one image.
        device: that the run uses.
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
