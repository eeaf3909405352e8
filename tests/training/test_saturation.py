"""Colours become stronger and weaker, and greys stay."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torchvision.transforms.functional import adjust_saturation

from medsam_tune.training.randomness import seed_chain
from medsam_tune.transforms import RandSaturationd


def test_it_is_torchvisions_saturation() -> None:
    image = MetaTensor(0.3 + 0.4 * torch.rand(3, 5, 4))  # far from 0 and 1: nothing is clipped
    before = image.clone()
    strongest, weakest = torch.zeros(()), torch.full((), 9.0)
    for seed in range(20):
        change = RandSaturationd("image", prob=1, factors=0.3).set_random_state(seed)
        found = change({"image": image, "label": image})
        assert found["label"] is image
        grey = (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]).as_tensor()
        factor = ((found["image"] - grey) / (image - grey)).as_tensor().median()
        assert torch.allclose(
            found["image"].as_tensor(),
            adjust_saturation(image.as_tensor(), float(factor)),
            atol=1e-3,  # torchvision's shares have four digits
        )
        strongest, weakest = torch.maximum(strongest, factor), torch.minimum(weakest, factor)
    assert 0.7 <= weakest < 0.8
    assert 1.2 < strongest <= 1.3
    assert torch.equal(image, before)


def test_a_missing_image_is_an_error() -> None:
    with pytest.raises(KeyError, match="image"):
        RandSaturationd("image", prob=1)({"label": torch.zeros(1, 2, 2)})


def test_greys_and_other_channels_stay() -> None:
    change = RandSaturationd(["a", "b", "c"], prob=1, factors=1, allow_missing_keys=True)
    grey, bands = torch.rand(1, 4, 4), torch.rand(4, 4, 4)
    found = change({"a": grey, "b": grey.expand(3, -1, -1), "c": bands})
    assert torch.equal(found["a"], grey)
    assert torch.allclose(found["b"], grey.expand(3, -1, -1), atol=1e-6)
    assert torch.equal(found["c"][3], bands[3])
    assert not torch.allclose(found["c"][:3], bands[:3])
    assert change.__class__("a", prob=0)({"a": bands})["a"] is bands


def test_its_randomness_is_the_chains() -> None:
    """A seed fixes it, as it fixes a training sample; the global generators have no part in it."""
    image = torch.rand(3, 4, 4)
    chain = Compose([RandSaturationd("image", prob=0.5, factors=1)])
    found = []
    for seed in (1, 2, 1):
        seed_chain(chain, seed)
        found.append(torch.stack([chain({"image": image})["image"] for _ in range(8)]))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_a_factor_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"factors is 1.5; expected 0 to 1\."):
        RandSaturationd("image", factors=1.5)
