"""The command `prompts`, and the line that each command ends with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medsam_tune.cases.classes import Coding
from medsam_tune.cases.datalist import Case, Datalist, write_datalist
from medsam_tune.cli import next_steps
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.inference.simulated import simulated_prompts
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import save_tuned
from medsam_tune.runs import RunRecord, write_record
from medsam_tune.sam.build import build_sam
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules
from medsam_tune.synthetic.archive import write_archive
from tests.dicom_series import COUNT, SIZE, read, write_series
from tests.scans import LABELS, small_scan, write_nifti
from tests.segmentation import NAMES, masks, write_seg

Tune = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _in_a_new_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A scan "my scan.nii.gz" with its label map "label.nii.gz"."""
    image, label = small_scan()
    write_nifti(tmp_path / "label.nii.gz", label)
    return write_nifti(tmp_path / "my scan.nii.gz", image)


def a_run(
    folder: Path,
    datalist: Path | None = None,
    plane: str = "axial",
    spacing: tuple[float, float, float] | None = None,
    modality: str = "",
    **options: int,
) -> Path:
    sam = apply_method(build_sam("nano", image_size=64), "decoder", **options)
    save_tuned(sam, folder / "tuned.safetensors", LABELS)
    rules = ScanRules(Percentiles(), plane, spacing, modality=modality).describe()
    write_record(folder, RunRecord(str(datalist or "d.json"), "s", None, rules, {}, 0.0, 0))
    return folder


def test_a_file_to_fill_in(tune: Tune, scan: Path, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    code, out, err = tune("prompts", scan, "--run", run, "--output", "boxes.json")
    assert code == 0, err
    assert out == "boxes.json: boxes to fill in, 1 liver, 2 spleen\n"
    assert "next: fill in the boxes of boxes.json" in err
    assert "'" + str(scan) + "'" in err  # quoted
    content = json.loads((tmp_path / "boxes.json").read_text())
    assert content["scan"]["size"] == [10, 12, 6]
    code, _, err = tune("prompts", scan, "--output", "boxes.json")
    assert code == 1
    assert "boxes.json: is there already" in err
    assert tune("prompts", scan, "--output", "boxes.json", "--overwrite")[0] == 0
    assert "labels" not in json.loads((tmp_path / "boxes.json").read_text())


@pytest.mark.parametrize("plane", ["axial", "coronal"])
@pytest.mark.parametrize("kind", [None, "slices", "interpolated:2", "middle-range", "points"])
def test_prompts_of_a_label_map(
    tune: Tune, scan: Path, tmp_path: Path, plane: str, kind: str | None
) -> None:
    run = a_run(tmp_path / "run", plane=plane)
    label = tmp_path / "label.nii.gz"
    flags = ("--from-labels", label, *(("--as", kind) if kind else ()), "--output", "boxes.json")
    code, out, err = tune("prompts", scan, "--run", run, *flags)
    assert code == 0, err
    assert out == f"boxes.json: {kind or 'box3d'}, 1 liver, 2 spleen\n"
    last = err.strip().splitlines()[-1]
    assert shlex.split(last)[:3] == ["next:", "medsam-tune", "predict"]
    grid = ScanRules(Percentiles(), plane).grid(small_scan()[1].shape, np.diag([2.0, 3, 4, 1]))
    found = read_prompts(tmp_path / "boxes.json", grid, LABELS)
    expected = read_prompts(label, grid, LABELS, prompts_as=kind or "box3d")
    assert torch.equal(found.slices, expected.slices)
    assert torch.equal(found.boxed, expected.boxed)
    assert torch.equal(found.boxes[found.boxed], expected.boxes[found.boxed])
    assert torch.equal(found.points, expected.points)
    assert torch.equal(found.drawn, expected.drawn)
    assert [*found.spread.values()] == [*expected.spread.values()]
    code, _, err = tune("prompts", scan, *flags, "--overwrite")  # the map alone: no names
    assert code == 0, err
    assert "name" not in json.loads((tmp_path / "boxes.json").read_text())["objects"][0]


def test_prompts_are_drawn_on_the_slices_of_the_file(
    tune: Tune, scan: Path, tmp_path: Path
) -> None:
    """Rules that resample the scan come after it."""
    run = a_run(tmp_path / "run", spacing=(4.0, 6.0, 8.0))
    flags = ("--from-labels", tmp_path / "label.nii.gz", "--as", "slices", "--output", "boxes.json")
    code, _, err = tune("prompts", scan, "--run", run, *flags)
    assert code == 0, err
    liver = json.loads((tmp_path / "boxes.json").read_text())["objects"][0]
    assert liver["slices"]["1"] == {"box": [1, 2, 5, 8]}


def test_boxes_of_a_label_map_on_a_dicom_series(tune: Tune, tmp_path: Path) -> None:
    series = write_series(tmp_path / "series")
    label = np.zeros((*SIZE, COUNT), np.uint8)
    label[2:5, 1:9, 3:6], label[8:9, 4:7, 0:2] = 1, 2
    affine = read(series).affine
    turned = np.flip(label, (0, 2))  # stored in another orientation
    other = affine @ np.array(
        [[-1, 0, 0, SIZE[0] - 1], [0, 1, 0, 0], [0, 0, -1, COUNT - 1], [0, 0, 0, 1]]
    )
    write_nifti(tmp_path / "label.nii.gz", np.ascontiguousarray(turned), other)
    (tmp_path / "d.json").write_text("{}")
    data = Datalist("x", "CT", LABELS, (Case(series, tmp_path / "label.nii.gz", "p"),))
    write_datalist(data, tmp_path / "d.json")
    flags = ("--datalist", "d.json", "--from-labels", "label.nii.gz", "--as", "slices")
    code, _, err = tune("prompts", "series", *flags, "--output", "boxes.json")
    assert code == 0, err
    grid = ScanGrid(affine, (*SIZE, COUNT))
    found = read_prompts(tmp_path / "boxes.json", grid, LABELS)
    slices = torch.from_numpy(label.astype(np.int64)).permute(2, 1, 0)
    expected = simulated_prompts(slices, LABELS, "slices")
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.slices, expected.slices)


