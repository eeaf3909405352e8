"""Training on stored embeddings: the same losses, and an encoder that runs once for each view."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from medsam_tune.errors import DataError
from medsam_tune.methods import apply_method
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.embeddings import EmbeddingStore
from medsam_tune.slices.store import PreparedCase, SliceStore
from medsam_tune.training.batches import MixUp, collate, prepare_batch
from medsam_tune.training.embedded import (
    FrozenInferer,
    embedding_store,
    encode_all,
    open_cache,
)
from medsam_tune.training.losses import PromptLoss
from medsam_tune.training.samples import SeededSampler, SliceDataset
from tests.scans import LABELS
from tests.training.test_views import prompts_of, steps

Sam = Callable[..., PromptableSam]
SIZE, VIEWS = 32, 2


class Training:
    """A few epochs of a tiny model, with or without stored embeddings."""

    def __init__(
        self,
        sam: Sam,
        store: SliceStore,
        cases: list[PreparedCase],
        dtype: str | None = None,
        method: str = "decoder",
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        base = sam(image_size=SIZE)
        self.network = apply_method(base, method, num_classes=len(LABELS), **options)
        transform = steps(base=base.base)
        prompts = prompts_of(transform)
        self.embeddings = embedding_store(
            *(dtype is not None, str(store.root), self.network, transform, prompts, store.rules),
            views=VIEWS,
            dtype=dtype or "float16",
        )
        self.data = SliceDataset(
            cases, LABELS, transform, prompts=prompts, embeddings=self.embeddings
        )
        open_cache(self.embeddings, self.data, VIEWS)
        self.inferer = FrozenInferer(self.embeddings, cases)
        self.sampler = SeededSampler(len(self.data), seed=3, views=VIEWS)
        self.encoded = 0
        self.network.image_encoder.register_forward_hook(self._count)

    def _count(self, _: Any, inputs: tuple[Any, ...], __: Any) -> None:
        if inputs[1:2] in ((), (0,)):  # from the image on
            self.encoded += len(inputs[0])

    def run(self, epochs: int, rate: float = 1e-3) -> list[float]:
        trained = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate)
        loader: Any = DataLoader(self.data, 1, sampler=self.sampler, collate_fn=collate)
        losses = []
        for epoch in range(epochs):
            self.sampler.set_epoch(epoch)
            for batch in loader:
                image, masks, _, asked = prepare_batch(batch, torch.device("cpu"))
                loss = PromptLoss()(self.inferer(image, self.network, **asked), masks)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        return losses


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("decoder", {}),
        ("prompt", {}),
        ("lora", {"rank": 2, "where": "encoder", "last_blocks": 1}),
        ("adapter", {"bottleneck": 4, "last_blocks": 2, "placement": "attention"}),
    ],
)
def test_the_losses_are_those_without_a_cache(
    tiny_sam: Sam,
    store: SliceStore,
    prepared: list[PreparedCase],
    method: str,
    options: dict[str, Any],
) -> None:
    plain = Training(tiny_sam, store, prepared, method=method, **options)
    expected = plain.run(4)
    exact = Training(tiny_sam, store, prepared, "float32", method, **options)
    assert exact.run(4) == expected
    once = len(plain.data) * VIEWS
    assert (plain.encoded, exact.encoded) == (2 * once, once)


def test_tokens_before_another_block_are_others(
    tiny_sam: Sam, store: SliceStore, prepared: list[PreparedCase]
) -> None:
    folders = {
        Training(tiny_sam, store, prepared, "float32", "adapter", **options).embeddings.folder  # type: ignore[union-attr]
        for options in ({"last_blocks": 1}, {"last_blocks": 2}, {"last_blocks": 2, "bottleneck": 4})
    }
    assert len(folders) == 2


def test_half_the_bits_give_nearly_the_same_losses(
    tiny_sam: Sam, store: SliceStore, prepared: list[PreparedCase]
) -> None:
    """At equal weights, as the paths of two trainings part with any rounding."""
    expected = torch.tensor(Training(tiny_sam, store, prepared).run(2, rate=0.0))
    half = Training(tiny_sam, store, prepared, "float16")
    found = torch.tensor(half.run(2, rate=0.0))
    assert not torch.equal(found, expected)
    assert (found - expected).abs().median() < 1e-3
    assert abs(found.mean() - expected.mean()) < 1e-3
    # A pixel whose logit is about zero changes the IoU that the quality is taught.
    assert (found - expected).abs().max() < 1e-2
    assert half.encoded == len(half.data) * VIEWS


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_was_encoded_before_gives_the_same_numbers(
    tiny_sam: Sam, store: SliceStore, prepared: list[PreparedCase], dtype: str
) -> None:
    """As in a resumed run, or after another training on the same slices."""
    first = Training(tiny_sam, store, prepared, dtype).run(2)
    again = Training(tiny_sam, store, prepared, dtype)
    assert again.run(2) == first
    assert again.encoded == 0
    other = Training(tiny_sam, store, prepared, dtype, "prompt")  # its encoder is the same
    other.run(2)
    assert other.encoded == 0


def test_a_training_that_was_killed_has_lost_nothing(
    tiny_sam: Sam, store: SliceStore, prepared: list[PreparedCase]
) -> None:
    whole = Training(tiny_sam, store, prepared, "float16")
    expected = whole.run(2)
    files = sorted(whole.embeddings.folder.rglob("*.0.0.0"))  # type: ignore[union-attr]
    assert len(files) == whole.encoded
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])
    again = Training(tiny_sam, store, prepared, "float16")
    with pytest.warns(UserWarning, match="is damaged and is made again"):
        assert again.run(2) == expected
    assert again.encoded == 2
    assert sorted(whole.embeddings.folder.rglob("*.0.0.0")) == files  # type: ignore[union-attr]


def test_batches_of_known_and_unknown_slices(
    tiny_sam: Sam, store: SliceStore, prepared: list[PreparedCase]
) -> None:
    training = Training(tiny_sam, store, prepared, "float32")
    keys = [(0, 1, 0), (1, 2, 0), (2, 3, 1), (3, 4, 1)]
    alone = []
    for key in keys[1], keys[3]:  # these are known then
        image, *_ = prepare_batch(collate([training.data[key]]), torch.device("cpu"))
        assert image.embedding is None
        alone.append(training.inferer.embed(image, training.network))
    batch = collate([training.data[key] for key in keys])
    assert batch["known"].tolist() == [False, True, False, True]
    assert (len(batch["image"]), len(batch["embedding"])) == (2, 2)
    image, *_ = prepare_batch(batch, torch.device("cpu"))
    found = training.inferer.embed(image, training.network)
    assert torch.equal(found[[1, 3]], torch.cat(alone))
    images = torch.stack([Training(tiny_sam, store, prepared).data[key]["image"] for key in keys])
    expected = torch.cat([training.network.encode(image[None]) for image in images])
    assert torch.equal(found, expected)
    known = collate([training.data[key] for key in keys])
    assert known["known"].all()
    assert "image" not in known
    image, *_ = prepare_batch(known, torch.device("cpu"))
    assert torch.equal(training.inferer.embed(image, training.network), expected)


def test_all_may_be_encoded_before(
    tiny_sam: Sam, store: SliceStore, prepared: list[PreparedCase]
) -> None:
    training = Training(tiny_sam, store, prepared, "float16")
    options = (training.inferer, training.data, VIEWS, training.network, "cpu")
    made = encode_all(*options, batch_size=3, progress=False)  # type: ignore[arg-type]
    assert made == training.encoded == VIEWS * len(training.data)
    assert encode_all(*options, progress=False) == 0  # type: ignore[arg-type]
    training.run(2)
    assert training.encoded == made
    fresh = SliceStore(store.root.parent / "other", store.rules, LABELS)
    expected = Training(tiny_sam, fresh, prepared, "float16").run(2)
    assert Training(tiny_sam, store, prepared, "float16").run(2) == expected


def test_methods_that_train_the_encoder_are_refused(
    tiny_sam: Sam, store: SliceStore, prepared: list[PreparedCase]
) -> None:
    for method in ("full", "lora", "adapter"):
        with pytest.raises(ValueError, match=rf"cache is true, but {method} trains the image enc"):
            Training(tiny_sam, store, prepared, "float16", method)
    sam = apply_method(tiny_sam(image_size=SIZE), "lora", where="decoder")
    transform = steps(base=sam.base)
    options = (True, "s", sam, transform, prompts_of(transform), store.rules)
    assert isinstance(embedding_store(*options, views=2), EmbeddingStore)
    with pytest.raises(ValueError, match=r"cache is true, and MixUp mixes images"):
        embedding_store(*options, views=2, prepare_batch=MixUp())
    with pytest.raises(ValueError, match=r"views is null.*Set views to a number, such as 4"):
        embedding_store(*options, views=None)
    assert embedding_store(False, *options[1:], views=None) is None  # type: ignore[arg-type]


def test_tokens_before_a_block_are_kept_of_vits_only(store: SliceStore) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its weights are random
        sam = build_sam("vit_t", "random", image_size=64)
        apply_method(sam, "lora", last_blocks=2)
    transform = steps(base=sam.base)
    with pytest.raises(
        ValueError, match=r"lora trains a part of vit_t's image encoder: .* kept of ViTs only"
    ) as refused:
        embedding_store(True, "s", sam, transform, prompts_of(transform), store.rules, views=2)
    assert "last_blocks" not in str(refused.value)


def test_other_weights_have_other_embeddings(tiny_sam: Sam, store: SliceStore) -> None:
    def folder(sam: PromptableSam, **other: Any) -> Path:
        transform = steps(base=sam.base)
        prompts = prompts_of(transform)
        options = {"rules": store.rules, "views": 2, **other}
        made = embedding_store(True, "s", sam, transform, prompts, **options)
        assert made is not None
        return made.folder

    sam = tiny_sam(image_size=SIZE).requires_grad_(False)
    others = [
        tiny_sam(image_size=48),
        tiny_sam(image_size=SIZE, normalisation="medsam"),
        tiny_sam(image_size=SIZE, in_channels=4),
    ]
    folders = {folder(one.requires_grad_(False)) for one in others}
    folders |= {folder(sam), folder(sam, amp=True), folder(sam, dtype="float32")}
    assert len(folders) == 6
    assert folder(sam, views=3) == folder(sam)  # more views of the same slices


def test_mixed_images_and_a_full_disk_are_refused(
    tiny_sam: Sam,
    store: SliceStore,
    prepared: list[PreparedCase],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = Training(tiny_sam, store, prepared, "float16")
    batch = collate([training.data[0]])
    with pytest.raises(ValueError, match=r"MixUp mixes images before they are encoded: no embeddi"):
        MixUp()(batch, torch.device("cpu"))
    monkeypatch.setattr("medsam_tune.slices.embeddings.free_space", lambda _: 10)
    with pytest.raises(DataError, match=r"the others take .* GB; 1e-08 GB free\. Make room"):
        open_cache(training.embeddings, training.data, VIEWS)
