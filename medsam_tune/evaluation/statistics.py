"""Means over cases with their intervals, and tests between methods.

An interval says how far a mean may lie from that of other patients, who are drawn with all of their
cases. Of few patients it says nothing: below `FEWEST` there is none, below `FEW` it is marked.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

from medsam_tune.evaluation.metrics import Score
from medsam_tune.inference.simulated import parse_kind

FEWEST = 5
"""Smallest number of patients of which an interval is given."""

FEW = 30
"""Number of patients below which an interval is marked: the bootstrap makes it too narrow."""

SAMPLES = 2000
"""Resamples of the bootstrap."""

MEASURED = (
    *("dice", "iou", "nsd", "hd95", "surface_distance", "precision", "recall"),
    *("truth_volume", "predicted_volume", "volume_difference", "boundary_iou", "found"),
    *("ellipse_dice", "ellipse_iou"),
)
"""Measures of a case of which a label's summary has a `distribution`."""

_WITH_INTERVAL = {"dice", "iou", "nsd", "hd95", "surface_distance", "found"}
_MEANS = ("dice", "iou", "nsd", "hd95", "surface_distance", "ellipse_dice", "ellipse_iou")

_COLUMNS = {
    "iou": "IoU",
    "nsd": "NSD",
    "hd95": "HD95",
    "ellipse_dice": "ellipse",
    "boundary_iou": "border",
    "pq": "PQ",
}
"""Measure -> head of its column on the terminal; left out where no label has it."""
_ALWAYS = ("iou", "ellipse_dice")

K = TypeVar("K")
Row = tuple[Hashable, Hashable, float]
"""Patient, label and value of one case."""


