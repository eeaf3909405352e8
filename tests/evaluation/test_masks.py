"""Masks of others are scored as those of a model."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from medsam_tune.cases.datalist import Case, Datalist, write_datalist
from medsam_tune.errors import DataError
from medsam_tune.evaluation.masks import evaluate_masks
from tests.evaluation.test_summary_schema import SCHEMA
from tests.scans import LABELS, small_scan, write_nifti


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    """Two test cases."""
    image, label = small_scan()
    cases = []
    for name in ("a_0000", "b_0000"):
        scan = write_nifti(tmp_path / "images" / f"{name}.nii.gz", image)
        truth = write_nifti(tmp_path / "labels" / f"{name}.nii.gz", label)
        cases.append(Case(scan, truth, name))
    path = tmp_path / "d.json"
    write_datalist(Datalist("Small", "MR", LABELS, test=tuple(cases)), path)
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_masks_are_known_by_name_and_grid(datalist: Path, tmp_path: Path) -> None:
    _, label = small_scan()
    turned = np.diag([-2.0, 3.0, 4.0, 1.0])
    turned[0, 3] = 2.0 * (len(label) - 1)
    write_nifti(tmp_path / "theirs" / "a.nii.gz", label[::-1], turned)  # the same place
    moved = np.where(label == 2, 0, label)
    write_nifti(tmp_path / "theirs" / "b.nii.gz", moved)
    folder = evaluate_masks(tmp_path / "theirs", datalist, tmp_path / "out")
    assert folder == tmp_path / "out" / "evaluation"
    dice = {(row["case"], row["name"]): float(row["dice"]) for row in rows(folder)}
    assert dice == {
        ("a_0000", "liver"): 1,
        ("a_0000", "spleen"): 1,
        ("b_0000", "liver"): 1,
        ("b_0000", "spleen"): 0,
    }
    summary = json.loads((folder / "summary.json").read_text())
    jsonschema.validate(summary, SCHEMA)
    assert (summary["prompts"], summary["missing"]) == ("masks", [])
    assert summary["labels"]["2"]["n_missed"] == 1
    volume = rows(folder)[0]["truth_volume"]
    assert float(volume) == pytest.approx((label == 1).sum() * 24 / 1000)
    assert "in the given masks" in (folder / "report.html").read_text()
    assert sorted(p.name for p in (folder / "overlays").glob("*.png")) == [
        "a_0000.png",
        "b_0000.png",
    ]


def test_a_missing_mask_counts(datalist: Path, tmp_path: Path) -> None:
    write_nifti(tmp_path / "theirs" / "a_0000.nii.gz", small_scan()[1])
    with pytest.warns(UserWarning, match="no mask of b_0000; counted as nothing predicted"):
        folder = evaluate_masks(tmp_path / "theirs", datalist, tmp_path / "out")
    assert [float(row["dice"]) for row in rows(folder)] == [1, 1, 0, 0]
    assert "1 case had no mask, and counts as empty" in (folder / "report.html").read_text()


def test_labels_are_matched_by_name(datalist: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    label = small_scan()[1]
    swapped = np.select([label == 1, label == 2], [7, 3], 0).astype(np.uint8)
    swapped[0, 0, 0] = 5
    for name in "ab":
        write_nifti(theirs / f"{name}.nii.gz", swapped)
    said = {"labels": {"background": 0, "Spleen": 3, "tumour": 5, "LIVER": 7}}
    (theirs / "dataset.json").write_text(json.dumps(said))
    folder = evaluate_masks(theirs, datalist, tmp_path / "out")
    assert {row["dice"] for row in rows(folder)} == {"1.0"}
    (theirs / "dataset.json").write_text(json.dumps({"labels": {"tumour": 3, "other": 7}}))
    with pytest.raises(DataError, match="its labels, tumour, other, are none of the datalist's"):
        evaluate_masks(theirs, datalist, tmp_path / "new")


def test_folders_without_masks(datalist: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        evaluate_masks(tmp_path / "nowhere", datalist, tmp_path / "out")
    write_nifti(tmp_path / "theirs" / "c.nii.gz", small_scan()[1])
    with pytest.raises(DataError, match=r"no mask of any of 2 cases; .* There are: c\."):
        evaluate_masks(tmp_path / "theirs", datalist, tmp_path / "out")
    for ending in ("nii", "nii.gz"):
        write_nifti(tmp_path / "two" / f"a.{ending}", small_scan()[1])
    with pytest.raises(DataError, match=r"a_0000 has several masks: a.nii, a.nii.gz; expected one"):
        evaluate_masks(tmp_path / "two", datalist, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(
    datalist: Path, tmp_path: Path, tune: Callable[..., tuple[int, str, str]]
) -> None:
    for name in "ab":
        write_nifti(tmp_path / "theirs" / f"{name}.nii.gz", small_scan()[1])
    code, _, said = tune("evaluate", "--masks", tmp_path / "theirs", "--datalist", datalist)
    assert code == 0, said
    page = tmp_path / "theirs_evaluation" / "evaluation" / "report.html"
    assert f"report: {page}" in said
    assert not re.search("Engine run|Epoch", said)
    assert page.is_file()
    code, _, said = tune("evaluate", "--masks", tmp_path / "theirs")
    assert (code, "--masks needs --datalist" in said) == (1, True)
