"""Oddities of where DICOM slices and segments lie, and of how large their pixels are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from medsam_tune.cases.audit import Report, check_place
from medsam_tune.cases.datalist import Case, Datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.failures import REFUSED
from tests.bad_inputs.calls import Pair, load, monai, same_in_world
from tests.bad_inputs.dicom import SERIES_AFFINE, series, without
from tests.bad_inputs.table import NO_COUNTERPART, BadInput
from tests.dicom_series import SIZE, STEP, stored, write_series
from tests.segmentation import masks, write_seg


def tiny_differences(k: int, image: Dataset) -> None:
    """As exports round them: on both sides of the border of a bin of 0.002."""
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 1e-3 + (k - 4) * 3e-7]
    image.PixelSpacing = [image.PixelSpacing[0] + (k % 2) * 1e-7, image.PixelSpacing[1]]


def tiny_shifts(k: int, image: Dataset) -> None:
    image.ImagePositionPatient = [-3.0 + (-1) ** k * 5e-4, 4.0, -50.0 + STEP * k + k % 3 * 1e-4]


def near_the_series(pair: Pair) -> None:
    affine = np.asarray(pair[0].affine)
    np.testing.assert_allclose(affine, SERIES_AFFINE, atol=3e-3)
    np.testing.assert_array_equal(pair[0][0].numpy(), stored().transpose(2, 1, 0) - 1000.0)


def radiograph(_: int, image: Dataset) -> None:
    image.Modality = "DX"
    for tag in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"):
        delattr(image, tag)


def spacing_is_unknown(pair: Pair) -> None:
    assert pair[0].meta["notes"] == ["spacing unknown: a pixel stands for 1 x 1 mm"]
    assert pair[0].meta["spacing_known"] is False
    assert pair[0].meta["modality"] == "DX"
    assert tuple(pair[0].shape) == (1, *SIZE, 1)


def segmented(
    slices: tuple[int, ...], kind: str = "BINARY", spoil: Callable[[Any], object] | None = None
) -> Callable[[Path], Case]:
    """A series of overlapping slices, and a SEG on some of them that says no spacing."""

    def make(folder: Path) -> Case:
        scan = write_series(folder / "series")  # SliceThickness 9, slices 2.5 mm apart
        label = np.zeros_like(masks())
        label[list(slices)] = masks()[list(slices)]
        path = write_seg(folder / "seg.dcm", scan, label, kind)
        content = pydicom.dcmread(path)
        del content.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
        if spoil is not None:
            spoil(content)
        content.save_as(path)
        return Case(scan, path, "p")

    return make


def on_slices(*slices: int) -> Callable[[Pair], None]:
    def check(pair: Pair) -> None:
        label = np.zeros_like(masks())
        label[list(slices)] = masks()[list(slices)]
        assert pair[1] is not None
        same_in_world(pair[1], label.transpose(2, 1, 0), SERIES_AFFINE)

    return check


def fractions(content: Dataset) -> None:
    """Every inner voxel of a segment has 40 % of it, but for the first column."""
    pixels = np.frombuffer(content.PixelData, np.uint8).reshape(-1, *SIZE[::-1]).copy()
    pixels[:, :, 2:][pixels[:, :, 2:] > 0] = 102
    content.PixelData = pixels.tobytes()


def half_or_more(pair: Pair) -> None:
    assert pair[1] is not None
    expected = masks()[[3]].transpose(2, 1, 0).copy()
    expected[2:] = 0
    np.testing.assert_array_equal(pair[1][0, ..., [3]].numpy(), expected)
    assert "inside is where a segment has half of a voxel or more" in pair[1].meta["notes"][0]


def off_the_grid(content: Dataset) -> None:
    for frame in content.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        x, y, z = place.ImagePositionPatient
        place.ImagePositionPatient = [x, y, z + STEP / 2]


def tree(spoil: Callable[[Path, Path], object]) -> Callable[[Path], Path]:
    """Three patients with a SEG each; something is wrong with the second."""

    def make(folder: Path) -> Path:
        for n in range(3):
            scan = write_series(
                folder / "tree" / f"p{n}" / "scan",
                lambda _, i, n=n: (
                    setattr(i, "PatientID", f"p{n}"),
                    setattr(i, "RescaleIntercept", -1000 - n),
                ),
            )
            path = write_seg(folder / "tree" / f"p{n}" / "seg.dcm", scan, masks())
            if n == 1:
                spoil(scan, path)
        return folder / "tree"

    return make


def truncated(_: Path, label: Path) -> None:
    label.write_bytes(label.read_bytes()[:-50])


def overlapping(scan: Path, label: Path) -> None:
    write_seg(label, scan, np.stack([masks() > 0, masks() == 2], -1).astype(np.uint8))


def cut_slice(scan: Path, _: Path) -> None:
    path = next(scan.glob("*-7.dcm"))
    path.write_bytes(path.read_bytes()[:600])


def two_sound(report: Report) -> None:
    assert report.outcome == REFUSED
    assert sum(bool(one.problem) for one in report.findings) == 1
    assert sum(set(one.labels) == {1, 2} for one in report.findings) == 2


def two_cases(data: Datalist) -> None:
    assert len(data.training) == 2


def checked(place: Path) -> Report:
    return check_place(place, progress=False)


INPUTS: tuple[BadInput, ...] = (
    *(
        BadInput(
            77,
            f"no-spacing-{modality.lower()}",
            f"{modality} without PixelSpacing",
            series(without("PixelSpacing"), modality=modality),
            load,
            monai,
            r"\.dcm: has no PixelSpacing, so that the size of its pixels in millimetres is not kno",
        )
        for modality in ("CT", "MR")
    ),
    BadInput(
        77,
        "no-spacing-one-slice",
        "PixelSpacing missing in one slice",
        series(without("PixelSpacing", only=3)),
        load,
        monai,
        r"-3\.dcm: .* but 7 of 8 images of its series are of another size, orientation or spacing",
    ),
    BadInput(
        77,
        "radiograph",
        "radiograph without PixelSpacing",
        series(radiograph, count=1),
        load,
        monai,
        handled="read; noted that its spacing is unknown",
        check=spacing_is_unknown,
    ),
    *(
        BadInput(
            89,
            name,
            what,
            series(change),
            load,
            monai,
            handled="compared by tolerance",
            check=near_the_series,
        )
        for name, what, change in (
            (
                "orientations",
                "orientations and spacings that differ in the seventh decimal",
                tiny_differences,
            ),
            ("positions", "positions that differ in the fourth decimal", tiny_shifts),
        )
    ),
    *(
        BadInput(
            90,
            name,
            what,
            segmented(slices, kind),
            load,
            NO_COUNTERPART,
            handled="each frame at its position",
            check=on_slices(*slices),
        )
        for name, what, slices, kind in (
            ("seg-one-frame", "SEG on one slice, without spacing", (3,), "BINARY"),
            ("seg-every-second", "SEG on every second slice", (2, 4, 6), "BINARY"),
            ("seg-uneven", "SEG on slices 2, 3 and 7", (2, 3, 7), "BINARY"),
            ("seg-labelmap", "SEG of type LABELMAP", (2, 4, 5), "LABELMAP"),
        )
    ),
    BadInput(
        90,
        "seg-fractional",
        "SEG of type FRACTIONAL",
        segmented((3,), "FRACTIONAL", fractions),
        load,
        NO_COUNTERPART,
        handled="cut at a half of MaximumFractionalValue; noted",
        check=half_or_more,
    ),
    BadInput(
        90,
        "seg-between-slices",
        "SEG whose frames lie between the slices",
        segmented((2, 3), spoil=off_the_grid),
        load,
        NO_COUNTERPART,
        r"^case series: the segmentation's grid is no part of the image's \(\S*seg\.dcm\); .*"
        r"mending::resample_label=true",
    ),
    *(
        BadInput(
            90,
            f"{name}-{'check' if ours is checked else 'split'}",
            f"{what}, in a tree of three patients",
            tree(change),
            ours,
            NO_COUNTERPART,
            handled="refused for its case alone",
            check=two_sound if ours is checked else two_cases,
            warns="" if ours is checked else rf"left out: .*{why}",
        )
        for name, what, change, why in (
            ("truncated-seg", "truncated SEG", truncated, "cannot read this DICOM SEG"),
            ("overlapping-seg", "SEG that overlaps itself", overlapping, "cannot be one label map"),
            ("cut-slice", "slice cut off in its header", cut_slice, "header is cut off or damaged"),
        )
        for ours in (checked, find_cases)
    ),
)
