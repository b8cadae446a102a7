"""Check values of several flags together, which no row of the table can. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from utils.errors import InputError


def check_img_size(img_size: int, patch_size: int, slide_step: int | None = None) -> None:
    """Raise if an image cannot be cut into whole patches.

    Args:
        img_size: side of the square input, pixels.
        patch_size: side of a patch, pixels.
        slide_step: pixels between overlapping patches; None: they do not overlap.

    Raises:
        InputError: names the values and what fits.
    """
    if slide_step is None or slide_step == patch_size:
        if img_size % patch_size:
            nearest = max(1, round(img_size / patch_size)) * patch_size
            raise InputError(
                f"--img_size {img_size} is not a multiple of the patch, {patch_size}; try {nearest}"
            )
        return
    if slide_step > patch_size:
        raise InputError(
            f"--slide_step {slide_step} is over the patch, {patch_size}: pixels would be skipped"
        )
    if img_size < patch_size:
        raise InputError(f"--img_size {img_size} is under the patch, {patch_size}")


def check_freeze(freeze: str, model_type: str, depth: int) -> None:
    """Raise if more blocks are to be frozen than the model's `depth`.

    Raises:
        InputError: names both numbers.
    """
    if freeze.isdecimal() and int(freeze) > depth:
        raise InputError(f"--freeze {freeze}: {model_type} has {depth} blocks")


def check_loss(values: Mapping[str, Any]) -> None:
    """Raise if the flags ask for micro-batches or a loss that cannot be.

    Raises:
        InputError: micro-batches do not divide the batch, or a loss would compare mixed images.
    """
    batch, micro_batches = values["train_batch_size"], values["gradient_accumulation_steps"]
    if batch % micro_batches:
        raise InputError(
            f"--gradient_accumulation_steps {micro_batches} does not divide "
            f"--train_batch_size {batch}"
        )
    if (values["mixup"] or values["cutmix"]) and values["contrastive_weight"]:
        raise InputError(
            "mixed images have no one class that the contrastive loss could compare; use --mixup 0 "
            "--cutmix 0 or --contrastive_weight 0"
        )


def check_warmup(warmup_steps: int, num_steps: int) -> None:
    """Raise if a run would end before its warm-up does.

    Raises:
        InputError: names both numbers.
    """
    if warmup_steps > num_steps:
        raise InputError(
            f"--warmup_steps {warmup_steps} is longer than the run, which has {num_steps} steps"
        )
