"""Splits: which subset each patient belongs to."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from medsam_tune.cases.datalist import SUBSETS, Case, Datalist, as_json
from medsam_tune.cases.description import IGNORE
from medsam_tune.cases.labels.open import open_label
from medsam_tune.console import tracked
from medsam_tune.errors import DataError, about
from medsam_tune.files import all_written_whole
from medsam_tune.formats import geotiff
from medsam_tune.formats.open import reader_of


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
    if not (min(fractions) >= 0 and abs(sum(fractions) - 1) <= 1e-6):  # NaN is neither
        raise DataError(
            f"fractions {fractions} of training, validation and test; expected three numbers "
            "of 0 or more that add up to 1, e.g. 0.7 0.1 0.2."
        )
    patients = _shuffled(datalist.cases, seed)
    shares = _share(len(patients), fractions, datalist.cases)
    return _with_subsets(datalist, _grouped(patients, shares, present))


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
    shares = _share(len(patients), [1 / folds] * folds, datalist.cases)
    groups = _grouped(patients, shares, present)
    lists = []
    for i in range(folds):
        test, validation = i, (i + 1) % folds
        rest = set().union(*(g for j, g in enumerate(groups) if j not in (test, validation)))
        lists.append(_with_subsets(datalist, [rest, groups[validation], groups[test]]))
    return lists


def few_shots(
    datalist: Datalist,
    shots: int,
    seed: int = 0,
    present: Mapping[str, Collection[int]] | None = None,
) -> Datalist:
    """So many of the training patients with all their scans; validation and test as they are.

    With the same seed, the patients of fewer shots are among those of more.

    Args:
        datalist: datalist after the split.
        shots: patients kept, at least 1.
        seed: seed of the choice.
        present: patient -> label ids, from `labels_of_patients`; the first patients then have all
            labels between them.

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
    kept = {*_all_labels_first(patients, present or {})[:shots]}
    return replace(datalist, training=tuple(c for c in datalist.training if c.patient in kept))


def _all_labels_first(
    patients: Sequence[str], present: Mapping[str, Collection[int]]
) -> Sequence[str]:
    """The order of the patients, but whoever brings a label that those before lack comes sooner."""
    left, ordered, seen = [*patients], [], set[int]()
    while left:
        following = next((one for one in left if {*present.get(one, ())} - seen), None)
        if following is None:
            break
        left.remove(following)
        ordered.append(following)
        seen.update(present[following])
    return [*ordered, *left]


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
            return (
                open_label(case.label, case.coding, case.region, case.image).present(
                    datalist.labels
                )
                if case.label
                else set()
            )

    present: dict[str, set[int]] = {case.patient: set() for case in cases}
    with ThreadPoolExecutor(jobs) as pool:
        found = tracked(pool.map(read, cases), "labels", len(cases))
        for case, values in zip(cases, found, strict=True):
            present[case.patient].update(values)
    return present


def split_lines(path: Path, datalist: Datalist) -> list[str]:
    """Lines for a terminal: the size of each subset, the labels, and what an empty subset means."""
    sizes = [f"{len(getattr(datalist, name))} {name}" for name in SUBSETS]
    labels = ", ".join(f"{number} {name}" for number, name in datalist.labels.items())
    lines = [f"{path}: {sizes[0]}, {sizes[1]} and {sizes[2]} cases; labels: {labels}"]
    for value, number in datalist.coding.united.items():
        lines.append(f"value {value} is read as {number} {datalist.labels[number]}")
    if datalist.ignore is not None:
        lines.append(f"label {datalist.ignore}, {IGNORE}, is left out of training and of scores")
    if not datalist.training or not datalist.validation:
        empty = "training" if not datalist.training else "validation"
        lines.append(f"no {empty} cases: `train` will refuse this datalist")
    if not datalist.test:
        lines.append("no test cases: `evaluate` will refuse this datalist, nothing is held out")
    return lines


def write_splits(lists: Mapping[Path, Datalist], tables: Mapping[Path, str] | None = None) -> None:
    """Write datalists, and tables that only the owner may read: all of them, or none.

    Args:
        lists: .json file -> datalist.
        tables: file -> its text.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; nothing is written then.
    """
    tables = tables or {}
    paths = [*lists, *tables]
    with all_written_whole(paths) as beside:
        files = dict(zip(paths, beside, strict=True))
        for path, datalist in lists.items():
            files[path].write_text(as_json(datalist, path.parent), encoding="utf-8")
        for path, text in tables.items():
            files[path].touch(0o600)
            files[path].write_text(text, encoding="utf-8")


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
    # Of the patients that are left: how many have a label; and who has it, in order.
    remaining = Counter(total)
    queues = {label: deque(p for p in patients if label in labels[p]) for label in total}
    left, placed = deque(patients), set[str]()
    for _ in patients:
        rarest = min(remaining, key=lambda label: (remaining[label], label)) if remaining else None
        queue = left if rarest is None else queues[rarest]
        while queue[0] in placed:
            queue.popleft()
        patient = queue.popleft()
        need = [
            (0.0 if rarest is None else wanted[i][rarest], places, -i)
            for i, places in enumerate(room)
            if places
        ]
        best = -max(need)[2]
        groups[best].add(patient)
        placed.add(patient)
        room[best] -= 1
        for label in labels[patient]:
            wanted[best][label] -= 1
            remaining[label] -= 1
            if not remaining[label]:
                del remaining[label]
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


def _share(patients: int, fractions: Sequence[float], cases: Sequence[Case]) -> list[int]:
    """Whole patients for each subset, by largest remainder, at least one where asked for any."""
    wanted = sum(fraction > 0 for fraction in fractions)
    if patients < wanted:
        noun, more = "patients", "or add scans"
        if cases and all(reader_of(case.image) is geotiff for case in cases):
            noun, more = "scenes or groups", "add scenes, or cut them by --blocks, such as 120m"
        raise DataError(
            f"{patients} {noun} cannot fill {wanted} subsets (fractions {tuple(fractions)}); "
            f"expected at least one for each. Set a fraction to 0, {more}."
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
