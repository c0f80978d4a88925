"""Augmentation against a loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsim.data import Augment
from fedsim.errors import InputError
from fedsim.ground.rng import stream


def crop_then_flip(image: np.ndarray, flip: int, dy: int, dx: int, pad: int) -> np.ndarray:
    """One image [c, h, w], pixel by pixel: what is outside the image is zero."""
    out = np.zeros_like(image)
    _, h, w = image.shape
    for i in range(h):
        for j in range(w):
            row, column = i + dy - pad, (w - 1 - j if flip else j) + dx - pad
            if 0 <= row < h and 0 <= column < w:
                out[:, i, j] = image[:, row, column]
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float64])
@pytest.mark.parametrize(("pad", "shape"), [(4, (12, 3, 9, 7)), (0, (5, 1, 4, 4)), (2, (6, 2, 3, 8))])
def test_apply_equals_a_loop_over_pixels(dtype: torch.dtype, pad: int, shape: tuple[int, ...]) -> None:
    images = (torch.rand(shape, generator=stream(0, "images")) * 255).to(dtype)
    augment = Augment(crop_pad=pad)
    draws = augment.draw(stream(1, "draws"), shape[0])
    expected = [crop_then_flip(image.numpy(), *d.tolist(), pad) for image, d in zip(images, draws, strict=True)]
    before = images.clone()
    out = augment.apply(images, draws)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.numpy(), np.stack(expected))
    assert torch.equal(images, before)


def test_offsets_of_the_padding_leave_the_image_in_place() -> None:
    images = torch.rand((3, 3, 8, 8), generator=stream(0, "images"))
    stay = torch.tensor([[0, 4, 4]]).expand(3, 3)
    assert torch.equal(Augment().apply(images, stay), images)
    assert torch.equal(Augment().apply(images, torch.tensor([[1, 4, 4]]).expand(3, 3)), images.flip(-1))


def test_draws_cover_their_range_evenly() -> None:
    draws = Augment(flip=0.25, crop_pad=1).draw(stream(0, "draws"), 9000)
    assert draws.dtype == torch.int64
    assert draws.shape == (9000, 3)
    assert abs(draws[:, 0].double().mean() - 0.25) < 0.02  # four standard deviations are 0.018
    for axis in (1, 2):
        counts = torch.bincount(draws[:, axis], minlength=3)
        assert len(counts) == 3
        assert (counts - 3000).abs().max() < 180  # four standard deviations are 179


def test_crop_probability_and_no_flip() -> None:
    draws = Augment(flip=0.0, crop_pad=10, crop=0.5).draw(stream(0, "draws"), 4000)
    moved = (draws[:, 1:] != 10).any(1).double().mean()
    assert abs(moved - 0.5 * (1 - 1 / 21**2)) < 0.032  # four standard deviations
    assert not draws[:, 0].any()
    still = Augment(flip=1.0, crop=0.0).draw(stream(0, "draws"), 50)
    assert torch.equal(still, torch.tensor([[1, 4, 4]]).expand(50, 3))


def test_flips_crops_and_offsets_are_independent() -> None:
    draws = Augment(crop_pad=4, crop=0.5).draw(stream(0, "draws"), 8000).double()
    moved = (draws[:, 1:] != 4).any(1).double()[:, None]
    correlation = torch.corrcoef(torch.cat([draws, moved], dim=1).T) - torch.eye(4)
    assert correlation.abs().max() < 0.045  # four standard deviations


def test_draws_of_one_image_do_not_depend_on_how_many_are_drawn() -> None:
    few, many = (Augment().draw(stream(3, "draws", 7), count) for count in (5, 300))
    assert torch.equal(few, many[:5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip must be in"),
        ({"crop_pad": -1}, "crop_pad must be in"),
        ({"crop": -0.1}, "crop must be"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augment(**options)  # type: ignore[arg-type]
