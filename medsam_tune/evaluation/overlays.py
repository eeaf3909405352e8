"""Pictures of the worst, median and best cases of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from ignite.engine import Engine, Events
from matplotlib.colors import to_hex
from torch import Tensor

from medsam_tune.evaluation.label_maps import annotated
from medsam_tune.evaluation.pictures import Panel, Place, colours_of, draw, panel_of
from medsam_tune.evaluation.results import INDEX
from medsam_tune.evaluation.scores import CaseScores
from medsam_tune.evaluation.volumes import load_part, part_of, save_part, write_part
from medsam_tune.files import write_json
from medsam_tune.inference.canvas import labels_of, smallest_type
from medsam_tune.inference.simulated import parse_kind
from medsam_tune.prompts import SlicePrompts
from medsam_tune.ranks import gathered, is_main, rank

_MOST_KINDS = 3  # columns beside the annotator's: more are too small to see
_SPARE = 2  # volumes kept for each that is shown: the scores may put the cases in another order


class Overlays:
    """Handler of an evaluator over `CaseDataset`: pictures of the worst, median and best cases.

    The annotator has the first column, and each of the first kinds of prompts one of its own, with
    its prompts. `index.json` beside the pictures says which they are. Of the worst scans there is
    also the part with the objects, as NIfTI, for a report in 3-D: see `volumes`. The slices of the
    other cases lie in a temporary folder until the end. Of several processes, each draws the cases
    it has.

    Args:
        output_dir: folder for `<case>.png` and `<case>/`.
        labels: label id -> name.
        count: number of cases of each: worst, median, best; 0 for no picture at all.
        ignore: id of voxels that nobody annotated; nothing is drawn there.
        window: what the grey values are, in words, see `slices.intensity`.
        scores: handler that knows the scores, attached after this one; without it cases are
            compared by the Dice of their slices.
    """

    def __init__(
        self,
        output_dir: str | Path,
        labels: Mapping[int, str],
        count: int = 2,
        ignore: int | None = None,
        window: str = "",
        scores: CaseScores | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.labels = labels
        self.count = count
        self.ignore = ignore
        self.window = window
        self.scores = scores
        self._folder: TemporaryDirectory[str] | None = None
        self._dice: dict[str, float] = {}
        self._parts: dict[str, float] = {}  # cases whose volume is kept, with their Dice

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.STARTED, lambda _: self._start())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._finish())

    def _start(self) -> None:
        self._folder = TemporaryDirectory(prefix="medsam_tune-")
        self._dice.clear()
        self._parts.clear()

    def __call__(self, engine: Engine) -> None:
        """Keep some slices of a case after it was segmented."""
        state: Any = engine.state
        batch = state.batch
        label = batch["label"]
        if self._folder is None or not self.count:
            return
        if not any((label == k).any() for k in self.labels):
            return
        kinds = [*state.output["pred"]][:_MOST_KINDS]
        names = {kind: parse_kind(kind).words(len(label) == 1) for kind in kinds}
        found = (cast(Tensor, labels_of(state.output["pred"][kind])) for kind in names)
        maps = annotated(label, *found, truth=label, ignore=self.ignore)
        panel = panel_of(
            batch["image"],
            dict(zip(["annotator", *names.values()], maps, strict=True)),
            self.labels,
            {names[kind]: batch["prompts"][kind] for kind in names},
            place=_place(batch),
        )
        self._dice[batch["case"]] = panel.scores[next(iter(names.values()))] or 0.0
        torch.save(_plain_panel(panel), self._kept(len(self._dice) - 1))
        self._keep_part(batch, maps[0], maps[1])

    def _keep_part(self, batch: Mapping[str, Any], truth: Tensor, prediction: Tensor) -> None:
        """Keep the volume of a scan while it is one of the worst so far."""
        case, kept = batch["case"], self._parts
        dice, room = self._dice[case], _SPARE * self.count
        if len(truth) == 1 or (len(kept) == room and dice >= max(kept.values())):
            return
        spacing, axes = _voxel(batch), batch.get("axes", "")
        part = part_of(batch["image"], truth, prediction, [*self.labels], spacing, axes)
        if part is None:
            return
        save_part(self._kept(case, ".npz"), part)
        kept[case] = dice
        if len(kept) > room:
            best = max(kept, key=lambda case: kept[case])
            self._kept(best, ".npz").unlink()
            del kept[best]

    def _kept(self, name: int | str, ending: str = ".pt") -> Path:
        assert self._folder is not None  # for mypy: made when the engine started
        return Path(self._folder.name) / f"{name}{ending}"

    def _finish(self) -> None:
        if self._folder is None:
            return
        numbers = {case: number for number, case in enumerate(self._dice)}
        index: list[dict[str, Any]] = []
        ranked: dict[str, float] = {}
        owners: dict[str, int] = {}  # a case that evens out the shares is of two processes
        for owner, part in enumerate(gathered(self._ranked())):
            ranked |= part
            owners = {**dict.fromkeys(part, owner), **owners}
        roles = chosen(ranked, self.count)
        for case, role in roles.items():
            if owners[case] != rank():
                continue
            panel = _panel_from(torch.load(self._kept(numbers[case]), weights_only=True))
            if self.scores is not None:
                dice = self.scores.mean_dice(case)
                scores = {parse_kind(kind).words(panel.flat): dice[kind] for kind in dice}
                panel = replace(panel, scores=scores)
            draw(self.output_dir / f"{case}.png", panel, self.labels)
            index.append(
                {
                    "case": case,
                    "role": role,
                    "slices": panel.slices,
                    "columns": [*panel.columns],
                    "window": self.window,
                    "axes": panel.place.axes,
                    "volume": self._write_part(case) if role == "worst" else None,
                }
            )
        drawn = {one["case"]: one for part in gathered(index) for one in part}
        if drawn and is_main():
            write_json(self.output_dir / INDEX, {"pictures": [drawn[case] for case in roles]})
        self._folder.cleanup()
        self._folder = None

    def _write_part(self, case: str) -> dict[str, Any] | None:
        """Write the volume of a case, if it is kept.

        Returns:
            what the index says of it: how it was thinned, and its labels.
        """
        if case not in self._parts:
            return None
        part = load_part(self._kept(case, ".npz"))
        write_part(self.output_dir / case, part)
        colours = colours_of([*self.labels])
        labels = [
            {"value": value, "name": self.labels[label], "colour": to_hex(colours[label])}
            for value, label in enumerate(part.labels, 1)
        ]
        return {"thinned": [*part.thinned], "labels": labels}

    def _ranked(self) -> dict[str, float]:
        """Case -> Dice by the first kind of prompts."""
        if self.scores is None:
            return dict(self._dice)
        ranked = {case: next(iter(self.scores.mean_dice(case).values())) for case in self._dice}
        return {case: dice for case, dice in ranked.items() if dice is not None}


def chosen(scores: Mapping[str, float], count: int) -> dict[str, str]:
    """Cases to show -> "worst", "median" or "best", each case once.

    Args:
        scores: case -> score, the higher the better.
        count: number of cases of each.
    """
    ranked = sorted(scores, key=lambda case: (scores[case], case))
    middle = max((len(ranked) - count) // 2, 0)
    parts = {
        "worst": ranked[:count],
        "best": ranked[::-1][:count],
        "median": ranked[middle : middle + count],
    }
    found: dict[str, str] = {}
    for role, cases in parts.items():
        for case in cases:
            found.setdefault(case, role)
    order = ("worst", "median", "best")
    return dict(sorted(found.items(), key=lambda pair: order.index(pair[1])))


def _place(batch: Mapping[str, Any]) -> Place:
    """Where the slices of a case lie, in the grid of its label."""
    if len(batch["label"]) == 1:
        return Place()
    voxel = _voxel(batch)
    return Place(voxel and (voxel[2], voxel[1]), batch.get("axes", ""))


def _voxel(batch: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Millimetres between the voxels of the label along Z, H and W; None where they are unknown."""
    spacing, label = batch.get("spacing"), batch["label"]
    if spacing is None:
        return None
    own = batch.get("truth", label).shape  # `spacing` is of the scan's own grid
    z, y, x = (float(spacing[k]) * own[k] / label.shape[k] for k in range(3))
    return z, y, x


def _plain_panel(panel: Panel) -> dict[str, Any]:
    """A panel as tensors, numbers and text alone, which `torch.load` takes without pickle."""
    prompts = {
        title: None if given is None else {**vars(given), "spread": {}}
        for title, given in panel.prompts.items()
    }
    place = {"pixel": panel.place.pixel, "axes": panel.place.axes}
    columns = panel.columns.items()
    small = {title: maps.to(smallest_type([int(maps.max())])) for title, maps in columns}
    return {**vars(panel), "columns": small, "prompts": prompts, "place": place}


def _panel_from(content: Mapping[str, Any]) -> Panel:
    prompts = {
        title: None if given is None else SlicePrompts(**given)
        for title, given in content["prompts"].items()
    }
    return Panel(**{**content, "prompts": prompts, "place": Place(**content["place"])})
