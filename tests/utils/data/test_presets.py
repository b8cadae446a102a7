"""utils/data/presets.py: sizes, and points back to the original image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.presets import PRESETS, Size, crop_to_image
from utils.data.transforms import EvalView, resize

VIT = PRESETS["vit"]


def eval_input(image: torch.Tensor, img_size: int, preset=VIT) -> torch.Tensor:
    """What evaluation makes of (3, H, W)."""
    size = preset.eval_size(img_size, Size(*image.shape[1:]))
    return EvalView(preset, img_size)(resize(image, size))


def to_image(point: tuple[float, float], size: tuple[int, int], img_size: int) -> np.ndarray:
    """`crop_to_image` of one point of one image, in pixels of the image."""
    points = crop_to_image(np.array([[point]]), np.array([size]), img_size, VIT)
    assert (points.shape, points.dtype) == ((1, 1, 2), np.float64)
    return points[0, 0] * size


SIDES = st.integers(20, 400)
IMG_SIZES = st.sampled_from([16, 32, 33, 47, 64, 100, 150, 224])


class TestCropToImage:
    @settings(max_examples=150)
    @given(width=SIDES, height=SIDES, img_size=IMG_SIZES, data=st.data())
    def test_undoes_the_transform(self, width, height, img_size, data):
        """Of an image whose pixels say where they are, the transform's output says whence it is."""
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        crop = eval_input(torch.stack((x, y, x)), img_size)
        assert crop.shape == (3, img_size, img_size)
        column, row = (data.draw(st.integers(0, img_size - 1)) for _ in range(2))
        point = (column + 0.5) / img_size, (row + 0.5) / img_size
        found = to_image(point, (width, height), img_size)
        true = crop[:2, row, column].numpy()
        # Of a pixel of the crop: antialiasing moves a ramp by up to 0.07, a wrong offset by 1.
        pixel = min(width, height) / round(img_size * 8 / 7)
        assert np.abs(found - true).max() < 0.15 * pixel

    def test_by_hand(self):
        """500 x 375 at 224: resized to 341 x 256; 58 columns (58.5, half to even) and 16 rows."""
        corners = np.array([[(0.0, 0.0), (1.0, 1.0)]])
        (landscape,) = crop_to_image(corners, np.array([(500, 375)]), 224, VIT)
        assert landscape.tolist() == [[58 / 341, 16 / 256], [282 / 341, 240 / 256]]
        (portrait,) = crop_to_image(corners, np.array([(375, 500)]), 224, VIT)
        assert portrait.tolist() == [[16 / 256, 58 / 341], [240 / 256, 282 / 341]]


class TestSizes:
    @pytest.mark.parametrize(
        ("img_size", "side"), [(448, 600), (224, 300), (304, 400), (64, 86), (384, 514)]
    )
    def test_of_transfg_are_the_papers_and_in_proportion(self, img_size, side):
        preset = PRESETS["transfg"]
        for size in (Size(500, 300), Size(10, 2000)):
            assert preset.train_size(img_size, size) == (side, side)
            assert preset.eval_size(img_size, size) == (side, side)

    @given(height=st.integers(1, 4000), width=st.integers(1, 4000), img_size=st.integers(8, 600))
    def test_of_center_are_evaluations(self, height, width, img_size):
        preset, size = PRESETS["center"], Size(height, width)
        assert preset.train_size(img_size, size) == VIT.eval_size(img_size, size)
        assert preset.train_side(img_size) == preset.eval_side(img_size) == VIT.eval_side(img_size)

    @pytest.mark.parametrize("name", ["vit", "strong"])
    def test_of_vit_keep_the_aspect_ratio(self, name):
        preset = PRESETS[name]
        assert preset.eval_size(224, Size(500, 375)) == (341, 256)
        assert preset.eval_size(224, Size(30, 40)) == (256, 341)
        assert preset.train_size(224, Size(1000, 750)) == (682, 512)
        assert preset.train_size(224, Size(500, 666)) == (500, 666)
        assert preset.train_size(224, Size(512, 512)) == (512, 512)
        assert preset.train_size(224, Size(513, 513)) == (512, 512)
        assert preset.train_size(224, Size(100_000, 2)) == (100_000, 2)

    @settings(max_examples=200)
    @given(height=st.integers(1, 4000), width=st.integers(1, 4000), img_size=st.integers(8, 600))
    def test_training_keeps_enough_for_the_smallest_crop(self, height, width, img_size):
        size = Size(height, width)
        resized = PRESETS["vit"].train_size(img_size, size)
        assert resized.height <= height
        assert resized.width <= width
        if min(size) > 2 * PRESETS["vit"].eval_side(img_size):
            assert 0.25 * resized.height * resized.width >= img_size**2
        else:
            assert resized == size
