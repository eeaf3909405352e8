"""Prompts in every form that people have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError
from medsam_tune.files import read_json
from medsam_tune.formats import coco, vectors
from medsam_tune.formats.open import dicom_modality, format_of
from medsam_tune.inference.prompt_files.coco import read_coco
from medsam_tune.inference.prompt_files.given import on_slices
from medsam_tune.inference.prompt_files.label_maps import read_label_map
from medsam_tune.inference.prompt_files.markups import is_markups, read_markups
from medsam_tune.inference.prompt_files.ours import read_ours
from medsam_tune.inference.prompt_files.values import plain
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.frames import ScanGrid


def read_prompts(
    source: str | Path | Mapping[str, Any],
    grid: ScanGrid,
    labels: Mapping[int, str],
    *,
    prompts_as: str = "slices",
    jitter: float = 0.0,
    seed: int = 0,
    components: int | None = None,
    coding: Mapping[str, Any] | None = None,
    scan: Path | None = None,
) -> SlicePrompts:
    """Prompts for the slices of one scan, from a file of any of four kinds.

    **A prompt file**, JSON: `{"space": "voxel" | "world", "objects": [...]}`. An object has `label`
    and one or more of

        box3d   six bounds; voxel: i0, j0, k0, i1, j1, k1 of the file's own array, upper bounds
                exclusive; world: two opposite corners in LPS millimetres
        slices  in voxels, by index along the third axis of the file: `{"57": {"box": [i0, j0, i1,
                j1], "points": [[i, j, 1], [i, j, 0]]}}`; not together with `box3d`. `"axis": "i"`
                or `"j"` of the file takes another axis, `box` and `points` then have the other two
        points  `[[i, j, k, 1]]`, in world `[[x, y, z, 1]]`: each lies on the nearest slice of the
                model's plane

    The last number of a point is 1 inside the object, 0 outside. An index of a point means the
    centre of that voxel, as viewers show it; box [2, ..., 3, ...] is the whole of voxel 2. A box
    that reaches out of the scan is cut off at its border, with a warning. Of the points of an
    object on a slice, at most 16 inside and 16 outside are taken, far apart, with a warning. What
    is on no slice of an object's prompts stays empty, unless the object has

        propagate    true: the object is followed from its prompts to the slices around them
        range        with `propagate`, the slices that the object fills; voxel: [k0, k1] along the
                     axis of the file that the model's slices run along, k1 exclusive; world: two
                     points [x, y, z] on the first and on the last slice
        interpolate  true: slices between boxes of `slices` get a box, each side linear

    `comment` may stand anywhere. `name` of an object and `labels` of the file must agree with
    `labels` here; `scan` (`size`, `spacing` in mm, `orientation`) with the grid, where prompts are
    in voxels.

    **Markups of 3D Slicer**, `.mrk.json`, by their content whatever their name. An ROI is a 3-D
    box. The points of a list are an object for each label, which is followed. A line is a longest
    diameter (RECIST): the box around the ellipse of which it is the long axis and three quarters of
    it the short one, on the slice of the line, followed. The label is the one whose name (in any
    case) or number the markup's name or the point's is; else the only label. Bare numbers of points
    are no labels where the markup's name is of one, or where they count 1, 2, 3 and so on. A point
    is outside if its label or description, or its list's name, has one of `names.OUTSIDE`; it
    belongs to the objects of its list, else of its label, on the same slice. Points that are hidden
    or not placed, and markups that are hidden, are left out.

    **COCO's JSON**, of a 2-D image that it lists by its file's name: the box of each annotation, or
    that of its outline where it has none. The label is the one that is named as the category, in
    any case. Crowds are left out, with a warning.

    **A label map** on the scan's grid, or what else `cases.labels.open` opens: the prompts that
    `simulated_prompts` takes of it by `prompts_as`, or by "scribbles" its voxels as points inside,
    at most 16 on a slice, from which each label is followed. Polygons on the ground are one too: of
    GeoPackage, GeoJSON or a shapefile, such as boxes; their column `label` says the label, by id or
    name, unless training had another.

    Args:
        source: file, folder, or parsed content of a JSON file, in which arrays may stand for lists.
        grid: grid of the scan.
        labels: label id -> name; a prompt for another label is refused.
        prompts_as: kind of prompts that a label map stands for: "slices", "box3d",
            "interpolated:N", "middle", "middle-range", "points" or "scribbles". Other files say
            themselves what they are.
        jitter: with a label map, see `simulated_prompts`.
        seed: seed of the jitter.
        components: with a label map, pixels of the smallest piece that is an object of its own, see
            `ScanRules`.
        coding: with the mask of an image, how it says its labels, see `RunRecord.coding`.
        scan: file of the scan, by whose name COCO's JSON speaks of it; None in memory.

    Returns:
        prompts in the slice frame, by slice and then by label, one row at least.

    Raises:
        DataError: the file or one of its objects is wrong; names it and the reason.
        ValueError: with a label map, a `prompts_as` that it cannot give.
    """
    if isinstance(source, Mapping):
        try:
            content = plain(source)
        except RecursionError as error:
            raise DataError("prompts: lists too deep in one another; give fewer.") from error
        return _of_json(content, grid, labels, "prompts", "")
    if not isinstance(source, (str, Path)):
        raise DataError(
            f"prompts are of type {type(source).__name__}; expected a file, or the content of a "
            "prompt file: {'objects': [...]}."
        )
    path = Path(source)
    if not path.is_file() and not path.is_dir():
        raise DataError(
            f"{path}: no such prompt file; expected JSON with 'space' and 'objects', markups of 3D "
            "Slicer, or a label map. `medsam-tune prompts SCAN --output boxes.json` writes one to "
            "fill in."
        )
    if vectors.is_vector(path):
        return read_label_map(path, grid, labels, prompts_as, jitter, seed, components, coding)
    if coco.is_coco(path):
        return on_slices(read_coco(path, grid, labels, scan), grid, str(path))
    if path.is_file() and (path.suffix.lower() == ".json" or _holds_json(path)):
        stem = path.name.removesuffix(path.suffix).removesuffix(".mrk")
        return _of_json(read_json(path), grid, labels, str(path), stem)
    if path.is_file() and format_of(path) is None and not dicom_modality(path):
        raise DataError(
            f"{path}: neither JSON nor a label map in a format that scans have; expected a prompt "
            "file, markups of 3D Slicer (.mrk.json), or a label map. Export it as one of these."
        )
    return read_label_map(path, grid, labels, prompts_as, jitter, seed, components, coding)


def kind_of_prompts(path: Path) -> str:
    """What a file of prompts is: "prompt file", "markups", "polygons", "COCO" or "label map".

    Raises:
        DataError: JSON that cannot be read.
    """
    if vectors.is_vector(path):
        return "polygons"
    if coco.is_coco(path):
        return "COCO"
    if path.is_file() and (path.suffix.lower() == ".json" or _holds_json(path)):
        return "markups" if is_markups(read_json(path)) else "prompt file"
    return "label map"


def _of_json(
    content: Mapping[str, Any], grid: ScanGrid, labels: Mapping[int, str], name: str, stem: str
) -> SlicePrompts:
    if is_markups(content):
        objects = read_markups(content, grid, labels, name, stem)
    else:
        objects = read_ours(content, grid, labels, name)
    return on_slices(objects, grid, name)


def _holds_json(path: Path) -> bool:
    """Whether a file begins as an object or a list of JSON, with or without a byte order mark."""
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Correct the path.") from error
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
