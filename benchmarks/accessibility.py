"""Faults of accessibility that axe-core finds in a report, a comparison and an images' report.

    npm install --no-save axe-core@4.14.1
    python benchmarks/accessibility.py [PAGE.html ...]

Each page is opened in headless Chromium, light and dark, 1280 and 390 pixels wide, with its folded
parts open. Without pages of yours they are made up, with every section, and the table goes to
benchmarks/results/accessibility.md. The exit status is 1 if there is a serious or critical fault, a
page that is wider than its window, or a request to a network. axe-core (MPL-2.0) is no part of the
repository.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/ is no part of the package

from medsam_tune.files import written_whole
from tests.browser import browser
from tests.evaluation.looks import AXE, Finding, examined, made_up

RESULTS = Path(__file__).parent / "results" / "accessibility.md"


def page_of(findings: list[Finding], version: str) -> str:
    """The table as Markdown."""
    rows = [
        f"| {one.page.replace('_', ' ')} | {one.look} | {one.passed} | {len(one.grave)} | "
        f"{len(one.faults) - len(one.grave)} | {one.unsure} | {len(one.asked)} |"
        for one in findings
    ]
    return f"""# Accessibility of the pages

`python benchmarks/accessibility.py`: axe-core {version}, all its rules, in headless
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
    parser.add_argument("pages", type=Path, nargs="*")
    options = parser.parse_args()
    axe = AXE.read_text(encoding="utf-8")
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
