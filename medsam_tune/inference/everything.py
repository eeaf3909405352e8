"""Every object of an image, asked for by a grid of points, by segment-anything's own generator."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator
from torch import Tensor

from medsam_tune.console import tracked
from medsam_tune.errors import DataError, warn
from medsam_tune.inference.canvas import Found, FoundObject
from medsam_tune.inference.embedded import plane_for
from medsam_tune.inference.instances import NO_LABEL
from medsam_tune.inference.planes import Asked, Plane
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.rules import ScanRules


class EverythingInferer(Inferer):
    """Segment all objects of slices, of whatever kind, by `SamAutomaticMaskGenerator`.

    It takes the mask that tuning trains, not the three that SAM gives for a point that may mean a
    part.

    Args:
        rules: rules of training, by which slices come into the network; by default they are padded.
        progress: show it on standard error.
        options: options of `SamAutomaticMaskGenerator`, such as `points_per_side` and
            `pred_iou_thresh`.

    References:
        Kirillov et al., "Segment Anything", ICCV 2023, appendix B.
    """

    def __init__(
        self, rules: ScanRules | None = None, progress: bool = False, **options: Any
    ) -> None:
        self.rules = rules
        self.progress = progress
        self.options = options

    def __call__(
        self,
        inputs: Tensor,
        network: Any,
        prompts: SlicePrompts | None = None,
        *_: Any,
        **__: Any,
    ) -> Found:
        """Segment slices.

        Args:
            inputs: (Z, C, H, W) uint8, on any device.
            network: a `PromptableSam` without classes.
            prompts: None, as all is asked for.

        Returns:
            the objects; small ones lie over large ones. `labels` is 1 where there is an object.

        Raises:
            DataError: a network that knows labels; prompts.
        """
        if network.classes:
            raise DataError(
                f"the model knows {network.classes} labels, and segments what is of them; "
                "everything is found by one that knows none: train --class-agnostic."
            )
        if prompts is not None:
            raise DataError(
                "prompts are given, and everything is asked for; leave one of them out."
            )
        numbers = torch.zeros((len(inputs), *inputs.shape[-2:]), dtype=torch.int32)
        qualities: list[float] = []
        for z, each in enumerate(tracked(inputs, "segment", len(inputs), "slice", self.progress)):
            if not bool((each != each.flatten()[0]).any()):
                continue
            found = self._masks(each, network)
            for one in sorted(found, key=lambda one: -one["area"]):
                qualities.append(one["predicted_iou"])
                numbers[z][torch.from_numpy(one["segmentation"])] = len(qualities)
        if not qualities:
            warn(
                "no object was found: no mask has the quality and the stability that are asked "
                "for. Lower them, e.g. --set inferer::pred_iou_thresh=0.3."
            )
        objects = tuple(FoundObject(NO_LABEL, 1, quality) for quality in qualities)
        return Found((numbers > 0).to(torch.uint8), objects, numbers=numbers)

    def _masks(self, image: Tensor, network: Any) -> list[dict[str, Any]]:
        size = (image.shape[-2], image.shape[-1])
        # The generator reads nothing of the model but these, and all else of its predictor.
        model = SimpleNamespace(
            image_encoder=SimpleNamespace(img_size=network.image_size), mask_threshold=0.0
        )
        generator = SamAutomaticMaskGenerator(model, **self.options)
        generator.predictor = _Predictor(model, network, self.rules)
        pixels = image.movedim(0, -1).cpu().numpy()
        assert pixels.shape[:2] == size
        found: list[dict[str, Any]] = generator.generate(pixels)
        return found


class _Predictor:
    """What the generator needs of a `SamPredictor`; points stay in the slice frame."""

    def __init__(self, model: Any, network: Any, rules: ScanRules | None) -> None:
        self.model = model
        self.transform = SimpleNamespace(apply_coords=lambda points, _: points)
        self.device = network.pixel_mean.device
        self._network = network
        self._rules = rules
        self._plane: Plane | None = None
        self._embedding: Tensor | None = None

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Embed a crop (H, W, C)."""
        slices = torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, 0)[None]
        self._plane = plane_for(self._network, (image.shape[0], image.shape[1]), self._rules)
        self._embedding = self._plane.encode(slices)

    def predict_torch(
        self, points: Tensor, point_labels: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor, None]:
        """(N, 1, 2) points and (N, 1) labels -> logits (N, 1, H, W) and quality (N, 1)."""
        assert self._plane is not None
        assert self._embedding is not None
        where = torch.zeros(len(points), dtype=torch.int64)
        asked = Asked(points.float(), point_labels.long())
        answers = self._plane.decode(self._embedding, where, asked)
        return answers.logits[:, None], answers.quality[:, None], None

    def reset_image(self) -> None:
        """Forget the crop."""
        self._plane = self._embedding = None
