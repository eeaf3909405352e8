"""Outputs: inputs are never written, and what is there only when that is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
import torch

from medsam_tune.formats.dicom.seg import segment_names
from medsam_tune.formats.open import dicom_modality
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import save_tuned
from medsam_tune.runs import RunRecord, write_record, write_state
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.encoder import fuse_qkv
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules
from tests.dicom_series import write_series
from tests.scans import small_scan, write_nifti

Tune = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run on a base of its own, in base.pth."""
    base = tmp_path / "base.pth"
    torch.save(fuse_qkv(build_sam("nano", image_size=64).state_dict()), base)
    sam = apply_method(build_sam("nano", base, image_size=64), "decoder")
    folder = tmp_path / "run"
    save_tuned(sam, folder / "tuned.safetensors", {1: "liver"})
    rules = ScanRules(Percentiles()).describe()
    write_record(folder, RunRecord("d.json", "d.slices", str(base), rules, {}, 0.0, 0))
    write_state(folder, "finished")
    return folder


def test_row_94_export_leaves_its_base(tune: Tune, run: Path) -> None:
    base = run.parent / "base.pth"
    before = base.read_bytes()
    for words in ((), ("--overwrite",)):
        code, _, err = tune("export", "--run", run, "--output", base, *words)
        assert (code, "base.pth: is an input; choose another" in err) == (1, True), err
    link = run.parent / "link.pth"
    link.symlink_to(base)
    assert tune("export", "--run", run, "--output", link, "--overwrite")[0] == 1
    assert base.read_bytes() == before


def test_row_94_predict_leaves_scans_prompts_and_masks(tune: Tune, run: Path) -> None:
    scan = write_nifti(run.parent / "scan.nii.gz", small_scan()[0])
    boxes, mask = run.parent / "boxes.json", run.parent / "mask.nii.gz"
    boxes.write_text(json.dumps({"objects": [{"label": 1, "box3d": [1, 1, 1, 5, 5, 3]}]}))
    mask.write_bytes(b"mine")
    before = {path: path.read_bytes() for path in (scan, boxes, mask)}
    flags = ("--run", run, "--prompts", boxes, "--output")
    code, _, err = tune("predict", scan, *flags, mask)
    assert (code, "mask.nii.gz: is there already" in err) == (1, True), err
    code, _, err = tune("predict", scan, *flags, scan, "--overwrite")
    assert (code, "scan.nii.gz: is an input" in err) == (1, True), err
    code, _, err = tune("predict", scan, *flags, mask, "--set", f"output={scan}")
    assert (code, "output is given by the command's own option" in err) == (1, True), err
    assert {path: path.read_bytes() for path in before} == before
    code, _, err = tune("predict", scan, *flags, mask, "--overwrite")
    assert code == 0, err
    assert mask.read_bytes() != b"mine"


def test_row_94_check_and_prompts_write_json_alone(tune: Tune, run: Path) -> None:
    scan = write_nifti(run.parent / "scan.nii.gz", small_scan()[0])
    folder = run.parent / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "dataset.json").write_text("{}")
    for words, message in (
        (("check", scan, "--output", run.parent / "x.nii.gz"), "a name that ends in .json"),
        (("check", folder, "--output", folder / "dataset.json"), "dataset.json: is an input"),
        (("prompts", scan, "--output", run.parent / "base.pth"), "a name that ends in .json"),
        (("prompts", scan, "--run", run, "--output", run / "run.json"), "run.json: is an input"),
    ):
        code, _, err = tune(*words, "--overwrite")
        assert (code, message in err) == (1, True), err


def test_options_of_the_untuned_model_are_not_passed_over(tune: Tune, run: Path) -> None:
    for words in (("--output", "x"), ("--model", "vit_b"), ("--image-size", 64)):
        code, _, err = tune("evaluate", "--run", run, *words)
        assert (code, "are for --zero-shot; a run has its own" in err) == (1, True), err


def test_predict_writes_dicom(tune: Tune, run: Path) -> None:
    series = write_series(run.parent / "ct", modality="MR")
    boxes = run.parent / "boxes.json"
    boxes.write_text(json.dumps({"objects": [{"label": 1, "box3d": [1, 1, 1, 9, 9, 6]}]}))
    table = run.parent / "codes $1.csv"
    table.write_text("label,name\nliver,Leber\n")
    flags = ("--run", run, "--prompts", boxes, "--output")
    seg, rt = run.parent / "seg.dcm", run.parent / "rt.dcm"
    code, _, err = tune("predict", series, *flags, seg, "--codes", table)
    assert code == 0, err
    assert "copy attributes" not in err  # highdicom's own log
    assert segment_names(seg) == {1: "Leber"}
    code, _, err = tune("predict", series, *flags, rt, "--format", "rtstruct")
    assert code == 0, err
    assert dicom_modality(rt) == "RTSTRUCT"
    labelmap = ("--overwrite", "--set", "segmentation=labelmap")
    code, _, err = tune("predict", series, *flags, seg, *labelmap)
    assert code == 0, err
    assert pydicom.dcmread(seg).SegmentationType == "LABELMAP"
    mask, scan = run.parent / "m.nii.gz", write_nifti(run.parent / "s.nii.gz", small_scan()[0])
    for words, message in (
        ((series, *flags, mask, "--format", "rtstruct"), "m.nii.gz: --format rtstruct writes .dcm"),
        ((series, *flags, mask, "--format", "rt"), "format is 'rt'; expected one of nii, nii.gz,"),
        ((series, *flags, mask, "--codes", table), "m.nii.gz: has no place for --codes"),
        (
            (series, *flags, run.parent / "m.mhd"),
            "m.mhd: ends in .mhd, which is no ending of a mask",
        ),
        ((scan, *flags, run.parent / "m.dcm"), "s.nii.gz: is not DICOM; a DICOM SEG refers to"),
        ((series, *flags, mask, *labelmap), "segmentation is 'labelmap', which is for a DICOM SEG"),
    ):
        code, _, err = tune("predict", *words)
        assert (code, message in err.splitlines()[-1]) == (1, True), err
        assert not list(run.parent.glob("m.*"))
