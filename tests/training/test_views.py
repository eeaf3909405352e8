"""Views of slices: what is fixed in them, what is drawn anew, and their labels without images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd

from medsam_tune.cases.datalist import Datalist
from medsam_tune.slices.embeddings import EmbeddingStore, Place
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import PreparedCase, SliceStore
from medsam_tune.training.mixture import MixedPromptsd
from medsam_tune.training.prompting import KeepObjectsd
from medsam_tune.training.samples import SliceDataset
from medsam_tune.training.views import description
from tests.scans import LABELS
from tests.training.test_sides import recipe


class _Base:
    image_size = 24
    in_channels = 3


def steps(**settings: Any) -> Compose:
    """The steps of `train.yaml`; every transform on, and slices shrunk."""
    rules = ScanRules(Percentiles(), window=settings.pop("window", None))
    found = recipe(
        "transform",
        data=Datalist("d", "MR", LABELS),
        rules=rules,
        **{"base": _Base, "flip_prob": 0.5, "turn_prob": 0.5, "bias_prob": 0.5, **settings},
    )
    assert isinstance(found, Compose)
    return found


def prompts_of(transform: Compose) -> Any:
    return next(one for one in transform.transforms if isinstance(one, MixedPromptsd))


def cases(store: SliceStore, make_case: Any) -> list[PreparedCase]:
    """A case with slices larger than the model's input."""
    generator = np.random.default_rng(0)
    label = np.zeros((50, 44, 5), np.uint8)
    label[8:30, 10:36, 1:4], label[30:44, 20:30, 2:5] = 1, 2
    image = generator.normal(size=label.shape).astype(np.float32)
    return store.prepare([make_case("a", image=image, label=label)], progress=False)


def dataset(cases: list[PreparedCase], transform: Compose, **options: Any) -> SliceDataset:
    return SliceDataset(
        cases, LABELS, transform, empty_slices=1.0, prompts=prompts_of(transform), **options
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


@pytest.fixture
def embeddings(store: SliceStore) -> EmbeddingStore:
    made = EmbeddingStore(store.root, "tiny", {}, (4, 2, 2))
    made.open()
    return made


@pytest.mark.parametrize("window", [None, 32])
def test_the_label_is_the_same_without_the_image(
    store: SliceStore, make_case: Any, embeddings: EmbeddingStore, window: int | None
) -> None:
    data = dataset(cases(store, make_case), steps(window=window), embeddings=embeddings)
    plain = dataset(data.cases, steps(window=window))
    keys = [(index, 7 * view + index, view) for index in range(len(data)) for view in range(6)]
    missing = [data[key] for key in keys]
    for key, sample in zip(keys, missing, strict=True):
        number, k, view = sample["place"].tolist()
        assert (number, k, view) == (0, data.index[key[0]][1], key[2])
        embeddings.put(Place(data.cases[0], k, view), torch.full((4, 2, 2), k + view).half())
    for key, before in zip(keys, missing, strict=True):
        found, uncached = data[key], plain[key]
        assert before.keys() == {*uncached, "place"}
        assert found.keys() == {*before, "embedding"} - {"image"}
        assert (found["embedding"] == data.index[key[0]][1] + key[2]).all()
        for name, value in uncached.items():
            assert same(before[name], value), name
            if name != "image":
                assert same(found[name], value), name


def test_a_view_is_fixed_and_its_prompts_are_not(store: SliceStore, make_case: Any) -> None:
    data = dataset(cases(store, make_case), steps())
    views = [[data[1, seed, view] for seed in (1, 2, 1)] for view in range(4)]
    for first, second, again in views:
        assert torch.equal(first["image"], second["image"])
        assert not torch.equal(first["points"], second["points"])
        assert all(same(first[name], again[name]) for name in first)
    images = [first["image"] for first, *_ in views]
    assert not any(torch.equal(images[0], other) for other in images[1:])
    assert not torch.equal(data[2, 1, 1]["image"], images[1])
    assert torch.equal(data[1]["image"], images[0])


def test_the_first_view_is_the_slice(store: SliceStore, make_case: Any) -> None:
    transform = steps()
    data = dataset(cases(store, make_case), transform)
    assert isinstance(transform.transforms[2], KeepObjectsd)
    transform.transforms = (*transform.transforms[:2], *transform.transforms[3:])
    plain = SliceDataset(data.cases, LABELS, transform, empty_slices=1.0)
    for index in range(len(data)):
        assert torch.equal(data[index, 3, 0]["image"], plain[index]["image"])


def test_objects_are_followed_from_both_sides(store: SliceStore, make_case: Any) -> None:
    transform = steps()
    (case,) = cases(store, make_case)
    read = transform.transforms[0]
    for view, beside in ((0, 2), (1, 0), (2, 2), (3, 0)):
        found = read({"case": case, "slice": 1, "view": view})
        assert torch.equal(found["before"][0].int(), torch.from_numpy(case.label_slice(beside)))


def test_the_description_is_of_what_the_image_depends_on() -> None:
    def described(**settings: Any) -> dict[str, Any]:
        transform = steps(**settings)
        return description(transform, prompts_of(transform))

    usual = described()
    assert usual == described()
    assert usual == described(objects=9, jitter=0.5, mixture={"box": 1})
    assert "Rand2DElasticd" in str(usual)
    assert usual["monai"]
    for other in ({"flip_prob": 0.1}, {"turn_prob": 0.1}, {"bias_prob": 0.1}, {"window": 32}):
        assert usual != described(**other), other
    transform = steps()
    transform.transforms[2].transform.transforms[0].rand_2d_elastic.deform_grid.magnitude = (1, 9)
    assert usual != description(transform, prompts_of(transform))


def test_steps_that_views_cannot_have_are_refused(
    store: SliceStore, make_case: Any, embeddings: EmbeddingStore
) -> None:
    transform = steps()
    prepared = cases(store, make_case)
    with pytest.raises(ValueError, match=r"is not among those of `transform`.*Put '@prompts' ther"):
        SliceDataset(prepared, LABELS, transform, prompts=prompts_of(steps()))
    with pytest.raises(ValueError, match=r"transform is function; views need a Compose\."):
        SliceDataset(prepared, LABELS, lambda x: x, prompts=prompts_of(transform))
    with pytest.raises(ValueError, match="give prompts, the step that draws them"):
        SliceDataset(prepared, LABELS, transform, embeddings=embeddings)

    def by_the_image(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "label": data["label"] * (data["image"].mean() > 0)}

    transform.transforms = (*transform.transforms[:2], by_the_image, *transform.transforms[2:])
    data = dataset(prepared, transform, embeddings=embeddings)
    data[0, 0, 1]
    embeddings.put(Place(prepared[0], data.index[0][1], 1), torch.zeros(4, 2, 2).half())
    with pytest.raises(ValueError, match=r"case a: slice 0 cannot be augmented without its image"):
        data[0, 0, 1]


def test_steps_on_image_and_label_need_no_image(store: SliceStore, make_case: Any) -> None:
    assert RandFlipd(["image", "label"], prob=1.0).allow_missing_keys is False
    transform = steps()
    dataset(cases(store, make_case), transform)
    augment = transform.transforms[2].transform
    assert not any(getattr(one, "allow_missing_keys", False) for one in augment.transforms)
