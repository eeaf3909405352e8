"""The report: its numbers are those of the files, it is safe, and it needs nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from medsam_tune.errors import DataError
from medsam_tune.evaluation.about import about_run
from medsam_tune.evaluation.figures import bland_altman, box_plot, curves, learning_curve, ticks
from medsam_tune.evaluation.folder import ResultFolder
from medsam_tune.evaluation.metrics import Measures, Score
from medsam_tune.evaluation.report import write_report
from medsam_tune.evaluation.results import INDEX
from medsam_tune.evaluation.scores import measured_by, write_scores
from medsam_tune.evaluation.statistics import summarise_kinds
from medsam_tune.runs import RunRecord, write_record, write_state
from medsam_tune.slices.intensity import WINDOWS
from tests.evaluation.test_summary_schema import SCHEMA

NASTY = "<script>alert(1)</script>\"'`|&*[x](http://evil.example)"


CASES_OF_IMAGES = "Scores of each case and label, by a box around each object"


def scores(kind: str, names: dict[int, str], dice: float) -> list[Score]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(8):
        for label, name in names.items():
            own = dice - float(rng.uniform(0, 0.2))
            found.append(
                Score(
                    *(f"case_{number}", kind, label, name, own, own / (2 - own), 900, 800, 0.5, 1),
                    **{"patient": str(number), "unit": "mm", "tolerance": 2.0, "nsd": own / 2},
                    **{"hd95": 3.0, "surface_distance": 1.0, "truth_volume": 1.0 + number},
                    **{"predicted_volume": 1.1 + number, "volume_difference": 0.1, "lesions": 1},
                    **{"lesions_found": 1, "false_lesions": 0, "precision": 0.8, "recall": 0.9},
                )
            )
    return found


def evaluated(folder: Path, name: str = "liver", **about: Any) -> Path:
    names = {1: name, 2: "spleen"}
    kinds = {"slices": scores("slices", names, 0.9), "none": scores("none", names, 0.7)}
    columns = {"site": {f"case_{n}": name if n % 2 else "B" for n in range(8)}}
    summary = summarise_kinds(kinds, columns)
    known = {"subset": "test", "cases": 8, "seconds": 2.5, "stopped_by": None}
    write_scores(folder, kinds, {**known, **measured_by(Measures()), **summary, **about})
    overlays = folder / "overlays"
    overlays.mkdir()
    Image.new("RGB", (40, 20), "gray").save(overlays / "case_3.png")
    picture = {"case": "case_3", "role": "worst", "slices": [1], "columns": ["annotator"]}
    picture |= {"window": WINDOWS["mediastinum"].words, "axes": "LPS"}
    (overlays / INDEX).write_text(json.dumps({"pictures": [picture]}))
    return folder


class Page(HTMLParser):
    """Tags with their attributes, scripts, and the rows of each table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.scripts: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            self.scripts.append(data)
        elif "caption" in self._inside:
            self.captions.append(data)
        elif {"td", "th"} & {*self._inside}:
            self.tables[-1][-1][-1] += data


def test_numbers_are_those_of_the_summary(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "run" / "evaluation")
    page = write_report(tmp_path / "run")
    assert page == folder / "report.html"
    text, summary = page.read_text(), json.loads((folder / "summary.json").read_text())
    tables = dict(zip(Page(text).captions, Page(text).tables, strict=True))
    for kind, words in (("slices", "by a box on every slice"), ("none", "without prompts")):
        head, *rows = tables[f"Means over cases, {words}"]
        labels = summary["by_prompts"][kind]["labels"].values()
        for row, entry in zip(rows, labels, strict=True):
            cells = dict(zip(head, row, strict=True))
            low, high = entry["dice"]["interval"]
            dice = f"{entry['dice']['mean']:.3f} ({low:.3f} to {high:.3f})*"
            assert (cells["label"], cells["Dice (95 % interval)"]) == (entry["name"], dice)
            assert (cells["n"], cells["empty"], cells["missed"]) == ("8", "0", "0")
            assert cells["NSD"] == f"{entry['nsd']['mean']:.3f}"
            assert cells["HD95, mm"] == f"{entry['hd95']['mean']:.2f}"
            assert cells["volume difference, ml"] == "0.10"
    assert len(tables["Scores of each case and label, by a box on every slice"]) == 1 + 16
    assert "Brightness: window, centre 50, width 350 HU." in text
    assert f"The Dice is {summary['mean_dice']:.3f} (95 % interval" in text
    assert "Measured on 8 held-out cases of 8 patients" in text
    assert "Fewer than 30 patients" in text
    groups = tables["Scores by site, by a box on every slice"]
    assert [row[0] for row in groups[1:]] == ["B", "B", "liver", "liver"]
    assert groups[0][2:6] == ["n", "empty", "missed", "patients"]
    assert [row[2:6] for row in groups[1:]] == [["4", "0", "0", "4"]] * 4
    entries = [one for labels in summary["groups"]["site"].values() for one in labels.values()]
    assert [row[6].split()[0] for row in groups[1:]] == [
        f"{e['dice']['mean']:.3f}" for e in entries
    ]
    tiles = re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>(.*?)</small>", text)
    for key, name in (("dice", "Dice"), ("nsd", "NSD")):
        low, high = summary["intervals"][key]
        said = (name, f"{summary[f'mean_{key}']:.3f}", f"{low:.3f} to {high:.3f}")
        assert said in tiles
    assert "liver: predicted minus true volume, ml, 8 cases, by a box on every slice" in text
    words = (folder / "report.md").read_text()
    assert f"{summary['mean_dice']:.3f}" in words
    ResultFolder(folder).refuse_others()


