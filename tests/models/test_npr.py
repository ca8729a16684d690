"""The neighbouring-pixel detector: its residual, sizes, stride and what it is blind to."""

import pytest
import torch
from torch.nn import functional as F

from models.npr import neighbour_residual
from models.registry import create_model


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return create_model("npr").eval()


@pytest.mark.parametrize("side", [(8, 8), (6, 10)])
def test_nothing_is_left_of_an_image_enlarged_by_repetition(side):
    small = torch.rand(2, 3, *side)
    assert neighbour_residual(F.interpolate(small, scale_factor=2, mode="nearest")).abs().max() == 0
    assert neighbour_residual(F.interpolate(small, scale_factor=2, mode="bilinear")).abs().max() > 0


def test_the_residual_is_the_difference_to_the_corner_of_the_cell():
    image = torch.tensor([[1.0, 2, 5, 5], [4, 8, 5, 6]]).expand(1, 3, 2, 4)
    assert neighbour_residual(image)[0, 0].tolist() == [[0, 1, 0, 0], [3, 7, 0, 1]]


def test_brightness_is_gone():
    images = torch.rand(1, 3, 8, 8) / 2
    assert torch.allclose(neighbour_residual(images + 0.25), neighbour_residual(images), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(33, 32), (32, 35), (41, 57)])
def test_odd_sizes_lose_their_last_row_or_column(detector, height, width):
    images = torch.rand(2, 3, height, width)
    even = images[..., : height // 2 * 2, : width // 2 * 2]
    assert torch.equal(neighbour_residual(images), neighbour_residual(even))
    with torch.no_grad():
        assert torch.equal(detector(images), detector(even))


@torch.no_grad()
def test_enlarged_images_look_like_black_ones(detector):
    flat = F.interpolate(torch.rand(1, 3, 20, 20), scale_factor=2, mode="nearest")
    assert torch.equal(detector(flat), detector(torch.zeros_like(flat)))


@torch.no_grad()
def test_the_stride_of_the_stem_sets_the_resolution():
    shapes = []
    for stride in (1, 2):
        detector = create_model("npr", stem_stride=stride).eval()
        detector.layer2.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
        detector(torch.rand(1, 3, 64, 64))
    assert shapes == [(512, 16, 16), (512, 8, 8)]
