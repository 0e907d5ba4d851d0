import numpy as np
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from taskformer.errors import InvalidTargetError
from taskformer.normalisation import MEAN, STD, denormalise, normalise, normalise_bytes


@pytest.fixture
def image():
    """Every 8-bit value in every channel, in an order of its own in each, as a view that is not contiguous."""
    rng = np.random.default_rng(0)
    channels = [rng.permutation(256).astype(np.uint8).reshape(8, 32) for _ in range(3)]
    return np.stack(channels).transpose(1, 2, 0)


def test_bytes_become_exactly_what_the_formula_says(image):
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    normalised = normalise_bytes(image)
    assert normalised.dtype == torch.float32
    np.testing.assert_allclose(normalised, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    pixels = torch.tensor(image / 255, dtype=torch.float32).movedim(-1, 0)
    assert torch.equal(normalised, normalise(pixels))


def test_denormalising_gives_the_pixels_back(image):
    batch = normalise_bytes(image).expand(2, -1, -1, -1)
    levels = (denormalise(batch) * 255).round()
    assert torch.equal(levels[1], torch.tensor(image).movedim(-1, 0).float())


def test_the_numbers_are_those_of_the_encoders():
    assert (MEAN, STD) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)])
def test_anything_but_bytes_is_refused(wrong):
    with pytest.raises(InvalidTargetError, match=r"uint8 RGB \(H, W, 3\)"):
        normalise_bytes(wrong)
