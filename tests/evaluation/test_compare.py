"""Comparison of methods: means over seeds and labels, tests, and what the files say."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medsam_tune.errors import DataError
from medsam_tune.evaluation.compare import Method, compare_methods, read_method
from medsam_tune.evaluation.compare_page import write_comparison
from medsam_tune.evaluation.compare_tables import HEAD
from medsam_tune.evaluation.metrics import Score
from medsam_tune.evaluation.scores import write_scores
from medsam_tune.evaluation.statistics import summarise_kinds
from medsam_tune.inference.simulated import MASKS
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import save_tuned
from medsam_tune.runs import TUNED, RunRecord, write_record, write_state
from medsam_tune.sam.build import build_sam
from tests.evaluation.test_report import Page


def evaluated(folder: Path, dice: float, *kinds: str, cases: int = 8, prefix: str = "case") -> Path:
    scores = {
        kind: [
            Score(
                *(f"{prefix}_{n}", kind, label, name, dice - 0.01 * n, 0.5, 9, 9, None, 1),
                **{"patient": str(n), "unit": "mm", "tolerance": 2.0, "nsd": dice / 2},
            )
            for n in range(cases)
            for label, name in ((1, "<b>liver"), (2, "spleen"))
        ]
        for kind in kinds
    }
    summary = {"subset": "test", "cases": cases, "stopped_by": None, **summarise_kinds(scores)}
    write_scores(folder / "evaluation", scores, summary)
    return folder


def test_seeds_are_averaged_and_masks_count_for_every_kind(tmp_path: Path) -> None:
    methods = [
        read_method("zero_shot", [evaluated(tmp_path / "zero_shot", 0.5, "slices")]),
        read_method(
            "lora",
            [evaluated(tmp_path / f"lora{n}", 0.8 + n / 10, "slices", "none") for n in (0, 1)],
        ),
        read_method("reader", [evaluated(tmp_path / "reader", 0.95, MASKS)]),
    ]
    found = compare_methods(methods)
    lora = found["methods"]["lora"]["by_prompts"]["slices"]["dice"]
    assert lora["seeds"] == pytest.approx([0.765, 0.865])
    assert lora["mean"] == pytest.approx(0.815)
    assert (lora["n"], lora["n_patients"]) == (16, 8)
    assert lora["interval"][0] < 0.815 < lora["interval"][1]
    assert found["by_prompts"]["slices"]["reference"] == "zero_shot"
    assert found["by_prompts"]["none"]["reference"] == "reader"  # the best of those that have it
    pairs = [(t["first"], t["second"]) for t in found["by_prompts"]["slices"]["tests"]["dice"]]
    assert pairs == [("zero_shot", "lora"), ("zero_shot", "reader"), ("lora", "reader")]
    text = write_comparison(tmp_path, methods, {"full": "out of memory"})
    row = next(line for line in text.splitlines() if line.startswith("lora"))
    assert "0.815 (" in row
    assert "zero_shot" in row
    assert "+0.350" in row
    assert "failed: full: out of memory" in text
    assert "NSD: within 2 mm of the annotator's" in text
    page = (tmp_path / "compare.html").read_text()
    assert "&lt;b&gt;liver" in page
    assert "<b>liver" not in page
    assert 'href="lora1/evaluation/report.html"' in page
    assert "script-src 'none'" in page
    assert "<script" not in page
    rows = list(csv.DictReader((tmp_path / "compare.csv").open()))
    whole = [r for r in rows if (r["method"], r["prompts"], r["label"]) == ("lora", "slices", "")]
    assert [float(r["mean"]) for r in whole] == pytest.approx([0.815, 0.425])
    assert json.loads((tmp_path / "compare.json").read_text())["failed"]["full"] == "out of memory"
    assert "| lora | slices | 16 (0, 0) | 0.815" in (tmp_path / "compare.md").read_text()


def test_evaluations_of_other_cases_are_refused(tmp_path: Path) -> None:
    methods = [
        read_method("a", [evaluated(tmp_path / "a", 0.5, "slices")]),
        read_method("b", [evaluated(tmp_path / "b", 0.5, "slices", cases=7)]),
    ]
    with pytest.raises(DataError, match=r"was evaluated on other cases than .*case_7 in one"):
        compare_methods(methods)


def test_what_is_behind_a_mean_stands_beside_it(tmp_path: Path) -> None:
    """Two seeds: one case without the label, a case that one of them misses."""
    folders = [evaluated(tmp_path / name, 0.8, "slices") for name in ("lora", "lora-seed1")]
    for number, folder in enumerate(folders):
        path = folder / "evaluation" / "metrics.csv"
        rows = [*csv.DictReader(path.open())]
        empty, missed = (row for row in rows[:4] if row["name"] == "spleen")
        empty |= {"dice": "", "nsd": "", "truth_voxels": "0", "predicted_voxels": "0"}
        if number:
            missed |= {"dice": "0.0", "nsd": "0.0", "predicted_voxels": "0"}
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    text = write_comparison(tmp_path, [read_method("lora", folders)])
    assert "  15 (1, 0.5)  " in text.splitlines()[1]
    found = json.loads((tmp_path / "compare.json").read_text())
    spleen = found["methods"]["lora"]["by_prompts"]["slices"]["nsd"]["labels"]["spleen"]
    assert (spleen["n"], spleen["n_empty"], spleen["n_missed"]) == (7, 1, 0.5)
    assert found["tolerances"]["spleen"] == {"name": "spleen", "tolerance": 2.0, "unit": "mm"}
    for name in ("compare.html", "compare.md"):
        said = (tmp_path / name).read_text()
        assert "15 (1, 0.5)" in said
        assert "; 7 (1, 0.5)" in said
        assert "; 8 (0, 0)" in said
        assert "NSD: within 2 mm of the annotator" in said
        assert "missed: annotated, nothing predicted, the mean of the seeds" in said
    rows = [*csv.DictReader((tmp_path / "compare.csv").open())]
    (row,) = (one for one in rows if (one["measure"], one["label"]) == ("nsd", "spleen"))
    assert (row["n"], row["n_empty"], row["n_missed"], row["tolerance"]) == ("7", "1", "0.5", "2.0")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda summary: summary["labels"]["2"].update(tolerance=1.0), r"NSD at 1.0 \(spleen\)"),
        (lambda summary: summary.update(empty_rule={"name": "one"}), "one of empty masks"),
    ],
)
def test_evaluations_by_other_settings_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    methods = [read_method("a", [evaluated(tmp_path / "a", 0.5, "slices")])]
    path = evaluated(tmp_path / "b", 0.5, "slices") / "evaluation" / "summary.json"
    summary = json.loads(path.read_text())
    change(summary)
    path.write_text(json.dumps(summary))
    methods.append(read_method("b", [tmp_path / "b"]))
    with pytest.raises(DataError, match=f"b, .*: was scored by {said}, and a by .* Evaluate both"):
        compare_methods(methods)


def test_groups_of_cases(tmp_path: Path) -> None:
    """Eight patients of site A, four of B, of whom no test says anything; numbers by hand."""
    names = ("a", "b", "c")
    methods = [
        read_method(name, [evaluated(tmp_path / name, dice, "slices", "none", cases=12)])
        for name, dice in zip(names, (0.5, 0.6, 0.9), strict=True)
    ]
    methods.append(read_method("reader", [evaluated(tmp_path / "reader", 0.95, MASKS, cases=12)]))
    sites = {f"case_{n}": "A" if n < 8 else "<b>" for n in range(11)}  # one is not known
    write_comparison(tmp_path, methods, columns={"site": sites})
    found = json.loads((tmp_path / "compare.json").read_text())
    assert [*found["groups"]["site"]] == ["", "<b>", "A"]
    of_a = found["groups"]["site"]["A"]
    dice = of_a["methods"]["b"]["by_prompts"]["slices"]["dice"]
    assert dice["mean"] == pytest.approx(0.6 - 0.01 * 3.5)
    assert (dice["n"], dice["n_patients"], dice["n_missed"]) == (16, 8, 0)
    assert dice["interval"][0] < dice["mean"] < dice["interval"][1]
    assert dice["labels"]["spleen"]["n"] == 8
    assert of_a["methods"]["reader"]["by_prompts"][MASKS]["dice"]["n"] == 16
    entry = of_a["by_prompts"]["slices"]
    assert entry["reference"] == found["by_prompts"]["slices"]["reference"] == "reader"
    (test,) = (t for t in entry["tests"]["dice"] if (t["first"], t["second"]) == ("a", "b"))
    assert test["p"] == pytest.approx(2 / 2**8)  # the smallest of eight pairs
    assert test["p_holm"] == pytest.approx(6 * 2 / 2**8)  # six pairs; the other groups have none
    few = found["groups"]["site"]["<b>"]
    assert few["methods"]["b"]["by_prompts"]["slices"]["dice"]["mean"] == pytest.approx(0.51)
    assert few["methods"]["b"]["by_prompts"]["slices"]["dice"]["interval"] is None
    assert {t["p_holm"] for t in few["by_prompts"]["slices"]["tests"]["dice"]} == {None}
    text = (tmp_path / "compare.html").read_text()
    page = Page(text)
    head, *rows = page.tables[page.captions.index("Means over cases by site")]
    assert head[:6] == ["site", "method", "prompts", "patients", "n (empty, missed)", HEAD[3]]
    cells = {(row[0], row[1], row[2]): row[3:] for row in rows}
    assert len(cells) == len(rows) == 3 * 7
    assert cells["A", "b", "slices"][:2] == ["8", "16 (0, 0)"]
    assert cells["A", "b", "slices"][2].startswith("0.565 (")
    assert cells["A", "b", "slices"][4:] == ["reader", "-0.350", "0.047"]
    assert cells["<b>", "b", "slices"][4:] == ["reader", "-0.350", "-"]
    assert cells["(none)", "b", "slices"][2] == "0.490 (too few)"
    assert "#groups" in text
    assert "in all groups of a table, and there is none below 5 patients" in text
    words = (tmp_path / "compare.md").read_text()
    assert "| A | b | slices | 8 | 16 (0, 0) | 0.565 (" in words
    assert "in all groups of a table" in words
    table = [*csv.DictReader((tmp_path / "compare.csv").open())]
    found_mean = [
        float(row["mean"])
        for row in table
        if [row[k] for k in ("column", "group", "method", "prompts", "measure", "label")]
        == ["site", "A", "b", "slices", "dice", ""]
    ]
    assert found_mean == pytest.approx([0.565])
    whole = [row for row in table if not row["column"]]
    write_comparison(tmp_path, methods)
    for name in ("compare.html", "compare.md"):
        assert not re.search("by site|groups of a table", (tmp_path / name).read_text())
    table = [*csv.DictReader((tmp_path / "compare.csv").open())]
    assert [row | {"column": "", "group": ""} for row in table] == whole
    assert "column" not in table[0]
    assert json.loads((tmp_path / "compare.json").read_text())["groups"] == {}


def test_folds_are_judged_together(tmp_path: Path) -> None:
    def method(name: str, dice: float) -> Method:
        folds = [
            evaluated(tmp_path / f"{name}-{n}", dice, "slices", cases=4, prefix=f"fold{n}")
            for n in range(3)
        ]
        return read_method(name, [folds])

    found = compare_methods([method("zero_shot", 0.5), method("lora", 0.8)])
    lora = found["methods"]["lora"]
    dice = lora["by_prompts"]["slices"]["dice"]
    assert (lora["seeds"], dice["n"], dice["n_patients"]) == (1, 24, 12)
    assert dice["mean"] == pytest.approx(0.785)
    assert found["by_prompts"]["slices"]["tests"]["dice"][0]["n_patients"] == 12
    write_comparison(tmp_path, [method("lora", 0.8)])
    page = (tmp_path / "compare.html").read_text()
    assert all(f'href="lora-{n}/evaluation/report.html"' in page for n in range(3))


def test_pictures_are_of_groups_not_of_patients(tmp_path: Path) -> None:
    methods = []
    for name, dice in (("zero_shot", 0.5), ("lora-5", 0.7), ("lora-10", 0.8), ("lora-20", 0.85)):
        folder = evaluated(tmp_path / name, dice, "slices", cases=8)
        path = folder / "evaluation" / "summary.json"
        summary = json.loads(path.read_text()) | {"flat": True, "data": {"modality": "RGB"}}
        path.write_text(json.dumps(summary))
        family, _, patients = name.partition("-")
        methods.append(
            read_method(name, [folder], family if patients else None, int(patients or 0))
        )
    text = write_comparison(tmp_path, methods)
    assert "* of fewer than 30 groups" in text
    page = re.sub("<style.*?</style>", "", (tmp_path / "compare.html").read_text(), flags=re.S)
    for said in (text, page, (tmp_path / "compare.md").read_text()):
        assert "patient" not in said
        assert "groups" in said


def test_what_stands_behind_the_numbers(tmp_path: Path) -> None:
    """What all runs have in common, and the seeds; what differs is left to their reports."""
    subsets = {"training": {"cases": 12, "patients": 11}}
    data = {"modality": "CT", "sha256": "abc123", "subsets": subsets}
    machine = {"versions": {"torch": "2.15.0"}, "hardware": {}}
    folders = [evaluated(tmp_path / name, 0.8, "slices") for name in ("lora", "lora-seed1")]
    for number, folder in enumerate(folders):
        path = folder / "evaluation" / "summary.json"
        split = {"training": {"cases": 12, "patients": 11, "content": "dca5"}}
        about = {"data": {**data, "content": None if number else "beef"}, "machine": machine}
        about |= {"run": {"split": split, "configuration": {"seed": number}}, "tuning": "lora"}
        about |= {"empty_rule": {"name": "exclude", "both_empty": "excluded, and counted"}}
        path.write_text(json.dumps(json.loads(path.read_text()) | about))
        save_tuned(
            apply_method(build_sam("nano", image_size=64), "lora"), folder / TUNED, {1: "liver"}
        )
        write_record(folder, RunRecord(None, None, None, {}, {}, 0.0, 0))
        write_state(folder, "finished", 1, 1, 1.0)
    write_comparison(tmp_path, [read_method("lora", folders)])
    page = re.sub("<[^>]*>", " ", (tmp_path / "compare.html").read_text())
    page = " ".join(page.split())
    words = (tmp_path / "compare.md").read_text().replace(" | ", " ").replace("\\", "")
    for said in (page, words):
        assert "datalist, training 12 cases, 11 patients" in said
        assert "sha256 of the datalist abc123" in said
        assert "hash of the scored voxels beef" in said
        assert "the model's training 12 cases, 11 patients, hash dca5" in said.replace("&#39;", "'")
        assert "version of torch 2.15.0" in said
        assert "seeds of the trainings, lora 0, 1" in said
        assert "Neither annotated nor predicted: excluded, and counted." in said
        assert "within 2 mm of the other one" in said
        assert "Configuration" not in said
    path = folders[1] / "evaluation" / "summary.json"
    content = json.loads(path.read_text())
    content["run"]["split"]["training"]["content"] = "f01d"
    content["data"] |= {"sha256": "another"}
    path.write_text(json.dumps(content))
    write_comparison(tmp_path, [read_method("lora", folders)])
    page = (tmp_path / "compare.html").read_text()
    assert "datalist, training" in page
    assert not re.search("abc123|another|dca5|f01d", page)


def test_what_a_training_cost(tmp_path: Path) -> None:
    folders = [evaluated(tmp_path / name, 0.8, "slices") for name in ("lora", "lora-seed1")]
    for number, folder in enumerate(folders):
        sam = apply_method(build_sam("nano", image_size=64), "lora", rank=2)
        save_tuned(sam, folder / TUNED, {1: "liver"})
        write_record(folder, RunRecord(None, None, None, {}, {}, 0.0, 0))
        rising = [(1, 0.5), (2, 0.8), (3, 0.79 + 0.03 * number), (4, 0.82)]
        validations = [{"epoch": n, "dice": dice, "seconds": 60.0 * n} for n, dice in rising]
        write_state(folder, "finished", 4, 4, 240.0, validations, (number + 1) << 30)
    cost = compare_methods([read_method("lora", folders)])["methods"]["lora"]
    assert (cost["epochs"], cost["minutes_per_epoch"]) == (4, pytest.approx(1.0))
    assert cost["minutes_to_nearly_best"] == pytest.approx(2.0)  # 0.8 is 0.976 of 0.82
    assert cost["peak_bytes"] == 2 << 30
    text = write_comparison(tmp_path, [read_method("lora", folders)])
    assert text.splitlines()[1].split()[-2:] == ["2.000", "2,048"]
