"""utils/cli/checks.py: values of several flags that do not fit together."""

import contextlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.build import build_model
from models.configs import get_config
from utils.cli.checks import check_freeze, check_img_size, check_loss
from utils.errors import InputError


class TestImgSize:
    @settings(max_examples=60)
    @given(img_size=st.integers(1, 2000), patch=st.sampled_from([14, 16, 32]))
    def test_must_be_a_multiple_of_the_patch(self, img_size, patch):
        if img_size % patch == 0:
            check_img_size(img_size, patch)
            return
        with pytest.raises(InputError, match=f"--img_size {img_size} .*{patch}; try ") as caught:
            check_img_size(img_size, patch)
        advice = int(str(caught.value).rsplit(maxsplit=1)[1])
        assert advice > 0
        assert advice % patch == 0
        multiples = [k * patch for k in range(1, img_size // patch + 2)]
        assert abs(advice - img_size) == min(abs(m - img_size) for m in multiples)

    @settings(max_examples=100)
    @given(
        img_size=st.integers(1, 300),
        patch=st.sampled_from([14, 16, 32]),
        slide_step=st.integers(1, 40),
    )
    def test_of_overlapping_patches_need_only_hold_one(self, img_size, patch, slide_step):
        if slide_step > patch:
            with pytest.raises(InputError, match=f"--slide_step {slide_step} is over .*{patch}: "):
                check_img_size(img_size, patch, slide_step)
        elif img_size < patch and slide_step < patch:
            with pytest.raises(InputError, match=f"--img_size {img_size} is under .*{patch}$"):
                check_img_size(img_size, patch, slide_step)
        elif slide_step < patch or img_size % patch == 0:
            check_img_size(img_size, patch, slide_step)

    @settings(max_examples=25)
    @given(img_size=st.integers(1, 70), slide_step=st.integers(1, 20))
    @example(img_size=17, slide_step=16)  # patches side by side that do not cover the image
    def test_that_is_taken_makes_a_model(self, img_size, slide_step):
        """What the check lets through must not fail later, when the model is built."""
        with contextlib.suppress(InputError):
            check_img_size(img_size, 16, slide_step)
            build_model(get_config("testing", img_size, patch_stride=slide_step), 2)


def test_no_more_blocks_can_be_frozen_than_there_are():
    for freeze in ("none", "backbone", "1", "3"):
        check_freeze(freeze, "testing", depth=3)
    for freeze in ("4", "9999"):
        with pytest.raises(InputError, match=f"^--freeze {freeze}: testing has 3 blocks$"):
            check_freeze(freeze, "testing", depth=3)


PLAIN = {
    "train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "mixup": 0.0,
    "cutmix": 0.0,
    "contrastive_weight": None,
}


@settings(max_examples=60)
@given(batch=st.integers(1, 64), micro_batches=st.integers(1, 70))
def test_micro_batches_must_divide_the_batch(batch, micro_batches):
    values = {"train_batch_size": batch, "gradient_accumulation_steps": micro_batches}
    if batch % micro_batches == 0:
        check_loss({**PLAIN, **values})
        return
    message = f"steps {micro_batches} does not divide --train_batch_size {batch}$"
    with pytest.raises(InputError, match=message):
        check_loss({**PLAIN, **values})


@pytest.mark.parametrize("flag", ["mixup", "cutmix"])
def test_mixed_images_cannot_be_compared(flag):
    check_loss({**PLAIN, flag: 0.5})
    check_loss({**PLAIN, flag: 0.5, "contrastive_weight": 0.0})
    check_loss({**PLAIN, "contrastive_weight": 1.0})
    message = (
        "mixed images have no one class .*; use --mixup 0 --cutmix 0 or --contrastive_weight 0$"
    )
    with pytest.raises(InputError, match=message):
        check_loss({**PLAIN, flag: 0.5, "contrastive_weight": 1.0})
