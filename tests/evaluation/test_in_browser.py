"""Pages of results in headless Chromium: no request, no fault, numbers of the files, its table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from medsam_tune.evaluation.metrics import Measures
from medsam_tune.evaluation.report import write_report
from medsam_tune.evaluation.scores import measured_by, write_scores
from medsam_tune.evaluation.statistics import summarise_kinds
from tests.browser import NAMES, Browser, browser, program
from tests.evaluation.looks import AXE, WIDTHS, elsewhere, examined, made_up
from tests.evaluation.test_report import evaluated, scores

NAMES_OF_CASES = ["31", *(f"case_{n}" for n in range(11))]
pytestmark = pytest.mark.skipif(program() is None, reason=f"none of {', '.join(NAMES)} is here")
axe_core = pytest.mark.skipif(
    not AXE.is_file(), reason="`npm install --no-save axe-core@4.14.1` was not run here"
)


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return made_up(tmp_path_factory.mktemp("pages"))


def test_requests_are_seen(tmp_path: Path, tab: Browser) -> None:
    """Without this, pages could ask for anything unseen."""
    asked = [f"http://127.0.0.1:9/{name}" for name in ("picture.png", "style.css", "data.json")]
    page = tmp_path / "page.html"
    page.write_text(
        f"<img src='{asked[0]}'><link rel='stylesheet' href='{asked[1]}'>"
        f"<script>fetch('{asked[2]}').catch(() => {{}})</script>"
    )
    tab.open(page, 1280)
    assert sorted(elsewhere(tab)) == sorted(asked)
    page.write_text("<script>nothing.there()</script>")
    tab.open(page, 1280)
    assert "nothing is not defined" in "".join(tab.said)


def test_pages_ask_for_nothing_and_fit(pages: list[Path], tab: Browser) -> None:
    """Opened, sorted, filtered and printed; neither a script nor the page's policy complains."""
    for page in pages:
        for width in WIDTHS:
            tab.open(page, width)
            tab.run("for (const one of document.querySelectorAll('button, summary')) one.click()")
            tab.call("Page.printToPDF")
            assert (page.stem, elsewhere(tab), tab.said) == (page.stem, [], [])
            assert tab.run("document.documentElement.scrollWidth") <= width


@axe_core
@pytest.mark.slow
def test_axe_finds_no_grave_fault(pages: list[Path], tab: Browser) -> None:
    axe = AXE.read_text(encoding="utf-8")
    found = [one for page in pages for one in examined(tab, page, axe)]
    assert all(one.passed > 30 for one in found)
    assert {(one.page, one.look): one.grave for one in found if one.bad} == {}


@axe_core
def test_axe_would_find_one(tmp_path: Path, tab: Browser) -> None:
    page = write_report(evaluated(tmp_path))
    page.write_text(page.read_text().replace('<label for="filter">Show rows with </label>', ""))
    faults = [
        fault["id"]
        for one in examined(tab, page, AXE.read_text(encoding="utf-8"))
        for fault in one.grave
    ]
    assert {*faults} == {"label"}


