"""`medsam-tune`: what it prints and runs, and one clear line for each mistake."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from segment_anything.modeling import MaskDecoder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsam_tune.cases.datalist import read_datalist, write_datalist
from medsam_tune.cases.description import MODALITIES
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.cli import options, tuning
from medsam_tune.files import file_hash
from medsam_tune.inference.confidence import calibrate, write_calibration
from medsam_tune.inference.output import FORMATS as MASK_FORMATS
from medsam_tune.inference.simulated import KINDS
from medsam_tune.methods import METHODS, apply_method
from medsam_tune.methods.tuned import read_header, save_tuned
from medsam_tune.runs import TUNED, RunRecord, read_record, write_record, write_state
from medsam_tune.sam.build import ARCHITECTURES, build_sam
from medsam_tune.sam.encoder import fuse_qkv
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules
from medsam_tune.synthetic.phantom import write_phantoms
from medsam_tune.training.rates import RATES
from tests.bad_inputs import INPUTS
from tests.scans import msd_folder, small_scan, write_nifti

SMALL = ["--image-size", "64", "--set", "epochs=1", "--set", "num_workers=0"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of four small phantoms with a datalist."""
    folder = tmp_path_factory.mktemp("scans")
    write_phantoms(folder, count=4, shape=(48, 40, 8), spacing=(7.2, 6.4, 15.0))
    write_datalist(split_cases(find_cases(folder), (0.5, 0.25, 0.25)), folder / "d.json")
    return folder


Tune = Callable[..., tuple[int, str, str]]


def test_the_whole_job(tune: Tune, phantoms: Path, tmp_path: Path) -> None:
    run, boxes = tmp_path / "run", tmp_path / "boxes.json"
    datalist = tmp_path / "list.json"
    code, out, _ = tune("split", phantoms, "--out", datalist, "--fractions", 0.5, 0.25, 0.25)
    assert code == 0
    assert "2 training, 1 validation and 1 test cases; labels: 1 liver" in out
    code, _, err = tune("train", "decoder", "--datalist", datalist, "--output", run, *SMALL)
    assert code == 0, err
    printed = err[err.index("$ python") :].replace("\\\n", "")
    assert shlex.split(printed)[1:5] == ["python", "-m", "monai.bundle", "run"]
    code, _, err = tune("evaluate", "--run", run)
    assert code == 0, err
    assert "Dice (95 % interval)" in err
    curve = {2: [(0.02 * n, 0.5 + 0.01 * n) for n in range(51)]}
    write_calibration(run, calibrate({"slices": curve}, file_hash(run / TUNED)))
    case = json.loads(datalist.read_text())["test"][0]
    boxes.write_text(json.dumps({"objects": [{"label": 2, "box3d": [5, 5, 1, 20, 20, 4]}]}))
    scan, mask = datalist.parent / case["image"], tmp_path / "mask.nii.gz"
    flags = ("--run", run, "--prompts", boxes, "--output", mask)
    code, _, err = tune("predict", scan, *flags)
    assert code == 0, err
    assert set(np.unique(nib.load(mask).dataobj)) <= {0, 2}
    (known,) = json.loads((tmp_path / "mask.prediction.json").read_text())["objects"]
    assert known["expected_dice"] == pytest.approx(0.5 + known["quality"] / 2, abs=1e-3)
    assert known["review"] is (known["expected_dice"] < 0.6)
    boxes.write_text(json.dumps({"objects": [{"label": 9, "box3d": [5, 5, 1, 20, 20, 4]}]}))
    mask.unlink()
    code, _, err = tune("predict", scan, *flags)
    assert code == 1
    assert "object 0: label 9 is not there; known: 1 (liver), 2 (spleen)" in err
    assert not mask.exists()
    code, _, err = tune("predict", scan, "--run", run, "--output", mask)
    assert code == 0, err
    assert nib.load(mask).shape == nib.load(scan).shape
    flags = ("--run", run, "--output", tmp_path / "plain.safetensors")
    code, _, err = tune("export", *flags)
    assert code == 1
    assert "decoder, full and lora that were trained with --class-agnostic can" in err


