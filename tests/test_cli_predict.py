"""`medsam-tune predict` on many scans: a bad one is refused alone, and what is missing is done."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from medsam_tune.cases.datalist import Case, Datalist, write_datalist
from medsam_tune.cli import predict
from medsam_tune.files import file_hash, hold_folder
from medsam_tune.formats.mending import Mending
from medsam_tune.inference import predictions, steps
from medsam_tune.inference.records import begin_record
from medsam_tune.inference.tuned_runs import TunedRuns
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules
from tests.dicom_series import write_series
from tests.inference.made import objects, write_run
from tests.phi import NAME, plant, sweep
from tests.scans import small_scan, write_nifti

Tune = Callable[..., tuple[int, str, str]]

BOX = objects({"label": 1, "box3d": [1, 2, 1, 6, 8, 4]})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that takes prompts, or none."""
    folder = tmp_path_factory.mktemp("runs") / "fold_0"
    write_run(folder, ScanRules(Percentiles()), classes=2)
    return folder


def write_scans(folder: Path, count: int) -> list[Path]:
    image = small_scan()[0]
    return [write_nifti(folder / f"s{n:02d}.nii.gz", image + n) for n in range(count)]


def write_prompts(folder: Path, scans: list[Path], content: object = BOX) -> None:
    folder.mkdir(exist_ok=True)
    for scan in scans:
        name = scan.name.replace(".nii.gz", ".json")
        (folder / name).write_text(json.dumps(content))


def spoil(scans: list[Path], prompts: Path) -> None:
    """Six of the scans become bad, each in its own way."""
    image = small_scan()[0]
    scans[3].write_bytes(b"")
    scans[7].write_bytes(scans[7].read_bytes()[:900])
    image[2, 3, 4] = np.nan
    write_nifti(scans[12], image)
    write_nifti(scans[20], np.zeros((5, 5, 5, 3), np.float32))
    write_prompts(prompts, [scans[21]], objects({"label": 7, "box3d": [1, 2, 1, 6, 8, 4]}))
    (prompts / "s39.json").unlink()


REASONS = {
    "s03": "zero bytes",
    "s07": "truncated or damaged gzip|Expected a whole NIfTI",
    "s12": "1 NaN or infinite voxels",
    "s20": "3 volumes|4-D",
    "s21": "label 7 is not there",
    "s39": "has 0 files of prompts for it: none; expected one: s39.json",
}


def test_bad_scans_are_refused_alone(tune: Tune, run: Path, tmp_path: Path) -> None:
    scans, prompts, out = write_scans(tmp_path / "scans", 40), tmp_path / "prompts", tmp_path / "o"
    write_prompts(prompts, scans)
    (prompts / "s00.json").unlink()
    write_nifti(prompts / "s00.nii.gz", small_scan()[1])
    spoil(scans, prompts)
    words = ("predict", tmp_path / "scans", "--run", run, "--prompts", prompts, "--output", out)
    code, _, err = tune(*words)
    assert code == 3, err
    assert len(list(out.glob("*.nii.gz"))) == len(list(out.glob("*.prediction.json"))) == 34
    said = err.splitlines()
    (end,) = [n for n, line in enumerate(said) if line.endswith("34 masks, 6 refused:")]
    refused = {line.split(":")[0].removeprefix("case "): line for line in said[end + 1 : end + 7]}
    assert refused.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert re.search(reason, refused[name]), refused[name]
        assert err.count(f"refused: case {name}: ") == 1  # when it happened
    assert said[-1] == (
        "next: mend the refused scans as they say, or take them out, then the same with --resume"
    )
    kinds = [json.loads((out / f"s0{n}.prediction.json").read_text())["prompts"] for n in (0, 1)]
    assert [kind["kind"] for kind in kinds] == ["label map", "prompt file"]

    (out / "s11.nii.gz").write_bytes(b"by hand")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    write_nifti(scans[3], small_scan()[0])
    write_prompts(prompts, [scans[39]])
    (out / "s05.nii.gz").unlink()
    begin_record(out / "s06.prediction.json", [])  # it was killed
    (out / "s10.prediction.json").unlink()
    write_nifti(scans[11], small_scan()[0] + 98)
    write_nifti(scans[8], small_scan()[0] + 99)
    write_prompts(prompts, [scans[9]], objects({"label": 2, "box3d": [1, 2, 1, 6, 8, 4]}))
    code, _, err = tune(*words, "--resume")
    assert code == 3
    assert "34 masks (28 were there), 6 refused:" in err
    assert "refused: case s10: " in err
    assert "refused: case s11: " in err
    changed = {path.name for path in out.glob("s*") if path.stat().st_mtime_ns != before.get(path)}
    assert changed == {
        f"s{n}{end}"
        for n in ("03", "39", "05", "06", "08", "09")
        for end in (".nii.gz", ".prediction.json")
    }


