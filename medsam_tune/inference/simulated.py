"""Simulated users: the prompts that a person would give, taken from a label map."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, find_objects
from torch import Tensor

from medsam_tune.errors import nearest
from medsam_tune.prompts import SlicePrompts, boxes_from_masks, jitter_boxes
from medsam_tune.slices.objects import owners

KINDS = ("slices", "box3d", "interpolated:N", "middle", "middle-range", "points", "none")
"""Kinds of prompts, see `simulated_prompts`; N is a number of boxes."""

KINDS_OF_IMAGES = ("slices", "points", "none")
"""Kinds that differ on images of one slice."""

_WORDS = {
    "slices": "by a box on every slice",
    "box3d": "by one 3-D box",
    "interpolated": "by boxes on {} slices",
    "middle": "by a box on one slice",
    "middle-range": "by a box on one slice and the range",
    "points": "by one point",
    "none": "without prompts",
    "masks": "in the given masks",
}
_OF_IMAGES = {"slices": "by a box around each object", "points": "by a point in each object"}
MASKS = "masks"
"""What stands for the kind of prompts where masks are scored that somebody else made."""

_INTERPOLATED = re.compile(r"interpolated:([0-9]{1,9})")


@dataclass(frozen=True)
class Kind:
    """A kind of prompts.

    Attributes:
        name: the kind without its number.
        count: number of boxes of "interpolated"; 0 for the other kinds.
    """

    name: str
    count: int = 0

    def __str__(self) -> str:
        """The kind as it is typed, such as "interpolated:5"."""
        return f"{self.name}:{self.count}" if self.count else self.name

    @property
    def file_name(self) -> str:
        """The kind as a name of a folder, such as "interpolated-5"."""
        return str(self).replace(":", "-")

    def words(self, flat: bool = False) -> str:
        """How masks come about, as part of a sentence, such as "by one 3-D box".

        Args:
            flat: whether they are of 2-D images, which have no slices.
        """
        known = _WORDS | _OF_IMAGES if flat else _WORDS
        return known[self.name].format(self.count)

    @property
    def boxed(self) -> bool:
        """Whether there is a box on every slice of an object."""
        return self.name in ("slices", "box3d", "interpolated")


def parse_kind(text: str, known: Sequence[str] = (*KINDS, MASKS)) -> Kind:
    """Read a kind of prompts.

    Args:
        text: one of `known`, by default of `KINDS` and `MASKS`.
        known: kinds that may be given, of `KINDS` and beside them.

    Raises:
        ValueError: another text, with the nearest kind; an N below 2.
    """
    if match := _INTERPOLATED.fullmatch(text):
        if int(match[1]) < 2:
            raise ValueError(
                f"kind of prompts {text!r}: N is {match[1]}; expected 2 boxes or more."
            )
        return Kind("interpolated", int(match[1]))
    if text not in known or text == "interpolated:N":
        asked = [kind for kind in known if kind != MASKS]
        raise ValueError(
            f"kind of prompts {text[:40]!r} is unknown; known: {', '.join(asked)} (N boxes, such "
            f"as interpolated:5).{nearest(text, known)}"
        )
    return Kind(text)


def parse_kinds(given: str | Iterable[str]) -> list[str]:
    """Read several kinds of prompts.

    Args:
        given: kinds, or one text with commas between them.

    Returns:
        the kinds as `parse_kind` writes them, in this order.

    Raises:
        ValueError: an unknown kind, one twice, or none at all.
    """
    texts = given.strip("[]()").split(",") if isinstance(given, str) else [*given]
    kinds = [str(parse_kind(str(text).strip(" '\""), KINDS)) for text in texts]
    if not kinds:
        raise ValueError(f"prompts are []; expected at least one of {', '.join(KINDS)}.")
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise ValueError(f"prompts name {', '.join(twice)} twice; name each kind once.")
    return kinds


def simulated_prompts(
    truth: Tensor,
    labels: Iterable[int],
    kind: str,
    jitter: float = 0.0,
    seed: int = 0,
    case: str = "",
    objects: Tensor | None = None,
) -> SlicePrompts | None:
    """Prompts that a user who sees the truth would give.

    A label is one object, also where it lies in several separate pieces: its boxes go around all of
    them. With `objects`, each object of a label has its own prompts. The kinds are

        slices          a box on every slice with the label
        box3d           one box around all voxels; its rectangle lies on each slice of the box
        interpolated:N  boxes on N slices with the label, evenly spaced from the first to the last
                        (on all of them if there are fewer), and linear between them, also on slices
                        without the label, as the user has not looked there
        middle          one box on the slice of the largest area (the middle one of several), from
                        which the object is followed; where it ends is not known
        middle-range    the same, with the first and the last slice of the label known
        points          a point on that slice, in the pixel deepest inside the label; the object is
                        followed, and where it ends is not known
        none            no prompt: the label alone

    The same case, seed, jitter and kind give the same prompts, whatever the model.

    Args:
        truth: (Z, H, W) integer label slices.
        labels: label ids to make prompts for.
        kind: one of `KINDS`.
        jitter: standard deviation of the shift of each side of a box, as a share of the side; a 3-D
            box has six. A point moves by that share of the label's box, to a pixel of the label.
        seed: seed of the jitter, together with `case`.
        case: id of the case.
        objects: (Z, H, W) numbers of objects, see `slices.objects.numbered`; 0 gets no prompt.

    Returns:
        prompts in the slice frame, by slice and then by label, without any row if no label is
        present; None for "none".

    Raises:
        ValueError: an unknown kind.
    """
    wanted = parse_kind(kind)
    if wanted.name == "none":
        return None
    if objects is None:
        return _of_objects(truth, _tight(truth, labels), wanted, jitter, seed, case)
    owner = torch.from_numpy(owners(objects.numpy().astype(np.int32), truth.numpy()))
    tight = _tight_of_objects(objects, torch.isin(owner, torch.tensor([*labels])))
    found = _of_objects(objects, tight, wanted, jitter, seed, case)
    return replace(found, labels=owner[found.objects])


def _of_objects(
    truth: Tensor, tight: SlicePrompts, wanted: Kind, jitter: float, seed: int, case: str
) -> SlicePrompts:
    """Prompts of each number of a map (Z, H, W), from its tight boxes; see `simulated_prompts`."""
    if not len(tight):
        return tight
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{case}".encode()))
    if wanted.name == "box3d":
        return _in_boxes(tight, truth.shape, jitter, generator)
    if wanted.name == "slices":
        return _jittered(tight, truth.shape, jitter, generator)
    if wanted.name == "interpolated":
        picked = _jittered(tight.rows(_spaced(tight, wanted.count)), truth.shape, jitter, generator)
        return _between(picked)
    middle = tight.rows(_largest(tight, truth))
    if wanted.name == "points":
        middle = _points(middle, truth, jitter, generator)
    else:
        middle = _jittered(middle, truth.shape, jitter, generator)
    known = wanted.name == "middle-range"
    return replace(middle, spread={k: _range(tight, k) if known else None for k in _ids(tight)})


def interpolated(slices: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes on every slice from the first to the last, each side linear between two of them.

    Args:
        slices: (N,) int64 index of the slice of each box, ascending, none twice.
        boxes: (N, 4) float32 XYXY in the slice frame.

    Returns:
        slices (M,) int64 without gaps, and boxes (M, 4) float32; those given are unchanged.
    """
    every = torch.arange(int(slices[0]), int(slices[-1]) + 1)
    sides = [np.interp(every, slices, side) for side in boxes.T]
    return every, torch.from_numpy(np.stack(sides, axis=1)).float()


