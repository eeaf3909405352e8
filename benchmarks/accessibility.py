"""Faults of accessibility that axe-core finds in a report, a comparison and an images' report.

    npm pack axe-core@4.14.1 && tar xzf axe-core-4.14.1.tgz
    python benchmarks/accessibility.py package/axe.min.js [PAGE.html ...]

Each page is opened in headless Chromium, light and dark, 1280 and 390 pixels wide, with its folded
parts open. Without pages of yours they are made up, with every section, and the table goes to
benchmarks/results/accessibility.md. The exit status is 1 if there is a serious or critical fault, a
page that is wider than its window, or a request to a network. axe-core (MPL-2.0) is no part of the
repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/ is no part of the package

from benchmarks.browser import Browser, browser
from medsam_tune.evaluation.compare import read_method
from medsam_tune.evaluation.compare_page import write_comparison
from medsam_tune.evaluation.jitter import write_curve
from medsam_tune.evaluation.report import write_report
from medsam_tune.evaluation.results import CONFIDENCE
from medsam_tune.files import write_json, written_whole
from tests.evaluation import test_compare, test_report, test_viewer

RESULTS = Path(__file__).parent / "results" / "accessibility.md"
WIDTHS = (1280, 390)
GRAVE = ("serious", "critical")


@dataclass(frozen=True)
class Finding:
    """What axe-core says of a page in one look: the rules that passed, and the faults."""

    page: str
    look: str
    passed: int
    faults: list[dict[str, Any]]
    unsure: int
    asked: list[str]
    wider: int

    @property
    def bad(self) -> bool:
        """Whether something must be mended."""
        return bool(self.grave or self.asked or self.wider > 0)

    @property
    def grave(self) -> list[dict[str, Any]]:
        """Faults that must be mended."""
        return [one for one in self.faults if one["impact"] in GRAVE]


def examined(tab: Browser, page: Path, axe: str) -> Iterator[Finding]:
    """All looks of a page."""
    for width in WIDTHS:
        for dark in (False, True):
            tab.open(page, width, dark=dark)
            tab.run("for (const one of document.querySelectorAll('details')) one.open = true")
            if tab.run("document.getElementById('viewer-status') !== null"):
                tab.until("document.getElementById('viewer-status').textContent.includes('shown')")
            tab.run(axe)  # its policy forbids scripts in the page, not those of DevTools
            found = json.loads(tab.run("axe.run(document).then((one) => JSON.stringify(one))"))
            yield Finding(
                page.stem,
                f"{width} px, {'dark' if dark else 'light'}",
                len(found["passes"]),
                found["violations"],
                sum(len(one["nodes"]) for one in found["incomplete"]),
                [one for one in tab.requests if not one.startswith(("file:", "data:", "blob:"))],
                tab.run("document.documentElement.scrollWidth") - width,
            )


def made_up(folder: Path) -> list[Path]:
    """A report with every section, one of images, and a comparison with a learning curve."""
    one = folder / "report" / "evaluation"
    data = {"name": "Made up", "modality": "CT", "subset": "test", "patients_guessed": True}
    run = {"split": {}, "configuration": {"recipe": {"epochs": 10}}}
    test_viewer.with_volumes(one, data=data, run=run)
    masks = [{"expected": 0.6 + n / 50, "true": 0.55 + n / 45, "flagged": n < 3} for n in range(16)]
    known = {"n": 16, "error": 0.04, "bias": -0.01, "worst": 2, "caught": 2, "flagged": 3}
    write_json(one / CONFIDENCE, {"slices": {**known, "calibrated_on": 40, "masks": masks}})
    worse = test_report.evaluated(folder / "worse")
    write_curve(one, {0.0: one, 0.1: worse, 0.2: worse})
    images = test_report.evaluated(folder / "images", flat=True, data={"modality": "RGB"})
    methods = [
        read_method(
            name,
            [
                test_compare.evaluated(
                    folder / f"{name}-{seed}", dice + seed / 50, "slices", "none"
                )
                for seed in range(2)
            ],
            family,
            patients,
        )
        for name, dice, family, patients in (
            ("zero_shot", 0.5, None, 0),
            ("lora-5", 0.7, "lora", 5),
            ("lora-10", 0.77, "lora", 10),
            ("lora-50", 0.85, "lora", 50),
        )
    ]
    write_comparison(folder, methods, {"full": "out of memory"})
    pages = {
        "report": write_report(one, viewer=True),
        "report_of_images": write_report(images),
        "comparison": folder / "compare.html",
    }
    return [path.rename(folder / f"{name}.html") for name, path in pages.items()]


def page_of(findings: list[Finding], version: str) -> str:
    """The table as Markdown."""
    rows = [
        f"| {one.page.replace('_', ' ')} | {one.look} | {one.passed} | {len(one.grave)} | "
        f"{len(one.faults) - len(one.grave)} | {one.unsure} | {len(one.asked)} |"
        for one in findings
    ]
    return f"""# Accessibility of the pages

`python benchmarks/accessibility.py axe.min.js`: axe-core {version}, all its rules, in headless
Chromium, on made-up pages with every section.

| page | look | rules passed | serious or critical | other faults | undecided texts | requests |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Undecided is the contrast of texts inside figures, of single characters, and of cells that lie
outside the window. They have the colours of the texts beside them, whose contrast with both grounds
a test computes (`tests/evaluation/test_report.py`).
"""


def main() -> int:
    """Examine pages, say the faults, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("axe", type=Path, help="axe.min.js")
    parser.add_argument("pages", type=Path, nargs="*")
    options = parser.parse_args()
    axe = options.axe.read_text(encoding="utf-8")
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder, browser() as tab:
        for page in options.pages or made_up(Path(folder)):
            findings += examined(tab, page, axe)
        version = tab.run("axe.version")
    for one in findings:
        print(f"{one.page}, {one.look}: {one.passed} rules passed, {len(one.faults)} faults")
        for fault in one.faults:
            print(f"  {fault['impact']}: {fault['id']}: {fault['help']}")
            for node in fault["nodes"][:5]:
                print(f"    {node['html'][:150]}\n      {node['failureSummary'][:300]}")
        for address in one.asked:
            print(f"  asked for {address}")
        if one.wider > 0:
            print(f"  is {one.wider} px wider than its window")
    if not options.pages:
        with written_whole(RESULTS) as beside:
            beside.write_text(page_of(findings, version), encoding="utf-8")
    return int(any(one.bad for one in findings))


if __name__ == "__main__":
    sys.exit(main())