def test_the_training_has_a_curve(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_record(run, RunRecord(None, None, None, {}, {}, 0.0, 0))
    validations = [{"epoch": n, "dice": d, "seconds": n} for n, d in ((1, 0.5), (2, 0.8), (3, 0.7))]
    write_state(run, "finished", 3, 3, 3.0, validations[:1])
    page = write_report(evaluated(run / "evaluation", run=about_run(run)))
    assert "Training</h2>" not in page.read_text()  # a single point
    write_state(run, "finished", 3, 3, 3.0, validations)
    content = json.loads((run / "evaluation" / "summary.json").read_text()) | {
        "run": about_run(run)
    }
    jsonschema.validate(content["run"], SCHEMA["properties"]["run"])
    (run / "evaluation" / "summary.json").write_text(json.dumps(content))
    text = write_report(run).read_text()
    assert "Training</h2>" in text
    assert "validation: 0.500 at 1, 0.800 at 2, 0.700 at 3" in text
    for said in (text, page.with_suffix(".md").read_text()):
        assert "it was best after epoch 2, 0.800." in said


def test_tolerances_are_named(tmp_path: Path) -> None:
    folder = evaluated(tmp_path)
    write_report(folder)
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        assert "surfaces lie within 2 mm of the annotator" in text
        assert "NSD is the share of both surfaces that lies within 2 mm of the other one" in text
    summary = json.loads((folder / "summary.json").read_text())
    summary["labels"]["2"]["tolerance"] = 3.5
    (folder / "summary.json").write_text(json.dumps(summary))
    write_report(folder)
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        assert text.count("within 2 mm (liver) or 3.5 mm (spleen) of the") == 2


def test_images_have_no_slices(tmp_path: Path) -> None:
    evaluated(tmp_path, flat=True, data={"modality": "RGB"})
    write_report(tmp_path)
    for name in ("report.html", "report.md"):
        text = re.sub("<[^>]*>", "", (tmp_path / name).read_text().rpartition("<body>")[2])
        assert "Measured on 8 held-out cases of 8 groups, by a box around each object." in text
        assert "Means over cases, without prompts" in text
        assert "% of the outlines lie within" in text
        assert not re.search("every slice|[Vv]olume|voxel|Fewer than 30 patients", text)


def test_objects_of_images_are_counted(tmp_path: Path) -> None:
    counted = {"true_objects": 4, "found_objects": 5, "paired_objects": 3, "paired_iou": 2.4}
    kinds = {
        kind: [replace(one, objects=asked, **counted) for one in scores(kind, {1: "roof"}, 0.9)]
        for kind, asked in (("slices", 4), ("none", 0))
    }
    known = {"subset": "test", "cases": 8, "seconds": 2.5, "stopped_by": None, "flat": True}
    write_scores(
        tmp_path, kinds, {**known, **measured_by(Measures()), **summarise_kinds(kinds, {})}
    )
    page = Page(write_report(tmp_path).read_text())
    tables = dict(zip(page.captions, page.tables, strict=True))
    head, row = tables["Means over cases, by a box around each object"]
    cells = dict(zip(head, row, strict=True))
    assert head[2] == "prompted objects"  # beside the Dice
    assert cells["prompted objects"] == "32"
    assert (cells["object precision"], cells["object recall"]) == ("0.600", "0.750")
    head, _ = tables["Means over cases, without prompts"]
    assert "prompted objects" not in head
    assert "object precision" in head
    volumes = Page(write_report(evaluated(tmp_path / "scans")).read_text())
    assert "prompted objects" not in volumes.tables[0][0]


def test_pixels_are_whole_numbers(tmp_path: Path) -> None:
    page = Page(write_report(evaluated(tmp_path, flat=True)).read_text())
    head, *rows = page.tables[page.captions.index(CASES_OF_IMAGES)]
    assert [row[head.index("true area")] for row in rows[:4]] == ["1", "1", "2", "2"]
    figure = bland_altman("building", [(9000, 10500), (12000, 11000)], "px")
    assert "10,000" in figure
    assert "mean +250" in figure
    assert "e+" not in figure


def test_the_page_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    page = Page(write_report(evaluated(tmp_path)).read_text())
    sources = [
        value or ""
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
    ]
    assert sources
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(", text)
    assert not re.search(r"fetch\(|XMLHttp|WebSocket|EventSource|sendBeacon|import\b", text)
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts).encode()).digest()).decode()
    allowed = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    assert policy == f"{allowed}script-src 'sha256-{digest}'"


