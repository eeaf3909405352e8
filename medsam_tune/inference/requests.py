"""Prompts of one kind on their way through a volume: the questions, and the masks so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medsam_tune.errors import DataError, listed
from medsam_tune.inference.canvas import (
    Canvas,
    Found,
    FoundObject,
    LogitCanvas,
    SeparateCanvas,
)
from medsam_tune.inference.embedded import Batch, EmbeddedVolume
from medsam_tune.inference.planes import FAR_OUTSIDE, Answers, Asked
from medsam_tune.inference.propagation import CORNERS, Walk, around, ways
from medsam_tune.inference.spool import Spool
from medsam_tune.prompts import SlicePrompts

NEEDS_PROMPTS = (
    "the model segments what is prompted; give it a prompt file (--prompts), which `medsam-tune "
    "prompts` writes, or train one that knows its labels (train, without --class-agnostic)."
)
"""Refusal of a scan without prompts."""


class Request:
    """Prompts of a volume, and the masks that answer them.

    Args:
        volume: volume that is segmented.
        prompts: prompts in the slice frame; None for every class on every slice.
        classes: label ids of the network's classes, ascending; empty for a network without.
        separate: make a mask for each label instead of a label map.
        drop_absent: leave masks out where the prompt was not drawn on that slice and the network
            says that its class is not there; always done without prompts.
        margin: margin of boxes, see `Propagation`.
        probabilities: keep the logits of each label as well.
        instances: keep the numbers of the prompts' objects as well, see `Found`.

    Attributes:
        rows: the prompts on slices with content.
        asked: the same as questions.
        canvas: place for the masks.
        logits: place for the logits, if they are kept.

    Raises:
        DataError: nothing to segment by, or a label that the network does not know.
    """

    def __init__(
        self,
        volume: EmbeddedVolume,
        prompts: SlicePrompts | None,
        classes: Sequence[int],
        separate: bool,
        drop_absent: bool,
        margin: float,
        probabilities: bool = False,
        instances: bool = False,
    ) -> None:
        self._volume = volume
        self._drops = drop_absent or prompts is None
        self._margin = margin
        self._started: dict[int, tuple[int, float, Tensor]] = {}  # row -> area, quality, box
        numbered = instances and prompts is not None
        prompts = _every_class(len(volume), classes) if prompts is None else prompts
        labels = sorted(set(prompts.labels.tolist()))
        objects = zip(prompts.objects.tolist(), prompts.labels.tolist(), strict=True)
        self._labels = dict(sorted(objects))  # of the objects
        self._qualities: dict[int, list[float]] = defaultdict(list)  # of the objects' masks
        content = {z: volume.has_content(z) for z in prompts.slices.unique().tolist()}
        self.rows = prompts.rows(
            torch.tensor([content[z] for z in prompts.slices.tolist()], dtype=torch.bool)
        )
        self.asked = _questions(self.rows, labels, classes)
        device = volume.slices.device
        self.canvas: Canvas | SeparateCanvas = (
            SeparateCanvas(volume.shape, labels, device)
            if separate
            else Canvas(volume.shape, labels, volume.spool, device)
        )
        self._numbers = {one: n for n, one in enumerate(self._labels, start=1)}
        self.numbers = (
            Canvas(volume.shape, self._numbers.values(), volume.spool, device) if numbered else None
        )
        self.logits = (  # they outlive the volume
            LogitCanvas(volume.shape, labels, Spool(volume.spool.memory)) if probabilities else None
        )

    def answer(self, chunk: Tensor, embeddings: Tensor, batch: Batch) -> None:
        """Paint the masks of all rows on some slices.

        Args:
            chunk: (N,) int64 slices, ascending; no later chunk has one of them.
            embeddings: (N, ...) their embeddings, on the network's device.
            batch: number of prompts decoded at once.
        """

        def work(rows: Tensor) -> Answers:
            where = torch.searchsorted(chunk, self.rows.slices[rows])
            return self._volume.plane.decode(embeddings, where, self.asked.rows(rows))

        for rows, answers in batch.each(torch.isin(self.rows.slices, chunk).nonzero()[:, 0], work):
            self._paint(rows, answers)
        if not self.rows.spread:  # else objects may come to these slices
            self._finish_canvases()

    def _paint(self, rows: Tensor, answers: Answers) -> None:
        logits = answers.logits
        if self._drops and answers.presence is not None:
            absent = (answers.presence <= 0) & ~self.rows.drawn[rows].to(logits.device)
            logits = logits.masked_fill(absent[:, None, None], -FAR_OUTSIDE)
        some = logits.flatten(1).amax(1) > 0
        objects = self.rows.objects[rows].tolist()
        for one, is_there, quality in zip(
            objects, some.tolist(), answers.quality.tolist(), strict=True
        ):
            if is_there:
                self._qualities[one].append(quality)
        if self.numbers is not None:
            own = torch.tensor([self._numbers[one] for one in objects])
            there = some.cpu()
            self.numbers.paint(self.rows.slices[rows[there]], own[there], logits[some])
        if self.logits is None:
            painted, kept = rows[some.cpu()], logits[some]
        else:
            painted, kept = rows, logits
        self.paint(self.rows.slices[painted], self.rows.labels[painted], kept)
        followed = [index for index, one in enumerate(objects) if one in self.rows.spread]
        masks = logits[followed] > 0
        areas = masks.flatten(1).sum(1).tolist()
        boxes = around(masks, self._margin)
        qualities = answers.quality[followed].tolist()
        for index, *start in zip(followed, areas, qualities, boxes, strict=True):
            row = int(rows[index])
            self._started[row] = start[0], start[1], start[2]
            self._volume.spool[(self, row)] = logits[index]

    def paint(self, slices: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Lay masks over those so far, see `Canvas`, and keep the logits if they are wanted."""
        self.canvas.paint(slices, labels, logits)
        if self.logits is not None:
            self.logits.paint(slices, labels, logits)

    def walks(self) -> Iterator[Walk]:
        """The ways of the objects that are followed, after all rows were taken."""
        for number, known in self.rows.spread.items():
            rows = (self.rows.objects == number).nonzero().flatten()
            slices = self.rows.slices[rows].tolist()
            for index, step, left, sure in ways(slices, known, len(self._volume)):
                row = int(rows[index])
                area, quality, box = self._started[row]
                own = self.asked.point_labels[row] >= 0  # no padding
                yield Walk(
                    label=int(self.rows.labels[row]),
                    kind=None if self.asked.classes is None else int(self.asked.classes[row]),
                    canvas=self,
                    at=slices[index],
                    step=step,
                    left=left,
                    known=sure,
                    points=box if area else self.asked.points[row][own],
                    point_labels=CORNERS if area else self.asked.point_labels[row][own],
                    area=area,
                    quality=quality,
                    start=(self, row),
                    qualities=self._qualities[number],
                )

    @property
    def found(self) -> Found:
        """The answer, after all masks."""
        objects = []
        for number, label in self._labels.items():
            qualities = self._qualities[number]
            mean = sum(qualities) / max(1, len(qualities))
            objects.append(FoundObject(label, len(qualities), mean))
        numbers = None if self.numbers is None else self.numbers.result
        return Found(self.canvas.result, tuple(objects), self.logits, numbers)

    def _finish_canvases(self) -> None:
        self.canvas.finish()
        if self.numbers is not None:
            self.numbers.finish()

    def finish(self) -> None:
        """Forget all logits but those that are wanted."""
        self._finish_canvases()
        for row in self._started:
            self._volume.spool.discard((self, row))


