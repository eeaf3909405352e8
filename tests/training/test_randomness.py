"""One generator of a chain: every random transform draws from it, in order."""

import torch
from monai.transforms import Compose, Identityd, RandFlipd, RandGaussianNoised

from medsam_tune.training.prompting import KeepObjectsd
from medsam_tune.training.randomness import seed_chain


def chain() -> Compose:
    inner = Compose([RandFlipd("image", prob=0.5), RandGaussianNoised("image", prob=0.9)])
    keep = KeepObjectsd("label", inner)
    return Compose([Identityd("image"), keep, Compose([RandGaussianNoised("image", prob=0.9)])])


def sample() -> dict[str, torch.Tensor]:
    return {"image": torch.arange(64.0).reshape(1, 8, 8), "label": torch.ones(1, 8, 8)}


def drawn(transform: Compose, seed: int) -> torch.Tensor:
    seed_chain(transform, seed)
    found = transform(sample())
    assert isinstance(found, dict)
    return torch.as_tensor(found["image"])


def test_a_seed_fixes_all_of_a_chain() -> None:
    first, other = chain(), chain()
    values = [drawn(first, seed) for seed in range(6)]
    assert all(torch.equal(drawn(other, seed), value) for seed, value in enumerate(values))
    assert len({tuple(value.flatten().tolist()) for value in values}) == 6


def test_all_draw_from_one_generator_wherever_they_stand() -> None:
    transform = chain()
    seed_chain(transform, 1)
    keep, last = transform.transforms[1:]
    state = transform.R
    assert keep.R is state
    flip, noise = keep.transform.transforms
    assert all(one.R is state for one in (keep.transform, flip, noise, last, last.transforms[0]))


def test_what_has_no_randomness_is_left_alone() -> None:
    seed_chain(Identityd("image"), 0)
    seed_chain(None, 0)