def test_what_knows_no_labels_needs_prompts_and_becomes_a_plain_sam(
    tune: Tune, phantoms: Path, tmp_path: Path
) -> None:
    datalist, run = phantoms / "d.json", tmp_path / "run"
    flags = ("--datalist", datalist, "--output", run, "--class-agnostic")
    code, _, err = tune("train", "decoder", *flags, *SMALL)
    assert code == 0, err
    assert read_record(run).prompted is True
    scan, mask = datalist.parent / json.loads(datalist.read_text())["test"][0]["image"], tmp_path
    code, _, err = tune("predict", scan, "--run", run, "--output", mask / "mask.nii.gz")
    assert code == 1
    assert "the model segments what is prompted; give it a prompt file (--prompts)" in err
    code, out, _ = tune("export", "--run", run, "--output", tmp_path / "plain.safetensors")
    assert code == 0
    assert "segment_anything has no nano of 64 pixels and 3 channels" in out
    stock = {k: v.shape for k, v in load_file(tmp_path / "plain.safetensors").items()}
    assert stock == {k: v.shape for k, v in fuse_qkv(_nano().state_dict()).items()}


def test_evaluate_by_the_prompts_that_are_named(tune: Tune, phantoms: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "d.json"
    write_datalist(read_datalist(phantoms / "d.json"), fresh)
    flags = ("evaluate", "--zero-shot", "--datalist", fresh, "--image-size", 64)
    for kind, message in (
        ("slices,none", "prompts: 'none' asks for every label without a prompt, but the model"),
        ("boxes3d", "kind of prompts 'boxes3d' is unknown; known: slices, box3d,"),
    ):
        code, _, err = tune(*flags, "--output", tmp_path / "zero", "--prompts", kind)
        assert code == 1
        assert message in err.strip().splitlines()[-1]
        assert not (tmp_path / "zero").exists()
        assert not (tmp_path / "d.slices").exists()  # nothing was read
    of_images = ("--bundle", "image", "--output", tmp_path / "zero", "--prompts", "box3d")
    for words in (flags, ("compare", "--datalist", fresh, "--methods", "zero_shot")):
        code, _, err = tune(*words, *of_images)
        assert code == 1
        assert "prompts: box3d: for scans; an image has one slice" in err
        assert not (tmp_path / "zero").exists()
    kinds = ("--prompts", "interpolated:2, slices", "--prompts", "box3d", "--set", "pictures=0")
    code, _, err = tune(*flags, "--output", tmp_path / "zero", *kinds)
    assert code == 0, err
    assert re.findall(r"prompts: (\S+)", err) == ["interpolated:2", "slices", "box3d"]
    folder = tmp_path / "zero" / "evaluation"
    assert json.loads((folder / "summary.json").read_text())["prompts"] == "interpolated:2"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"slices", "box3d"}


