"""Pages of results with every section, and their looks: light and dark, wide and on a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam_tune.evaluation.compare import read_method
from medsam_tune.evaluation.compare_page import write_comparison
from medsam_tune.evaluation.jitter import write_curve
from medsam_tune.evaluation.report import write_report
from medsam_tune.evaluation.results import CONFIDENCE
from medsam_tune.files import write_json
from tests.browser import Browser
from tests.evaluation import test_compare, test_report, test_viewer

AXE = Path(__file__).resolve().parents[2] / "node_modules" / "axe-core" / "axe.min.js"
"""Where `npm install --no-save axe-core@4.14.1` puts it (MPL-2.0, no part of the repository)."""

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


def elsewhere(tab: Browser) -> list[str]:
    """What a page asked of a network."""
    return [one for one in tab.requests if not one.startswith(("file:", "data:", "blob:"))]


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
                elsewhere(tab),
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
    sites = {f"case_{n}": "AB"[n % 2] for n in range(8)}
    write_comparison(folder, methods, {"full": "out of memory"}, {"site": sites})
    pages = {
        "report": write_report(one, viewer=True),
        "report_of_images": write_report(images),
        "comparison": folder / "compare.html",
    }
    return [path.rename(folder / f"{name}.html") for name, path in pages.items()]
