"""Batches of slices in the form of MONAI's trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

IGNORED = 255
"""Value of a mask's pixels that nobody annotated."""


NOT_MIXED = (
    "cache is true, and MixUp mixes images before they are encoded: no embedding would be used "
    "twice. Leave cache out, or the mixing (few_shot.yaml)."
)

EARLIER = 6.0
"""Logit of the inside of a mask that is given as a prompt; its outside has the negative."""


class Encoded(NamedTuple):
    """B slices, some of which are encoded; `embedded.FrozenInferer` encodes the others.

    Attributes:
        embedding: (N, D, G, G), of those that are, in the type in which they are stored.
        image: (B - N, C, S, S) float32 in [0, 1], of the others.
        known: (B,) bool on the CPU, which are encoded.
        place: (B, 3) int64 on the CPU: case, slice and view.
    """

    embedding: Tensor | None
    image: Tensor | None
    known: Tensor
    place: Tensor


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of `SliceDataset`; `image` and `embedding` are of the samples that have them.

    `known` (B,) bool then says which have an embedding.
    """
    if "place" not in samples[0]:
        return default_collate([*samples])  # type: ignore[no-any-return]
    some: dict[str, Any] = {}
    for key in ("image", "embedding"):
        if values := [sample[key] for sample in samples if key in sample]:
            some[key] = torch.stack(values)
    rest = [{k: v for k, v in one.items() if k not in ("image", "embedding")} for one in samples]
    known = torch.tensor(["embedding" in sample for sample in samples])
    return {**default_collate(rest), **some, "known": known}


def prepare_batch(
    batch: Mapping[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor | Encoded, Tensor, tuple[Tensor, ...], dict[str, Any]]:
    """Batch of a `SliceDataset` -> inputs of network and loss in MONAI's `SupervisedTrainer`.

    Args:
        batch: `image` (B, C, S, S) float in [0, 1], or what `collate` makes of samples with a store
            of embeddings; `masks` (B, P, S, S) bool, and the prompts of `MixedPromptsd` or of
            `BoxPromptsd`; `ignored` (B, 1, S, S) bool if some pixels were not annotated.
        device: device of the network.
        non_blocking: copy from pinned memory without waiting.

    Returns:
        image (or `Encoded`), masks (B, P, S, S), (), and the other arguments of the network. Masks
        are bool; with `ignored` uint8, and `IGNORED` there.
    """
    moved = {
        key: batch[key].to(device, non_blocking=non_blocking) for key in _TENSORS if key in batch
    }
    masks = moved["masks"]
    if "ignored" in moved:
        masks = masks.to(torch.uint8).masked_fill(moved["ignored"], IGNORED)
    asked = {key: moved[key] for key in _PROMPTS if key in moved}
    if "earlier" in moved and bool(batch["has_earlier"].any()):  # on the CPU: no wait for the GPU
        earlier = moved["earlier"].float() * (2 * EARLIER) - EARLIER
        absent = ~moved["has_earlier"][..., None, None]
        asked["masks"] = earlier.masked_fill(absent, float("nan"))
    inputs: Tensor | Encoded | None = moved.get("image")
    if "known" in batch:
        inputs = Encoded(moved.get("embedding"), moved.get("image"), batch["known"], batch["place"])
    elif inputs is None:
        raise KeyError("image")
    return inputs, masks, (), {**asked, "return_quality": True}


_PROMPTS = ("boxes", "points", "point_labels", "classes")
_TENSORS = ("image", "embedding", "masks", "ignored", "earlier", "has_earlier", *_PROMPTS)


class MixUp:
    """`prepare_batch` for few cases: mixes each image with a fainter one of its batch.

    A mixed image keeps its own masks and prompts. The other image's masks are left out, because no
    prompt names its objects.

    Args:
        alpha: parameter of the Beta distribution of the image's share, at least one half.
        prob: probability that a batch is mixed.

    References:
        Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018.
    """

    def __init__(self, alpha: float = 0.4, prob: float = 0.5) -> None:
        self.prob = prob
        self.shares = torch.distributions.Beta(alpha, alpha)

    def __call__(
        self, batch: Mapping[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
    ) -> tuple[Tensor | Encoded, Tensor, tuple[Tensor, ...], dict[str, Any]]:
        """Prepare a batch as `prepare_batch` does, and mix it.

        Raises:
            ValueError: a batch of embeddings, which cannot be mixed.
        """
        image, masks, prompts, options = prepare_batch(batch, device, non_blocking)
        if isinstance(image, Encoded):
            raise ValueError(NOT_MIXED)
        if torch.rand(()) < self.prob:
            share = self.shares.sample((len(image), 1, 1, 1)).to(image)
            share = torch.maximum(share, 1 - share)
            image = share * image + (1 - share) * image[torch.randperm(len(image))]
        return image, masks, prompts, options
