from __future__ import annotations

import pytest

from medsam_tune.cases.guesses import guessed_patient, without_channel

ONE_PATIENT = [
    ("pat03", "pat03_visit1 pat03_visit2 pat03-followup pat03_fu2 pat03_baseline pat03visit3"),
    ("pat03", "pat03_t1 pat03_t2 pat03_v2_2 pat03_s1 pat03_tp1 pat03_week12 pat03_m06 pat03_d001"),
    ("pat03", "pat03_pre pat03_post pat03-preop Pat03_scan2 PAT03_series_1 pat03_phase1 pat03a"),
    ("pat03", "pat03_20210315 pat03_2021-03-15 pat03-2021_03_15_visit2 pat03_1 pat03_01_02"),
    ("pat03", "pat03_CT pat03_MR1 pat03_flair pat03_left pat03_R pat03_frame01 pat03_venous"),
    ("alice", "alice_visit1 alice_scan2 alice-followup alice_pre"),
    ("pat 3", "pat 3|pat 3 (1)|pat 3 (2)|pat 3 copy"),
    ("sub-01", "sub-01_ses-02_T1w sub-01_ses-M00 sub-01_run-1_bold sub-01"),
    ("10000", "10000_1000000 10000_1000001"),  # PI-CAI: patient and study
    ("brats-gli-00005", "BraTS-GLI-00005-000 BraTS-GLI-00005-001"),
    ("tcga-02-0006", "TCGA-02-0006 TCGA-02-0006_t1"),
    ("oas1_0001", "OAS1_0001_MR1 OAS1_0001_MR2"),
    ("patient001", "patient001_frame01 patient001_frame12_venous"),
]
# Public data sets and usual names: each is a patient of its own.
OTHER_PATIENTS = (
    "liver_1 liver_2 liver_12 case_0001 case_0002 hippocampus_367 hippocampus_368 volume-0 volume-1"
    " BRATS_001 la_003 la_004 prostate_00 prostate_01 ct_train_1001 ct_train_1002 amos_test_001"
    " amos_test_002 s0001 s0002 totalseg_s0001 totalseg_s0002 FLARE22_Tr_0001 LUNG1-001 LUNG1-002"
    " LIDC-IDRI-0001 LIDC-IDRI-0002 002_S_0295 002_S_0296 liver_ct_001 liver_ct_002 TCGA-02-0007"
    " a b c c1 c2 case_a case_b visit1 visit2 scan_001 scan_002 left right 9cd3e5f2a1b7c8d0"
    " 1.3.6.1.4.1.14519.5.2.1.6279.6001.1 1.3.6.1.4.1.14519.5.2.1.6279.6001.2"
).split()


@pytest.mark.parametrize(("patient", "names"), ONE_PATIENT)
def test_scans_of_one_patient(patient: str, names: str) -> None:
    scans = names.split("|") if "|" in names else names.split()
    assert {name: guessed_patient(name) for name in scans} == dict.fromkeys(scans, patient)


def test_numbers_after_a_word_are_other_patients() -> None:
    found = {name: guessed_patient(name) for name in OTHER_PATIENTS}
    assert found == {name: name.lower() for name in OTHER_PATIENTS}


def test_channel() -> None:
    assert [without_channel(name) for name in ("a_0000", "a_0001", "a")] == ["a", "a_0001", "a"]