def test_the_record_says_how_a_mask_was_made(tune: Tune, run: Path, tmp_path: Path) -> None:
    image = small_scan()[0]
    scan, boxes = write_nifti(tmp_path / "a.nii.gz", image), tmp_path / "boxes.json"
    boxes.write_text(json.dumps(BOX))
    mask = tmp_path / "mask.nii.gz"
    words = ("predict", scan, "--run", run, "--prompts", boxes, "--output", mask)
    code, _, err = tune(*words, "--set", "min_volume_ml=0.01")
    assert code == 0, err
    assert "refused" not in err
    record = json.loads((tmp_path / "mask.prediction.json").read_text())
    assert record["scan"] == {"path": "a.nii.gz", "series": None, "sha256": file_hash(scan)}
    kind = {"file": "boxes.json", "kind": "prompt file", "sha256": file_hash(boxes)}
    assert record["prompts"] == kind
    tuned = file_hash(run / "tuned.safetensors")
    assert record["runs"] == [{"run": "fold_0", "tuned_sha256": tuned}]
    assert record["settings"]["min_volume_ml"] == 0.01
    assert (record["case"], record["device"], record["masks"]) == ("a", "cpu", ["mask.nii.gz"])
    assert {"medsam_tune", "torch", "monai"} <= record["versions"].keys()
    voxels = int(np.count_nonzero(np.asarray(nib.load(mask).dataobj)))
    assert voxels
    assert record["volumes_ml"] == {"1": pytest.approx(voxels * 2 * 3 * 4 / 1000, abs=1e-4)}
    (one,) = record["objects"]
    assert (one["label"], one["slices"]) == (1, 3)
    assert 0 < one["quality"] < 1.5
    assert str(tmp_path) not in (tmp_path / "mask.prediction.json").read_text()


def test_an_error_of_the_only_scan_is_the_commands(tune: Tune, run: Path, tmp_path: Path) -> None:
    scan = tmp_path / "scans" / "a.nii.gz"
    scan.parent.mkdir()
    scan.write_bytes(b"")
    for output in ("mask.nii.gz", "out"):
        code, _, err = tune("predict", scan, "--run", run, "--output", tmp_path / output)
        assert code == 1
        assert err.splitlines()[-1].startswith("medsam-tune: case a: the file has zero bytes")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_a_fault_is_mended_as_the_refusal_says(tune: Tune, run: Path, tmp_path: Path) -> None:
    scan = write_nifti(tmp_path / "a.nii.gz", np.stack([small_scan()[0]] * 2, -1))
    words = ("predict", scan, "--run", run, "--output", tmp_path / "mask.nii.gz")
    code, _, err = tune(*words)
    assert (code, "mending::volume_index=0" in err) == (1, True), err
    code, _, err = tune(*words, "--set", "mending::volume_index=0")
    assert code == 0, err
    record = json.loads((tmp_path / "mask.prediction.json").read_text())
    mended = {**Mending().describe(), "volume_index": 0}
    assert record["settings"]["mending"] == mended
    code, _, err = tune(*words, "--set", "mending::volume_index=1", "--resume")
    assert (code, "volume_index was 0, now 1" in err) == (1, True), err
    code, _, err = tune(*words, "--set", "mending::volume_index=0", "--resume")
    assert (code, "mask.nii.gz: is done already" in err) == (0, True), err


