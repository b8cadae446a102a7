"""utils/data/transforms.py: what views make of resized images, and how batches are mixed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from utils.data.presets import AUGMENTS, CROP_AREA, PRESETS, Augmentation, Size
from utils.data.transforms import (
    EvalView,
    Mixing,
    PatchDropout,
    RandomResizedCrop,
    TrainView,
    random_box,
    resize,
)

SIZE = 32


def noise(height: int = 50, width: int = 70, seed: int = 0) -> torch.Tensor:
    """(3, H, W) uint8, channels last in memory."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(values).permute(2, 0, 1)


def model_input(name: str, phase: str, image: torch.Tensor, img_size: int) -> torch.Tensor:
    preset = PRESETS[name]
    size_of = {"train": preset.train_size, "eval": preset.eval_size}[phase]
    resized = resize(image, size_of(img_size, Size(*image.shape[1:])))
    if phase == "eval":
        return EvalView(preset, img_size)(resized)
    return TrainView(preset, img_size, preset.augmentation._replace(random_erasing=0.0))(resized)


@pytest.mark.parametrize(
    ("share", "patches", "kept"), [(0.5, 196, 98), (0.25, 9, 7), (0.99, 4, 1), (0.001, 4, 4)]
)
def test_patch_dropout_keeps_some_in_order(share, patches, kept):
    torch.manual_seed(0)
    draws = [PatchDropout(share, patches)().tolist() for _ in range(20)]
    assert all(draw == sorted(set(draw)) and len(draw) == kept for draw in draws)
    assert {number for draw in draws for number in draw} == {*range(patches)}


