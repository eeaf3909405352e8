"""A comparison of methods as text, Markdown, CSV, JSON and one page, from `compare_methods`."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medsam_tune.evaluation.compare import (
    COSTS,
    Method,
    compare_methods,
    test_against,
)
from medsam_tune.evaluation.compare_groups import compare_groups
from medsam_tune.evaluation.compare_tables import (
    HEAD,
    curve_tables,
    filled_rows,
    group_tables,
    label_tables,
    method_rows,
    tables_of_tests,
)
from medsam_tune.evaluation.figures import box_plot, learning_curve
from medsam_tune.evaluation.markdown import behind, escaped, table
from medsam_tune.evaluation.pages import render
from medsam_tune.evaluation.report import REPORT
from medsam_tune.evaluation.statistics import FEW, FEWEST, footnote
from medsam_tune.evaluation.words import brackets, by, facts, headed, rules, tolerances
from medsam_tune.files import written_whole

NAME = "compare"
"""Name of the files of a comparison, without the ending."""


def write_comparison(
    folder: str | Path,
    methods: Sequence[Method],
    failed: Mapping[str, str] | None = None,
    columns: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Write compare.html, compare.md, compare.csv and compare.json.

    Args:
        folder: folder for the files; the page links to the reports of the methods from there.
        methods: evaluated methods, in the order of the tables.
        failed: name of a run that failed -> why.
        columns: columns of the datalist that the cases are grouped by, see `compare_groups`.

    Returns:
        the table as text.

    Raises:
        DataError: see `compare_methods`.
    """
    folder, failed = Path(folder), failed or {}
    found = compare_methods(methods)
    found |= {"groups": compare_groups(methods, columns or {}, found), "failed": dict(failed)}
    context = _context(folder, methods, found)
    files = {
        ".html": render("compare.html.j2", context),
        ".md": _markdown(context),
        ".csv": _csv(found),
        ".json": json.dumps(found, indent=2) + "\n",
    }
    for ending, text in files.items():
        with written_whole(folder / f"{NAME}{ending}") as file:
            file.write_text(text, encoding="utf-8")
    return comparison_text(found)


def comparison_text(found: Mapping[str, Any]) -> str:
    """The table of a comparison as text.

    Args:
        found: from `compare_methods`.
    """
    rows = [HEAD, *method_rows(found)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEAD))]
    ways = "<" * 6 + ">" * (len(HEAD) - 6)
    lines = [
        "  ".join(f"{c:{w}{n}}" for c, w, n in zip(row, ways, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *_notes(found)])


def _notes(found: Mapping[str, Any]) -> Iterable[str]:
    yield _within(found)
    if any(
        scores["dice"]["note"]
        for method in found["methods"].values()
        for scores in method["by_prompts"].values()
    ):
        yield footnote(found["grouped_by"])
    yield from (f"failed: {name}: {why}" for name, why in found["failed"].items())


def _within(found: Mapping[str, Any]) -> str:
    return f"NSD: within {tolerances(found['tolerances'].values())} of the annotator's"


def _csv(found: Mapping[str, Any]) -> str:
    """A row for each method, kind of prompts, measure and label; label "" is the mean of all.

    Where there are groups, the last two columns name them; of all cases they are empty.
    """
    text = io.StringIO()
    head = ["method", "prompts", "measure", "label", "n", "n_empty", "n_missed", "n_patients"]
    head += ["mean", "low", "high", "tolerance"]
    cost = ["seeds", *COSTS]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *cost, *(["column", "group"] if found["groups"] else ())])
    parts = [(("", "") if found["groups"] else (), found["methods"])]
    parts += [
        ((column, value), group["methods"])
        for column, groups in found["groups"].items()
        for value, group in groups.items()
    ]
    for place, methods in parts:
        for name, kind, key, label, values in _cells(methods, found["tolerances"]):
            costs = (found["methods"][name][one] for one in cost)
            writer.writerow([name, kind, key, label, *values, *costs, *place])
    return text.getvalue()


