"""Unusual but real files: read as their own libraries read them, or refused with the reason.

    python benchmarks/odd_inputs.py DATA

DATA holds odd_inputs (of pydicom's, nibabel's, dicom2nifti's and lungmask's tests), totalseg and
dcmqi_ct3slice. Every scan is loaded as `medsam-tune` does and compared with nibabel, pydicom or
SimpleITK used directly: values, and world positions of the corners. The table goes to
benchmarks/results/odd_inputs.md.
"""

from __future__ import annotations

import argparse
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from jpeg12 import decode
from monai.data import MetaTensor
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.uid import JPEGExtended12Bit, JPEGLosslessSV1

from medsam_tune.cases.checks import check_image
from medsam_tune.errors import DataError
from medsam_tune.files import written_whole
from medsam_tune.formats.dicom.pixels import AIR
from medsam_tune.formats.dicom.series import find_objects
from medsam_tune.formats.open import load_image

RESULTS = Path(__file__).parent / "results" / "odd_inputs.md"
FOLDERS = ("odd_inputs", "totalseg", "dcmqi_ct3slice")
TEXTS = ("LICENSE", "LICENSE.txt", "COPYING", "README.txt")
LENGTH = 150  # characters of a refusal that are shown
READ, REFUSED, WRONG = "read", "refused", "WRONG"
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Reference:
    """A scan as its own library has it.

    Attributes:
        values: (I, J, K) columns, rows, slices.
        corners: (8, 3) RAS millimetres, or None where the file does not say.
        by: who read it.
    """

    values: NDArray[np.floating[Any]]
    corners: NDArray[np.float64] | None
    by: str


def inputs(data: Path) -> Iterator[Path]:
    """Files, and folders that hold a series of several."""
    for name in FOLDERS:
        files = sorted(p for p in (data / name).rglob("*") if p.is_file() and p.name not in TEXTS)
        series = {p.parent for p in files if is_slice(p)}
        yield from sorted([*series, *(p for p in files if p.parent not in series)])


def is_slice(path: Path) -> bool:
    """Whether it is one of several images of a series in its folder."""
    folder = path.parent
    named = "series" if re.match(r"(IM|IMG|CT\.|0*\d+\.dcm)", path.name) else ""
    return (
        bool(named)
        and len([p for p in folder.iterdir() if p.name not in TEXTS]) > 1
        and (folder.name != "data")
    )


def reference(path: Path) -> Reference:
    """By nibabel, SimpleITK or pydicom."""
    if path.name.endswith((".nii", ".nii.gz")):
        file = nib.load(path)
        return Reference(file.get_fdata(), corners_of(file.affine, file.shape), "nibabel")
    if path.suffix == ".nrrd":
        image = sitk.ReadImage(str(path))
        places = [
            image.TransformIndexToPhysicalPoint(
                [n * (size - 1) for n, size in zip(end, image.GetSize(), strict=True)]
            )
            for end in product((0, 1), repeat=3)
        ]
        values = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
        return Reference(values, np.array(places) * LPS_TO_RAS, "SimpleITK")
    return dicom(path)


def dicom(path: Path) -> Reference:
    """By pydicom, header by header."""
    files = [s.path for s in find_objects(path).series[0].instances]
    images = [pydicom.dcmread(file, force=True) for file in files]
    first = images[0]
    if "PerFrameFunctionalGroupsSequence" in first:
        shared = first.SharedFunctionalGroupsSequence[0]
        places = [
            np.array(f.PlanePositionSequence[0].ImagePositionPatient, float)
            for f in first.PerFrameFunctionalGroupsSequence
        ]
        planes = list(first.pixel_array)
        cosines = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        spacing = shared.PixelMeasuresSequence[0].PixelSpacing
        by = "pydicom"
    else:
        decoded = [pixels(image, file) for image, file in zip(images, files, strict=True)]
        planes, by = [values for values, _ in decoded], decoded[0][1]
        if "ImagePositionPatient" not in first or "ImageOrientationPatient" not in first:
            return Reference(planes[0].T[..., None], None, by)
        places = [np.array(image.ImagePositionPatient, float) for image in images]
        cosines, spacing = first.ImageOrientationPatient, first.get("PixelSpacing", [1, 1])
    row, column = np.array(cosines, float).reshape(2, 3)
    order = np.argsort([place @ np.cross(row, column) for place in places])
    values = np.stack([planes[k].T for k in order], -1)
    ends = [
        places[order[-1 if k else 0]]
        + i * (values.shape[0] - 1) * float(spacing[1]) * row
        + j * (values.shape[1] - 1) * float(spacing[0]) * column
        for i, j, k in product((0, 1), repeat=3)
    ]
    return Reference(values, np.array(ends) * LPS_TO_RAS, by)


