"""Views of slices: a few fixed augmentations of each, under prompts that are drawn anew.

What a view costs is an embedding: K views of a slice are K passes of the encoder, once, and K
embeddings on disk. There is no augmentation of an embedding.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import monai
import numpy as np
from monai.transforms import Compose, MapTransform, Randomizable, Transform

from medsam_tune.slices.embeddings import EmbeddingStore, Place
from medsam_tune.training.described import described
from medsam_tune.training.prompting import KeepObjectsd


class Views:
    """The steps from a slice in the store to a sample, in which the image has K views.

    The first step reads the slice. The steps up to the prompts make the view; their randomness
    depends on the case, the slice and the view alone, so that image and label are the same whenever
    the view is drawn. View 0 leaves `KeepObjectsd` out: it is the slice without augmentation (a
    random window stays, as a large slice has no other view). The prompts, and what follows them,
    are random anew for each sample.

    Where a view's embedding is in the store, no image is read or augmented. The label then goes
    through the same steps alone: the view's seed gives the same label again, in less time than
    reading a stored one of any size would take.

    Args:
        transform: steps of `SliceDataset`.
        prompts: the one of them that draws the prompts.
        embeddings: store of embeddings, or None.

    Raises:
        ValueError: `prompts` is not among the steps, or is the first.
    """

    def __init__(
        self, transform: Compose, prompts: Any, embeddings: EmbeddingStore | None = None
    ) -> None:
        at = _place_of(prompts, transform)
        steps = [*transform.transforms]
        self.embeddings = embeddings
        self.whole = _Chain(steps, at)
        self.label_only = _Chain([_without_image(copy.deepcopy(one)) for one in steps], at)

    def __call__(self, place: Place, seed: int) -> Mapping[Any, Any]:
        """A sample of a slice in a view.

        Args:
            place: slice and view.
            seed: seed of all that is not the view's.

        Returns:
            the result of the steps; with a store `embedding` (D, G, G) in the stored type instead
            of `image`, where it is there.

        Raises:
            ValueError: a step that needs the image to find the place of the label.
        """
        asked = {"case": place.case, "slice": place.k, "view": place.view}
        found = None if self.embeddings is None else self.embeddings.find(place)
        if found is None:
            return self.whole(asked, _seed_of(place), seed)
        try:
            sample = self.label_only({**asked, "label_only": True}, _seed_of(place), seed)
        except RuntimeError as error:  # MONAI's, around the step's own
            if not isinstance(error.__cause__, KeyError):
                raise
            raise ValueError(
                f"case {place.case.id}: slice {place.k} cannot be augmented without its image, "
                f"which its cached embedding replaces ({error}: no {error.__cause__}). Leave that "
                "step or cache out."
            ) from error
        return {**sample, "embedding": found}


class _Chain:
    """Steps that read a slice, make a view of it, and make a sample of the view.

    Args:
        steps: the steps; the first reads.
        at: number of the first step that is no longer the view's.
    """

    def __init__(self, steps: Sequence[Any], at: int) -> None:
        self.read, *between = steps[:at]
        self.plain = Compose([one for one in between if not isinstance(one, KeepObjectsd)])
        self.augmented = Compose(between)
        self.own = Compose([*steps[at:]])

    def __call__(self, asked: dict[str, Any], seed_of_view: int, seed: int) -> Mapping[Any, Any]:
        view = self.augmented if asked["view"] else self.plain
        of_read, of_own = np.random.RandomState(seed).randint(2**31, size=2).tolist()
        if isinstance(self.read, Randomizable):
            self.read.set_random_state(seed=of_read)
        view.set_random_state(seed=seed_of_view)
        self.own.set_random_state(seed=of_own)
        return self.own(view(self.read(asked)))  # type: ignore[no-any-return]


class _Nothing(Transform):
    """Stands for a step on the image."""

    def __call__(self, data: Any) -> Any:
        return data


class _RandomNothing(Randomizable, _Nothing):
    """Stands for a random step on the image; takes its seed, so that the next steps get theirs."""


def _without_image(step: Any) -> Any:
    """A step that does the same to the label where there is no image; changes the step."""
    if isinstance(step, Compose):
        step.transforms = tuple(_without_image(one) for one in step.transforms)
    elif isinstance(step, KeepObjectsd):
        step.transform = _without_image(step.transform)
    elif isinstance(step, MapTransform):
        if {*step.keys} == {"image"}:
            return _RandomNothing() if isinstance(step, Randomizable) else _Nothing()
        step.allow_missing_keys = True
    return step


def description(transform: Compose, prompts: Any) -> dict[str, Any]:
    """All that the image of a view depends on besides the slice, as JSON: the steps' settings.

    Args:
        transform: steps of `SliceDataset`, before their first use, which leaves traces in them.
        prompts: the one of them that draws the prompts; its settings do not matter.
    """
    at = _place_of(prompts, transform)
    steps = [one for i, one in enumerate(transform.transforms) if i != at]
    return {"monai": monai.__version__, "steps": [described(one) for one in steps]}


def _place_of(prompts: Any, transform: Compose) -> int:
    places = [i for i, step in enumerate(transform.transforms) if step is prompts]
    if not places or places[0] == 0:
        raise ValueError(
            "the step that draws the prompts is not among those of `transform`, after the one that "
            "reads the slice; views need to know what is theirs. Put '@prompts' there."
        )
    return places[0]


def _seed_of(place: Place) -> int:
    return zlib.crc32(f"{place.case.id}:{place.k}:{place.view}".encode())