def _tight(truth: Tensor, labels: Iterable[int]) -> SlicePrompts:
    """A tight box for each slice and label."""
    parts = []
    for label in sorted({*labels}):
        mask = truth == label
        there = mask.flatten(1).any(1).nonzero().flatten()
        if len(there):
            parts.append(_of_label(there, boxes_from_masks(mask[there]), label))
    return _joined(parts)


def _tight_of_objects(objects: Tensor, wanted: Tensor) -> SlicePrompts:
    """A tight box for each slice and object of (Z, H, W); `wanted` (N + 1,) bool says of which."""
    rows = []
    for z, plane in enumerate(objects.numpy()):
        for number, place in enumerate(find_objects(plane.astype(np.int32)), start=1):
            if place is not None and wanted[number]:
                y, x = place
                rows.append((z, number, x.start, y.start, x.stop, y.stop))
    found = torch.tensor(rows, dtype=torch.int64).reshape(-1, 6)
    return SlicePrompts.of_boxes(found[:, 0], found[:, 2:].float(), found[:, 1])


def _of_label(
    slices: Tensor, boxes: Tensor, label: int, drawn: Tensor | bool = True
) -> SlicePrompts:
    """Boxes of one object; `drawn` is one bool for all, or (M,) bool."""
    prompts = SlicePrompts.of_boxes(slices, boxes, torch.full_like(slices, label))
    return replace(prompts, drawn=prompts.drawn & drawn)


def _joined(parts: Sequence[SlicePrompts]) -> SlicePrompts:
    """Boxes of several objects, by slice and then by label."""
    if not parts:
        return SlicePrompts.none()
    slices, boxes, labels, drawn = (
        torch.cat([getattr(one, name) for one in parts])
        for name in ("slices", "boxes", "labels", "drawn")
    )
    order = torch.from_numpy(np.lexsort((labels, slices)))
    return replace(SlicePrompts.of_boxes(slices, boxes, labels), drawn=drawn).rows(order)