def bootstrap_interval(
    values: Iterable[float] | Sequence[Row], samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of a mean; None below `FEWEST` patients.

    Args:
        values: one number for each patient; or rows of patient, label and value: the mean over the
            labels of the means over their rows, while patients are drawn with all their rows.
        samples: number of resamples, drawn with replacement.
        seed: seed of the resampling.
    """
    rows = [one if isinstance(one, tuple) else (n, 0, one) for n, one in enumerate(values)]
    patients = {patient: n for n, patient in enumerate(dict.fromkeys(row[0] for row in rows))}
    labels = {label: n for n, label in enumerate(dict.fromkeys(row[1] for row in rows))}
    if len(patients) < FEWEST:
        return None
    sums, counts = np.zeros((2, len(patients), len(labels)))
    for patient, label, value in rows:
        sums[patients[patient], labels[label]] += value
        counts[patients[patient], labels[label]] += 1
    generator = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    step = max(1, 2 * 10**5 // len(patients))  # some MB, however many patients
    for start in range(0, samples, step):
        size = (min(step, samples - start), len(patients))
        picks = generator.integers(len(patients), size=size)
        drawn = np.stack([np.bincount(one, minlength=len(patients)) for one in picks])
        total, number = drawn @ sums, drawn @ counts
        share = np.divide(total, number, where=number > 0, out=np.full(total.shape, np.nan))
        means.append(np.nanmean(share[(number > 0).any(1)], axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def interval_note(patients: int) -> str:
    """What must be known of an interval over so many patients: "too few", "few", or nothing."""
    return "too few" if patients < FEWEST else "few" if patients < FEW else ""


def mean_text(mean: float | None, interval: Sequence[float] | None, patients: int) -> str:
    """A mean and its interval for a table, such as "0.745 (0.659 to 0.819)*"; `footnote` says why.

    Args:
        mean: mean over the cases; None if none could be scored.
        interval: from `bootstrap_interval`.
        patients: number of patients.
    """
    if mean is None:
        return "-"
    if interval is None:
        return f"{mean:.3f} ({interval_note(patients)})"
    low, high = interval
    return f"{mean:.3f} ({low:.3f} to {high:.3f}){'*' * bool(interval_note(patients))}"


def distribution_text(found: Mapping[str, Any]) -> str:
    """`mean_text` of what `distribution` gives."""
    return mean_text(found["mean"], found.get("interval"), found["n_patients"])


def footnote(of: str = "patient") -> str:
    """What stands under a table of `mean_text`.

    Args:
        of: what the cases are grouped by, see `words.people`.
    """
    return f"* of fewer than {FEW} {of}s; too few: below {FEWEST} there is no interval"


def distribution(rows: Sequence[Row], interval: bool = True) -> dict[str, Any]:
    """Mean, median, quartiles and extremes of the rows of one label, as JSON.

    Args:
        rows: patient, label and value of each case.
        interval: with the 95 % interval of the mean, see `bootstrap_interval`.

    Returns:
        `n`, `n_patients`, `mean`, `median`, `q1`, `q3`, `min`, `max` (None without a row), and with
        an interval `interval` (None if there is none) and its `note`.
    """
    patients = len({row[0] for row in rows})
    found: dict[str, Any] = {"n": len(rows), "n_patients": patients}
    values = np.array([row[2] for row in rows])
    keys = ("mean", "median", "q1", "q3", "min", "max")
    if len(values):
        quartiles = np.percentile(values, [50, 25, 75])
        numbers = [values.mean(), *quartiles, values.min(), values.max()]
        found |= dict(zip(keys, map(float, numbers), strict=True))
    else:
        found |= dict.fromkeys(keys)
    if interval:
        found |= {"interval": bootstrap_interval(rows), "note": interval_note(patients)}
    return found


def summarise(
    scores: Sequence[Score], columns: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, Any]:
    """Means over cases of each label, with intervals, and the means over the labels that have one.

    A mean over nothing is None: a label that no case has and that was nowhere predicted, or the
    ellipse of a label that is predicted and in no case's truth, so that it has no box.

    Args:
        scores: scores by one kind of prompts.
        columns: name of a column of the datalist -> case -> its value, such as the site.

    Returns:
        `mean_dice`, `mean_iou`, `mean_nsd`, ...: means over labels of the means over cases;
        `intervals`: measure -> the 95 % interval of that mean over the labels, or None;
        `labels`: id -> `name`; `n`, number of cases counted; `n_patients`; `n_empty`, cases where
        both are empty; `n_missed`, cases whose label was not predicted at all; `n_false`, cases
        without it where it was predicted; `objects`, number prompted for in all cases; `unit` and
        `tolerance`; for each of `MEASURED` a `distribution`, whose mean of `found` is the share of
        the cases with the label in which the prediction touches it; `lesions`, `lesions_found` and
        `false_lesions` of all cases; `object_precision`, `object_recall` and `pq` of the objects of
        all cases together, see `borders.paired`;
        `groups`: column -> value -> the same `labels` for its cases.
    """
    labels = _by_label(scores)
    means = {f"mean_{key}": _mean(labels, key) for key in _MEANS}
    intervals = {key: bootstrap_interval(_rows(scores, key)) for key in ("dice", "nsd")}
    found = {**means, "intervals": intervals, "labels": labels}
    if columns:
        groups = {
            column: _grouped((of_case.get(score.case, ""), score) for score in scores)
            for column, of_case in columns.items()
        }
        found["groups"] = {
            column: {value: _by_label(of_value[value]) for value in sorted(of_value)}
            for column, of_value in groups.items()
        }
    return found


def _by_label(scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
    by_label = _grouped((score.label, score) for score in scores)
    return {str(label): _of_label(by_label[label]) for label in sorted(by_label)}


def _grouped(pairs: Iterable[tuple[K, Score]]) -> dict[K, list[Score]]:
    found: dict[K, list[Score]] = {}
    for key, score in pairs:
        found.setdefault(key, []).append(score)
    return found


def _of_label(scores: Sequence[Score]) -> dict[str, Any]:
    counted = [s for s in scores if s.dice is not None]
    return {
        "name": scores[0].name,
        "n": len(counted),
        "n_patients": len({_patient(s) for s in counted}),
        "n_empty": sum(s.empty for s in scores),
        "n_missed": sum(s.missed for s in scores),
        "n_false": sum(not s.truth_voxels and s.predicted_voxels > 0 for s in scores),
        "objects": sum(s.objects for s in scores),
        "unit": scores[0].unit,
        "tolerance": scores[0].tolerance,
        **{key: distribution(_rows(scores, key), key in _WITH_INTERVAL) for key in MEASURED},
        **{key: _total(scores, key) for key in ("lesions", "lesions_found", "false_lesions")},
        **_of_objects(scores),
    }


def _rows(scores: Sequence[Score], key: str) -> list[Row]:
    """Patient, label and value of the scores that have one."""
    found = ((_patient(s), s.label, value_of(s, key)) for s in scores)
    return [(patient, label, value) for patient, label, value in found if value is not None]


def _patient(score: Score) -> str:
    return score.patient or score.case


def value_of(score: Score, key: str) -> float | None:
    """A measure of a case, 0 or 1 for `found`; the ellipse's IoU follows from its Dice."""
    if key == "ellipse_iou":
        return None if score.ellipse_dice is None else score.ellipse_dice / (2 - score.ellipse_dice)
    value: float | None = getattr(score, key)
    return None if value is None else float(value)


def _total(scores: Sequence[Score], key: str) -> int | None:
    """A sum over the cases; None where no case has it."""
    values = [getattr(s, key) for s in scores if getattr(s, key) is not None]
    return sum(values) if values else None


def _of_objects(scores: Sequence[Score]) -> dict[str, float | None]:
    """Precision, recall and panoptic quality of the objects of one label; None without objects."""
    true, found, pairs, iou = (
        sum(getattr(s, key) or 0 for s in scores)
        for key in ("true_objects", "found_objects", "paired_objects", "paired_iou")
    )
    return {
        "object_precision": pairs / found if found else None,
        "object_recall": pairs / true if true else None,
        "pq": 2 * iou / (true + found) if true + found else None,
    }


def summarise_kinds(
    scores: Mapping[str, Sequence[Score]], columns: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, Any]:
    """Summaries of several kinds of prompts.

    Args:
        scores: kind -> scores.
        columns: see `summarise`.

    Returns:
        what `summarise` says of the first kind; `prompts`, its name (None if there is no kind);
        and `by_prompts`: kind -> what `summarise` says of it, the first one too.
    """
    by_prompts = {kind: summarise(each, columns) for kind, each in scores.items()}
    first = next(iter(by_prompts), None)
    main = summarise([]) if first is None else by_prompts[first]
    return {"prompts": first, **main, "by_prompts": by_prompts}


def paired_tests(
    values: Mapping[str, Mapping[Hashable, float]], patients: Mapping[Hashable, Hashable]
) -> list[dict[str, Any]]:
    """Wilcoxon's signed-rank test between every two methods, over patients, corrected by Holm.

    Args:
        values: method -> case -> its score.
        patients: case -> patient; a patient's value is the mean of the cases that both methods
            have.

    Returns:
        for each pair `first`, `second`, `n_patients`, `difference` (mean of second minus first),
        `interval` of it (None below `FEWEST` patients), `p` and `p_holm` (None below `FEWEST`
        patients), and `effect`, the rank-biserial correlation from -1 to 1, positive where the
        second is better (None where no patient differs).

    References:
        Wilcoxon 1945; Holm 1979; Kerby 2014 (rank-biserial correlation).
    """
    names = [*values]
    tests = []
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            differences: dict[Hashable, list[float]] = {}
            for case in values[first].keys() & values[second].keys():
                own = differences.setdefault(patients.get(case, case), [])
                own.append(values[second][case] - values[first][case])
            own_means = sorted(float(np.mean(one)) for one in differences.values())
            tests.append({"first": first, "second": second, **_test(np.array(own_means))})
    for test, corrected in zip(tests, holm([one["p"] for one in tests]), strict=True):
        test["p_holm"] = corrected
    return tests


def _test(differences: NDArray[np.float64]) -> dict[str, Any]:
    moved = differences[differences != 0]
    ranks = rankdata(np.abs(moved))
    few = len(differences) < FEWEST
    p = None if few else float(wilcoxon(differences).pvalue) if len(moved) else 1.0
    return {
        "n_patients": len(differences),
        "difference": float(differences.mean()) if len(differences) else None,
        "interval": bootstrap_interval(differences.tolist()),
        "p": p,
        "effect": float((np.sign(moved) * ranks).sum() / ranks.sum()) if len(moved) else None,
    }


def holm(values: Sequence[float | None]) -> list[float | None]:
    """P-values corrected for their number by Holm's step-down method; None stays."""
    there = sorted((p, n) for n, p in enumerate(values) if p is not None)
    found: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, n) in enumerate(there):
        highest = max(highest, min(1.0, p * (len(there) - rank)))
        found[n] = highest
    return found