def test_screen_readers_find_their_way(tmp_path: Path) -> None:
    page = Page(write_report(evaluated(tmp_path)).read_text())
    assert len(page.captions) == len(page.tables) > 4
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert pictures
    assert all("Dice liver" in (a["alt"] or "") for a in pictures)
    assert all(a.get("aria-label") for tag, a in page.tags if tag == "svg")
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len({*ids})
    assert {a["href"] for t, a in page.tags if t == "a"} <= {f"#{one}" for one in ids}
    assert dict(page.tags)["html"] == {"lang": "en"}


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_texts_stand_out_from_their_ground(tmp_path: Path) -> None:
    """Light, dark and printed: 4.5 to 1, WCAG 2 AA; figures are outside what axe-core decides."""
    schemes = re.findall(r":root \{(.*?)\}", write_report(evaluated(tmp_path)).read_text())
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w+)", scheme))
        full = {
            name: c if len(c) == 7 else "#" + c[1] * 2 + c[2] * 2 + c[3] * 2
            for name, c in colours.items()
        }
        for text in ("ink", "soft", "blue"):
            for ground in ("paper", "band"):
                dark, light = sorted(luminance(full[one]) for one in (text, ground))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_names_are_shown_and_never_run(tmp_path: Path) -> None:
    about = {
        "data": {"name": NASTY, "modality": "CT", "subset": "test", "sha256": "0", "subsets": {}},
        "run": {"split": {}, "configuration": {"recipe": {NASTY: NASTY}}},
        "stopped_by": NASTY,
    }
    text = write_report(evaluated(tmp_path, NASTY, **about)).read_text()
    page = Page(text)
    assert len(page.scripts) == 1
    assert "alert" not in page.scripts[0]
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert NASTY in {cell for table in page.tables for row in table for cell in row}
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    markdown = (tmp_path / "report.md").read_text()
    assert "<script" not in markdown.replace("\\<", "")
    assert "](http" not in markdown.replace("\\]", "")
    heads = [
        line.count("|") - line.count("\\|") for line in markdown.splitlines() if line[:1] == "|"
    ]
    assert {*heads} <= {*range(3, 25)}


def test_nothing_scored_has_a_page_too(tmp_path: Path) -> None:
    write_scores(tmp_path, {}, {**summarise_kinds({}), "stopped_by": "KeyError: 'x'"})
    text = write_report(tmp_path).read_text()
    assert "Nothing could be scored" in text
    assert "stopped by an error: KeyError" in text


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "summary.json").unlink(), "no evaluation in it"),
        (lambda folder: (folder / "summary.json").write_text("{}"), "has no format number"),
        (lambda folder: (folder / "none" / "metrics.csv").unlink(), "the evaluation is not whole"),
    ],
)
def test_results_that_are_not_whole(
    tmp_path: Path, break_it: Callable[[Path], object], message: str
) -> None:
    folder = evaluated(tmp_path / "evaluation")
    break_it(folder)
    with pytest.raises(DataError, match=message):
        write_report(tmp_path)