def test_nothing_done_is_an_error(tune: Tune, run: Path, tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "scans", 2)
    for scan in scans:
        scan.write_bytes(b"")
    code, _, err = tune("predict", tmp_path / "scans", "--run", run, "--output", tmp_path / "out")
    assert code == 1
    assert "0 masks, 2 refused:" in err


def test_a_datalist_and_its_subset(tune: Tune, run: Path, tmp_path: Path) -> None:
    scans, gone = write_scans(tmp_path / "scans", 3), tmp_path / "gone.nii.gz"
    listed = Datalist(
        "x",
        "MR",
        {1: "liver"},
        training=(Case(scans[0], gone, "p"),),  # labels are not looked at
        test=(
            Case(scans[1], gone, "q", name="case_7"),
            Case(gone, gone, "r"),
            Case(scans[2], None, "s"),
        ),
    )
    write_datalist(listed, tmp_path / "d.json")
    words = ("predict", tmp_path / "d.json", "--run", run, "--output")
    code, _, err = tune(*words, tmp_path / "test", "--subset", "test")
    assert code == 3, err
    assert "case gone: no such file" in err
    assert {path.name for path in (tmp_path / "test").glob("*.gz")} == {
        "case_7.nii.gz",
        "s02.nii.gz",
    }
    record = json.loads((tmp_path / "test" / "case_7.prediction.json").read_text())
    assert record["scan"]["path"] is None  # its name hides it
    code, _, err = tune(*words, tmp_path / "all", "--ending", ".nii")
    assert code == 3
    assert len(list((tmp_path / "all").glob("*.nii"))) == 3


def test_studies_of_an_archive(tune: Tune, run: Path, tmp_path: Path) -> None:
    """No name of a patient leaves, and each mask lies in its series' place."""
    place, out = tmp_path / "archive", tmp_path / "out"
    for number in range(3):
        write_series(
            place / f"Doe_Jane_{number}" / "study" / "series",
            lambda _, image, number=number: plant(image, number),
            modality="MR",
            uid=f"1.2.3.{number}",
        )
    damaged = next((place / "Doe_Jane_2").rglob("*.dcm"))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    code, _, err = tune("predict", place, "--run", run, "--output", out)
    assert code == 3, err
    assert {path.name for path in out.glob("*.gz")} == {"1.2.3.0.nii.gz", "1.2.3.1.nii.gz"}
    record = json.loads((out / "1.2.3.0.prediction.json").read_text())
    assert (record["scan"]["series"], record["scan"]["path"]) == ("1.2.3.0", None)
    told = err.replace(str(place), "").replace("Doe_Jane_2/study", "")  # the path of the bad file
    assert sweep(out, {"log": told}).hits == []
    assert NAME in str(next(place.rglob("*.dcm")).read_bytes())


def test_outputs_are_not_written_over(tune: Tune, run: Path, tmp_path: Path) -> None:
    scans, out = write_scans(tmp_path / "scans", 3), tmp_path / "out"
    words = ("predict", tmp_path / "scans", "--run", run, "--output")
    assert tune(*words, out)[0] == 0
    for output, more, message in (
        (out, (), "3 of 3 scans have masks there already: s00.nii.gz, s01.nii.gz, s02.nii.gz. Ch"),
        (tmp_path / "mask.nii.gz", (), "is one mask, and there are 3 scans: s00, s01, s02"),
        (tmp_path / "scans", (), "is the folder of the scans; choose another for the masks"),
        (scans[0], (), "is one mask, and there are 3 scans"),
        (out, ("--resume", "--set", "fill_holes=true"), "fill_holes was False, now True. Choose"),
        (out, ("--ending", ".jpg"), "ending is '.jpg'; expected one of a mask"),
        (out, ("--subset", "test"), "is no datalist, so it has no subset 'test'"),
        (
            out,
            ("--prompts", run / "run.json"),
            "is no folder, and there are 3 scans; expected a folder",
        ),
    ):
        code, _, err = tune(*words, output, *more)
        assert (code, message in err) == (1, True), err
    code, _, err = tune(*words, out, "--resume", "--overwrite", "--set", "fill_holes=true")
    assert code == 0, err
    assert "3 masks (0 were there), 0 refused" in err
    assert tune(*words, out, "--overwrite")[0] == 0