def pixels(image: Any, file: Path) -> tuple[NDArray[np.float64], str]:
    """(rows, columns) after rescale, and who decoded them."""
    twin = file.parents[2] / "compressed_rle" / "001" / file.name
    by = "pydicom"
    if image.file_meta.get("TransferSyntaxUID") == JPEGExtended12Bit:  # pydicom has no decoder
        stored, by = decode(next(generate_frames(image.PixelData, number_of_frames=1))), "jpeg12.py"
    elif image.file_meta.get("TransferSyntaxUID") == JPEGLosslessSV1 and twin.exists():  # nor here
        return pixels(pydicom.dcmread(twin), twin)[0], "its RLE twin by pydicom"
    else:
        stored = image.pixel_array
    stored = stored.astype(np.float64)
    scaled = stored * float(image.get("RescaleSlope", 1)) + float(image.get("RescaleIntercept", 0))
    return scaled, by


def corners_of(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(8, 3) world positions of the corner voxels' centres."""
    ends = np.array(list(product((0, 1), repeat=3))) * (np.array(shape[:3]) - 1)
    return nib.affines.apply_affine(affine, ends)


def compared(image: MetaTensor, path: Path) -> tuple[str, str]:
    """The verdict on a scan that is read, and what was compared."""
    expected = reference(path)
    values, affine = image[0].numpy(), np.asarray(image.affine)
    if values.shape != expected.values.shape:
        return WRONG, f"shape {values.shape}, {expected.by} has {expected.values.shape}"
    if expected.corners is not None:  # highdicom stacks the other way; the places must be the same
        ours = corners_of(affine, values.shape)
        other = expected.corners[[1, 0, 3, 2, 5, 4, 7, 6]]
        if np.abs(ours - other).max() < np.abs(ours - expected.corners).max():
            expected = Reference(expected.values[..., ::-1], other, expected.by)
    notes = "; ".join(image.meta.get("notes", []))
    same = values > AIR if notes else np.ones(values.shape, bool)
    difference = np.abs(values - expected.values)[same].max()
    limit = 1e-6 * max(1.0, float(np.abs(expected.values).max()))
    if expected.by == "jpeg12.py":
        limit = 1.0  # rounding after the cosine transform
    text = f"values within {difference:.2g} of {expected.by}'s"
    place = 0.0
    if expected.corners is None:
        text += ", no place in the header"
    else:
        place = np.abs(corners_of(affine, values.shape) - expected.corners).max()
        text += f", corners within {place:.2g} mm"
    size = " x ".join(map(str, values.shape))
    text = f"{size}, {values.min():.6g} to {values.max():.6g}; {text}"
    text += f"; {notes}, compared above it" if notes else ""
    return (READ if difference <= limit and place <= 1e-2 else WRONG), text


def tried(path: Path, data: Path) -> tuple[str, str]:
    """Verdict and words for one input."""
    try:
        image = load_image(path)
        check_image(image, path)
    except DataError as error:
        text = str(error).replace(f"{path}/", "").replace(str(path), path.name)
        text = " ".join(text.replace(str(data), "").split())
        return REFUSED, text if len(text) <= LENGTH else f"{text[:LENGTH].rstrip()} ..."
    except Exception as error:
        return WRONG, f"{type(error).__name__}: {error}"[:LENGTH]
    try:
        return compared(image, path)
    except Exception as error:
        return WRONG, f"read, but could not be compared: {type(error).__name__}: {error}"[:LENGTH]


def page(data: Path) -> str:
    """The table by folder, and the total."""
    groups: dict[str, list[str]] = {}
    verdicts = []
    for path in inputs(data):
        verdict, text = tried(path, data)
        verdicts.append(verdict)
        where = path.relative_to(data)
        cell = text.replace("|", "\\|")
        loud = f"**{verdict}**" if verdict == WRONG else verdict
        groups.setdefault(where.parent.as_posix(), []).append(f"| {where.name} | {loud} | {cell} |")
    tables = [
        "\n".join([f"## {folder}", "", "| input | | |", "|---|---|---|", *rows])
        for folder, rows in groups.items()
    ]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in (READ, REFUSED, WRONG))
    with_versions = ", ".join(
        f"{name} {version(name)}" for name in ("pydicom", "nibabel", "SimpleITK", "highdicom")
    )
    return f"""# Unusual but real files

`python benchmarks/odd_inputs.py DATA`, {with_versions}.
Paths below DATA; a folder's name stands for the series in it. *read*: values equal those of
nibabel, pydicom or SimpleITK used directly (to 1e-6 of the largest), and all corners lie at the
same place (to 0.01 mm). *refused*: with the message shown.

{len(verdicts)} inputs: {counts}.

There is no second decoder here for two compressions: 12-bit JPEG is compared with
`benchmarks/jpeg12.py`, written from the standard (to 1, for the rounding), and lossless JPEG with
the same series in RLE. `no_meta.dcm` begins with a stray byte before its first
tag: no reader can make sense of it. A sound file without preamble and meta is read.

{(chr(10) * 2).join(tables)}
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with odd_inputs, totalseg, dcmqi_ct3slice")
    data = parser.parse_args().data
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    text = page(data)
    with written_whole(RESULTS) as beside:
        beside.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
