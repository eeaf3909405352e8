"""Faults of prompts, and of what a model is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.sam.build import build_sam
from medsam_tune.slices.frames import ScanGrid
from tests.bad_inputs.calls import sam_mask
from tests.bad_inputs.table import NO_COUNTERPART, BadInput
from tests.scans import LABELS, SHAPE, write_nifti

GRID = ScanGrid(np.diag([-2.0, -3.0, 4.0, 1.0]), SHAPE)  # type: ignore[arg-type]


def prompts(content: dict[str, Any]) -> Any:
    """Ours, on an axial scan of the shape (10, 12, 6)."""
    return read_prompts(content, GRID, LABELS)


def sam_box(*box: float) -> Callable[[Any], np.ndarray]:
    """For a box."""
    return sam_mask(box=np.array(box))


def is_clipped(found: Any) -> None:
    assert found.boxes.tolist() == [[0, 3, 4, 12]]


def markup(**content: Any) -> Callable[[Path], dict[str, Any]]:
    """A file of markups with one node."""
    return lambda _: {"markups": [{"name": "liver", **content}]}


def region(centre: list[float], size: list[float]) -> Callable[[Path], dict[str, Any]]:
    """Markups with a region, in LPS millimetres; a voxel has 2 x 3 x 4 of them."""
    return markup(type="ROI", center=centre, size=size)


def points(*places: list[float], name: str = "liver") -> Callable[[Path], dict[str, Any]]:
    """Markups with a list of points, in LPS millimetres."""
    controls = [{"position": place} for place in places]
    return markup(type="Fiducial", name=name, controlPoints=controls)


def map_of(array: np.ndarray) -> Callable[[Path], Path]:
    """A label map on the scan's grid."""
    return lambda folder: write_nifti(folder / "label.nii.gz", array, GRID.affine)


def labelled(path: Path) -> Any:
    """Ours, a label map that stands for prompts."""
    return read_prompts(path, GRID, LABELS)


def sam_point(*point: float, label: int = 1) -> Callable[[Any], np.ndarray]:
    """For a point."""
    return sam_mask(point_coords=np.array([point]), point_labels=np.array([label]))


def is_followed(found: Any) -> None:
    assert found.slices.tolist() == [3]
    assert found.spread == {0: None}


def unprompted(_: Any) -> Any:
    """Ours: a model that wants prompts, without any."""
    sam = build_sam("nano", image_size=64)
    return VolumeInferer(LABELS)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), sam, None)


def encode(image: torch.Tensor) -> torch.Tensor:
    return build_sam("nano", image_size=64).encode(image)


def object_of(**item: Any) -> Callable[[Path], dict[str, Any]]:
    """A prompt file's content with one object."""
    return lambda _: {"objects": [{"label": 1, **item}]}


BOX = [1, 2, 3, 5, 8, 5]