def test_export_formats(tune: Tune, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sam = apply_method(build_sam("nano", image_size=64), "lora", rank=2)
    save_tuned(sam, run / "tuned.safetensors", {1: "liver"})
    record = RunRecord("d.json", "d.slices", None, ScanRules(Percentiles()).describe(), {}, 0.0, 0)
    write_record(run, record)
    code, _, err = tune("export", "--run", run, "--output", tmp_path / "plain.pth")
    assert code == 1
    assert "run: its training is not finished (0 of ? epochs). Continue it with --resume" in err
    write_state(run, "finished")
    code, _, err = tune("export", "--run", run, "--format", "peft", "--output", tmp_path / "p")
    assert code == 0, err
    assert (tmp_path / "p" / "adapter_config.json").is_file()
    code, _, err = tune("export", "--run", run, "--format", "onnx", "--output", tmp_path / "o")
    assert code == 0, err
    assert json.loads((tmp_path / "o" / "model.json").read_text())["labels"] == {"1": "liver"}
    small = tmp_path / "small.safetensors"
    words = ("--format", "tuned", "--dtype", "bfloat16", "--output", small)
    code, out, err = tune("export", "--run", run, *words)
    assert code == 0, err
    sizes = [f"{path.stat().st_size:,} bytes" for path in (small, run / "tuned.safetensors")]
    assert f"{small}: {sizes[0]}, of {sizes[1]} before" in out
    assert read_header(small).labels == {1: "liver"}
    for words, message in (
        (("--format", "onnx", "--output", tmp_path / "o"), "o: is there already; delete it"),
        (
            ("--format", "tf", "--output", tmp_path / "t"),
            "format 'tf' is unknown; known: sam, onnx",
        ),
        (
            ("--format", "peft", "--dtype", "float16", "--output", tmp_path / "q"),
            "--dtype float16 is for tuned, or float16 for sam; not peft",
        ),
        (
            ("--format", "tuned", "--dtype", "int8", "--output", tmp_path / "q"),
            "dtype 'int8' is unknown; known: float16, bfloat16",
        ),
        (("--output", tmp_path / "plain.bin"), "expected a name that ends in .pth or .safetensors"),
    ):
        code, _, err = tune("export", "--run", run, *words)
        assert code == 1
        assert message in err


def test_split_into_folds(tune: Tune, phantoms: Path, tmp_path: Path) -> None:
    code, out, _ = tune("split", phantoms, "--folds", 4, "--out", tmp_path / "cv.json")
    assert code == 0
    assert out.count("2 training, 1 validation and 1 test cases") == 4
    tests = [read_datalist(tmp_path / f"cv_{i}.json").test[0].id for i in range(4)]
    assert len(set(tests)) == 4
    code, _, err = tune("split", phantoms, "--folds", 4, "--out", tmp_path / "cv.json")
    assert code == 1
    assert "cv_0.json: is there already" in err


def test_help_imports_no_heavy_package() -> None:
    heavy = "{'torch', 'monai', 'numpy', 'fire'}"
    code = f"import sys, medsam_tune, medsam_tune.cli; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_names_what_there_is() -> None:
    assert options.METHODS == tuple(METHODS) == tuple(RATES)
    assert options.MODELS == tuple(ARCHITECTURES)
    assert options.MODALITIES == MODALITIES
    assert options.MASK_FORMATS == tuple(MASK_FORMATS)
    assert options.KINDS == KINDS


def test_check(tune: Tune, phantoms: Path, tmp_path: Path) -> None:
    code, out, _ = tune("check", phantoms / "d.json", "--output", tmp_path / "check.json")
    assert code == 0
    assert out.splitlines()[-1].endswith("d.json: 4 sound, 0 refused, 0 leaks")
    assert len(json.loads((tmp_path / "check.json").read_text())["findings"]) == 4
    broken = tmp_path / "broken.nii.gz"
    broken.write_text("hello")
    code, out, _ = tune("check", broken)
    assert code == 3
    assert f"refused: case broken: cannot read {broken}" in out
    scan = np.ones((20, 20, 3), np.float32)
    scan[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / "nan.nii.gz")
    assert tune("check", tmp_path / "nan.nii.gz")[0] == 3
    code, out, _ = tune("check", tmp_path / "nan.nii.gz", "--set", "mending::fill_nan=-5")
    assert code == 0
    assert "-5 to 1; 1 NaN or infinite voxels set to -5" in out
    for words in ("fill_nan=0", "mending::nan=0"):
        code, _, err = tune("check", tmp_path / "nan.nii.gz", "--set", words)
        assert code == 1
        assert "expected mending::key=value, the key one of fill_nan, resample_label" in err
    told = "intensity=$medsam_tune.slices.intensity.Percentiles()"
    folder = msd_folder(tmp_path / "unit", ["c0"], modality={"0": "CT"})
    write_nifti(folder / "imagesTr" / "c0.nii.gz", small_scan()[0] / 200)
    assert tune("check", folder)[0] == 3
    assert tune("check", folder, "--set", told)[0] == 0
    code, _, err = tune("check", tmp_path / "nowhere")
    assert code == 1
    assert "no such file or folder" in err


def test_training_uses_what_prepare_made(
    tune: Tune, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datalist = tmp_path / "d.json"
    write_datalist(split_cases(find_cases(phantoms), (0.5, 0.25, 0.25)), datalist)
    code, out, err = tune("prepare", datalist, "--jobs", 1)
    assert code == 0, err
    assert "python -m monai.bundle run" in err
    assert "4 cases, 0 of them prepared; 32 slices to prepare, at most" in out
    code, out, _ = tune("prepare", datalist)
    assert code == 0
    assert "d.slices: all 4 cases are prepared" in out
    monkeypatch.setattr("medsam_tune.slices.store.load_case", None)
    run = tmp_path / "run"
    code, _, err = tune("train", "decoder", "--datalist", datalist, "--output", run, *SMALL)
    assert code == 0, err
    code, _, err = tune("evaluate", "--run", run)
    assert code == 0, err


def test_training_uses_what_prepare_made_by_the_same_overlay(
    tune: Tune, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datalist = tmp_path / "d.json"
    write_datalist(read_datalist(phantoms / "d.json"), datalist)
    mine = tmp_path / "mine.yaml"
    mine.write_text("rules::plane: coronal\nmethod: prompt\nviews: 1\n")
    chosen = ("--overlay", "windows", "--overlay", mine)
    code, _, err = tune("prepare", datalist, *chosen, "--embeddings", "--image-size", 64)
    assert code == 0, err
    words = ("--image-size", 64, "--datalist", datalist, *chosen, "--set", "cache=true")
    assert f"next: medsam-tune train prompt --model nano {' '.join(map(str, words))} --outp" in err
    monkeypatch.setattr("medsam_tune.slices.store.load_case", None)
    monkeypatch.setattr("medsam_tune.training.embedded.EmbeddingStore.put", None)
    code, _, err = tune("train", "prompt", "--output", tmp_path / "run", *words, *SMALL[2:])
    assert code == 0, err
    assert "the others take 0 GB" in err
    code, _, err = tune("prepare", datalist, *chosen, "--embeddings", "--method", "decoder")
    assert code == 1
    assert "mine.yaml is of the method prompt, and the command says decoder; say `prompt`" in err


def test_an_external_datalist_has_the_labels_of_the_run(
    tune: Tune, phantoms: Path, tmp_path: Path
) -> None:
    run, other = tmp_path / "run", tmp_path / "other.json"
    flags = ("--datalist", phantoms / "d.json", "--output", run)
    code, _, err = tune("train", "decoder", *flags, *SMALL)
    assert code == 0, err
    data = read_datalist(phantoms / "d.json")
    for labels, why in (
        ({30: "liver"}, "'liver' is 30 there, 1 in the training"),
        ({70: "eye"}, "the run was not trained for 70 eye, and without prompts gives only"),
    ):
        write_datalist(replace(data, labels=labels), other)
        code, _, err = tune("evaluate", "--run", run, "--datalist", other, "--prompts", "none")
        assert code == 1
        assert f"{other}: " in err
        assert why in err
    assert not (run / "evaluation").exists()


def test_training_uses_the_embeddings_that_prepare_made(
    tune: Tune, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datalist = tmp_path / "d.json"
    write_datalist(read_datalist(phantoms / "d.json"), datalist)
    code, out, err = tune(
        "prepare", datalist, "--embeddings", "--image-size", 64, "--set", "views=1"
    )
    assert code == 0, err
    assert "in 1 views; 0 are there, the others take" in err
    assert "embeddings are made in" in out
    words = "train decoder --model nano --image-size 64 --datalist"
    assert f"next: medsam-tune {words} {datalist} --set cache=true --set views=1 --outp" in err
    monkeypatch.setattr("medsam_tune.training.embedded.EmbeddingStore.put", None)
    run = (*("--datalist", datalist, "--output"), *("--set", "cache=true", "--set", "views=1"))
    for method in ("decoder", "prompt"):
        code, _, err = tune("train", method, *run[:3], tmp_path / method, *run[3:], *SMALL)
        assert code == 0, err
        assert "the others take 0 GB" in err
    code, _, err = tune("train", "lora", *run[:3], tmp_path / "lora", *run[3:], *SMALL)
    assert code == 1
    assert "cache is true, but lora trains the image encoder" in err.splitlines()[-1]
    assert not (tmp_path / "lora").exists()
    folders = {path.name for path in (tmp_path / "d.slices").iterdir()}
    code, _, err = tune(
        *("train", "decoder", *run[:3], tmp_path / "few", *run[3:], *SMALL),
        *("--overlay", "few_shot", "--set", "rules::spacing=[0,2,0]"),
    )
    assert code == 1
    assert "cache is true, and MixUp mixes images before they are encoded" in err.splitlines()[-1]
    assert not (tmp_path / "few").exists()
    assert {path.name for path in (tmp_path / "d.slices").iterdir()} == folders  # no slices either
    code, _, err = tune("prepare", datalist, "--model", "vit_b")
    assert code == 1
    assert "--model, --image-size, --checkpoint and --method are for --embeddings" in err
    code, _, err = tune("prepare", datalist, "--embeddings", "--model", "vit_b")
    assert code == 1
    assert "vit_b needs --checkpoint" in err


def test_a_loss_on_probabilities_is_refused_before_anything_is_made(
    tune: Tune, phantoms: Path, tmp_path: Path
) -> None:
    datalist, run = tmp_path / "d.json", tmp_path / "run"
    write_datalist(read_datalist(phantoms / "d.json"), datalist)
    words = ("--set", "loss={'_target_':'monai.losses.DiceLoss'}", *SMALL)
    code, _, err = tune("train", "decoder", "--datalist", datalist, "--output", run, *words)
    assert code == 1
    assert "DiceLoss has no sigmoid, and takes the logits of masks as prob" in err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["d.json"]


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_tokens_before_the_last_blocks_are_prepared_and_give_the_same_losses(
    tune: Tune,
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    datalist = tmp_path / "d.json"
    write_datalist(read_datalist(phantoms / "d.json"), datalist)
    prepare = ("prepare", datalist, "--embeddings", "--method", method, "--image-size", 64)
    code, _, err = tune(*prepare, "--set", "views=1")
    assert code == 1
    assert f"cache is true, but {method} trains the image encoder from its first" in err
    assert not (tmp_path / "d.slices").exists()
    same = ["views=1", "network_def::last_blocks=2", "cache_dtype=float32"]
    sets = [word for each in same for word in ("--set", each)]
    code, out, err = tune(*prepare, *sets)
    assert code == 0, err
    assert "embeddings are made in" in out
    assert f"next: medsam-tune train {method} --model nano --image-size 64 --datalist" in err
    monkeypatch.setattr("medsam_tune.training.embedded.EmbeddingStore.put", None)
    # Alone in its batch, a slice is encoded the same way in both.
    words = ("train", method, "--datalist", datalist, *SMALL, *sets, "--set", "batch_size=1")
    found = []
    for cache in ("true", "false"):
        run = tmp_path / cache
        code, _, err = tune(*words, "--set", f"cache={cache}", "--output", run)
        assert code == 0, err
        events = EventAccumulator(str(run / "logs")).Reload()
        found.append([event.value for event in events.Scalars("loss")])
    assert len(found[0]) > 4
    assert found[0] == found[1]


def test_prepare_elsewhere_by_another_rule(tune: Tune, phantoms: Path, tmp_path: Path) -> None:
    datalist = tmp_path / "d.json"
    write_datalist(read_datalist(phantoms / "d.json"), datalist)
    flags = (datalist, "--slices-dir", tmp_path / "s")
    rule = "intensity={'_target_':'medsam_tune.slices.intensity.Windows'}"
    code, _, err = tune("prepare", *flags, "--set", rule)
    assert code == 0, err
    code, out, err = tune("prepare", *flags)
    assert code == 0, err
    assert "4 cases, 0 of them prepared" in out
    assert len(list((tmp_path / "s").glob("*/files.json"))) == 8
    assert not (tmp_path / "d.slices").exists()


def test_prepare_refuses_a_full_disk(
    tune: Tune, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("medsam_tune.slices.estimate.shutil.disk_usage", lambda _: usage)
    code, _, err = tune("prepare", phantoms / "d.json", "--slices-dir", tmp_path / "s")
    assert code == 1
    assert "1e-06 GB are free on its disk. Make room" in err.strip().splitlines()[-1]
    assert not (tmp_path / "s").exists()


def test_split_for_few_shots(tune: Tune, phantoms: Path, tmp_path: Path) -> None:
    fractions = ("--fractions", 0.5, 0.25, 0.25)
    assert tune("split", phantoms, *fractions, "--out", tmp_path / "all.json")[0] == 0
    code, out, _ = tune("split", phantoms, *fractions, "--shots", 1, "--out", tmp_path / "few.json")
    assert code == 0
    assert "few.json: 1 training, 1 validation and 1 test cases" in out
    whole, few = read_datalist(tmp_path / "all.json"), read_datalist(tmp_path / "few.json")
    assert set(few.training) < set(whole.training)
    assert (few.validation, few.test) == (whole.validation, whole.test)
    others = set()
    for number in range(4):
        out_file = tmp_path / f"few{number}.json"
        words = ("--shots", 1, "--shots-seed", number, "--out", out_file)
        assert tune("split", phantoms, *fractions, *words)[0] == 0
        other = read_datalist(out_file)
        assert (other.validation, other.test) == (whole.validation, whole.test)
        others |= {*other.training}
    assert len(others) > 1
    code, _, err = tune("split", phantoms, "--shots-seed", 1, "--out", tmp_path / "no.json")
    assert code == 1
    assert "--shots-seed chooses the patients of --shots, which is not given" in err
    folds = ("--folds", 4, "--out", tmp_path / "cv.json")
    code, _, err = tune("split", phantoms, *folds, "--shots", 3)
    assert code == 1
    assert "3 shots, but 2 training patients in" in err
    assert not list(tmp_path.glob("cv_*"))
    code, out, _ = tune("split", phantoms, *folds, "--shots", 1)
    assert code == 0
    assert out.count("1 training, 1 validation and 1 test cases") == 4


BAD = {bad.id: bad for bad in INPUTS}


def test_bad_inputs_exit_and_leave_nothing(tune: Tune, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_tuned(apply_method(build_sam("nano", image_size=64), "decoder"), run / "tuned.safetensors")
    write_record(
        run, RunRecord("d.json", "d.slices", None, ScanRules(Percentiles()).describe(), {}, 0.0, 0)
    )
    write_state(run, "finished")
    prompts = tmp_path / "boxes.json"
    prompts.write_text(json.dumps({"objects": [{"label": 1, "box3d": [1, 1, 1, 5, 5, 5]}]}))
    calls = {
        "row01-zero-bytes": lambda case, out: ("check", case.image),
        "row02-truncated-gzip": lambda case, out: (
            *("predict", case.image, "--run", run, "--prompts", prompts, "--output"),
            out / "mask.nii.gz",
        ),
        "row23-without-partner": lambda folder, out: (
            *("split", folder, "--modality", "MR", "--out"),
            out / "d.json",
        ),
        "row42-patient-in-both": lambda datalist, out: (
            *("train", "decoder", "--datalist", datalist, *SMALL, "--output"),
            out / "run",
        ),
    }
    for name, call in calls.items():
        (folder := tmp_path / name).mkdir()
        (out := tmp_path / f"{name}-out").mkdir()
        code, printed, err = tune(*call(BAD[name].make(folder), out))
        assert code == (3 if name.startswith("row01") else 1), name
        last = printed.splitlines()[0] if code == 3 else err.strip().splitlines()[-1]
        message = last.removeprefix("medsam-tune: ").removeprefix("refused: ")
        assert re.search(BAD[name].refused, message), message
        assert not [path for path in out.rglob("*") if path.is_file()], name


def test_overlays_of_the_bundle_and_of_the_user(tune: Tune, phantoms: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("jitter: 0.125\n")
    run = tmp_path / "run"
    flags = ("--datalist", phantoms / "d.json", "--output", run, "--overlay", "windows.yaml")
    code, _, err = tune("train", "decoder", *flags, "--overlay", mine, *SMALL)
    assert code == 0, err
    record = json.loads((run / "run.json").read_text())
    assert record["jitter"] == 0.125
    assert record["rules"]["intensity"]["name"] == "windows"
    assert len(record["rules"]["intensity"]["windows"]) == 3
    code, _, err = tune("evaluate", "--run", run)
    assert code == 0, err
    code, _, err = tune("train", "decoder", *flags, "--overlay", "window.yaml", *SMALL)
    assert code == 1
    assert "window.yaml: no such config here, nor in the bundle, which has" in err


def test_no_prompt_is_an_overlay(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], dict[str, object]]] = []
    for command in (tuning, import_module("medsam_tune.cli.predict")):
        monkeypatch.setattr(command, "run_bundle", lambda _, *rest: seen.append(rest))
    tune("train", "lora", "--no-prompt", "--datalist", "d.json", "--output", "o")
    tune("predict", "scan.nii.gz", "--run", "o", "--output", "mask.nii.gz")
    assert seen[0][0] == ["train.yaml", "method_lora.yaml", "no_prompt.yaml"]
    assert "prompts" not in seen[1][1]
    assert "series" not in seen[1][1]
    tune("predict", "scans", "--run", "o", "--output", "mask.nii.gz", "--series", "3.4")
    assert seen[2][1]["series"] == "3.4"


def _nano() -> torch.nn.Module:
    sam = build_sam("nano", image_size=64)
    assert isinstance(sam.mask_decoder, MaskDecoder)
    return sam


def test_wrong_inputs_get_one_line(tune: Tune, phantoms: Path, tmp_path: Path) -> None:
    datalist, run = phantoms / "d.json", tmp_path / "run"
    train = ("--datalist", datalist, "--output", run)
    nano = tmp_path / "nano.pth"
    torch.save(fuse_qkv(build_sam("nano").state_dict()), nano)
    nowhere = tmp_path / "none"
    mistakes: list[tuple[tuple[object, ...], str]] = [
        (("split", nowhere), f"{nowhere}: no such folder"),
        (
            ("train", "decoder", "--datalist", nowhere, "--output", run),
            f"{nowhere}: no such datalist. Make one: medsam-tune split",
        ),
        (("train", "loar", *train), "method 'loar' is unknown; known: decoder, full, adapter"),
        (
            ("train", "lora", *train, "--model", "vit_b", "--checkpoint", nano),
            f"{nano}: checkpoint is nano, asked for vit_b",
        ),
        (("train", "lora", *train, "--model", "vit_b"), "vit_b needs --checkpoint"),
        (("train", "lora", *train, "--set", "epoch=3"), "--epoch is no setting of this config"),
        (("train", "lora", *train, "--set", "epochs"), "--set 'epochs': expected key=value"),
        (("train", "lora", *train, "--resume"), f"{run}: no run to resume in it"),
        (("train", "lora", *train, "--bundle", "x"), "bundle 'x' is neither a folder with"),
        (("evaluate", "--run", nowhere), f"{nowhere}: no training run in it"),
        (("evaluate",), "give --run, the folder of a training run, or --zero-shot"),
        (("evaluate", "--zero-shot"), "--zero-shot needs --datalist and --output"),
        (("info", "--model", "vit_x"), "model 'vit_x' is unknown; known: nano, vit_t"),
    ]
    for words, message in mistakes:
        code, _, err = tune(*words)
        assert code == 1, words
        last = err.strip().splitlines()[-1]
        assert last.startswith("medsam-tune: "), err
        assert message in last
        assert not run.exists()


@pytest.mark.parametrize("fault", ["shape", "affine"])
def test_a_label_of_another_geometry_is_refused(tune: Tune, tmp_path: Path, fault: str) -> None:
    scans = tmp_path / "scans"
    write_phantoms(scans, count=3, shape=(48, 40, 8), spacing=(7.2, 6.4, 15.0))
    path = scans / "labelsTr" / "phantom_001.nii.gz"
    label = nib.load(path)
    data, affine = np.asarray(label.dataobj), label.affine.copy()
    if fault == "shape":
        data = data[..., :-1]
    else:
        affine[0, 3] += 2
    nib.save(nib.Nifti1Image(data, affine), path)
    datalist = tmp_path / "d.json"
    assert tune("split", scans, "--out", datalist, "--fractions", 0.34, 0.33, 0.33)[0] == 0
    flags = ("--datalist", datalist, "--output", tmp_path / "run", *SMALL)
    code, _, err = tune("train", "decoder", *flags, "--set", "epochs=1")
    if code == 0:  # the faulty case is the held-out one
        code, _, err = tune("evaluate", "--run", tmp_path / "run")
    assert code == 1
    assert f"case phantom_001: label {fault}" in err.strip().splitlines()[-1]


def test_info_prints_the_table(tune: Tune) -> None:
    code, out, _ = tune("info", "--model", "vit_b")
    assert code == 0
    rows = [line.split() for line in out.splitlines()[1:]]
    assert ["vit_b", "lora", "342,016"] in [row[:3] for row in rows]
    code, out, _ = tune("info", "--model", "nano", "--method", "prompt")
    assert "learned.tokens 960" in out
