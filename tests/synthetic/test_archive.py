"""Made-up DICOM studies: read back as the phantoms that they are."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="the extra dicom is not installed")

from pydicom import dcmread

from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.synthetic.archive import write_archive
from medsam_tune.synthetic.phantom import LABELS, make_phantom
from tests.dicom_results import errors

SMALL = {"shape": (32, 24, 6), "spacing": (10.0, 9.0, 20.0)}


@pytest.mark.parametrize("rtstruct", [False, True])
def test_studies_are_the_phantoms_of_their_numbers(tmp_path, rtstruct):
    folder = write_archive(tmp_path, count=2, first=3, rtstruct=rtstruct, **SMALL)
    kinds = {dcmread(path).Modality for path in folder.rglob("label.dcm")}
    assert kinds == {"RTSTRUCT" if rtstruct else "SEG"}
    found = find_cases(folder)
    assert (found.modality, len(found.training)) == ("CT", 2)
    # Names of patients are hashes, whose order is not that of the numbers.
    truths = [make_phantom(np.random.default_rng([0, n]), noise=12.0, **SMALL) for n in (3, 4)]
    drawn = {k for _, ids in truths for k in np.unique(ids)} if rtstruct else LABELS
    assert set(found.labels.values()) == {LABELS[k] for k in drawn if k}  # ROIs with a contour
    for case in found.training:
        image, label = load_case(case, found.labels)
        number = next(n for n, (ct, _) in enumerate(truths) if (image[0].numpy() == ct).all())
        names = np.array(["", *(LABELS[k] for k in sorted(LABELS))])
        own = np.array(["", *(found.labels[k] for k in sorted(found.labels))])
        assert (own[label[0].numpy().astype(int)] == names[truths[number][1]]).all()


def test_without_labels_there_are_series_alone(tmp_path):
    folder = write_archive(tmp_path, count=1, labelled=False, **SMALL)
    assert sorted(path.name for path in folder.rglob("*.dcm")) == [f"{k:03d}.dcm" for k in range(6)]


def test_images_are_valid_dicom(tmp_path):
    image = write_archive(tmp_path, count=1, labelled=False, **SMALL) / "patient_000/CT/000.dcm"
    assert not errors("dciodvfy", image)


def test_contours_are_valid_dicom(tmp_path):
    folder = write_archive(tmp_path, count=1, rtstruct=True, **SMALL)
    assert not errors("dciodvfy", folder / "patient_000/RTSTRUCT/label.dcm")