def test_the_command(tmp_path: Path, tune: Callable[..., tuple[int, str, str]]) -> None:
    evaluated(tmp_path / "run" / "evaluation")
    page = tmp_path / "page.html"
    code, said, _ = tune("report", "--run", tmp_path / "run", "--output", page)
    assert (code, said) == (0, f"report: {page}\n")
    assert page.with_suffix(".md").is_file()
    code, _, error = tune("report", "--run", tmp_path / "run", "--output", page)
    assert (code, "is there already" in error) == (1, True)
    code, _, error = tune("report", "--run", tmp_path / "run", "--output", tmp_path / "a.pdf")
    assert (code, "ends in .html" in error) == (1, True)
    assert tune("report", "--run", tmp_path)[0] == 1


def test_figures_say_their_numbers() -> None:
    boxes = box_plot("Dice", {"a<b": [0.1, 0.5, 0.9]}, "Dice")
    assert "a&lt;b: median 0.5, quartiles 0.3 to 0.7" in boxes
    assert boxes.count('class="dot"') == 3
    boxes = box_plot(
        "Dice", {"the lobe of the left lung": [0.5], "the lobe on the left lung": []}, ""
    )
    assert ">the lobe o\u2026e left lung<" in boxes
    assert ">the lobe on the l\u2026 (2)<" in boxes
    volumes = bland_altman("V", [(1.0, 1.5), (2.0, 2.5)], "ml")
    assert "mean difference +0.5 ml" in volumes
    lines = curves("Dice", {"box": [(0.0, 0.9), (0.2, 0.5)]}, "noise")
    assert "box: 0.900 at 0, 0.500 at 0.2" in lines


LONG = "a method with a name that is longer than any legend has room for"


@pytest.mark.parametrize(
    "names",
    [
        [
            *("by a box on every slice", "by one 3-D box", "by boxes on 5 slices", "by one point"),
            *("by a box on one slice and the range", "by a box on one", "without prompts", "x"),
        ],
        [f"{LONG}, the {n}th one of them, in the fold {n} of 9 folds" for n in range(9)],
        [f"{LONG[:30]} {n} {LONG}" for n in range(9)],
    ],
)
def test_lines_and_their_names_are_told_apart(tmp_path: Path, names: list[str]) -> None:
    """Entries stand beside each other in the figure; each has a mark, a dash and a name alone."""
    points = [{"patients": n, "mean": 0.5, "interval": None} for n in (5, 10)]
    for figure in (
        curves("Dice", {name: [(0.0, 0.9), (0.2, 0.5)] for name in names}, "noise"),
        learning_curve("Dice", dict.fromkeys(names, points), "patients"),
    ):
        width, height = map(float, re.findall(r'viewBox="0 0 (\S+) (\S+)"', figure)[0])
        entries = [
            (float(x), float(y), text)
            for x, y, text in re.findall(r'x="(\S+)" y="(\S+)" text-anchor="start">(.*?)<', figure)
        ]
        assert len({text for *_, text in entries}) == len(names)
        rows: dict[float, list[tuple[float, float]]] = {}
        for x, y, text in entries:
            rows.setdefault(y, []).append((x - 34, x + 9.5 * len(text)))  # letters of 17 px
        assert max(rows) + 5 <= height
        for row in rows.values():
            ends = [end for pair in sorted(row) for end in pair]
            assert ends == sorted(ends)
            assert (ends[0] >= 0, ends[-1] <= width) == (True, True)
        marks = re.findall(r'<path class="(dot|ring)" d="M\S+ [\d.]+(m[^"]*)"', figure)
        assert len({*marks}) == len(names)
    page = write_report(evaluated(tmp_path)).read_text()
    dashes = dict(re.findall(r"\.(line[1-7]) \{[^}]*stroke-dasharray: ([^;}]*);", page))
    assert len({*dashes.values()}) == len(dashes) == 7  # the first line has none
    assert {f"line{n % 8}" for n in range(8)} == {*re.findall(r'class="line (line\d)"', figure)}


def test_ticks_are_round() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(0.8, 1.0) == pytest.approx([0.8, 0.85, 0.9, 0.95, 1.0])
    assert ticks(0.0, 2.31) == pytest.approx([0, 0.5, 1, 1.5, 2])