def _every_class(length: int, classes: Sequence[int]) -> SlicePrompts:
    """Rows without box or point: each class on each slice.

    Raises:
        DataError: there is no class.
    """
    if not classes:
        raise DataError(NEEDS_PROMPTS)
    slices = torch.arange(length).repeat_interleave(len(classes))
    labels = torch.tensor(classes).repeat(length)
    return SlicePrompts.of_boxes(
        slices, torch.full((len(slices), 4), torch.nan), labels, drawn=False
    )


def _questions(rows: SlicePrompts, labels: Sequence[int], classes: Sequence[int]) -> Asked:
    """Rows as questions; the class of a row is its label's place among the classes.

    Raises:
        DataError: a label is no class; without classes, a row has neither a box nor a point.
    """
    points, point_labels = rows.corners_and_points()
    if not classes:
        if not bool((point_labels >= 0).any(1).all()):
            raise DataError(NEEDS_PROMPTS)
        return Asked(points, point_labels)
    other = [label for label in labels if label not in classes]
    if other:
        raise DataError(
            f"prompts are for the labels {listed(map(str, other))}, and the model knows "
            f"{listed(map(str, classes))}. Leave them out, or take a model of these labels."
        )
    return Asked(points, point_labels, torch.searchsorted(torch.tensor(classes), rows.labels))
