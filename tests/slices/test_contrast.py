"""Background of a scan, and what is said where contrast is lost."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

from medsam_tune.slices.contrast import background_of
from medsam_tune.slices.intensity import Percentiles, Window, Windows, ZScore


def framed(outside: float, share: float = 1.0) -> torch.Tensor:
    """A scan (1, 20, 20, 10) around zero; so large a share of its outermost voxels is `outside`."""
    image = torch.randn(1, 20, 20, 10, generator=torch.Generator().manual_seed(0))
    drawn = torch.rand(image.shape, generator=torch.Generator().manual_seed(1)) < share
    edge = torch.ones_like(drawn)
    edge[:, 1:-1, 1:-1, 1:-1] = False
    return torch.where(edge & drawn, torch.tensor(outside), image)


@pytest.mark.parametrize("outside", [0.0, -0.4, 0.3, -5.0])
def test_background_is_the_value_around_a_scan(outside: float) -> None:
    assert background_of(framed(outside)) == pytest.approx(outside)
    assert background_of(framed(outside, 0.35)) == pytest.approx(outside)
    assert background_of(framed(outside, 0.2)) is None


def test_zero_is_the_background_of_a_scan_without_negative_values() -> None:
    assert background_of(framed(0.0, 0.1).abs()) == 0
    assert background_of(framed(0.0, 0.0).abs() + 5) == 0


def test_no_background() -> None:
    assert background_of(framed(0.0, 0.0)) is None
    assert background_of(framed(99.0)) is None  # the highest value is saturation
    assert background_of(torch.full((1, 3, 3, 3), torch.nan)) is None
    assert background_of(torch.tensor([[[[-5.0, 0.0, 5.0]]]])) is None  # too few to tell


def test_a_plane_has_its_rim() -> None:
    plane = framed(-1.5)[..., 5:6]
    assert background_of(plane) == -1.5


def said(call: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught]


def test_noise_of_the_air_is_not_taken_for_lost_contrast() -> None:
    air = torch.rand(1, 20, 20, 10) * 4 + 1
    air[:, :6] = torch.rand(1, 6, 20, 10) * 1000 + 100
    assert not said(lambda: Percentiles()(air))
    assert not said(lambda: ZScore()(torch.rand(1, 9, 9, 9)))
    assert not said(lambda: Percentiles()(torch.ones(1, 9, 9, 9)))


def test_one_hot_voxel_makes_one_grey_level_of_a_scan() -> None:
    image = torch.rand(1, 10, 10, 10) * 900 + 100
    image[0, 5, 5, 5] = 1e8
    for rule in (ZScore(), Percentiles(0, 100)):
        (text,) = said(lambda rule=rule: rule(image))
        assert text.startswith("100% of the voxels besides the background")
    assert not said(lambda: Percentiles()(image))


def test_a_window_that_leaves_few_levels() -> None:
    image = torch.rand(1, 10, 10, 10)
    (text,) = said(lambda: Window(40, 400)(image))
    assert text.startswith("the window from -160 to 240: 2 grey levels are left of a scan whose")
    assert not said(lambda: Window(0.5, 1)(image))
    assert not said(lambda: Window(40, 400)((image > 0.5).float()))  # nothing is lost
    assert len(said(lambda: Windows()(image))) == 1
    assert not said(lambda: Windows(("brain", "lung"))(image * 200 - 900))  # one of them is enough