def test_shown_numbers_are_those_of_the_summary(tmp_path: Path, tab: Browser) -> None:
    page = write_report(evaluated(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    tab.open(page, 1280)
    tiles = tab.run("document.querySelector('.tiles').innerText")
    for key in ("dice", "nsd"):
        assert f"{summary[f'mean_{key}']:.3f}" in tiles
        low, high = summary["intervals"][key]
        assert f"{low:.3f} to {high:.3f}" in tiles
    shown = table(tab, "#labels table")
    for row, entry in zip(shown, summary["labels"].values(), strict=True):
        dice = "{mean:.3f} ({interval[0]:.3f} to {interval[1]:.3f})*".format(**entry["dice"])
        assert row[:3] == [entry["name"], dice, str(entry["n"])]


def table(tab: Browser, selector: str) -> list[list[str]]:
    """Cells of the rows of a table's body that can be seen."""
    rows: list[list[str]] = tab.run(
        f"Array.from(document.querySelector('{selector}').tBodies[0].rows)"
        ".filter((row) => row.offsetParent !== null || row.getClientRects().length > 0)"
        ".map((row) => Array.from(row.cells, (cell) => cell.innerText))"
    )
    return rows


@pytest.fixture
def cases(tmp_path: Path, tab: Browser) -> Browser:
    """A report of 12 cases, opened: volumes of up to three digits, one label without any."""
    few = scores("slices", {1: "liver", 2: "spleen"}, 0.9)[:2] * 12
    rows = [
        replace(
            one, case=NAMES_OF_CASES[n // 2], patient=str(n // 2), truth_volume=volume, lesions=n
        )
        for n, one in enumerate(few)
        for volume in [None if n == 5 else 7.5 * (n * 5 % 24)]
    ]
    known = {"subset": "test", "cases": 12, "seconds": 2.5, "stopped_by": None}
    kinds = {"slices": rows}
    write_scores(tmp_path, kinds, {**known, **measured_by(Measures()), **summarise_kinds(kinds)})
    tab.open(write_report(tmp_path), 1280)
    return tab


def column(tab: Browser, name: str) -> list[str]:
    heads = tab.run("Array.from(sortable.tHead.rows[0].cells, (cell) => cell.innerText.trim())")
    return [row[heads.index(name)] for row in table(tab, "#sortable")]


def click(tab: Browser, name: str) -> str | None:
    """Click a column's head as a user does, by its place; how it is sorted then."""
    head = f"Array.from(sortable.tHead.rows[0].cells).find((c) => c.innerText.trim() === '{name}')"
    tab.run(f"{head}.querySelector('button').scrollIntoView({{block: 'center'}})")
    x, y = tab.run(
        f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
        f"({head}.querySelector('button').getBoundingClientRect())"
    )
    for kind in ("mousePressed", "mouseReleased"):
        tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    sorted_: str | None = tab.run(f"{head}.getAttribute('aria-sort')")
    return sorted_


def test_numbers_are_sorted_as_numbers(cases: Browser) -> None:
    before = column(cases, "true volume")
    numbers = sorted(float(one) for one in before if one != "-")
    assert [f"{one:.2f}" for one in numbers] != sorted(one for one in before if one != "-")
    assert click(cases, "true volume") == "ascending"
    found = column(cases, "true volume")
    assert [float(one) for one in found[:-1]] == numbers
    assert found[-1] == "-"
    assert click(cases, "true volume") == "descending"
    found = column(cases, "true volume")
    assert [float(one) for one in found[:-1]] == numbers[::-1]
    assert found[-1] == "-"  # what has no number is last, either way
    assert sorted(found) == sorted(before)


def test_names_are_sorted_as_people_count(cases: Browser) -> None:
    click(cases, "true volume")
    assert click(cases, "case") == "ascending"
    assert column(cases, "case") == [name for name in NAMES_OF_CASES for _ in range(2)]
    assert cases.run("sortable.querySelectorAll('[aria-sort]').length") == 1
    assert click(cases, "label") == "ascending"
    assert column(cases, "label") == ["liver"] * 12 + ["spleen"] * 12
    assert column(cases, "case") == NAMES_OF_CASES * 2  # the order before stays


def test_a_filter_leaves_the_rows_with_its_text(cases: Browser) -> None:
    cases.run("filter.focus()")
    cases.call("Input.insertText", text="SPLEEN")
    assert column(cases, "label") == ["spleen"] * 12
    assert cases.run("shown.innerText") == "12 of 24 rows"
    click(cases, "true volume")
    numbers = [float(one) for one in column(cases, "true volume") if one != "-"]
    assert numbers == sorted(numbers)
    assert column(cases, "label") == ["spleen"] * 12
    cases.run("filter.focus(); filter.select()")
    cases.call("Input.insertText", text="nobody")
    assert table(cases, "#sortable") == []
    assert cases.run("shown.innerText") == "0 of 24 rows"
    cases.run("filter.focus(); filter.select()")
    cases.call("Input.dispatchKeyEvent", type="keyDown", key="Delete", windowsVirtualKeyCode=46)
    assert len(table(cases, "#sortable")) == 24
