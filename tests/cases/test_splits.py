from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from monai.data import MetaTensor

from medsam_tune.cases.datalist import SUBSETS, Case, Datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import (
    _grouped,
    few_shots,
    fold_cases,
    labels_of_patients,
    split_cases,
)
from medsam_tune.errors import DataError
from medsam_tune.formats import geotiff
from medsam_tune.formats.open import case_id, load_image
from tests.scans import listed, plain_folder, write_nifti


def test_split_is_by_patient_and_complete():
    data = split_cases(listed(10, per_patient=3), (0.6, 0.2, 0.2), 0)
    patients = [
        {case.patient for case in data.subset(s)} for s in ("training", "validation", "test")
    ]
    assert [len(p) for p in patients] == [6, 2, 2]
    assert len(set.union(*patients)) == 10
    assert len(data.training) == 18


def test_split_depends_on_the_seed_and_not_on_the_order():
    data = listed(20)
    backwards = Datalist(data.name, data.modality, data.labels, data.training[::-1])
    assert split_cases(data, (0.7, 0.1, 0.2), 1) == split_cases(backwards, (0.7, 0.1, 0.2), 1)
    assert split_cases(data, (0.7, 0.1, 0.2), 1) != split_cases(data, (0.7, 0.1, 0.2), 2)


def test_split_again_is_the_same():
    once = split_cases(listed(9), (0.5, 0.25, 0.25), 3)
    assert split_cases(once, (0.5, 0.25, 0.25), 3) == once


def rare_labels(count: int = 40) -> tuple[Datalist, dict[str, set[int]]]:
    """All patients have label 1, a quarter 2, every tenth 3; some have two scans."""
    names = [f"p{i:02d}" for i in range(count)]
    scans = [Case(Path(f"{n}_{k}.nii"), None, n) for n in names for k in range(1 + (n < "p05"))]
    present = {
        name: {1} | ({2} if i % 4 == 0 else set()) | ({3} if i % 10 == 3 else set())
        for i, name in enumerate(names)
    }
    return Datalist("d", "CT", {1: "a", 2: "b", 3: "c"}, training=tuple(scans)), present


def with_label(cases, present, label) -> int:
    return len({case.patient for case in cases if label in present[case.patient]})


@pytest.mark.parametrize("seed", range(5))
def test_rare_labels_are_shared_out(seed):
    data, present = rare_labels()
    split = split_cases(data, (0.5, 0.25, 0.25), seed, present)
    sizes = [len({case.patient for case in split.subset(name)}) for name in SUBSETS]
    assert sizes == [20, 10, 10]
    for label, expected in ((2, (5, 2.5, 2.5)), (3, (2, 1, 1))):
        counts = [with_label(split.subset(name), present, label) for name in SUBSETS]
        assert sum(counts) == sum(expected)
        assert all(abs(n - e) <= 0.5 for n, e in zip(counts, expected, strict=True))
    turned = replace(data, training=data.training[::-1])
    assert split == split_cases(turned, (0.5, 0.25, 0.25), seed, present)
    assert split != split_cases(data, (0.5, 0.25, 0.25), seed + 1, present)
    patients = [{case.patient for case in split.subset(name)} for name in SUBSETS]
    assert len(set.union(*patients)) == 40
    assert len(split.training + split.validation + split.test) == 45


def slow_groups(patients, counts, present):
    """The same choices as the split's, found by looking at every patient each time."""
    groups = [set() for _ in counts]
    room, left = list(counts), list(patients)
    total = Counter(label for patient in patients for label in present[patient])
    wanted = [{k: n * count / len(patients) for k, n in total.items()} for count in counts]
    while left:
        remaining = Counter(label for patient in left for label in present[patient])
        rarest = min(remaining, key=lambda k: (remaining[k], k)) if remaining else None
        patient = next(p for p in left if rarest is None or rarest in present[p])
        need = [(wanted[i].get(rarest, 0.0), room[i], -i) for i in range(len(room)) if room[i]]
        best = -max(need)[2]
        groups[best].add(patient)
        room[best] -= 1
        for label in present[patient]:
            wanted[best][label] -= 1
        left.remove(patient)
    return groups


@pytest.mark.parametrize("seed", range(5))
def test_each_choice_is_the_rarest_label_first(seed):
    draw = random.Random(seed)
    present = {f"p{i}": set(draw.choices(range(1, 9), k=draw.randrange(5))) for i in range(60)}
    assert _grouped(list(present), [36, 9, 15], present) == slow_groups(
        list(present), [36, 9, 15], present
    )


def test_many_patients_are_split_in_linear_time():
    """Looking at all patients for each of them would take hours."""
    cases = tuple(Case(Path(f"/x/{i}.nii"), None, f"p{i}") for i in range(30_000))
    present = {case.patient: {i % 7 + 1, 20} for i, case in enumerate(cases)}
    data = split_cases(Datalist("d", "CT", {1: "a"}, cases), (0.7, 0.1, 0.2), 0, present)
    assert [len(data.subset(name)) for name in SUBSETS] == [21_000, 3_000, 6_000]