def test_masks_below_the_scans_are_no_scans(tune: Tune, run: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", 2)
    words = ("predict", tmp_path / "scans", "--run", run, "--output", tmp_path / "scans" / "masks")
    assert tune(*words)[0] == 0
    code, _, err = tune(*words, "--resume")
    assert code == 0
    assert "2 masks (2 were there), 0 refused" in err


def test_a_second_process_is_refused(tune: Tune, run: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", 2)
    out = tmp_path / "out"
    out.mkdir()
    words = ("predict", tmp_path / "scans", "--run", run, "--output", out, "--resume")
    lock = hold_folder(out, "predicts")
    code, _, err = tune(*words)
    assert (code, "another process predicts into it" in err) == (1, True), err
    lock.release()
    assert tune(*words)[0] == 0


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, error: Exception) -> None:
    """The n-th mask cannot be written."""
    write, calls = steps.write_masks, [0]

    def failing(*words: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            raise error
        return write(*words, **options)

    monkeypatch.setattr(steps, "write_masks", failing)


def test_memory_refuses_one_scan_and_a_full_disk_stops_all(
    tune: Tune, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scans(tmp_path / "scans", 4)
    words = ("predict", tmp_path / "scans", "--run", run, "--output", tmp_path / "out")
    fail_at(monkeypatch, 2, MemoryError())
    code, _, err = tune(*words)
    assert code == 3, err
    assert "refused: case s01: out of memory" in err
    assert "3 masks, 1 refused:" in err
    (tmp_path / "out" / "s02.nii.gz").unlink()
    fail_at(monkeypatch, 1, OSError(errno.ENOSPC, "No space left on device", str(tmp_path)))
    code, _, err = tune(*words, "--resume")
    assert (code, "the disk is full" in err) == (5, True), err
    fail_at(monkeypatch, 1, OSError(errno.ENOSPC, "No space left on device", str(tmp_path)))
    assert tune(*words, "--overwrite")[0] == 5
    record = json.loads((tmp_path / "out" / "s00.prediction.json").read_text())
    assert record == {"format": 1, "finished": False, "files": {"s00.nii.gz": None}}
    monkeypatch.undo()
    fail_at(monkeypatch, 1, RuntimeError("a fault of ours"))
    assert tune(*words, "--resume")[0] == 70


def test_several_runs_and_probabilities(tune: Tune, run: Path, tmp_path: Path) -> None:
    write_run(other := tmp_path / "fold_1", ScanRules(Percentiles()), classes=2, seed=1)
    scan = write_nifti(tmp_path / "scan.nii.gz", small_scan()[0])
    boxes = [{"label": k, "box3d": [1, 2, k, 6, 8, 4]} for k in (1, 2)]
    (tmp_path / "boxes.json").write_text(json.dumps(objects(*boxes)))
    words = ("--output", tmp_path / "mask.nii.gz", "--probabilities", "--separate")
    words = (*words, "--prompts", tmp_path / "boxes.json")
    code, _, err = tune("predict", scan, "--run", run, "--run", other, *words)
    assert code == 0, err
    record = json.loads((tmp_path / "mask.prediction.json").read_text())
    assert [one["run"] for one in record["runs"]] == ["fold_0", "fold_1"]
    assert record["masks"] == ["mask_1_liver.nii.gz", "mask_2_spleen.nii.gz"]
    maps = ["mask_probability_1_liver.nii.gz", "mask_probability_2_spleen.nii.gz"]
    assert record["probabilities"] == maps
    for mask, map_ in zip(record["masks"], maps, strict=True):
        inside = np.asarray(nib.load(tmp_path / mask).dataobj) > 0
        found = nib.load(tmp_path / map_)
        assert found.get_data_dtype() == np.float32
        np.testing.assert_array_equal(inside, np.asarray(found.dataobj) > 0.5)
    assert all(record["volumes_ml"].values())
    assert record["files"] == {
        name: file_hash(tmp_path / name) for name in (*record["masks"], *maps)
    }

    (tmp_path / "boxes.json").write_text(json.dumps(objects(boxes[1])))
    code, _, err = tune("predict", scan, "--run", run, "--run", other, *words, "--overwrite")
    assert code == 0, err
    left = {path.name for path in tmp_path.glob("mask_*")}
    assert left == {"mask_2_spleen.nii.gz", "mask_probability_2_spleen.nii.gz"}


def test_many_scans_as_dicom(tune: Tune, run: Path, tmp_path: Path) -> None:
    """Each SEG refers to its own series; a NIfTI has none."""
    place, out = tmp_path / "scans", tmp_path / "out"
    write_nifti(place / "a.nii.gz", small_scan()[0])
    for name in ("b", "c"):
        write_series(place / name, modality="MR", uid=f"1.2.3.{ord(name)}")
    words = ("predict", place, "--run", run, "--output", out)
    code, _, err = tune(*words, "--format", "seg")
    assert code == 3, err
    assert "case a: " in err
    assert "a.nii.gz: is not DICOM; a DICOM SEG refers to DICOM images" in err
    for name in ("b", "c"):
        seg = pydicom.dcmread(out / f"{name}.dcm")
        (referenced,) = seg.ReferencedSeriesSequence
        assert referenced.SeriesInstanceUID == f"1.2.3.{ord(name)}"
        assert json.loads((out / f"{name}.prediction.json").read_text())["masks"] == [f"{name}.dcm"]
    code, _, err = tune(*words, "--format", "seg", "--resume")
    assert "2 masks (2 were there), 1 refused:" in err
    table = tmp_path / "codes.csv"
    table.write_text("label,name\nheart,Herz\n")
    for more, message in (
        (("--format", "seg", "--codes", table), "codes.csv, line 2: no label is 'heart'"),
        (("--codes", table), "has no place for --codes"),
        (("--format", "rtstruct", "--ending", ".nii"), "--format rtstruct writes .dcm"),
        (("--format", "rtstruct", "--set", "segmentation=labelmap"), "segmentation is 'labelmap'"),
    ):
        code, _, err = tune(*words[:-1], tmp_path / "other", *more)
        assert (code, message in err) == (1, True), err


def test_several_gpus(
    tune: Tune, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a folder, and of each domain's scans."""
    seen: list[Any] = []
    monkeypatch.setattr(predict, "run_bundle", lambda *words: seen.append(words))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    write_scans(tmp_path / "scans", 2)
    words = ("predict", tmp_path / "scans", "--output", tmp_path / "o")
    code, _, err = tune(*words, "--run", run, "--gpus", "2")
    assert code == 0, err
    assert seen[0][1] == ["inference.yaml", "multi_gpu.yaml"]
    assert seen[0][3] == 2
    monkeypatch.setattr(predict, "domain_runs", lambda *_: {"ct": [run], "mr": [run]})
    code, _, err = tune(*words, "--domains", tmp_path, "--gpus", "2")
    assert code == 0, err
    assert [(each[2]["domain"], *each[1][1:], each[3]) for each in seen[1:]] == [
        ("ct", "multi_gpu.yaml", 2),
        ("mr", "multi_gpu.yaml", 2),
    ]
    code, _, err = tune(*words, "--run", run, "--gpus", "3")
    assert (code, "--gpus is 3; torch sees 2 on this machine" in err) == (1, True)


def test_the_first_of_several_processes_has_the_exit_code(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of another would end the first before it has said what is refused."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(predictions, "gathered", lambda value: [value, value])
    evaluator: Any = None  # there is nothing left to do
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        made = predictions.Predictions(tmp_path, tmp_path / "o", TunedRuns(run))
        made.refuse("case a: is bad.")
        if rank:
            made.run(evaluator)
        else:
            with pytest.raises(SystemExit, match="1"):
                made.run(evaluator)
        assert made.refused == ["case a: is bad."] * 2
