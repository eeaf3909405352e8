"""Comparison of methods in groups of cases, such as those of a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from medsam_tune.evaluation.compare import Method, compare_methods
from medsam_tune.evaluation.statistics import holm


def compare_groups(
    methods: Sequence[Method], columns: Mapping[str, Mapping[str, str]], whole: Mapping[str, Any]
) -> dict[str, Any]:
    """Compare methods on the cases of each value of a column of the datalist.

    Args:
        methods: as of `compare_methods`.
        columns: name of a column -> case -> its value, see `scores.columns_of`; a case that is not
            there has the value "".
        whole: what `compare_methods` says of all cases; its references hold for the groups too.

    Returns:
        column -> value -> `methods`: name -> `by_prompts`, and `by_prompts`, as of
        `compare_methods`; the `p_holm` of the tests are corrected for all pairs of methods in all
        groups of the column.
    """
    cases = sorted({row["case"] for one in methods for each in one.results for row in each.first})
    found: dict[str, Any] = {}
    for column, of_case in columns.items():
        members: dict[str, set[str]] = {}
        for case in cases:
            members.setdefault(of_case.get(case, ""), set()).add(case)
        found[column] = {
            value: _compared([_only(one, members[value]) for one in methods], whole)
            for value in sorted(members)
        }
        _correct([*found[column].values()])
    return found


def _only(method: Method, cases: set[str]) -> Method:
    """A method with the rows of some cases, and without its place in a learning curve."""
    results = tuple(
        replace(
            one,
            rows={
                kind: [row for row in rows if row["case"] in cases]
                for kind, rows in one.rows.items()
            },
        )
        for one in method.results
    )
    return replace(method, results=results, family=None)


def _compared(methods: Sequence[Method], whole: Mapping[str, Any]) -> dict[str, Any]:
    found = compare_methods(methods)
    return {
        "methods": {
            name: {"by_prompts": one["by_prompts"]} for name, one in found["methods"].items()
        },
        "by_prompts": {
            kind: {**entry, "reference": whole["by_prompts"][kind]["reference"]}
            for kind, entry in found["by_prompts"].items()
        },
    }


def _correct(groups: Sequence[Mapping[str, Any]]) -> None:
    """Correct the tests of all groups of a column together, for each kind and measure."""
    for kind, entry in groups[0]["by_prompts"].items():
        for key in entry["tests"]:
            tests = [test for one in groups for test in one["by_prompts"][kind]["tests"][key]]
            for test, corrected in zip(tests, holm([one["p"] for one in tests]), strict=True):
                test["p_holm"] = corrected
