"""Random numbers of seeded scenes, all from one seed."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor


class Draw:
    """Seeded draws: the same seed gives the same numbers on the same kind of device.

    Args:
        seed: seed of all draws.
        device: device of the tensors.
    """

    def __init__(self, seed: int, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.choices = random.Random(seed)  # steers the program without waiting for a GPU

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high)."""
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def log_uniform(self, *shape: int, low: float, high: float) -> Tensor:
        """Numbers with a uniform logarithm, between two positive bounds."""
        return self.uniform(*shape, low=math.log(low), high=math.log(high)).exp()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def chance(self, *shape: int, p: float) -> Tensor:
        """Bool, True with probability p."""
        return self.uniform(*shape) < p

    def sign(self, *shape: int) -> Tensor:
        """Signs -1 or 1, float."""
        return self.chance(*shape, p=0.5).float() * 2 - 1

    def integer(self, *shape: int, high: int) -> Tensor:
        """Integers in [0, high), int64."""
        return torch.randint(high, shape, generator=self.generator, device=self.device)
