"""One generator for a whole chain of random transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.transforms import Compose, Randomizable


def seed_chain(transform: Any, seed: int) -> None:
    """Set the randomness of a transform and of all in it.

    MONAI's `Compose` gives each transform a generator of its own, and making one takes as long as
    many a transform of a slice (numpy's legacy `RandomState`: 0.1 ms).

    Args:
        transform: a MONAI transform, random or not.
        seed: seed of the generator that they share from here on.
    """
    share_state(transform, np.random.RandomState(seed))


def share_state(transform: Any, state: np.random.RandomState) -> None:
    """Let a transform, and all in it, draw from one generator."""
    if isinstance(transform, Compose):
        transform.R = state
        steps: Sequence[Any] = transform.transforms
        for step in steps:
            share_state(step, state)
    elif isinstance(transform, Randomizable):
        transform.set_random_state(state=state)
