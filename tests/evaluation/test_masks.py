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
from PIL import Image

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


def test_values_that_the_datalist_unites_are_one_in_masks_too(
    datalist: Path, tmp_path: Path
) -> None:
    """A split by --labels 1=tissue,2=tissue; masks keep the values of the label maps."""
    for name in "ab":
        write_nifti(tmp_path / "theirs" / f"{name}.nii.gz", small_scan()[1])
    content = json.loads(datalist.read_text())
    content |= {"labels": {"0": "background", "1": "tissue"}, "united": {"2": 1}}
    datalist.write_text(json.dumps(content))
    folder = evaluate_masks(tmp_path / "theirs", datalist, tmp_path / "out")
    assert [(row["name"], float(row["dice"])) for row in rows(folder)] == [("tissue", 1)] * 2


def test_parts_of_an_image_are_scored_by_the_mask_of_all_of_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((40, 60), np.uint8)
    truth[4:12, 8:50] = 1
    for folder in ("images", "masks", "theirs", "parts"):
        (tmp_path / folder).mkdir()
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "images/a.png")
    Image.fromarray(truth).save(tmp_path / "masks" / "a.png")
    Image.fromarray(truth).save(tmp_path / "theirs" / "a.png")
    cases = [
        Case(tmp_path / "images/a.png", tmp_path / "masks/a.png", "p", name=f"a_{k}", region=part)
        for k, part in enumerate([(0, 0, 30, 40), (30, 0, 60, 40)])
    ]
    path = tmp_path / "d.json"
    write_datalist(Datalist("Parts", "RGB", {1: "roof"}, test=tuple(cases)), path)
    folder = evaluate_masks(tmp_path / "theirs", path, tmp_path / "out")
    assert [float(row["dice"]) for row in rows(folder)] == [1, 1]
    for k, left in enumerate([0, 30]):
        Image.fromarray(truth[:, left : left + 30]).save(tmp_path / "parts" / f"a_{k}.png")
    folder = evaluate_masks(tmp_path / "parts", path, tmp_path / "out2")
    assert [float(row["dice"]) for row in rows(folder)] == [1, 1]


def test_a_tolerance_of_no_label_is_said(datalist: Path, tmp_path: Path) -> None:
    write_nifti(tmp_path / "theirs" / "a.nii.gz", small_scan()[1])
    write_nifti(tmp_path / "theirs" / "b.nii.gz", small_scan()[1])
    with pytest.warns(UserWarning, match="tolerance::livr: no label of this name is scored; there"):
        evaluate_masks(tmp_path / "theirs", datalist, tmp_path / "out", tolerance={"livr": 3})


def test_the_command(
    datalist: Path, tmp_path: Path, tune: Callable[..., tuple[int, str, str]]
) -> None:
    label = small_scan()[1]
    write_nifti(tmp_path / "theirs" / "a.nii.gz", np.where(np.arange(6) > 2, 0, label))
    write_nifti(tmp_path / "theirs" / "b.nii.gz", np.where(label == 2, 0, label))
    code, _, said = tune("evaluate", "--masks", tmp_path / "theirs", "--datalist", datalist)
    assert code == 0, said
    assert said.partition("the worst, in the given masks\n")[2].splitlines()[:3] == [
        "b_0000 spleen 0.000: nothing predicted, 0.864 ml are annotated",
        "a_0000 liver 0.667: 50% of the size, 1.15 ml for 2.3 ml; 2 of 4 slices missed",
        "a_0000 spleen 0.667: 50% of the size, 0.432 ml for 0.864 ml; 1 of 2 slices missed",
    ]
    assert "b_0000 liver" not in said
    summary = json.loads(
        (tmp_path / "theirs_evaluation" / "evaluation" / "summary.json").read_text()
    )
    found = [summary["labels"][label]["found"] for label in "12"]
    assert [(one["n"], one["mean"]) for one in found] == [(2, 1.0), (2, 0.5)]
    page = tmp_path / "theirs_evaluation" / "evaluation" / "report.html"
    assert f"report: {page}" in said
    assert not re.search("Engine run|Epoch", said)
    assert page.is_file()
    code, _, said = tune("evaluate", "--masks", tmp_path / "theirs")
    assert (code, "--masks needs --datalist" in said) == (1, True)