def test_values_of_one_label_give_its_boxes(tune: Tune, scan: Path, tmp_path: Path) -> None:
    case = Case(scan, tmp_path / "label.nii.gz", "p")
    coding = Coding(united={2: 1})
    write_datalist(Datalist("x", "CT", {1: "organ"}, (case,), coding=coding), tmp_path / "d.json")
    flags = ("--datalist", "d.json", "--from-labels", "label.nii.gz", "--as", "slices")
    code, _, err = tune("prompts", scan, *flags, "--output", "boxes.json")
    assert code == 0, err
    (organ,) = json.loads((tmp_path / "boxes.json").read_text())["objects"]
    assert organ["label"] == 1


def test_prompts_of_a_seg_name_their_labels(tune: Tune, tmp_path: Path) -> None:
    """Without a run, an id is the segment's number, which is another label of a model."""
    series = write_series(tmp_path / "series")
    write_seg(tmp_path / "seg.dcm", series, masks())
    code, _, err = tune("prompts", "series", "--from-labels", "seg.dcm", "--output", "boxes.json")
    assert code == 0, err
    found = json.loads((tmp_path / "boxes.json").read_text())["objects"]
    assert [(each["label"], each["name"]) for each in found] == [*NAMES.items()]


@pytest.mark.parametrize("words", [(), ("--from-labels", "label.nii.gz")], ids=["form", "label"])
def test_prompts_refuse_a_series_that_predict_would_refuse(
    tune: Tune, tmp_path: Path, words: tuple[str, ...]
) -> None:
    series = write_series(tmp_path / "series")
    write_nifti(
        tmp_path / "label.nii.gz", np.ones((*SIZE, COUNT), np.uint8), np.array(read(series).affine)
    )
    a_run(tmp_path / "run", modality="MR")
    code, _, err = tune("prompts", "series", "--run", "run", *words, "--output", "boxes.json")
    assert code == 1
    assert "the Modality of the DICOM series is CT (series); expected MR" in err
    assert not (tmp_path / "boxes.json").exists()
    a_run(tmp_path / "ct", modality="CT")
    code, _, err = tune("prompts", "series", "--run", "ct", *words, "--output", "boxes.json")
    assert code == 0, err


def test_what_prompts_refuses(tune: Tune, scan: Path, tmp_path: Path) -> None:
    label, run = tmp_path / "label.nii.gz", a_run(tmp_path / "run")
    empty = write_nifti(tmp_path / "empty.nii.gz", np.zeros((10, 12, 6), np.uint8))
    write_datalist(
        Datalist("x", "CT", LABELS, (Case(scan, label, "p"),)), datalist := tmp_path / "d.json"
    )
    for words, message in (
        ((scan, "--as", "slices"), "--as needs --from-labels"),
        ((scan, "--from-labels", label, "--as", "box"), "kind of prompts 'box' is unknown; known"),
        ((scan, "--from-labels", label, "--as", "none"), "'none' takes nothing of a label map"),
        ((scan, "--run", run, "--datalist", "d.json"), "give --run or --datalist, not both"),
        ((scan, "--from-labels", "nowhere"), "nowhere: no such label"),
        (("nowhere",), "nowhere: no such scan"),
        ((scan, "--datalist", datalist, "--from-labels", empty), "no label has a voxel"),
    ):
        code, _, err = tune("prompts", *words, "--output", "boxes.json")
        assert code == 1, words
        assert message in err.strip().splitlines()[-1]
        assert not (tmp_path / "boxes.json").exists()
    code, _, err = tune("prompts", scan, "--output", scan, "--overwrite")
    assert code == 1
    assert "a name that ends in .json" in err