INPUTS: tuple[BadInput, ...] = (
    BadInput(
        45,
        "outside",
        "box outside the scan",
        object_of(box3d=[1, 2, 6, 5, 8, 9]),
        prompts,
        sam_box(40, 40, 60, 60),
        r"object 0: box .* lies outside the scan of shape \(10, 12, 6\)\.",
    ),
    BadInput(
        45,
        "partly-outside",
        "box partly outside",
        object_of(box3d=[-5, 3, -2, 4, 99, 1]),
        prompts,
        sam_box(-5, 3, 4, 99),
        handled="clipped to the scan",
        check=is_clipped,
        warns=r"^prompts: 1 of 1 boxes reach out of the scan .* at its border: object 0$",
    ),
    *(
        BadInput(
            46,
            name,
            f"box, {what}",
            object_of(box3d=box),
            prompts,
            sam_box(*flat),
            rf"^prompts: object 0: {message}",
        )
        for name, what, box, flat, message in (
            ("reversed", "reversed", [5, 2, 3, 1, 8, 5], (5, 2, 1, 8), "box .* has no extent"),
            ("flat", "without extent", [1, 2, 3, 5, 8, 3], (1, 2, 5, 2), "box .* has no extent"),
            (
                "nan",
                "with NaN",
                [*BOX[:5], float("nan")],
                (1, 2, 5, float("nan")),
                "box3d is .*; expected 6 finite numbers",
            ),
            (
                "length",
                "five numbers",
                BOX[:5],
                (1, 2, 5),
                r"box3d is \[1, 2, 3, 5, 8\]; expected 6 finite numbers",
            ),
        )
    ),
    BadInput(
        47,
        "xywh",
        "box as corner and size, where that can be told",
        object_of(box3d=[6, 7, 3, 3, 4, 2]),
        prompts,
        sam_box(6, 7, 3, 4),
        r"^prompts: object 0: box .* has no extent; upper bounds are exclusive and above the lower",
    ),
    BadInput(
        45,
        "region-outside",
        "region of 3D Slicer outside the scan",
        region([90.0, 12.0, 12.0], [8.0, 9.0, 8.0]),
        prompts,
        NO_COUNTERPART,
        r"^prompts: markup 0: box .* lies outside the scan of shape \(10, 12, 6\)\.",
    ),
    BadInput(
        45,
        "region-partly-outside",
        "region of 3D Slicer partly outside the scan",
        region([3.0, 21.0, -2.0], [8.0, 27.0, 12.0]),
        prompts,
        NO_COUNTERPART,
        handled="clipped to the scan",
        check=is_clipped,
        warns=r"^prompts: 1 of 1 boxes reach out of the scan .* at its border: markup 0$",
    ),
    BadInput(
        46,
        "region-flat",
        "region of 3D Slicer without extent",
        region([3.0, 21.0, 12.0], [8.0, 0.0, 8.0]),
        prompts,
        NO_COUNTERPART,
        r"^prompts: markup 0: size is \[8\.0, 0\.0, 8\.0\]; expected three numbers above 0\.",
    ),
    BadInput(
        47,
        "world-in-voxels",
        "box in voxels that were millimetres, where that can be told",
        object_of(box3d=[-60, -30, 110, -20, 10, 150]),
        prompts,
        sam_box(-60, -30, -20, 10),
        r"^prompts: object 0: box .* lies outside .* file's own array, or set space to 'world'\.",
    ),
    *(
        BadInput(
            48,
            name,
            f"point, {what}",
            object_of(slices={"3": {"points": [point]}}),
            prompts,
            plain,
            rf"^prompts: object 0: slice 3: point 0{message}",
        )
        for name, what, point, plain, message in (
            (
                "outside",
                "outside the scan",
                [40, 40, 1],
                sam_point(40, 40),
                r": point at voxel \[40\.0, 40\.0, 3\.0\] lies outside the scan of shape",
            ),
            (
                "label",
                "labelled 7",
                [4, 4, 7],
                sam_point(4, 4, label=7),
                ": its label, the last number, is 7; expected 1 .* 0 for one outside",
            ),
            (
                "nan",
                "with NaN",
                [4, float("nan"), 1],
                sam_point(4, float("nan")),
                r" is \[4, nan, 1\]; expected 3 finite numbers",
            ),
            (
                "length",
                "two numbers",
                [4, 4],
                sam_point(4, 4),
                r" is \[4, 4\]; expected 3 finite numbers",
            ),
        )
    ),
    BadInput(
        48,
        "markup-outside",
        "point of 3D Slicer outside the scan",
        points([4.0, 6.0, 12.0], [4.0, 6.0, 99.0]),
        prompts,
        NO_COUNTERPART,
        r"^prompts: markup 0: point 1: point at voxel .* lies outside the scan of shape",
    ),
    BadInput(
        48,
        "markup-not-placed",
        "point of 3D Slicer that was not placed",
        markup(
            type="Fiducial",
            controlPoints=[
                {"position": [4.0, 6.0, 12.0]},
                {"position": [0.0, 0.0, 0.0], "positionStatus": "undefined"},
            ],
        ),
        prompts,
        NO_COUNTERPART,
        handled="left out",
        check=is_followed,
        warns=r"^prompts: 1 points are hidden or not placed, and are left out$",
    ),
    BadInput(
        48,
        "markup-name",
        "point of 3D Slicer with a name that is no label's",
        points([4.0, 6.0, 12.0], name="F"),
        prompts,
        NO_COUNTERPART,
        r"^prompts: markup 0: point 0: its name 'F' is of no label; known: 1 \(liver\), 2",
    ),
    BadInput(
        48,
        "line-across",
        "line of 3D Slicer across the slices",
        markup(
            type="Line",
            controlPoints=[{"position": [4.0, 6.0, 0.0]}, {"position": [4.0, 6.0, 20.0]}],
        ),
        prompts,
        NO_COUNTERPART,
        r"^prompts: markup 0: the line crosses 5 slices; expected both ends on one slice",
    ),
    BadInput(
        48,
        "only-outside",
        "object with points outside of it alone",
        object_of(points=[[4, 4, 3, 0]]),
        prompts,
        sam_point(4, 4, label=0),
        r"^prompts: object 0: on slice 3 it has only points outside of it",
    ),
    BadInput(
        49,
        "no-prompt",
        "no prompt for a model that needs one",
        lambda folder: None,
        unprompted,
        sam_mask(),
        r"^the model segments what is prompted; give it a prompt file \(--prompts\)",
    ),
    BadInput(
        49,
        "no-objects",
        "prompt file without objects",
        lambda folder: {"objects": []},
        prompts,
        sam_mask(),
        r"^prompts: no objects; expected a list 'objects' with at least one prompt\.",
    ),
    BadInput(
        49,
        "empty-object",
        "object without a prompt in a prompt file",
        object_of(slices={"3": {"points": []}}),
        prompts,
        sam_mask(),
        r"^prompts: object 0: none of 'box3d', 'slices' and 'points' in it\.",
    ),
    BadInput(
        49,
        "empty-markups",
        "list of 3D Slicer without a point",
        points(),
        prompts,
        sam_mask(),
        r"^prompts: no region, line or point of an object in it; expected one\.",
    ),
    BadInput(
        49,
        "empty-label-map",
        "label map for prompts without a voxel",
        map_of(np.zeros(SHAPE, np.uint8)),
        labelled,
        NO_COUNTERPART,
        r"label\.nii\.gz: no label has a voxel; expected one of: liver, spleen\.",
    ),
    BadInput(
        49,
        "label-map-of-another-scan",
        "label map for prompts on another grid",
        map_of(np.ones((10, 12, 7), np.uint8)),
        labelled,
        NO_COUNTERPART,
        r"^label shape \(10, 12, 7\) differs from image shape \(10, 12, 6\) \(\S*label\.nii\.gz, ",
    ),
    BadInput(
        50,
        "integers",
        "integer image given to the model",
        lambda folder: torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        encode,
        NO_COUNTERPART,
        r"^image is torch\.uint8; expected float in \[0, 1\]\. Divide by 255\.",
    ),
    BadInput(
        50,
        "size",
        "image of another size than the model's",
        lambda folder: torch.zeros(1, 3, 10, 12),
        encode,
        NO_COUNTERPART,
        r"^image has shape \(1, 3, 10, 12\); expected \(B, C, 64, 64\)\.",
    ),
    BadInput(
        50,
        "hu",
        "float image in HU given to the model",
        lambda folder: None,
        lambda made: None,
        sam_mask(np.full((12, 10, 3), -900.0, np.float32), box=np.array([1, 2, 5, 8])),
        todo="the model does not look at the range; scans go through an intensity rule before it",
    ),
)