def test_equal_labels_are_split_as_without():
    data, present = rare_labels()
    same = {patient: {1, 2} for patient in present}
    assert split_cases(data, (0.5, 0.25, 0.25), 3, same) == split_cases(data, (0.5, 0.25, 0.25), 3)


def test_folds_test_every_patient_once():
    data, present = rare_labels()
    folds = fold_cases(data, 4, seed=1, present=present)
    tested = [case.patient for fold in folds for case in fold.test]
    assert len(tested) == 45
    assert len(set(tested)) == 40
    for i, fold in enumerate(folds):
        assert fold.validation == folds[(i + 1) % 4].test
        assert with_label(fold.test, present, 3) == 1
        groups = [{case.patient for case in fold.subset(name)} for name in SUBSETS]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 40
    with pytest.raises(DataError, match="2 folds; expected at least 3"):
        fold_cases(data, 2)
    with pytest.raises(DataError, match="40 patients cannot fill 41 subsets"):
        fold_cases(data, 41)


def patients_of(cases) -> set[str]:
    return {case.patient for case in cases}


def test_few_shots_keep_patients_of_training_only():
    split = split_cases(listed(20, per_patient=2), (0.7, 0.1, 0.2), 0)
    few = few_shots(split, 5, seed=1)
    assert len(patients_of(few.training)) == 5
    assert len(few.training) == 10
    assert few == replace(split, training=few.training)
    turned = few_shots(replace(split, training=split.training[::-1]), 5, seed=1)
    assert turned.training == few.training[::-1]
    assert few != few_shots(split, 5, seed=2)
    assert patients_of(few_shots(split, 2, seed=1).training) < patients_of(few.training)
    assert few_shots(split, 14) == split


def test_few_shots_have_each_label():
    split = split_cases(listed(20), (0.7, 0.1, 0.2), 0)
    patients = sorted(patients_of(split.training))
    present = {patient: {1} for patient in patients} | {patients[3]: {1, 2}, patients[9]: {3}}
    for seed in range(5):
        kept = patients_of(few_shots(split, 3, seed, present).training)
        assert kept >= {patients[3], patients[9]}
        assert kept < patients_of(few_shots(split, 6, seed, present).training)


def test_few_shots_of_too_few_patients():
    split = split_cases(listed(20), (0.7, 0.1, 0.2), 0)
    with pytest.raises(
        DataError, match=r"^20 shots, but 14 training patients in Small; expected at most as many\."
    ):
        few_shots(split, 20)
    with pytest.raises(DataError, match=r"^0 shots; expected at least 1 training patient\.$"):
        few_shots(split, 0)


def test_labels_of_patients_are_read(tmp_path):
    for name, value in (("a", 1), ("b", 2)):
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", np.ones((4, 4, 4), np.float32))
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", np.full((4, 4, 4), value, np.uint8))
    data = find_cases(tmp_path, modality="CT")
    assert labels_of_patients(data) == {"a": {1}, "b": {2}}


def test_each_label_map_is_read_once(tmp_path, monkeypatch):
    read: list[str] = []

    def counted(path: Path) -> MetaTensor:
        read.append(case_id(path))
        return load_image(path)

    monkeypatch.setattr("medsam_tune.cases.labels.maps.load_label", counted)
    data = find_cases(plain_folder(tmp_path, ["a", "b"]), modality="CT")
    assert data.present == {"a": {1, 2}, "b": {1, 2}}
    assert labels_of_patients(data) == {"a": {1, 2}, "b": {1, 2}}
    assert sorted(read) == ["a", "b"]
    assert labels_of_patients(replace(data, present={})) == {"a": {1, 2}, "b": {1, 2}}
    assert sorted(read) == ["a", "a", "b", "b"]


def test_each_wanted_subset_gets_a_patient():
    data = split_cases(listed(3), (0.8, 0.1, 0.1), 0)
    assert [len(data.training), len(data.validation), len(data.test)] == [1, 1, 1]
    assert split_cases(listed(2), (0.5, 0.0, 0.5), 0).validation == ()


def test_fewer_patients_than_subsets():
    with pytest.raises(DataError, match=r"2 patients cannot fill 3 subsets \(fractions"):
        split_cases(listed(2, per_patient=5), (0.6, 0.2, 0.2), 0)


def test_one_scene_is_cut_into_blocks(monkeypatch):
    monkeypatch.setattr("medsam_tune.cases.splits.reader_of", lambda path: geotiff)
    with pytest.raises(DataError, match=r"1 scenes or groups cannot fill 3 subsets .* by --blocks"):
        split_cases(listed(1), (0.6, 0.2, 0.2), 0)


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (0, 0, 0), (float("nan"), 0.5, 0.5)]
)
def test_bad_fractions(fractions):
    with pytest.raises(DataError, match="of 0 or more that add up to 1"):
        split_cases(listed(5), fractions, 0)


@pytest.mark.real_data
def test_hippocampus(hippocampus):
    data = split_cases(find_cases(hippocampus), (0.7, 0.1, 0.2), 0)
    assert (data.modality, data.labels) == ("MR", {1: "Anterior", 2: "Posterior"})
    assert [len(data.training), len(data.validation), len(data.test)] == [126, 18, 36]
