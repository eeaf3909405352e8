"""Training on what the frozen part of an image encoder gives, each made once.

That is the embedding of a slice, where nothing of the encoder is trained, and else the tokens that
the first trained block takes. Both are called embeddings here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import torch
from monai.inferers import Inferer
from monai.transforms import Compose
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medsam_tune.console import LOG, tracked
from medsam_tune.engines import autocast
from medsam_tune.sam.encoder import ImageEncoder
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.embeddings import EmbeddingStore, Place
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import PreparedCase
from medsam_tune.training.batches import NOT_MIXED, Encoded, MixUp, collate
from medsam_tune.training.samples import SliceDataset
from medsam_tune.training.views import description

_WAITING = 64  # embeddings that may wait for the disk


def encoder_is_frozen(network: nn.Module) -> bool:
    """Whether a method leaves the image encoder as it is."""
    return not any(p.requires_grad for p in network.image_encoder.parameters())  # type: ignore[union-attr]


def embedding_store(
    cache: bool,
    root: str,
    network: PromptableSam,
    transform: Compose,
    prompts: Any,
    rules: ScanRules,
    views: int | None,
    dtype: str = "float16",
    amp: bool = False,
    prepare_batch: Any = None,
) -> EmbeddingStore | None:
    """The store of a training's embeddings; None without a cache.

    Args:
        cache: whether there is one.
        root: folder of the slice store.
        network: model to train, whose encoder is frozen, or its first blocks are.
        transform: steps of the training's `SliceDataset`.
        prompts: the one of them that draws the prompts.
        rules: rules from scans to slices.
        views: number of views of a slice.
        dtype: stored type, see `EmbeddingStore`.
        amp: whether the encoder computes in bfloat16, on any device.
        prepare_batch: that of the trainer, which may mix images.

    Raises:
        ValueError: a method that trains the encoder from the first block on, another encoder than a
            ViT of which a part is trained, mixed images, no number of views, or an unknown dtype.
    """
    if not cache:
        return None
    if isinstance(prepare_batch, MixUp):
        raise ValueError(NOT_MIXED)
    blocks = network.frozen_blocks
    method = "the method" if network.tuning is None else network.tuning.method
    if blocks == 0 and not isinstance(network.image_encoder, ImageEncoder):
        raise ValueError(
            f"cache is true, and {method} trains a part of {network.base.name}'s image encoder: "
            "what is before that part is kept of ViTs only (nano, vit_b, vit_l, vit_h). Leave "
            "cache out, or train `decoder` or `prompt`, of which embeddings are kept."
        )
    if blocks == 0:
        raise ValueError(
            f"cache is true, but {method} trains the image encoder from its first block on, so "
            "that all embeddings change with every step. Leave cache out, train `decoder` or "
            "`prompt`, or lora or adapter in the last blocks: --set network_def::last_blocks=2."
        )
    if views is None:
        raise ValueError(
            "cache is true and views is null, which augments each slice anew whenever it is drawn: "
            "no embedding would be used twice. Set views to a number, such as 4."
        )
    base = network.base
    made_by: dict[str, Any] = {
        "base": base.as_dict(),
        "rules": rules.describe(),
        "view": description(transform, prompts),
        "encoded_in": "bfloat16" if amp else "float32",
    }
    if blocks is None:
        grid = network.prompt_encoder.image_embedding_size
        shape = (int(network.prompt_encoder.embed_dim), int(grid[0]), int(grid[1]))
    else:
        made_by["blocks"] = blocks
        rows, columns, width = cast(Tensor, network.image_encoder.pos_embed).shape[1:]
        shape = (rows, columns, width)
    return EmbeddingStore(root, base.name, made_by, shape, dtype)


def open_cache(embeddings: EmbeddingStore | None, dataset: SliceDataset, views: int | None) -> None:
    """Say how much space the embeddings of a training take, and make their folder.

    Raises:
        DataError: the disk does not hold them, or the folder is of others.
    """
    if embeddings is None:
        return
    slices = [(dataset.cases[number], k) for number, k in dataset.index]
    found = embeddings.estimate(slices, views or 1)
    LOG.info(str(found))
    found.refuse_full_disk()
    embeddings.open()


class FrozenInferer(Inferer):
    """Decode embeddings; encode slices that are not yet in the store, and keep them there.

    Without a store it calls the network, as MONAI's `SimpleInferer` does. A new embedding is used
    as the store will give it, so that a resumed run, which reads it, gives the same numbers. On a
    CPU slices are encoded one by one: faster, and independent of their batch. On a GPU they are
    written by another thread; on a CPU that would gain nothing, as writing takes a few percent of
    the time of encoding, nearly all of it the processor's.

    Args:
        embeddings: the store, or None.
        cases: cases of the `SliceDataset`.
    """

    def __init__(
        self, embeddings: EmbeddingStore | None = None, cases: Sequence[PreparedCase] = ()
    ) -> None:
        self.embeddings = embeddings
        self.cases = cases
        self._writer: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()

    def __call__(
        self, inputs: Tensor | Encoded, network: Any, *prompts: Any, **options: Any
    ) -> Any:
        """Outputs of a network for a batch of `prepare_batch`."""
        if isinstance(inputs, Tensor):
            return network(inputs, *prompts, **options)
        return network(self.embed(inputs, network), *prompts, **options, embedded=True)

    def embed(self, inputs: Encoded, network: Any) -> Tensor:
        """Embeddings of a batch, float32, see `EmbeddingStore`; missing ones are made and kept.

        Args:
            inputs: batch, on the device of the network.
            network: a `PromptableSam`, or a module around one.
        """
        made = [*self._encoded(inputs, network)]
        if inputs.embedding is None:
            return torch.cat(made)
        known = inputs.embedding.float()
        if not made:
            return known
        found = known.new_empty(len(inputs.known), *known.shape[1:])
        here = inputs.known.to(known.device)
        found[here], found[~here] = known, torch.cat(made)
        return found

    def _encoded(self, inputs: Encoded, network: Any) -> Iterator[Tensor]:
        """Embed the images of a batch, in parts (N, ...), float32 as the store will give it."""
        if inputs.image is None or self.embeddings is None:
            return
        sam = getattr(network, "module", network)
        places = [
            Place(self.cases[number], k, view)
            for number, k, view in inputs.place[~inputs.known].tolist()
        ]
        size = 1 if inputs.image.device.type == "cpu" else len(places)
        for start in range(0, len(places), size):
            with torch.no_grad():
                part = sam.encode_frozen(inputs.image[start : start + size])
            those = places[start : start + size]
            stored = self.embeddings.rounded(part, those)
            self._keep(those, stored)
            yield stored.float()

    def _keep(self, places: Sequence[Place], stored: Tensor) -> None:
        assert self.embeddings is not None
        if stored.device.type == "cpu":
            for place, one in zip(places, stored, strict=True):
                self.embeddings.put(place, one)
            return
        self._writer = self._writer or ThreadPoolExecutor(1)
        for place, one in zip(places, stored.cpu(), strict=True):
            self._waiting.append(self._writer.submit(self.embeddings.put, place, one))
        self.wait(_WAITING)

    def wait(self, most: int = 0) -> None:
        """Wait until at most so many embeddings are not on the disk yet.

        Raises:
            OSError: one could not be written.
        """
        while len(self._waiting) > most or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()


class _Missing(torch.utils.data.Dataset[dict[str, Any]]):
    """Samples of a `SliceDataset` in views that have no embedding yet."""

    def __init__(self, dataset: SliceDataset, views: int) -> None:
        self.dataset = dataset
        places = enumerate(dataset.index)
        self.keys = [
            (index, 0, view)
            for index, (number, k) in places
            for view in range(views)
            if dataset.embeddings is None
            or Place(dataset.cases[number], k, view) not in dataset.embeddings
        ]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[self.keys[index]]
        return {key: sample[key] for key in ("image", "embedding", "place") if key in sample}


def encode_all(
    inferer: FrozenInferer,
    dataset: SliceDataset,
    views: int,
    network: nn.Module,
    device: torch.device | str,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    amp: bool = False,
    progress: bool = True,
) -> int:
    """Make all embeddings of a training before it.

    Args:
        inferer: inferer of the training, with a store.
        dataset: dataset of the training.
        views: number of views of a slice.
        network: model, on the device.
        device: device to encode on.
        batch_size: number of slices encoded at once on a GPU.
        num_workers: number of processes that read and augment.
        amp: encode in bfloat16.
        progress: show it on standard error.

    Returns:
        number of embeddings that were made.
    """
    device = torch.device(device)
    missing = _Missing(dataset, views)
    pinned = device.type == "cuda"
    loader: Any = DataLoader(
        missing, batch_size, num_workers=num_workers, collate_fn=collate, pin_memory=pinned
    )
    steps = tracked(loader, "encode", len(missing), "slice", progress, size=_size)
    with autocast(device, amp):
        for batch in steps:
            if "image" in batch:
                image = batch["image"].to(device, non_blocking=True)
                known = batch["known"]
                place = batch["place"]
                inferer.embed(Encoded(None, image, known, place), network)
    inferer.wait()
    return len(missing)


def _size(batch: Mapping[str, Any]) -> int:
    return len(batch["place"])
