"""Boxes and points of a 2-D image, as they are typed on a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsam_tune.errors import listed

_Box = tuple[float, float, float, float]


def drawn_prompts(
    boxes: Sequence[str], points: Sequence[str], labels: Mapping[int, str]
) -> dict[str, Any]:
    """The content of a prompt file, see `inference.prompt_files.read_prompts`.

    Each box is an object. A point belongs to the smallest box of its label around it; points in no
    box are one object of their label.

    Args:
        boxes: "x0,y0,x1,y1" or "x0,y0,x1,y1,label" in pixels of the image, upper bounds exclusive.
        points: "x,y,1" or "x,y,1,label"; 0 in place of 1 is a point outside of the object.
        labels: label id -> name; the label is a number or a name, and may be left out where there
            is one.

    Raises:
        ValueError: a text of another form, or a label that is not there.
    """
    objects: list[dict[str, Any]] = []
    corners: list[_Box] = []
    for text in boxes:
        (x0, y0, x1, y1), label = _read(text, 4, "--box", "x0,y0,x1,y1,label", labels)
        corners.append((x0, y0, x1, y1))
        objects.append({"label": label, "slices": {"0": {"box": [x0, y0, x1, y1]}}})
    alone: dict[int, dict[str, Any]] = {}
    for text in points:
        (x, y, inside), label = _read(text, 3, "--point", "x,y,1,label", labels)
        around = [
            (_area(box), number)
            for number, box in enumerate(corners)
            if objects[number]["label"] == label and box[0] <= x < box[2] and box[1] <= y < box[3]
        ]
        if around:
            owner = objects[min(around)[1]]
        else:
            owner = alone.setdefault(label, {"label": label, "slices": {"0": {}}})
        owner["slices"]["0"].setdefault("points", []).append([x, y, inside])
    return {"objects": [*objects, *alone.values()]}


def refuse_volume(scan: Path) -> None:
    """Refuse a scan that is no 2-D image, in which two numbers are no place."""
    from medsam_tune.formats import image

    if not scan.name.lower().endswith(image.ENDINGS):
        raise ValueError(
            f"--box and --point are of 2-D images, {', '.join(image.ENDINGS)}; {scan} is none. "
            "Give a prompt file: medsam-tune prompts."
        )


def labels_of_run(run: Path, unfinished: bool) -> dict[int, str]:
    """Label id -> name of a training run's model."""
    from medsam_tune.methods.tuned import read_header
    from medsam_tune.runs import tuned_file

    return dict(read_header(tuned_file(run, unfinished)).labels)


def _read(
    text: str, count: int, option: str, form: str, labels: Mapping[int, str]
) -> tuple[list[float], int]:
    """The numbers of a text, and the id of its label."""
    parts = [part.strip() for part in text.split(",", count)]
    known = listed(f"{number} ({name})" for number, name in labels.items())
    try:
        numbers = [float(part) for part in parts[:count]]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise ValueError(f"{option} {text!r}: expected {form}, in pixels of the image.")
    if len(parts) == count:
        if len(labels) != 1:
            raise ValueError(
                f"{option} {text!r}: says no label, and the model has several: {known}; expected "
                f"{form}."
            )
        return numbers, next(iter(labels))
    said = parts[count]
    found = [
        number
        for number, name in labels.items()
        if said == str(number) or said.casefold() == name.casefold()
    ]
    if not found:
        raise ValueError(f"{option} {text!r}: label {said!r} is not there; known: {known}.")
    return numbers, found[0]


def _area(box: _Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
