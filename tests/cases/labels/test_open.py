"""Every kind of label passes one matrix; a new kind is one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.labels.maps import LabelMap
from medsam_tune.cases.labels.open import KINDS, LabelFile, open_label
from medsam_tune.cases.labels.organs import OrganFolder
from medsam_tune.cases.labels.rtstruct import StructureSet
from medsam_tune.cases.labels.seg import Segmentation
from medsam_tune.cases.load import load_case
from medsam_tune.cases.splits import labels_of_patients
from medsam_tune.errors import DataError
from medsam_tune.formats.open import load_image, write_array
from tests.dicom_series import refusal, write_series
from tests.scans import load_turned, small_scan, write_nifti
from tests.segmentation import NAMES, masks, write_seg
from tests.structure_set import box, placed, write_structure_set

KNOWN = {**NAMES, 3: "kidney"}
SQUARES = {
    "liver": (box(0.5, 1.5, 4.5, 6.5), range(2, 6)),
    "spleen": (box(2.5, 7.5, 11.5, 10.5), range(3, 8)),
}


def label_map(folder: Path, series: Path, present: set[int]) -> Path:
    path = folder / "label.nrrd"
    affine = np.asarray(load_image(series).affine)
    write_array(path, only(present), affine)
    return path


def organs(folder: Path, series: Path, present: set[int]) -> Path:
    affine = np.asarray(load_image(series).affine)
    for number, name in NAMES.items():
        write_array(folder / "organs" / f"{name}.nii.gz", 5 * (only(present) == number), affine)
    return folder / "organs"


def segmentation(folder: Path, series: Path, present: set[int]) -> Path:
    return write_seg(folder / "seg", series, only(present).transpose(2, 1, 0).astype(np.uint8))


def structure_set(folder: Path, series: Path, present: set[int]) -> Path:
    regions = {}
    for number, name in NAMES.items():
        square, slices = SQUARES[name]
        if number in present:
            regions[name] = [placed(square, k) for k in slices]
    return write_structure_set(folder / "rt", series, regions)


@dataclass(frozen=True)
class Row:
    """One kind.

    Attributes:
        kind: its class.
        write: writes the labels of `masks` that are wanted, drawn on a series.
        names: what `names` gives if both are there.
        traits: numbered, folds_case, names_are_present.
    """

    kind: type[LabelFile]
    write: Callable[[Path, Path, set[int]], Path]
    names: dict[int, str]
    traits: tuple[bool, bool, bool]


ROWS = (
    Row(LabelMap, label_map, {1: "label 1", 2: "label 2"}, (True, False, True)),
    Row(Segmentation, segmentation, NAMES, (True, False, False)),
    Row(StructureSet, structure_set, {11: "liver", 12: "spleen"}, (False, True, False)),
    Row(OrganFolder, organs, {1: "liver", 2: "spleen"}, (False, False, False)),
)
each = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.kind.__name__)


def only(present: set[int]) -> np.ndarray:
    """(I, J, K) ids of `masks` without the others."""
    label = masks().transpose(2, 1, 0)
    return np.where(np.isin(label, list(present)), label, 0)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return write_series(tmp_path / "series")


def test_every_kind_has_a_row() -> None:
    assert {row.kind for row in ROWS} == {*KINDS, LabelMap}


@each
def test_what_it_says_of_itself(row: Row, tmp_path: Path, series: Path) -> None:
    label = open_label(row.write(tmp_path, series, {1, 2}))
    assert type(label) is row.kind
    assert label.names() == row.names
    assert (label.numbered, label.folds_case, label.names_are_present) == row.traits


@each
@pytest.mark.parametrize("present", [{1, 2}, {2}], ids=["both", "one"])
def test_which_labels_are_present(row: Row, tmp_path: Path, series: Path, present) -> None:
    label = open_label(row.write(tmp_path, series, present))
    assert label.present(KNOWN) == present
    assert label.present({2: "spleen"}) == {2}
    if row.traits[2]:
        assert set(label.names()) == present


@each
def test_it_lies_on_its_image(row: Row, tmp_path: Path, series: Path) -> None:
    path = row.write(tmp_path, series, {1, 2})
    image, label = load_case(Case(series, path, "p"), KNOWN)
    assert label.dtype == torch.int32
    np.testing.assert_array_equal(label[0].numpy(), only({1, 2}))
    np.testing.assert_array_equal(label.affine, image.affine)
    turned, found = load_turned(Case(series, path, "p"), KNOWN, plane="coronal")
    for number in NAMES:
        assert sorted(turned[found == number]) == sorted(image[label == number])


@each
def test_ids_are_those_of_the_datalist(row: Row, tmp_path: Path, series: Path) -> None:
    """By name, where numbers mean nothing; an RTSTRUCT leaves out what is not named."""
    case = Case(series, row.write(tmp_path, series, {1, 2}), "p")
    if row.traits[0]:
        refused = r"label has the values 2 \(.*expected only 0, 1\."
        if row.kind is Segmentation:
            refused = r"whose names are of no label: 2 \(spleen\) \(.*seg\); known: 1 \(liver\)\."
        with pytest.raises(DataError, match=refused):
            load_case(case, {1: "liver"})
    if row.kind is LabelMap:
        return
    _, label = load_case(case, {7: "liver", 4: "spleen"})
    np.testing.assert_array_equal(label[0].numpy(), np.array([0, 7, 4])[only({1, 2})])


@pytest.mark.parametrize("write", [segmentation, structure_set])
def test_a_label_of_another_series_is_refused(tmp_path: Path, series: Path, write) -> None:
    """Its geometry is the same; only the references tell."""
    label = write(tmp_path, series, {1, 2})
    other = write_series(tmp_path / "other")
    assert "the label's frame of reference is " in refusal(other, label)

    def without_frame(_, image):
        image.FrameOfReferenceUID = ""

    nowhere = write_series(tmp_path / "nowhere", without_frame)
    assert "nothing says that they share a frame of reference" in refusal(nowhere, label)


def test_what_is_neither_is_a_label_map(tmp_path: Path, series: Path) -> None:
    for path in (next(series.iterdir()), write_nifti(tmp_path / "b.nii.gz", small_scan()[0])):
        assert type(open_label(path)) is LabelMap


def test_numbers_with_two_meanings(tmp_path: Path) -> None:
    series = write_series(tmp_path / "images" / "a")
    (tmp_path / "labels").mkdir()
    write_seg(tmp_path / "labels" / "a.dcm", series, masks())
    write_nifti(tmp_path / "images" / "b.nii.gz", small_scan()[0])
    write_nifti(tmp_path / "labels" / "b.nii.gz", small_scan()[1])
    with pytest.raises(DataError, match="label 1 is 'label 1', in another case 'liver'; expected"):
        find_cases(tmp_path, modality="CT")


def folder_of(tmp_path: Path, *writers: Callable[[Path, Path, set[int]], Path]) -> Path:
    """images/ with a series for each label of labels/."""
    labels = tmp_path / "data" / "labels"
    labels.mkdir(parents=True)
    for number, write in enumerate(writers):
        name = f"c{number}"
        series = write_series(
            tmp_path / "data" / "images" / name,
            lambda _, image, name=name: setattr(image, "PatientID", name),
        )
        (tmp_path / name).mkdir()
        made = write(tmp_path / name, series, {1, 2})
        ending = "" if made.is_dir() else made.suffix or ".dcm"
        made.rename(labels / f"{name}{ending}")
    return labels.parent


def test_kinds_with_names_mix(tmp_path: Path) -> None:

    def loud(folder: Path, series: Path, present: set[int]) -> Path:
        square = [placed(SQUARES["liver"][0], 2)]
        return write_structure_set(folder / "rt", series, {"LIVER": square, "Cord": square})

    data = find_cases(folder_of(tmp_path, loud, organs), modality="CT")
    assert data.labels == {1: "Cord", 2: "liver", 3: "spleen"}
    assert data.present == {}


def test_names_and_numbers_do_not_mix(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, label_map, organs)
    with pytest.raises(DataError, match=r"some labels have names only .*, some have numbers"):
        find_cases(folder, modality="CT")


def test_only_what_was_read_is_known_to_be_present(tmp_path: Path) -> None:

    def half(folder: Path, series: Path, present: set[int]) -> Path:
        return segmentation(folder, series, {1})

    data = find_cases(folder_of(tmp_path, half), modality="CT")
    assert (data.labels, data.present) == (NAMES, {})
    assert list(labels_of_patients(data).values()) == [{1}]