class TestViews:
    @pytest.mark.parametrize("phase", ["train", "eval"])
    @pytest.mark.parametrize("name", ["vit", "transfg"])
    @pytest.mark.parametrize("img_size", [16, 224])
    @pytest.mark.parametrize("size", [(1, 1), (300, 40), (224, 224)])
    def test_give_square_uint8_of_the_same_color(self, phase, name, img_size, size):
        color = torch.tensor([10, 200, 30], dtype=torch.uint8)
        image = color.expand(*size, 3).contiguous().permute(2, 0, 1)
        pixels = model_input(name, phase, image, img_size)
        assert type(pixels) is torch.Tensor
        assert (pixels.shape, pixels.dtype) == ((3, img_size, img_size), torch.uint8)
        assert (pixels == color[:, None, None]).all()

    @pytest.mark.parametrize("name", ["vit", "transfg"])
    def test_of_evaluation_are_pils_but_for_rounding(self, name):
        coarse = np.random.default_rng(3).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((700, 500), Image.Resampling.BICUBIC)
        preset = PRESETS[name]
        width, height = preset.eval_size(224, Size(500, 700))[::-1]
        left, top = round((width - 224) / 2), round((height - 224) / 2)
        resized = photo.resize((width, height), Image.Resampling.BILINEAR)
        expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.int64)
        image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
        seen = model_input(name, "eval", image, 224).permute(1, 2, 0).numpy()
        assert np.abs(seen - expected).mean() < 0.1

    def test_transfg_crops_each_place_and_flips_half(self):
        y, x = torch.meshgrid(torch.arange(43), torch.arange(43), indexing="ij")
        resized = torch.stack((y, x, x)).to(torch.uint8)
        view = TrainView(PRESETS["transfg"], 32, Augmentation())
        tops, lefts, flips = set(), set(), 0
        for _ in range(400):
            seen = view(resized).int()
            is_flipped = bool(seen[1, 0, 0] > seen[1, 0, 1])
            upright = seen.flip(2) if is_flipped else seen
            top, left = int(upright[0, 0, 0]), int(upright[1, 0, 0])
            assert torch.equal(upright, resized[:, top : top + 32, left : left + 32].int())
            tops.add(top)
            lefts.add(left)
            flips += is_flipped
        assert tops == lefts == set(range(12))
        assert 150 < flips < 250

    @pytest.mark.parametrize("augment", AUGMENTS)
    def test_augment_as_asked(self, augment):
        preset = PRESETS["vit"]
        plain, view = (TrainView(preset, SIZE, Augmentation(kind)) for kind in ("none", augment))
        resized = resize(noise(), preset.train_size(SIZE, Size(50, 70)))
        changed = 0
        for seed in range(30):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                expected = plain(resized)
                torch.manual_seed(seed)
                seen = view(resized)
            assert (seen.shape, seen.dtype) == ((3, SIZE, SIZE), torch.uint8)
            changed += not torch.equal(seen, expected)
        kinds = [v2.AutoAugment, v2.TrivialAugmentWide, v2.RandAugment]
        expected_steps = dict(zip(AUGMENTS, [[], *([kind] for kind in kinds)], strict=True))
        assert [type(step) for step in view.steps[2:]] == expected_steps[augment]
        assert changed == 0 if augment == "none" else changed > 15

    def test_erasing_paints_a_box_in_the_mean_color(self):
        view = TrainView(PRESETS["vit"], SIZE, Augmentation(random_erasing=1.0))
        seen = view(torch.zeros(3, 40, 40, dtype=torch.uint8))
        erased = (seen == torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]).all(0)
        assert 0.01 < float(erased.float().mean()) < 0.4
        assert not seen[:, ~erased].any()

    @settings(max_examples=50)
    @given(height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 10**6))
    def test_our_random_resized_crop_is_torchvisions_of_its_box(self, height, width, seed):
        """Within a step of rounding: it resizes the height first, torchvision the width."""
        image = noise(height, width, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            seen = RandomResizedCrop(SIZE)(image[None])
            torch.manual_seed(seed)
            box = random_box(Size(height, width), torch.rand(40).tolist())
        expected = F.resized_crop(image[None], *box, [SIZE, SIZE], antialias=True)
        assert (seen.shape, seen.dtype) == (expected.shape, torch.uint8)
        assert (seen.int() - expected.int()).abs().max() <= 1

    @settings(max_examples=200)
    @given(height=st.integers(1, 3000), width=st.integers(1, 3000), data=st.data())
    def test_boxes_lie_in_the_image_and_have_their_area_and_aspect(self, height, width, data):
        draw = st.floats(0, 1, exclude_max=True)
        draws = data.draw(st.lists(draw, min_size=4, max_size=4))
        box = random_box(Size(height, width), draws * 10)
        assert box.height >= 1
        assert box.width >= 1
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width
        if box == random_box(Size(height, width), []):  # the fallback
            return
        # Rounding moves a side by half a pixel.
        least, most = ((box.height + d) * (box.width + d) for d in (-0.5, 0.5))
        assert least <= height * width * CROP_AREA[1]
        assert most >= height * width * CROP_AREA[0] * (1 - 1e-9)
        assert (box.width - 0.5) / (box.height + 0.5) <= 4 / 3
        assert (box.width + 0.5) / (box.height - 0.5) >= 3 / 4

    @pytest.mark.parametrize("size", [(10, 300), (300, 10), (1, 1), (1, 500), (40, 40), (30, 40)])
    def test_without_a_box_that_fits_it_is_torchvisions_center(self, size):
        # Areas beyond the image: no try of torchvision's fits either.
        params = v2.RandomResizedCrop(8, scale=(50.0, 60.0)).make_params([torch.empty(1, 3, *size)])
        box = random_box(Size(*size), [])
        assert box._asdict() == {key: params[key] for key in box._fields}

    def test_boxes_reach_every_edge_and_aspects_are_uniform_in_their_logarithm(self):
        size, last = Size(1200, 1200), 1 - 1e-9
        assert random_box(size, [0, 0.5, 0, 0]) == (0, 0, 600, 600)
        assert random_box(size, [0, 0.5, last, 0]) == (600, 0, 600, 600)
        assert random_box(size, [0, 0.5, 0, last]) == (0, 600, 600, 600)
        assert random_box(size, [0, 0, 0, 0]) == (0, 0, 693, 520)  # a quarter of the area, 3 to 4
        assert random_box(size, [last, 0.5, 0, 0]) == (0, 0, 1200, 1200)


class TestMixing:
    IMAGES = torch.stack([torch.full((3, 16, 16), 50 * i, dtype=torch.uint8) for i in range(5)])
    LABELS = torch.arange(5)

    @pytest.mark.parametrize("kind", ["mixup", "cutmix"])
    def test_targets_are_the_shares_of_the_pixels(self, kind):
        mixing = Mixing(Augmentation(**{kind: 1.0}), 6)
        for _ in range(20):
            images, targets = mixing(self.IMAGES.clone(), self.LABELS)
            assert (images.shape, images.dtype) == (self.IMAGES.shape, torch.uint8)
            assert (targets.shape, targets.dtype) == ((5, 6), torch.float32)
            assert torch.allclose(targets.sum(1), torch.ones(5))
            # Every image is of one value, so the mean pixel is the mean value of its classes.
            expected = targets @ torch.tensor([0.0, 50, 100, 150, 200, 0])
            assert torch.allclose(images.float().mean((1, 2, 3)), expected, atol=0.51)
            if kind == "cutmix":
                assert set(images.unique().tolist()) <= {0, 50, 100, 150, 200}

    @pytest.mark.parametrize("kind", ["mixup", "cutmix"])
    def test_alpha_says_how_even_the_shares_are(self, kind):
        largest = {}
        torch.manual_seed(0)
        for alpha in (0.02, 50.0):
            mixing = Mixing(Augmentation(**{kind: alpha}), 5)
            shares = [mixing(self.IMAGES.clone(), self.LABELS)[1].max() for _ in range(40)]
            largest[alpha] = float(torch.stack(shares).quantile(0.8))
        assert largest[0.02] > 0.99  # half of the time nothing is mixed
        assert largest[50.0] < 0.9

    def test_both_take_turns(self):
        assert not Mixing(Augmentation(), 5)
        mixing = Mixing(Augmentation(mixup=1.0, cutmix=1.0), 5)
        kinds = set()
        torch.manual_seed(0)
        for _ in range(30):
            images, _ = mixing(self.IMAGES.clone(), self.LABELS)
            kinds.add(all(len(image.unique()) == 1 for image in images))
        assert kinds == {True, False}
