"""Splits: which subset each patient belongs to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from medsam_tune.cases.datalist import Case, Datalist
from medsam_tune.cases.labels.open import open_label
from medsam_tune.console import tracked
from medsam_tune.errors import DataError, about


def split_cases(
    datalist: Datalist,
    fractions: tuple[float, float, float],
    seed: int = 0,
    present: Mapping[str, Collection[int]] | None = None,
) -> Datalist:
    """Divide all cases anew, so that no patient is in two subsets.

    The result depends on the patients, their labels, the fractions and the seed, not on the order
    of the files.

    Args:
        datalist: datalist whose present subsets are put together first.
        fractions: shares of the patients in training, validation and test; their sum is 1.
        seed: seed of the shuffle.
        present: patient -> label ids, from `labels_of_patients`; rare labels are then shared out
            among the subsets as the patients are.

    Raises:
        DataError: fractions that are negative or do not add up to 1, or fewer patients than
            subsets to fill.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"fractions {fractions} of training, validation and test; expected three numbers "
            "of 0 or more that add up to 1, e.g. 0.7 0.1 0.2."
        )
    patients = _shuffled(datalist.cases, seed)
    groups = _grouped(patients, _share(len(patients), fractions), present)
    return _with_subsets(datalist, groups)


def fold_cases(
    datalist: Datalist,
    folds: int,
    seed: int = 0,
    present: Mapping[str, Collection[int]] | None = None,
) -> list[Datalist]:
    """k datalists for cross-validation: each patient is a test case in exactly one.

    The fold after the test fold is for validation, the others for training.

    Args:
        datalist: datalist whose present subsets are put together first.
        folds: k, at least 3.
        seed: seed of the shuffle.
        present: patient -> label ids, as in `split_cases`.

    Raises:
        DataError: fewer than 3 folds, or fewer patients than folds.
    """
    if folds < 3:
        raise DataError(
            f"{folds} folds; expected at least 3: one to test, one to validate, one to train."
        )
    patients = _shuffled(datalist.cases, seed)
    groups = _grouped(patients, _share(len(patients), [1 / folds] * folds), present)
    lists = []
    for i in range(folds):
        test, validation = i, (i + 1) % folds
        rest = set().union(*(g for j, g in enumerate(groups) if j not in (test, validation)))
        lists.append(_with_subsets(datalist, [rest, groups[validation], groups[test]]))
    return lists


def few_shots(datalist: Datalist, shots: int, seed: int = 0) -> Datalist:
    """So many of the training patients with all their scans; validation and test as they are.

    With the same seed, the patients of fewer shots are among those of more.

    Args:
        datalist: datalist after the split.
        shots: patients kept, at least 1.
        seed: seed of the choice.

    Raises:
        DataError: no shot, or more shots than training patients.
    """
    if shots < 1:
        raise DataError(f"{shots} shots; expected at least 1 training patient.")
    patients = _shuffled(datalist.training, seed)
    if shots > len(patients):
        raise DataError(
            f"{shots} shots, but {len(patients)} training patients in {datalist.name}; expected at "
            "most as many. Ask for fewer shots, raise the training fraction, or add scans."
        )
    kept = set(patients[:shots])
    return replace(datalist, training=tuple(c for c in datalist.training if c.patient in kept))


def labels_of_patients(datalist: Datalist, jobs: int = 2) -> dict[str, set[int]]:
    """Which labels each patient has; reads every label map that `datalist.present` lacks.

    Args:
        datalist: datalist with the cases of all subsets.
        jobs: number of files read at once.

    Raises:
        DataError: a label map that cannot be read.
    """
    cases = datalist.cases

    def read(case: Case) -> Collection[int]:
        if case.id in datalist.present:
            return datalist.present[case.id]
        with about(f"case {case.id}"):
            return open_label(case.label).present(datalist.labels) if case.label else set()

    present: dict[str, set[int]] = {case.patient: set() for case in cases}
    with ThreadPoolExecutor(jobs) as pool:
        found = tracked(pool.map(read, cases), "labels", len(cases))
        for case, values in zip(cases, found, strict=True):
            present[case.patient].update(values)
    return present


def _shuffled(cases: Iterable[Case], seed: int) -> list[str]:
    """The patients of cases, in an order that the seed alone chooses."""
    patients = sorted({case.patient for case in cases})
    random.Random(seed).shuffle(patients)
    return patients


def _grouped(
    patients: Sequence[str],
    counts: Sequence[int],
    present: Mapping[str, Collection[int]] | None,
) -> list[set[str]]:
    """Patients in groups of the given sizes; where their labels differ, each label shared out.

    References:
        Sechidis et al., "On the stratification of multi-label data", ECML PKDD 2011.
    """
    groups: list[set[str]] = [set() for _ in counts]
    labels = {p: frozenset(present.get(p, ())) if present else frozenset() for p in patients}
    if len(set(labels.values())) == 1:  # nothing to stratify by
        rest = iter(patients)
        return [{next(rest) for _ in range(count)} for count in counts]
    room = list(counts)
    total = Counter(label for patient in patients for label in labels[patient])
    share = [count / len(patients) for count in counts]
    wanted = [{label: n * part for label, n in total.items()} for part in share]
    left = list(patients)
    while left:
        remaining = Counter(label for patient in left for label in labels[patient])
        rarest = min(remaining, key=lambda label: (remaining[label], label)) if remaining else None
        patient = next(p for p in left if rarest is None or rarest in labels[p])
        need = [
            (0.0 if rarest is None else wanted[i][rarest], places, -i)
            for i, places in enumerate(room)
            if places
        ]
        best = -max(need)[2]
        groups[best].add(patient)
        room[best] -= 1
        for label in labels[patient]:
            wanted[best][label] -= 1
        left.remove(patient)
    return groups


def _with_subsets(datalist: Datalist, groups: Sequence[Collection[str]]) -> Datalist:
    training, validation, test = (
        tuple(
            sorted(
                (case for case in datalist.cases if case.patient in group),
                key=lambda case: (case.patient, case.id),
            )
        )
        for group in groups
    )
    return replace(datalist, training=training, validation=validation, test=test)


def _share(patients: int, fractions: Sequence[float]) -> list[int]:
    """Whole patients for each subset, by largest remainder, at least one where asked for any."""
    wanted = sum(fraction > 0 for fraction in fractions)
    if patients < wanted:
        raise DataError(
            f"{patients} patients cannot fill {wanted} subsets (fractions {tuple(fractions)}); "
            "expected at least one patient for each. Set a fraction to 0, or add scans."
        )
    exact = [patients * fraction for fraction in fractions]
    counts = [int(share + 1e-9) for share in exact]
    order = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
    for i in order[: patients - sum(counts)]:
        counts[i] += 1
    for i, fraction in enumerate(fractions):
        if fraction > 0 and counts[i] == 0:
            counts[counts.index(max(counts))] -= 1
            counts[i] = 1
    return counts