def _jittered(
    prompts: SlicePrompts, shape: torch.Size, jitter: float, generator: torch.Generator
) -> SlicePrompts:
    """The same with moved sides of boxes; `shape` is (Z, H, W)."""
    if not jitter:
        return prompts
    moved = jitter_boxes(prompts.boxes, shape[1:], jitter, generator)
    return replace(prompts, boxes=moved)


def _ids(prompts: SlicePrompts) -> list[int]:
    """The labels that are there, ascending."""
    return prompts.labels.unique().tolist()  # type: ignore[no-any-return]


def _range(tight: SlicePrompts, label: int) -> tuple[int, int]:
    """First slice of a label, and the one after its last."""
    slices = tight.slices[tight.labels == label]
    return int(slices[0]), int(slices[-1]) + 1


def _in_boxes(
    tight: SlicePrompts, shape: torch.Size, jitter: float, generator: torch.Generator
) -> SlicePrompts:
    """Rectangles of a 3-D box for each label, on each slice whose centre lies in the box."""
    ids = _ids(tight)
    bounds = []  # XYZXYZ
    for label in ids:
        boxes = tight.boxes[tight.labels == label]
        first, end = _range(tight, label)
        low, high = boxes[:, :2].amin(0), boxes[:, 2:].amax(0)
        bounds.append([*low.tolist(), first, *high.tolist(), end])
    moved = torch.tensor(bounds).float()
    if jitter:
        moved = jitter_boxes(moved, shape, jitter, generator)
    parts = []
    for label, box in zip(ids, moved, strict=True):
        first = int(torch.ceil(box[2] - 0.5))
        slices = torch.arange(first, max(int(torch.ceil(box[5] - 0.5)), first + 1))
        flat = box[[0, 1, 3, 4]].expand(len(slices), -1)
        # a box of one slice is drawn on it
        parts.append(_of_label(slices, flat, label, drawn=len(slices) == 1))
    return _joined(parts)


def _spaced(tight: SlicePrompts, count: int) -> Tensor:
    """Rows (R,) of `count` slices of each label, evenly spaced, with both ends."""
    rows = []
    for label in _ids(tight):
        there = (tight.labels == label).nonzero().flatten()
        places = torch.linspace(0, len(there) - 1, min(count, len(there)), dtype=torch.float64)
        rows.append(there[places.round().long()])
    return torch.cat(rows).sort().values


def _between(prompts: SlicePrompts) -> SlicePrompts:
    """Boxes with those between them, which nobody drew."""
    parts = []
    for label in _ids(prompts):
        own = prompts.rows(prompts.labels == label)
        every, boxes = interpolated(own.slices, own.boxes)
        parts.append(_of_label(every, boxes, label, drawn=torch.isin(every, own.slices)))
    return _joined(parts)


def _largest(tight: SlicePrompts, truth: Tensor) -> Tensor:
    """Row (L,) of each label's slice of the largest area; the middle one of several."""
    rows = []
    for label in _ids(tight):
        there = (tight.labels == label).nonzero().flatten()
        areas = (truth[tight.slices[there]] == label).flatten(1).sum(1)
        best = there[areas == areas.max()]
        rows.append(best[len(best) // 2])
    return torch.stack(rows).sort().values


def _points(
    middle: SlicePrompts, truth: Tensor, jitter: float, generator: torch.Generator
) -> SlicePrompts:
    """A point inside the label in place of each box."""
    shifts = torch.randn(len(middle), 2, generator=generator) * jitter
    shifts *= middle.boxes[:, 2:] - middle.boxes[:, :2]
    points = []
    rows = zip(middle.slices, middle.labels, middle.boxes.tolist(), shifts, strict=True)
    for z, label, box, shift in rows:
        x0, y0, x1, y1 = (int(side) for side in box)
        mask = truth[z, y0:y1, x0:x1] == label
        depth = distance_transform_edt(np.pad(mask.numpy(), 1))[1:-1, 1:-1]
        deepest = np.argwhere(depth == depth.max())[0][::-1]  # XY
        inside = mask.nonzero().flip(1).float()  # (R, 2) XY
        aim = torch.from_numpy(deepest.copy()).float() + shift
        point = inside[(inside - aim).square().sum(1).argmin()]
        points.append(point + torch.tensor([x0, y0]) + 0.5)
    return replace(
        middle,
        boxes=torch.full_like(middle.boxes, torch.nan),
        points=torch.stack(points)[:, None],
        point_labels=torch.ones(len(points), 1, dtype=torch.int64),
    )
