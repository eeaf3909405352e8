"""Faults of values: MR below zero, CT in another unit, series of another modality."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import ScaleIntensityRangePercentiles
from pydicom.dataset import Dataset

from medsam_tune.cases.audit import check_place
from medsam_tune.cases.datalist import Case
from medsam_tune.failures import REFUSED
from medsam_tune.inference.scans import LoadPromptedScan
from medsam_tune.slices.cut import cut
from medsam_tune.slices.intensity import WINDOWS, Intensity, Percentiles, ZScore, for_modality
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from tests.bad_inputs.calls import load, monai
from tests.bad_inputs.table import BadInput
from tests.dicom_series import write_series
from tests.scans import LABELS, write_nifti

HEAD = (slice(5, 19), slice(5, 19), slice(None))
DARK, BRIGHT = (slice(6, 9), slice(6, 18), slice(1, 5)), (slice(14, 18), slice(6, 18), slice(1, 5))


def written(folder: Path, values: np.ndarray, name: str = "case_017") -> Case:
    """A scan of float32 without a label."""
    return Case(write_nifti(folder / f"{name}.nii.gz", values.astype(np.float32)), None, "p")


# --- 79: background by sign


def head(outside: float | None) -> np.ndarray:
    """A z-scored head with a dark and a bright organ, (24, 24, 6), the dark one far below zero."""
    values = np.random.default_rng(0).normal(-0.3, 0.05, (24, 24, 6))
    values[DARK] -= 1.2
    values[BRIGHT] += 1.8
    if outside is not None:
        inside = np.zeros(values.shape, bool)
        inside[HEAD] = True
        values[~inside] = outside
    return values


def greys(rule: Intensity) -> Callable[[Case], np.ndarray]:
    """The bytes of a case, on its own axes, as a call."""

    def call(case: Case) -> np.ndarray:
        image, _ = load(case)
        return np.asarray(rule(image).numpy()[0])

    return call


def monai_greys(case: Case) -> np.ndarray:
    image, _ = monai(case)
    return ScaleIntensityRangePercentiles(0.5, 99.5, 0, 255, clip=True)(image)[0].numpy()


def organs_differ(found: np.ndarray) -> None:
    """The dark organ keeps its noise and lies below the tissue, that below the bright organ."""
    dark, bright, tissue = found[DARK], found[BRIGHT], found[10:13, 6:18, 1:5]
    assert dark.std() > 1
    assert dark.max() < tissue.min() < tissue.max() < bright.min()


def outside_is_black(found: np.ndarray) -> None:
    organs_differ(found)
    assert not found[:5].any()
    assert not found[:, 19:].any()


def hot_voxels(folder: Path) -> Case:
    values = np.random.default_rng(0).uniform(100, 900, (24, 24, 6))
    values[3, 3, 3] = values[3, 4, 3] = 1e7
    return written(folder, values)


# --- 80, 81: another unit, another modality


def body() -> np.ndarray:
    """(24, 24, 6) HU: air around fat and tissue with an organ and a bone."""
    rng = np.random.default_rng(0)
    values = rng.normal(-1000, 10, (24, 24, 6))
    values[4:20, 4:20] = rng.normal(-90, 12, (16, 16, 6))
    values[5:19, 5:19] = rng.normal(55, 12, (14, 14, 6))
    values[8:10, 8:10] = rng.normal(400, 90, (2, 2, 6))
    return np.clip(values.round(), -1024, 3071)


def unit_window(values: np.ndarray) -> np.ndarray:
    return (values.clip(-160, 240) + 160) / 400


OTHER_UNITS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str]] = {
    "ct-unit": ("normalised to [0, 1]", unit_window, "fractions in so small a range"),
    "ct-z-scored": (
        "z-scored",
        lambda v: (v - v.mean()) / v.std(),
        "fractions in so small a range",
    ),
    "ct-8-bits": (
        "scaled to [0, 255]",
        lambda v: (unit_window(v) * 255).round(),
        "the whole range of 8 bits",
    ),
    "ct-16-bits": (
        "scaled to [0, 65535]",
        lambda v: (unit_window(v) * 65535).round(),
        "the whole range of 16 bits",
    ),
    "ct-stored": (
        "stored numbers, 1024 too high",
        lambda v: (v + 1024).clip(0),
        r"soft tissue at about 1000.*Add the rescale intercept, usually -1024",
    ),
    "ct-stored-padded": (
        "stored numbers, 1024 too high, padded with -2000",
        lambda v: np.where(v < -970, -2000, v + 1024),
        "soft tissue at about 1000",
    ),
}
ORGAN = np.s_[10:18, 10:18, :]


def masked(outside: float) -> np.ndarray:
    """The organ alone."""
    values = np.full((24, 24, 6), outside)
    values[ORGAN] = body()[ORGAN]
    return values


REAL_UNITS: dict[str, tuple[str, Callable[[], np.ndarray]]] = {
    "ct-organ": ("cropped to an organ, without air", lambda: body()[ORGAN]),
    "ct-organ-0": ("an organ, 0 around it", lambda: masked(0)),
    "ct-organ-3024": ("an organ, -3024 around it", lambda: masked(-3024)),
    "ct-bone": ("dense bone, 0 around it", lambda: np.where(masked(0) != 0, 20, 1) * 60.0),
    "ct-metal": (
        "air around a pin of metal",
        lambda: np.where(body() < 0, body(), 1000 + body() / 2),
    ),
    "ct-padded": ("padded with -2000", lambda: np.where(body() < -970, -2000, body())),
}

CT = ScanRules(for_modality("CT"), modality="CT")


def prepared(case: Case, rules: ScanRules = CT) -> Any:
    """Ours, as training reads a scan."""
    store = SliceStore(case.image.parent / "store", rules, LABELS)
    return store.prepare([case], progress=False, jobs=1)[0]


def predicted(case: Case) -> Any:
    """Ours, as prediction reads a scan."""
    return LoadPromptedScan(CT, LABELS)({"scan": case.image, "prompts": None})


def reason(case: Case) -> str:
    """Ours: the finding of `medsam-tune check` in a datalist of CT."""
    place = case.image.parent / "d.json"
    content = {"modality": {"0": "CT"}, "labels": {"1": "liver"}}
    place.write_text(json.dumps({**content, "training": [{"image": case.image.name}]}))
    report = check_place(place, progress=False)
    assert report.outcome == REFUSED
    return report.findings[0].problem


def series(modality: str) -> Callable[[Path], Case]:
    """A maker of a series whose Modality is changed."""

    def change(k: int, image: Dataset) -> None:
        image.Modality = modality

    return lambda folder: Case(write_series(folder / "case_017", change), None, "p")


def is_read(found: Any) -> None:
    assert found is not None


def modality_is_named(problem: str) -> None:
    assert problem.startswith("case case_017: the Modality of the DICOM series is MR (")


def unit_is_named(problem: str) -> None:
    assert "cannot be Hounsfield units" in problem


FILE = r"\(\S*case_017\.nii\.gz\)"
WAY = r"--set 'intensity=\$medsam_tune\.slices\.intensity\.Percentiles\(\)'\.$"

INPUTS: tuple[BadInput, ...] = (
    *(
        BadInput(
            79,
            f"negative-mr-{name}",
            f"z-scored MR, organs on both sides of zero, {what}: {rule}",
            lambda folder, outside=outside: written(folder, head(outside)),
            greys(ZScore() if rule == "z-score" else Percentiles()),
            monai_greys,
            handled=f"the dark organ keeps its contrast{'; outside is black' * black}",
            check=outside_is_black if black else organs_differ,
        )
        for name, what, outside, rule, black in (
            ("air", "no background", None, "percentiles", False),
            ("air-z", "no background", None, "z-score", False),
            ("zero", "zero around the head", 0.0, "percentiles", True),
            ("zero-z", "zero around the head", 0.0, "z-score", True),
            ("constant", "-0.4 around the head", -0.4, "percentiles", True),
        )
    ),
    *(
        BadInput(
            79,
            f"hot-voxels-{rule.describe()['name']}",
            f"MR with two voxels of 10 million: {name}",
            hot_voxels,
            greys(rule),
            monai_greys,
            handled="read, with a warning that the scan becomes one grey level",
            check=is_read,
            warns=r"\d\d% of the voxels besides the background, .* become one grey level",
        )
        for name, rule in (("z-score", ZScore()), ("percentiles 0 and 100", Percentiles(0, 100)))
    ),
    *(
        BadInput(
            80,
            name,
            f"CT {what}",
            lambda folder, change=change: written(folder, change(body())),
            prepared if name != "ct-8-bits" else predicted,
            monai,
            rf"^case case_017: values from .*{FILE} cannot be Hounsfield units, .*: {found}.*{WAY}",
        )
        for name, (what, change, found) in OTHER_UNITS.items()
    ),
    *(
        BadInput(
            80,
            name,
            f"CT in HU, {what}",
            lambda folder, make=make: written(folder, make()),
            prepared,
            monai,
            handled="read",
            check=is_read,
        )
        for name, (what, make) in REAL_UNITS.items()
    ),
    BadInput(
        80,
        "ct-unit-check",
        "datalist of CT that is normalised to [0, 1]",
        lambda folder: written(folder, unit_window(body())),
        reason,
        monai,
        handled="check: refused, with the setting for another intensity",
        check=unit_is_named,
    ),
    BadInput(
        80,
        "ct-unit-told",
        "CT normalised to [0, 1], percentiles asked for",
        lambda folder: written(folder, unit_window(body())),
        lambda case: prepared(case, ScanRules(Percentiles(), modality="CT")),
        monai,
        handled="read",
        check=is_read,
    ),
    BadInput(
        80,
        "window-beside",
        "lung under the brain's window",
        lambda folder: written(folder, body()[ORGAN] - 900),
        lambda case: cut(load(case)[0], ScanRules(WINDOWS["brain"])),
        monai,
        handled="read, with a warning that few grey levels are left",
        check=is_read,
        warns=r"^the window from 0 to 80: 1 grey levels are left of a scan whose values run from",
    ),
    *(
        BadInput(
            81,
            name,
            f"DICOM series of {kind} {what}",
            series(kind),
            call,
            monai,
            rf"^case case_017: the Modality of the DICOM series is {kind} \(\S*case_017\); "
            rf"expected {wanted}, .*{way}\.$",
        )
        for name, kind, wanted, what, call, way in (
            ("mr-in-ct", "MR", "CT", "in training on CT", prepared, "split --modality MR"),
            ("mr-for-ct", "MR", "CT", "given to predict of a CT run", predicted, "--modality MR"),
            ("dx-in-ct", "DX", "CT", "in training on CT", prepared, "split --modality XR"),
            ("pt-in-ct", "PT", "CT", "in training on CT", prepared, "so take it out"),
            (
                "ct-in-mr",
                "CT",
                "MR",
                "in training on MR",
                lambda case: prepared(case, ScanRules(Percentiles(), modality="MR")),
                "split --modality CT",
            ),
        )
    ),
    BadInput(
        81,
        "mr-in-datalist",
        "DICOM series of MR in a datalist of CT",
        series("MR"),
        reason,
        monai,
        handled="check: refused by its Modality",
        check=modality_is_named,
    ),
)
