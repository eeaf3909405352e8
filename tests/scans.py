"""Small NIfTI scans on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor

from medsam_tune.cases.datalist import Case, Datalist
from medsam_tune.cases.load import load_case
from medsam_tune.formats.mending import Mending
from medsam_tune.slices.cut import grid_of, turned
from medsam_tune.slices.intensity import WINDOWS
from medsam_tune.slices.rules import ScanRules

SHAPE = (10, 12, 6)
LABELS = {1: "liver", 2: "spleen"}


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def small_scan(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 and label uint8 with both labels, slices 0 and 5 empty."""
    image = np.random.default_rng(seed).uniform(1, 200, SHAPE).astype(np.float32)
    label = np.zeros(SHAPE, np.uint8)
    label[1:5, 2:8, 1:5] = 1
    label[6:9, 3:9, 2:4] = 2
    return image, label


def plain_folder(
    folder: Path, names: list[str], images="images", labels="labels", suffix=""
) -> Path:
    image, label = small_scan()
    for name in names:
        write_nifti(folder / images / f"{name}{suffix}.nii.gz", image)
        write_nifti(folder / labels / f"{name}.nii.gz", label)
    return folder


def msd_folder(folder: Path, names: list[str], **description: object) -> Path:
    plain_folder(folder, names, "imagesTr", "labelsTr")
    content = {
        "name": "Small",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names
        ],
        "test": ["./imagesTs/x.nii.gz"],
        **description,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def listed(patients: int, per_patient: int = 1) -> Datalist:
    cases = tuple(
        Case(Path(f"/x/p{p:02d}_{s}.nii.gz"), Path(f"/y/p{p:02d}_{s}.nii.gz"), f"p{p:02d}")
        for p in range(patients)
        for s in range(per_patient)
    )
    return Datalist("Small", "CT", {1: "liver"}, cases)


def load_turned(
    case: Case, labels: Mapping[int, str], mending: Mending | None = None, plane: str = "axial"
) -> tuple[MetaTensor, MetaTensor | None]:
    """`load_case`, with the axes along columns, rows and slices of the plane."""
    image, label = load_case(case, labels, mending)
    grid = grid_of(image, ScanRules(WINDOWS["abdomen"], plane))
    return turned(image, grid), None if label is None else turned(label, grid)
