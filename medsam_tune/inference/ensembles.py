"""Several networks that answer as one: the mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from medsam_tune.files import flat
from medsam_tune.inference.planes import Answers, Asked, Plane
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.rules import ScanRules


class Ensemble(nn.Module):
    """Networks that segment together.

    Each answer is the mean of the networks' answers to the same prompt: of the logits of the mask,
    of its quality, and of the logit of the label's presence. So an object that is followed has one
    way: its next prompt is the box around the mean's mask, and the mean ends it.

    Args:
        networks: networks of the same classes.
        rules: rules of each network's training, which cut the same slices; see `differences`.

    Attributes:
        classes: number of classes of each.

    Raises:
        ValueError: other numbers of classes, or not one description of rules for each network.
    """

    def __init__(self, networks: Sequence[PromptableSam], rules: Sequence[ScanRules]) -> None:
        super().__init__()
        classes = {network.classes for network in networks}
        if len(classes) != 1 or len(rules) != len(networks):
            raise ValueError(
                f"{len(networks)} networks of {sorted(classes)} classes and {len(rules)} rules; "
                "expected the same number of classes, and the rules of each network."
            )
        self.networks = nn.ModuleList(networks)
        self.rules = tuple(rules)
        self.classes = classes.pop()

    @property
    def pixel_mean(self) -> Tensor:
        """That of the first network; it tells the device of all."""
        return self.networks[0].pixel_mean  # type: ignore[return-value]


class EnsemblePlane:
    """Slices as several networks see them; see `Plane`.

    Args:
        planes: one plane for each network, of slices of one size.
    """

    def __init__(self, planes: Sequence[Plane]) -> None:
        self.planes = planes
        self.size = planes[0].size
        self._parts: list[tuple[torch.Size, torch.dtype]] = []  # of one slice's embeddings

    def encode(self, slices: Tensor) -> Tensor:
        """(N, C, H, W) uint8 slices -> (N, D) float embeddings of all networks, end to end."""
        found = [plane.encode(slices) for plane in self.planes]
        self._parts = [(one.shape[1:], one.dtype) for one in found]
        return torch.cat([one.flatten(1) for one in found], 1)

    def decode(self, embeddings: Tensor, where: Tensor, asked: Asked) -> Answers:
        """The mean of the networks' answers; see `Plane`."""
        sizes = [shape.numel() for shape, _ in self._parts]
        answers = [
            plane.decode(part.unflatten(1, shape).to(dtype), where, asked)
            for plane, part, (shape, dtype) in zip(
                self.planes, embeddings.split(sizes, 1), self._parts, strict=True
            )
        ]
        presence = [one.presence for one in answers if one.presence is not None]
        return Answers(
            _mean([one.logits for one in answers]),
            _mean([one.quality for one in answers]),
            _mean(presence) if presence else None,
        )


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return sum(tensors[1:], tensors[0]) / len(tensors)


def differences(first: ScanRules, other: ScanRules) -> list[str]:
    """What two rules do differently to a scan, so that its slices are not the same.

    How a slice comes into a network (`squash`, `window`) may differ.
    """
    plain = [flat(replace(rules, squash=False, window=None).describe()) for rules in (first, other)]
    return [
        f"{key} is {plain[1].get(key)!r} there, {plain[0].get(key)!r} here"
        for key in sorted({*plain[0], *plain[1]})
        if plain[0].get(key) != plain[1].get(key)
    ]