def test_settings_of_an_evaluation(
    datalist: Path, tmp_path: Path, tune: Callable[..., tuple[int, str, str]]
) -> None:
    theirs = tmp_path / "theirs"
    for name in "ab":
        write_nifti(theirs / f"{name}.nii.gz", np.zeros_like(small_scan()[1]))
    content = json.loads(datalist.read_text())
    for entry, site in zip(content["test"], "AB", strict=True):
        entry["site"] = site
    datalist.write_text(json.dumps({**content, "validation": content["test"][:1], "test": []}))
    words = ("evaluate", "--masks", theirs, "--datalist", datalist, "--output", tmp_path / "O")
    chosen = ("tolerance=3", "empty=nnunet", "by=site", "subset=validation", "pictures=0")
    code, _, said = tune(*words, *(word for one in chosen for word in ("--set", one)))
    assert code == 0, said
    folder = tmp_path / "O" / "evaluation_validation"
    assert f"report: {folder / 'report.html'}" in said
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["cases"], summary["empty_rule"]["name"]) == (1, "nnunet")
    assert summary["labels"]["1"]["tolerance"] == 3
    assert summary["labels"]["1"]["hd95"]["n"] == 0  # "exclude" has the diagonal
    assert [*summary["groups"]["site"]] == ["A"]
    assert not [*(folder / "overlays").glob("*.png")]
    for setting, why in (
        (
            "prompts=none",
            "--set prompts=none: masks are scored without a model; expected one of",
        ),
        ("tolerance=-1", "tolerance is -1; expected millimetres"),
        ("empty=maybe", "empty is 'maybe'; expected one of exclude, one, nnunet"),
        ("by=[ward]", "by names the column 'ward'"),
        ("subset=all", "no subset 'all'"),
        ("pictures=two", "pictures is 'two'; expected a whole number"),
        ("rules::components=0", "components is 0; expected null"),
        ("mending::heal=true", "expected mending::key=value, the key one of fill_nan"),
    ):
        code, _, said = tune(*words, "--set", "subset=validation", "--set", setting)
        assert (code, why in said) == (1, True), said
    code, _, said = tune(*words, "--jitter", "0.1", "--gpus", "2")
    assert (code, "--jitter, --gpus: of models; --masks scores without any." in said) == (1, True)


@pytest.mark.parametrize(("setting", "expected"), [((), (0.75, 2 * 2.6 / 7)), (("null",), None)])
def test_objects_of_images_are_counted_as_those_of_a_model(
    tmp_path: Path,
    tune: Callable[..., tuple[int, str, str]],
    setting: tuple[str, ...],
    expected: tuple[float, float] | None,
) -> None:
    truth = np.zeros((40, 60), np.uint8)
    for corner in (2, 16, 30, 44):
        truth[5:15, corner : corner + 10] = 1
    mask = np.zeros_like(truth)
    mask[5:15, 2:12] = 1
    mask[5:13, 16:26] = mask[5:13, 30:40] = 1  # IoU 0.8 each; the fourth is missed
    mask[30:33, 30:33] = 1  # below 64 pixels, it is none
    for name, array in (("images/a", truth * 200), ("labels/a", truth), ("theirs/a", mask)):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    place = tmp_path / "d.json"
    case = Case(tmp_path / "images" / "a.png", tmp_path / "labels" / "a.png", "a")
    write_datalist(Datalist("Small", "XR", {1: "cell"}, test=(case,)), place)
    words = [word for one in setting for word in ("--set", f"rules::components={one}")]
    code, _, said = tune("evaluate", "--masks", tmp_path / "theirs", "--datalist", place, *words)
    assert code == 0, said
    folder = tmp_path / "theirs_evaluation" / "evaluation"
    label = json.loads((folder / "summary.json").read_text())["labels"]["1"]
    assert [label["object_recall"], label["pq"]] == (
        [None, None] if expected is None else [pytest.approx(one) for one in expected]
    )


def test_objects_that_masks_tell_apart(tmp_path: Path) -> None:
    """Two cells that touch are two, in the truth as in the masks."""
    image = np.full((12, 24), 50, np.uint8)
    outlines = {
        "whole": [[2, 2, 20, 8]],
        "halves": [[2, 2, 10, 8], [12, 2, 10, 8]],
    }
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    for name, boxes in outlines.items():
        corners = [[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in boxes]
        found = [
            {"id": n, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": box, "area": 80}
            | {"segmentation": [outline]}
            for n, (box, outline) in enumerate(zip(boxes, corners, strict=True), 1)
        ]
        coco = {
            "images": [{"id": 1, "file_name": "a.png", "width": 24, "height": 12}],
            "categories": [{"id": 1, "name": "cell"}],
            "annotations": found,
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(coco))
    case = Case(tmp_path / "images" / "a.png", tmp_path / "halves.json", "a")
    write_datalist(Datalist("Small", "XR", {1: "cell"}, test=(case,)), tmp_path / "d.json")
    (tmp_path / "theirs").mkdir()
    mask = np.zeros_like(image)
    mask[2:10, 2:22] = 1
    Image.fromarray(mask).save(tmp_path / "theirs" / "a.png")
    folder = evaluate_masks(
        tmp_path / "theirs", tmp_path / "d.json", tmp_path / "out", components=1
    )
    (row,) = rows(folder)
    assert (row["true_objects"], row["found_objects"], row["dice"]) == ("2", "1", "1.0")