def format_summary(
    by_prompts: Mapping[str, Mapping[str, Any]], flat: bool = False, of: str = "patient"
) -> str:
    """Table of kinds of prompts as text, a block for each.

    Args:
        by_prompts: kind -> what `summarise` says of it.
        flat: whether the cases are 2-D images.
        of: what the cases are grouped by, see `words.people`.
    """
    lines = []
    entries = [entry for each in by_prompts.values() for entry in each["labels"].values()]
    shown = [k for k in _COLUMNS if k in _ALWAYS or any(_value(e, k) is not None for e in entries)]
    for kind, summary in by_prompts.items():
        lines.append(f"prompts: {kind} ({parse_kind(kind).words(flat)})")
        head = f"{'label':<20} {'n':>5} {'empty':>5} {'missed':>6} {'objects':>7}  "
        lines.append(
            f"{head}{'Dice (95 % interval)':<25}" + "".join(f" {_COLUMNS[k]:>7}" for k in shown)
        )
        rows = summary["labels"].values()
        for entry in rows:
            counts = f"{entry['n']:>5} {entry['n_empty']:>5} {entry['n_missed']:>6}"
            dice = distribution_text(entry["dice"])
            values = "".join(f" {_number(_value(entry, k)):>7}" for k in shown)
            lines.append(f"{entry['name']:<20} {counts} {entry['objects']:>7}  {dice:<25}{values}")
        means = {key: _mean(summary["labels"], key) for key in shown}
        values = "".join(f" {_number(means[key]):>7}" for key in shown)
        lines.append(f"{'mean':<20} {'':>26}  {_number(summary['mean_dice']):<25}{values}")
    if any(entry["dice"]["note"] for entry in entries):
        lines.append(footnote(of))
    return "\n".join(lines)


def _value(entry: Mapping[str, Any], key: str) -> float | None:
    """A number of a label's summary: the mean of a measure, or the number itself."""
    found = entry[key]
    value: float | None = found["mean"] if isinstance(found, Mapping) else found
    return value


def _mean(labels: Mapping[str, Mapping[str, Any]], key: str) -> float | None:
    counted = [v for entry in labels.values() if (v := _value(entry, key)) is not None]
    return float(np.mean(counted)) if counted else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
