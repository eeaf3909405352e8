"""Planes larger than the network's input: overlapping windows, blended without a seam."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import sliding_window_inference
from torch import Tensor

from medsam_tune.inference.planes import FAR_OUTSIDE, Answers, Asked, WholePlane
from medsam_tune.sam.prompting import BOTTOM_RIGHT, INSIDE, PADDING, TOP_LEFT
from medsam_tune.slices.rules import ScanRules

_BORDER = 1 / 16  # of a window's side: a mask that comes so near to it may go on beyond


class _View(NamedTuple):
    """Answer to one prompt: logits (h, w) of a window or (H, W) of a slice, and two scalars."""

    logits: Tensor
    quality: Tensor
    presence: Tensor | None


class WindowedPlane:
    """Slices that the network sees in overlapping windows, each scaled into its square input.

    A box is asked in every window that it touches, cut to the window. Points are asked in the
    windows that hold them. An object with points alone is followed: where its mask comes near the
    border of the windows that were asked, the windows beyond are asked by the mask's surest pixel
    in them. A class alone is asked in every window, and those that see the class have a say, or all
    if none sees it. Where no window has a say, the logits are -16.

    A quality is the mean of the windows' own, weighted by the masks' areas; a presence is the
    highest. A side of the slice that is not longer than the window is seen whole.

    Args:
        network: a `PromptableSam`.
        size: (H, W) of the slices, pixels.
        rules: rules of training, with a window.
        overlap: share of a window's side that it has in common with the next one, at least.

    Attributes:
        window: (h, w) of a window, pixels.
        places: first row and column of each window, row by row.
        inner: plane of one window.
    """

    def __init__(
        self, network: Any, size: tuple[int, int], rules: ScanRules, overlap: float = 0.5
    ) -> None:
        self.size = size
        side = rules.window or max(size)
        self.window = (min(side, size[0]), min(side, size[1]))
        self.overlap = overlap
        self.inner = WholePlane(network, self.window, rules.frame(self.window, network.image_size))
        steps = [max(1, int(length * (1 - overlap))) for length in self.window]
        self.places = [
            (rows.start, columns.start)
            for rows, columns in dense_patch_slices(size, self.window, steps)
        ]

    def encode(self, slices: Tensor) -> Tensor:
        """Embed all windows of slices; as many windows at once as there are slices.

        Args:
            slices: (N, C, H, W) uint8, on any device.

        Returns:
            (N, V, D, G, G) float embeddings of V windows, row by row, on the network's device.
        """
        embedded = []
        for image in slices:
            windows = torch.stack([self._cut(image, v) for v in range(len(self.places))])
            parts = windows.split(len(slices))
            embedded.append(torch.cat([self.inner.encode(part) for part in parts]))
        return torch.stack(embedded)

    def decode(self, embeddings: Tensor, where: Tensor, asked: Asked) -> Answers:
        """Masks of R prompts, as many windows at once as there are prompts; see `Plane`."""
        embeddings = embeddings.flatten(0, 1)  # (N * V, D, G, G)
        points, kinds, wanted = self._shares(asked)
        pointed = (asked.point_labels == INSIDE).any(1) & (asked.point_labels < TOP_LEFT).all(1)
        views: list[dict[int, _View]] = [{} for _ in wanted]
        pairs, points_of, kinds_of = wanted.nonzero(), points[wanted], kinds[wanted]
        while len(pairs):
            for part in torch.arange(len(pairs)).split(len(views)):
                row, window = pairs[part].unbind(1)
                question = self._question(asked, pairs[part], points_of[part], kinds_of[part])
                found = self.inner.decode(
                    embeddings, where.cpu()[row] * len(self.places) + window, question
                )
                for n, (r, v) in enumerate(pairs[part].tolist()):
                    presence = None if found.presence is None else found.presence[n]
                    views[r][v] = _View(found.logits[n], found.quality[n], presence)
            grown = [r for r in pairs[:, 0].unique().tolist() if pointed[r]]
            pairs, leads = self._beyond(views, grown)
            row, window = pairs.unbind(1)
            inside = torch.full((len(pairs), 1), INSIDE)
            points_of = torch.cat([points[row, window], leads[:, None]], 1)
            kinds_of = torch.cat([kinds[row, window], inside], 1)
        alone = (asked.point_labels == PADDING).all(1).tolist()
        joined = [
            self._joined(_sure(one) if by_class else one)
            for one, by_class in zip(views, alone, strict=True)
        ]
        return Answers(
            torch.stack([one.logits for one in joined]),
            torch.stack([one.quality for one in joined]),
            _stacked(joined),
        )

    def _shares(self, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
        """What each of V windows gets of each prompt, on the CPU.

        Returns:
            points (R, V, N, 2) float32 XY in the window's frame, their labels (R, V, N), and which
            windows are asked (R, V) bool, one at least.
        """
        points, kinds = asked.points.cpu()[:, None], asked.point_labels.cpu()[:, None]
        low = torch.tensor([[x, y] for y, x in self.places], dtype=torch.float32)[:, None]
        cut = points.clamp(low, low + torch.tensor(self.window[::-1]))  # (R, V, N, 2)
        sides = []
        for corners in (cut, points):
            lower, upper = (corners * (kinds == k)[..., None] for k in (TOP_LEFT, BOTTOM_RIGHT))
            sides.append((upper - lower).sum(2))  # (R, V or 1, 2)
        touched = (kinds == TOP_LEFT).any(2) & (sides[0] >= sides[1].clamp(max=1)).all(2)
        held = torch.where(kinds >= TOP_LEFT, touched[..., None], (cut == points).all(3))
        kinds = torch.where(held, kinds, PADDING)
        wanted = touched | (kinds == INSIDE).any(2)
        return cut - low, kinds, wanted | ~wanted.any(1, keepdim=True)

    def _question(self, asked: Asked, pairs: Tensor, points: Tensor, kinds: Tensor) -> Asked:
        """What M windows are asked.

        Args:
            asked: prompts, of which the class and the mask are taken.
            pairs: (M, 2) int64 prompt and window.
            points: (M, N, 2) float32 XY in the window's frame.
            kinds: (M, N) int64 labels of the points.
        """
        classes, masks = asked.classes, asked.masks
        if classes is not None:
            classes = classes[pairs[:, 0].to(classes.device)]
        if masks is not None:
            masks = torch.stack([self._cut(masks[r], v) for r, v in pairs.tolist()])
        return Asked(points, kinds, classes, masks)

    def _beyond(self, views: list[dict[int, _View]], rows: list[int]) -> tuple[Tensor, Tensor]:
        """Windows beyond those that were asked, into which an object's mask leads.

        Args:
            views: answers to each prompt by window.
            rows: prompts to follow.

        Returns:
            (M, 2) int64 prompt and window, and (M, 2) float32 XY the mask's surest pixel, in the
            window's frame.
        """
        pairs, leads = [], []
        for row in rows:
            logits = self._blended(views[row])
            ends = logits > 0  # not where no window was asked
            for window in views[row]:
                ends[self._middle(window)] = False
            for window in range(len(self.places)):
                if window not in views[row] and self._cut(ends, window).any():
                    y, x = divmod(int(self._cut(logits, window).argmax()), self.window[1])
                    pairs.append([row, window])
                    leads.append([x + 0.5, y + 0.5])
        shape = (len(pairs), 2)
        return torch.tensor(pairs, dtype=torch.int64).view(shape), torch.tensor(leads).view(shape)

    def _joined(self, views: Mapping[int, _View]) -> _View:
        """One answer (H, W) of those of some windows."""
        areas = torch.stack([(view.logits > 0).sum() for view in views.values()])
        weights = areas if areas.any() else torch.ones_like(areas)
        quality = torch.stack([view.quality for view in views.values()])
        presence = _stacked(views.values())
        return _View(
            self._blended(views),
            (quality * weights).sum() / weights.sum(),
            None if presence is None else presence.amax(),
        )

    def _blended(self, views: Mapping[int, _View]) -> Tensor:
        """Logits (H, W) of those of some windows, each with most weight in its middle."""
        one = next(iter(views.values())).logits

        def looked_up(_: Tensor, places: list[list[slice]]) -> Tensor:
            found = one.new_zeros(len(places), 2, *self.window)  # logits; 1 for a window with a say
            for into, (*_batch, rows, columns) in zip(found, places, strict=True):
                view = views.get(self.places.index((rows.start, columns.start)))
                if view is not None:
                    into[0], into[1] = view.logits, 1
            return found

        blended = sliding_window_inference(
            one.new_zeros(1, 1, *self.size),
            self.window,
            sw_batch_size=1,
            predictor=looked_up,
            overlap=self.overlap,
            mode="gaussian",
            with_coord=True,
        )
        logits, weight = blended[0]
        return torch.where(weight > 0, logits / weight, -FAR_OUTSIDE)

    def _middle(self, window: int) -> tuple[slice, ...]:
        """Rows and columns of a window, without its border where another window begins."""
        middle = []
        for start, side, end in zip(self.places[window], self.window, self.size, strict=True):
            border = max(1, round(_BORDER * side))
            first = start + border if start else 0
            middle.append(slice(first, start + side - (border if start + side < end else 0)))
        return tuple(middle)

    def _cut(self, image: Tensor, window: int) -> Tensor:
        """(..., H, W) -> (..., h, w), a view of one window."""
        y, x = self.places[window]
        return image[..., y : y + self.window[0], x : x + self.window[1]]


def _stacked(views: Iterable[_View]) -> Tensor | None:
    """(M,) presence of M views, if the network tells it."""
    presence = [view.presence for view in views if view.presence is not None]
    return torch.stack(presence) if presence else None


def _sure(views: dict[int, _View]) -> dict[int, _View]:
    """The views that see the class; all if none does."""
    sure = {
        window: view
        for window, view in views.items()
        if view.presence is not None and view.presence > 0
    }
    return sure or views