def _cells(
    methods: Mapping[str, Any], tolerances: Mapping[str, Any]
) -> Iterable[tuple[str, str, str, str, list[Any]]]:
    """Method, kind of prompts, measure, label, and the numbers of a row."""
    for name, method in methods.items():
        for kind, scores in method["by_prompts"].items():
            for key, whole in scores.items():
                for label, one in {"": whole, **whole["labels"]}.items():
                    ends = one["interval"] or ("", "")
                    counts = [one[key] for key in ("n", "n_empty", "n_missed", "n_patients")]
                    known = tolerances.get(label, {}) if key == "nsd" else {}
                    values = [*counts, one["mean"], *ends, known.get("tolerance")]
                    yield name, kind, key, label, values


def _context(folder: Path, methods: Sequence[Method], found: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows."""
    summary = methods[0].results[0].summary
    data = summary.get("data") or {}
    figures = [*_figures(methods, found)]
    sections = [("summary", "Summary"), ("methods", "Methods"), ("spread", "Spread")]
    learning, of = [*_curves(found)], found["grouped_by"]
    sections += [("learning", "Learning curve")] if learning else []
    groups = [*group_tables(found)]
    sections += [("labels", "Labels")] + [("groups", "Groups")] * bool(groups)
    sections += [("tests", "Tests"), ("reports", "Reports")]
    known = _facts(methods, found)
    sections += [("rules", "Rules")] + [(one["id"], one["name"]) for one in known]
    return {
        "title": f"Which method? {data.get('name', 'Segmentation')}",
        "subtitle": ", ".join(map(str, filter(None, (data.get("modality"), "held-out cases")))),
        "sections": sections,
        "grouped_by": of,
        "plain": [*_plain(found)],
        "warnings": [*_warnings(found)],
        "table": {"caption": "Means over cases", "head": HEAD, "rows": [*filled_rows(found)]},
        "footnote": f"{brackets(summary)} Of several labels: the mean of their means. n counts "
        "cases and labels; empty: neither annotated nor predicted; missed: annotated, nothing "
        f"predicted, the mean of the seeds. {_within(found)}. The second Dice is the mean "
        f"difference from the method of the column before, over {of}s; p is of Wilcoxon's "
        "signed-rank test on it, corrected by Holm for all pairs of methods. Parameters and bytes "
        "are those that were tuned. The minutes of an epoch include its validation; min to 95 %: "
        "until a validation had 95 % of the best Dice. Peak: memory of the GPU, or of the process "
        "where there is none.",
        "figures": figures,
        "learning": learning,
        "curves": [*curve_tables(found)],
        "labels": [*label_tables(found)],
        "groups": groups,
        "groups_note": "Cases by what the datalist says of them. The intervals are over the "
        f"{of}s of a group; p is corrected by Holm for all pairs of methods in all groups of a "
        f"table, and there is none below {FEWEST} {of}s.",
        "tests": [*tables_of_tests(found)],
        "reports": [*_reports(folder, methods)],
        "rules": [*rules(summary)],
        "facts": known,
    }


def _facts(methods: Sequence[Method], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What stands behind the numbers, as far as it is the same for all runs, and the seeds."""
    runs = [one.summary for method in methods for one in method.runs]
    common: dict[str, Any] = {}
    for key in ("data", "machine", "base", "run", "jitter", "seed"):
        said = [one[key] for one in runs if one.get(key) is not None]
        if key in ("data", "run"):
            names = dict.fromkeys(name for one in said for name in one)
            parts = {name: [one[name] for one in said if one.get(name)] for name in names}
            common[key] = {name: each[0] for name, each in parts.items() if _alike(each)}
        elif said and (key == "machine" or _alike(said)):
            common[key] = said[0]
    common["run"].pop("configuration", None)  # that of one method
    tables = [*facts(common)]
    seeds = {name: one["seeds"] for name, one in found["methods"].items() if one["parameters"]}
    tables[0]["rows"] += [
        (f"seeds of the trainings, {name}", ", ".join(map(str, range(count))))
        for name, count in seeds.items()
    ]
    return tables


def _alike(values: Sequence[Any]) -> bool:
    return len(values) > 0 and all(one == values[0] for one in values)


def _plain(found: Mapping[str, Any]) -> Iterable[str]:
    """The result in words."""
    for kind, entry in found["by_prompts"].items():
        means = {
            name: one["by_prompts"][kind]["dice"]["mean"]
            for name, one in found["methods"].items()
            if kind in one["by_prompts"] and one["by_prompts"][kind]["dice"]["mean"] is not None
        }
        if not means:
            continue
        best = max(means, key=lambda name: means[name])
        text = f"{headed(by(kind, found))}, {best} is best: Dice {means[best]:.3f}"
        others = [name for name in means if name != best]
        alike = [
            name
            for name in others
            if (p := test_against(entry["tests"]["dice"], best, name).get("p_holm")) is None
            or p >= 0.05
        ]
        if alike:
            text += f"; it is not shown to differ from {', '.join(alike)}"
        elif others:
            text += "; each other method is lower by more than chance (p < 0.05)"
        yield f"{text}."


def _warnings(found: Mapping[str, Any]) -> Iterable[str]:
    for name, why in found["failed"].items():
        yield f"{name} failed and is not in the tables: {why}"
    patients = max(
        (
            scores["dice"]["n_patients"]
            for method in found["methods"].values()
            for scores in method["by_prompts"].values()
        ),
        default=0,
    )
    of = found["grouped_by"]
    if patients < FEWEST:
        yield f"Fewer than {FEWEST} {of}s: no interval and no test; the numbers say little."
    elif patients < FEW:
        yield f"Fewer than {FEW} {of}s: the intervals are unsure, and rather too narrow."


def _figures(methods: Sequence[Method], found: Mapping[str, Any]) -> Iterable[dict[str, str]]:
    """A box plot of the Dice of each method, for each kind of prompts."""
    for kind in found["by_prompts"]:
        groups = {
            one.name: values for one in methods if (values := [*one.values(kind, "dice").values()])
        }
        if groups:
            words = by(kind, found)
            yield {
                "svg": box_plot(f"Dice of each method {words}", groups, "Dice"),
                "caption": f"Dice of each case and label {words}; the box holds the middle half of "
                "them, the thick line is the median.",
            }


def _curves(found: Mapping[str, Any]) -> Iterable[dict[str, str]]:
    """A figure of the learning curves for each kind of prompts."""
    learning, of = found["learning"], found["grouped_by"]
    for kind in dict.fromkeys(kind for kinds in learning.values() for kind in kinds):
        lines: dict[str, list[dict[str, Any]]] = {}
        for name, kinds in learning.items():
            further = [{**one, "foretold": True} for one in kinds.get(kind, {}).get("next", ())]
            points = [*kinds.get(kind, {}).get("points", ()), *further]
            lines |= {name: [one for one in points if one["mean"] is not None]}
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            title = f"Dice over the number of training {of}s {by(kind, found)}"
            yield {
                "svg": learning_curve(title, lines, f"training {of}s"),
                "caption": f"{title}: means over the held-out cases with 95 % intervals over "
                f"their {of}s. What is pale is foretold by a power of the number of {of}s, not "
                f"measured; it holds for {of}s like these.",
            }


def _reports(folder: Path, methods: Sequence[Method]) -> Iterable[dict[str, str]]:
    """Links to the reports of all runs, relative to the page."""
    for method in methods:
        for place, one in zip(method.folders, method.runs, strict=True):
            link = Path(os.path.relpath(one.folder / REPORT, folder)).as_posix()
            yield {"name": place.name, "link": quote(link)}


def _markdown(context: Mapping[str, Any]) -> str:
    parts = [f"# {escaped(context['title'])}", *map(escaped, context["plain"])]
    parts += [f"> {escaped(line)}" for line in context["warnings"]]
    tables = (context["table"], *context["curves"], *context["labels"], *context["groups"])
    for one in (*tables, *context["tests"]):
        parts += [f"## {escaped(one['caption'])}", table(one["head"], one["rows"])]
    parts += [escaped(context["groups_note"])] * bool(context["groups"])
    parts.append(escaped(context["footnote"]))
    return "\n\n".join([*parts, *behind(context)]) + "\n"
