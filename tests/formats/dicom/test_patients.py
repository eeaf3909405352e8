"""Keyed hashes of patients, and the secret that they need."""

from __future__ import annotations

import json
import stat

import pytest

from medsam_tune.cases.datalist import read_datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.patients import SECRET_NAME, patient_key, secret_beside
from tests.dicom_series import write_series
from tests.segmentation import masks, write_seg


def test_a_known_value():
    """HMAC-SHA256 by the second test case of RFC 4231."""
    assert patient_key("what do ya want for nothing?", b"Jefe") == "5bdcc146bf60754e"


def test_keys_tell_patients_apart_and_no_more():
    assert patient_key("7") == patient_key("7") != patient_key("8")
    assert patient_key("7", b"a") != patient_key("7", b"b")
    assert patient_key("") == patient_key("", b"a") == ""


def test_the_secret_is_made_once(tmp_path):
    datalist = tmp_path / "new" / "datalist.json"
    secret = secret_beside(datalist)
    file = datalist.parent / SECRET_NAME
    assert (file.read_bytes(), len(secret)) == (secret, 32)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret_beside(datalist.with_name("fold_1.json")) == secret
    assert secret_beside(tmp_path / "datalist.json") != secret


def test_a_secret_that_is_none(tmp_path):
    (tmp_path / SECRET_NAME).write_bytes(b"hello")
    with pytest.raises(DataError, match=r"\.medsam_tune\.key: holds 5 bytes; expected the 32 of a"):
        secret_beside(tmp_path / "d.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"secret of the patients' keys cannot be read or written"):
        secret_beside(tmp_path / "file" / "d.json")


def test_a_later_split_gives_the_same_keys_and_names(tmp_path):
    for patient in ("ann", "bob", "cid"):
        scan = write_series(
            tmp_path / "tree" / patient / "scan",
            lambda _, i, patient=patient: setattr(i, "PatientID", patient),
        )
        write_seg(tmp_path / "tree" / patient / "seg.dcm", scan, masks())
    secret = secret_beside(tmp_path / "d.json")
    data = find_cases(tmp_path / "tree", secret=lambda: secret)
    write_datalist(data, tmp_path / "d.json")
    again = find_cases(tmp_path / "tree", secret=lambda: secret_beside(tmp_path / "d.json"))
    assert again == data == read_datalist(tmp_path / "d.json")
    assert [case.id for case in data.cases] == ["case_0001", "case_0002", "case_0003"]
    assert {case.patient for case in data.cases} == {
        patient_key(patient, secret) for patient in ("ann", "bob", "cid")
    }
    other = find_cases(tmp_path / "tree")
    assert [case.id for case in other.cases] == [case.id for case in data.cases]
    assert not {case.patient for case in other.cases} & {case.patient for case in data.cases}
    for n, case in enumerate(data.cases):  # under names of another order
        case.image.parent.rename(tmp_path / "tree" / f"{9 - n}")
    moved = find_cases(tmp_path / "tree", secret=lambda: secret)
    assert [(c.id, c.patient) for c in moved.cases] == [(c.id, c.patient) for c in data.cases]
    entry = json.loads((tmp_path / "d.json").read_text())["training"][0]
    assert (entry["name"], len(entry["patient"])) == ("case_0001", 16)


def test_series_beside_their_labels(tmp_path):
    scan = write_series(tmp_path / "images" / "a")
    (tmp_path / "labels").mkdir()
    write_seg(tmp_path / "labels" / "a.dcm", scan, masks())
    (case,) = find_cases(tmp_path, modality="CT", secret=lambda: b"key").training
    assert case.patient == patient_key("MRN123", b"key")


def test_without_a_patient_the_study_counts(tmp_path):
    def nobody(_, image):
        image.PatientID = ""

    scans = [write_series(tmp_path / name, nobody, uid=f"1.2.{n}") for n, name in enumerate("ab")]
    for scan in scans:
        write_seg(scan.with_suffix(".dcm"), scan, masks())
    first, second = find_cases(tmp_path, secret=lambda: b"key").training
    assert first.patient == patient_key("1.2.0.1", b"key") != second.patient
