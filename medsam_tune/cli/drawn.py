"""Boxes and points of a 2-D image, as they are typed on a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError, listed

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


def write_drawn(
    scan: Path,
    run: Path,
    output: Path,
    boxes: Sequence[str],
    points: Sequence[str],
    *,
    series: str | None = None,
    unfinished: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write what was typed as a prompt file beside the mask, `mask.prompts.json`.

    Args:
        scan: image to segment, or a DICOM radiograph, which is a file or a folder.
        run: training run, whose labels are meant.
        output: mask to write.
        boxes: see `drawn_prompts`.
        points: see `drawn_prompts`.
        series: SeriesInstanceUID, or its end, where a folder holds several.
        unfinished: take the best weights so far of a training that is not finished.
        overwrite: replace a prompt file that is there.

    Raises:
        ValueError: a scan that is no 2-D image, in which two numbers are no place; a refusal of
            `drawn_prompts`.
        DataError: the file is there already.
    """
    from medsam_tune.files import refuse_taken, write_json
    from medsam_tune.methods.tuned import read_header
    from medsam_tune.runs import tuned_file

    _refuse_volume(scan, series)
    if output.is_dir() or not output.suffix:
        raise ValueError(
            f"--box and --point are of one image, and --output {output} is a folder; expected a "
            "name such as mask.png."
        )
    labels = read_header(tuned_file(run, unfinished)).labels
    content = drawn_prompts(boxes, points, labels)
    path = output.with_name(f"{output.name.split('.')[0]}.prompts.json")
    refuse_taken(path, overwrite, [scan])
    write_json(path, content)
    return path


def _refuse_volume(scan: Path, series: str | None) -> None:
    """Refuse a scan in which two numbers are no place.

    Raises:
        ValueError: it is neither a 2-D image nor one radiograph.
    """
    from medsam_tune.formats import image
    from medsam_tune.formats.dicom.stack import PROJECTIONS
    from medsam_tune.formats.open import format_of, is_flat, read_grid

    if is_flat(scan):
        return
    why = ". Give a prompt file: medsam-tune prompts."
    if format_of(scan) is None:
        try:
            grid = read_grid(scan, series)
        except DataError as error:
            why = f": {error}"
        else:
            if grid.modality in PROJECTIONS and grid.shape[2] == 1:
                return
    raise ValueError(
        f"--box and --point are of one 2-D image, {', '.join(image.ENDINGS)}, or of one radiograph "
        f"in DICOM; {scan} is none{why}"
    )


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
