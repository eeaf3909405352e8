"""Tables of a comparison of methods, as texts of their cells, from `compare_methods`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from medsam_tune.evaluation.compare import SCORES, test_against
from medsam_tune.evaluation.statistics import mean_text
from medsam_tune.evaluation.words import by, number

HEAD = (
    *("method", "prompts", "n (empty, missed)", "Dice (95 % interval)", "NSD (95 % interval)"),
    *("against", "Dice", "p (Holm)", "parameters", "bytes", "min/epoch", "min to 95 %", "peak MiB"),
)


def method_rows(found: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """Rows of the table, one for each method and kind of prompts."""
    for name, method in found["methods"].items():
        for place, (kind, scores) in enumerate(method["by_prompts"].items()):
            cost = (
                _whole(method["parameters"]),
                _whole(method["bytes"]),
                number(method["minutes_per_epoch"], "minutes"),
                number(method["minutes_to_nearly_best"], "minutes"),
                _whole(method["peak_bytes"] and method["peak_bytes"] // 2**20),
            )
            yield (
                *(name if not place else "", kind, *_scored(scores), *_tested(found, name, kind)),
                *(cost if not place else ("",) * len(cost)),
            )


def filled_rows(found: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """Rows of the table with the name of the method in each."""
    name = ""
    for row in method_rows(found):
        name = row[0] or name
        yield (name, *row[1:])


def _scored(scores: Mapping[str, Any]) -> list[str]:
    """What is behind a mean, and the means of `SCORES`."""
    means = (mean_text(one["mean"], one["interval"], one["n_patients"]) for one in scores.values())
    return [_counts(scores["dice"]), *means]


def _counts(one: Mapping[str, Any]) -> str:
    """Number of cases behind a mean, and of empty and missed ones, such as "16 (0, 2)"."""
    return f"{one['n']} ({one['n_empty']}, {round(one['n_missed'], 1):g})"


def _tested(found: Mapping[str, Any], name: str, kind: str) -> tuple[str, str, str]:
    """Whom a method is tested against, the difference of the Dice and its corrected p."""
    kinds = found["by_prompts"]
    entry = kinds[kind if kind in kinds else next(iter(kinds))]
    test = test_against(entry["tests"]["dice"], name, entry["reference"])
    if not test or test["difference"] is None:
        return "-", "-", "-"
    return str(entry["reference"]), f"{test['difference']:+.3f}", _p(test["p_holm"])


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _whole(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def curve_tables(found: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """What more patients bring, as numbers."""
    rows = []
    for name, kinds in found["learning"].items():
        for kind, curve in kinds.items():
            for one in curve["points"]:
                dice = mean_text(one["mean"], one["interval"], one["n_patients"])
                seeds = ", ".join(number(seed) for seed in one["seeds"])
                rows.append([name, kind, str(one["patients"]), _counts(one), dice, seeds])
            for one in curve.get("next", ()):
                low, high = one["interval"]
                dice = f"{one['mean']:.3f} ({low:.3f} to {high:.3f})"
                rows.append([name, kind, str(one["patients"]), "-", dice, "foretold"])
            if "why" in curve:
                rows.append([name, kind, "more", "-", "-", f"not foretold: {curve['why']}"])
    if rows:
        of = found["grouped_by"]
        head = ["method", "prompts", f"training {of}s", HEAD[2], HEAD[3], "of each seed"]
        yield {"caption": f"Training {of}s and Dice", "head": head, "rows": rows}


def label_tables(found: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Each measure of each label, by method and kind of prompts."""
    for key, words in SCORES.items():
        names = dict.fromkeys(
            label
            for method in found["methods"].values()
            for scores in method["by_prompts"].values()
            for label in scores[key]["labels"]
        )
        rows = [
            [name, kind, *(_label_cell(scores[key]["labels"].get(label)) for label in names)]
            for name, method in found["methods"].items()
            for kind, scores in method["by_prompts"].items()
        ]
        if names:
            head = ["method", "prompts", *names]
            yield {"caption": f"{words} of each label; {HEAD[2]}", "head": head, "rows": rows}


def _label_cell(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "-"
    return f"{mean_text(one['mean'], one['interval'], one['n_patients'])}; {_counts(one)}"


def group_tables(found: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The scores of each method in each group, a table for each column of the datalist."""
    for column, groups in found["groups"].items():
        rows = [
            [
                *(value or "(none)", name, kind, str(scores["dice"]["n_patients"])),
                *(*_scored(scores), *_tested(group, name, kind)),
            ]
            for value, group in groups.items()
            for name, method in group["methods"].items()
            for kind, scores in method["by_prompts"].items()
        ]
        head = [column, *HEAD[:2], f"{found['grouped_by']}s", *HEAD[2:8]]
        yield {"caption": f"Means over cases by {column}", "head": head, "rows": rows}


def tables_of_tests(found: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Every test between two methods, a table for each kind of prompts."""
    head = ["first", "second", "measure", f"{found['grouped_by']}s"]
    head += ["difference (95 % interval)", "p", "p (Holm)"]
    for kind, entry in found["by_prompts"].items():
        rows = []
        for key, tests in entry["tests"].items():
            for test in tests:
                difference = number(test["difference"])
                if test["interval"]:
                    difference += " ({:.3f} to {:.3f})".format(*test["interval"])
                pair = (test["first"], test["second"], SCORES[key], str(test["n_patients"]))
                p = (_p(test["p"]), _p(test["p_holm"]))
                rows.append([*pair, difference, *p, number(test["effect"])])
        if rows:
            caption = f"Second minus first, {by(kind, found)}"
            yield {"caption": caption, "head": [*head, "effect"], "rows": rows}