def test_each_command_says_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scan: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def said() -> list[str]:
        out, err = capsys.readouterr()
        assert not out
        return err.splitlines()

    label = tmp_path / "label.nii.gz"
    data = Datalist("x", "CT", LABELS, (Case(scan, label, "a"),), test=(Case(scan, label, "b"),))
    write_datalist(data, datalist := tmp_path / "my list.json")
    next_steps.after_split([Path("-a b.json")], "CT")
    train = "medsam-tune train lora --datalist './-a b.json' --output runs/lora"
    assert said() == [f"next: medsam-tune check './-a b.json' && {train}"]
    (tmp_path / "runs" / "lora").mkdir(parents=True)
    next_steps.after_prepare(Path("d.json"), Path("s"), ["rules::plane=coronal"], "my bundle")
    assert said() == [
        "next: medsam-tune train lora --datalist d.json --set slices_dir=s --set "
        "rules::plane=coronal --output runs/lora_2 --bundle 'my bundle'"
    ]
    next_steps.after_train(Path("run"), "volume")
    assert said() == ["next: medsam-tune evaluate --run run"]
    run = a_run(tmp_path / "run", datalist)
    (tmp_path / "boxes.json").touch()
    write_datalist(
        Datalist("x", "CT", LABELS, (), test=(Case(scan, label, "b", series="1.2"),)), datalist
    )
    next_steps.after_evaluate(run, "volume")
    results, report, line = said()
    assert report == f"report: {run}/evaluation/report.html"
    assert results.startswith(f"results: {run}/evaluation/metrics.csv")
    words = ["prompts", str(scan), "--series", "1.2", "--run", str(run), "--output", "boxes_2.json"]
    assert shlex.split(line) == ["next:", "medsam-tune", *words]
    hidden = Case(scan, label, "b", series="1.2", name="case_0001")  # hides the file's name
    write_datalist(Datalist("x", "CT", LABELS, (), test=(hidden,)), datalist)
    next_steps.after_evaluate(run, "volume")
    assert " prompts SCAN --run " in said()[-1]
    free = a_run(tmp_path / "free", tmp_path / "moved.json", num_classes=2)
    next_steps.after_evaluate(free, "volume")
    assert said()[-1] == f"next: medsam-tune predict SCAN --run {free} --output mask.nii.gz"
    next_steps.after_zero_shot(run, Path("d.json"), "vit_b", Path("w.pth"), "volume")
    assert said()[-1] == (
        "next: medsam-tune train lora --model vit_b --checkpoint w.pth --datalist d.json --output "
        "runs/lora_2"
    )
    next_steps.after_predict(Path("scene.tif"), Path("map.gpkg"))
    assert said()[-1] == "next: open map.gpkg over scene.tif, e.g. in QGIS"


def test_check_says_what_to_do(tune: Tune, scan: Path, tmp_path: Path) -> None:
    label = tmp_path / "label.nii.gz"
    write_datalist(Datalist("x", "CT", LABELS, (Case(scan, label, "a"),)), tmp_path / "d.json")
    code, out, err = tune("check", "d.json")
    assert code == 0
    assert "next" not in out
    assert err.splitlines() == ["next: medsam-tune train lora --datalist d.json --output runs/lora"]
    write_nifti(tmp_path / "flat.nii.gz", np.zeros((10, 12, 6), np.float32))
    (tmp_path / "broken.nii.gz").write_text("hello")
    code, _, err = tune("check", "broken.nii.gz")
    assert code == 3
    assert err.splitlines() == [
        "next: mend the refused scans as they say, or take them out, then medsam-tune check "
        "broken.nii.gz"
    ]


def test_check_of_dicom_studies_says_to_split_them(tune: Tune, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    small = {"shape": (32, 24, 6), "spacing": (10.0, 9.0, 20.0)}
    write_archive(tmp_path / "studies", count=1, **small)
    write_archive(tmp_path / "unlabelled", count=1, labelled=False, **small)
    code, _, err = tune("check", "studies")
    assert code == 0
    assert err.splitlines()[-1] == "next: medsam-tune split studies --out datalist.json"
    assert "next" not in tune("check", "unlabelled")[2]


def test_masks_of_images_are_named_as_png(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mask in (("a.png", "mask.png"), ("a.nii.gz", "mask.nii.gz")):
        next_steps.after_prompts(Path(name), None, None, Path("boxes.json"), True)
        assert capsys.readouterr().err.endswith(f"--prompts boxes.json --output {mask}\n")
