"""Every shipped config runs as `python -m monai.bundle run`, and MONAI's own checks pass."""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from pydoc import locate

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.handlers import MLFlowHandler
from monai.transforms import RandFlipd, RandRotate90d
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsam_tune.bundle import start
from medsam_tune.cases.datalist import read_datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.engines import has_bfloat16
from medsam_tune.methods import METHODS
from medsam_tune.methods.tuned import load_tuned
from medsam_tune.runs import read_record
from medsam_tune.sam.build import build_sam
from medsam_tune.synthetic.phantom import write_phantoms
from medsam_tune.training.rates import RATES, TOKENS
from medsam_tune.training.sides import mirror_probability
from tests.images import image_folder
from tests.server import Outcome, Server

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
BUNDLE, IMAGES = BUNDLES / "sam_volume", BUNDLES / "sam_image"
BOTH = pytest.mark.parametrize("bundle", [BUNDLE, IMAGES], ids=["volume", "image"])
RUN_FILES = {
    "run.json",
    "state.json",
    "split.json",
    "last.pt",
    "tuned.safetensors",
    "logs",
    ".lock",
}
FEW = ("--epoch_slices", "4", "--rules::components", "4")  # of images
SMALL = ("--image_size", "64", "--epochs", "1", "--num_workers", "0", "--warmup_steps", "2")


def bundle_command(
    configs: list[str], *options: object, cwd: Path | None = None, bundle: Path = BUNDLE
) -> list[str]:
    folder = Path("configs") if cwd is None else bundle / "configs"
    files = [str(folder / name) for name in configs]
    argv = ["--config_file", files[0] if len(files) == 1 else str(files).replace(" ", "")]
    argv += [] if cwd is None else ["--bundle_root", str(bundle)]
    return [sys.executable, "-m", "monai.bundle", "run", *argv, *map(str, options)]


BundleRun = Callable[..., Outcome]


@pytest.fixture(scope="module")
def bundle_run(server: Server) -> BundleRun:
    """`python -m monai.bundle run`: in the bundle's folder, or from `cwd` with --bundle_root."""

    def run(
        configs: list[str],
        *options: object,
        cwd: Path | None = None,
        bundle: Path = BUNDLE,
        **stop: object,
    ) -> Outcome:
        words = bundle_command(configs, *options, cwd=cwd, bundle=bundle)[3:]
        return server.one(*words, module="monai.bundle", folder=str(cwd or bundle), **stop)

    return run


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training phantoms, one for validation, one for the test."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, count=6, shape=(48, 40, 8), spacing=(7.2, 6.4, 15.0))
    split = split_cases(find_cases(folder), (4 / 6, 1 / 6, 1 / 6))
    write_datalist(split, folder / "datalist.json")
    return folder / "datalist.json"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images for training, one for validation, one for the test, each a group."""
    folder = image_folder(tmp_path_factory.mktemp("images"), groups=6)
    split = split_cases(find_cases(folder), (4 / 6, 1 / 6, 1 / 6))
    write_datalist(split, folder / "datalist.json")
    return folder / "datalist.json"


@pytest.fixture(scope="module")
def lora_run(
    bundle_run: BundleRun, datalist: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished training run, made from elsewhere with --bundle_root."""
    folder = tmp_path_factory.mktemp("lora")
    options = ("--datalist", datalist, "--output_dir", "run", "--network_def::rank", 4)
    done = bundle_run(["train.yaml", "method_lora.yaml"], *options, *SMALL, cwd=folder)
    assert done.code == 0, done.text
    return folder / "run"


FAST = {
    ("decoder", None),
    ("full", "no_prompt"),
    ("adapter", "few_shot"),
    ("lora", "class_agnostic"),
    ("prompt", "few_shot"),
}


@BOTH
@pytest.mark.parametrize(
    ("method", "overlay"),
    [
        pytest.param(*pair, marks=[] if pair in FAST else pytest.mark.slow)
        for pair in product(METHODS, (None, "no_prompt", "few_shot", "class_agnostic"))
    ],
)
def test_each_bundle_trains_and_exports(
    request: pytest.FixtureRequest,
    bundle_run: BundleRun,
    tune: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    bundle: Path,
    method: str,
    overlay: str | None,
) -> None:
    """Every method by boxes, without prompts, of few cases and without labels; every export."""
    data = request.getfixturevalue("datalist" if bundle == BUNDLE else "images")
    overlays = [] if method == "decoder" else [f"method_{method}.yaml"]
    overlays += [] if overlay is None else [f"{overlay}.yaml"]
    run, few = tmp_path / "run", ("--train::trainer::epoch_length", 1, "--rules::components", 4)
    options = ("--datalist", data, "--output_dir", run, *SMALL, *few)
    done = bundle_run(["train.yaml", *overlays], *options, bundle=bundle)
    assert done.code == 0, done.text
    assert {path.name for path in run.iterdir()} == RUN_FILES
    record, model = read_record(run), load_tuned(run / "tuned.safetensors")
    assert record.bundle == bundle.name.removeprefix("sam_")
    assert model.tuning.method == method
    assert (model.classes, record.prompted) == {
        "no_prompt": (len(record.labels), False),
        "class_agnostic": (0, True),
    }.get(overlay, (len(record.labels), None))
    written = {
        "sam": "plain.pth",
        "peft": "peft/adapter_config.json",
        "onnx": "onnx/decoder.onnx",
        "tuned": "small.safetensors",
        "bundle": "bundle/configs/inference.yaml",
    }
    if overlay != "class_agnostic" or method in ("adapter", "prompt"):
        del written["sam"]  # refused, see tests/methods/test_export.py
    if overlay != "class_agnostic" or method != "lora":
        del written["peft"]
    if (method, overlay) in FAST and method != "full":
        del written["onnx"]  # seconds of each
    for kind, name in written.items():
        place = tmp_path / Path(name).parts[0]
        code, _, err = tune("export", "--run", run, "--format", kind, "--output", place)
        assert code == 0, err
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize(
    ("overlays", "trained"),
    [
        pytest.param(
            ["notes_full.yaml"], "image_encoder.blocks.0.attn.q_proj.weight", marks=pytest.mark.slow
        ),
        (["notes_decoder.yaml", "notes_ct.yaml"], "mask_decoder.iou_token.weight"),
        pytest.param(
            ["notes_lora.yaml"],
            "mask_decoder.transformer.layers.0.self_attn.q_proj.lora_A.default",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["notes_adapter.yaml"],
            "image_encoder.blocks.0.adapter.up.weight",
            marks=pytest.mark.slow,
        ),
        (["notes_few_shot.yaml", "notes_mr.yaml"], "image_encoder.blocks.0.attn.q_proj.lora_A"),
    ],
    ids=lambda value: value[0].removesuffix(".yaml") if isinstance(value, list) else "",
)
def test_recipes_of_the_notes(
    bundle_run: BundleRun, datalist: Path, tmp_path: Path, overlays: list[str], trained: str
) -> None:
    run = tmp_path / "run"
    options = ("--datalist", datalist, "--output_dir", run, *SMALL)
    done = bundle_run(["train.yaml", *overlays], *options)
    assert done.code == 0, done.text
    assert any(key.startswith(trained) for key in load_file(run / "tuned.safetensors"))
    intensity = json.loads((run / "run.json").read_text())["rules"]["intensity"]
    if "notes_ct.yaml" in overlays:
        assert (intensity["center"], intensity["width"], intensity["fine"]) == (1023.5, 4095, True)
    if "notes_mr.yaml" in overlays:
        assert intensity == {"name": "z_score", "deviations": 3.0}


def test_no_prompt_from_training_to_a_mask(
    bundle_run: BundleRun, datalist: Path, tmp_path: Path
) -> None:
    configs = ["train.yaml", "method_lora.yaml", "no_prompt.yaml"]
    options = ("--network_def::mask_decoder", True, "--layer_decay", 0.8)
    options += ("--network_def::quality_head", False)
    options += ("--gradient_checkpointing", True)
    run = tmp_path / "run"
    done = bundle_run(configs, "--datalist", datalist, "--output_dir", run, *options, *SMALL)
    assert done.code == 0, done.text
    tensors = load_file(run / "tuned.safetensors")
    assert tensors["learned.tokens"].shape == (5, 10, 96)
    assert "mask_decoder.iou_token.weight" in tensors
    assert not [name for name in tensors if "iou_prediction_head" in name]
    groups = torch.load(run / "last.pt", weights_only=True)["optimizer"]["param_groups"]
    assert max(group["initial_lr"] for group in groups) == TOKENS["nano"]
    done = bundle_run(["evaluate.yaml"], "--run_dir", run)
    assert done.code == 0, done.text
    assert (run / "evaluation" / "metrics.csv").is_file()
    scan = read_datalist(datalist).test[0].image
    mask = tmp_path / "mask.nii.gz"
    done = bundle_run(["inference.yaml"], "--run_dir", run, "--scans", scan, "--output", mask)
    assert done.code == 0, done.text
    assert nib.load(mask).shape == nib.load(scan).shape


def test_images_from_few_cases_to_a_mask(
    bundle_run: BundleRun, images: Path, tmp_path: Path
) -> None:
    """Without prompts, few cases and a domain's overlay at once; then scores, and a PNG."""
    configs = ["train.yaml", "method_lora.yaml", "microscopy.yaml", "few_shot.yaml"]
    run, options = tmp_path / "run", ("--mixture", "{'box': 1, 'none': 1}")
    options += ("--network_def::prompt_encoder", True, "--network_def::quality_head", True)
    options = (*options, "--datalist", images, "--output_dir", run, *SMALL, *FEW)
    done = bundle_run(configs, *options, bundle=IMAGES)
    assert done.code == 0, done.text
    names = "\n".join(load_file(run / "tuned.safetensors"))
    assert "prompt_encoder.point_embeddings.2.weight" in names
    assert "mask_decoder.iou_prediction_head.layers.0.weight" in names
    record = json.loads((run / "run.json").read_text())
    assert record["coding"]["colours"]["#6EC1E4"] == 1
    assert record["rules"]["components"] == 4
    done = bundle_run(["evaluate.yaml"], "--run_dir", run, bundle=IMAGES)
    assert done.code == 0, done.text
    with (run / "evaluation" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["objects"]) for row in rows] == [("road", "1"), ("house", "3")]
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert list(summary["by_prompts"]) == ["slices", "none"]
    case = read_datalist(images).test[0]
    for name, prompts in (("a.png", case.label), ("b.png", None)):
        options = ("--run_dir", run, "--scans", case.image, "--output", tmp_path / name)
        more = () if prompts is None else ("--prompts", prompts)
        done = bundle_run(["inference.yaml"], *options, *more, bundle=IMAGES)
        assert done.code == 0, done.text
        mask = np.asarray(Image.open(tmp_path / name))
        assert mask.shape == Image.open(case.image).size[::-1]
        assert set(np.unique(mask)) <= {0, 1, 2}
    options = ("--datalist", images, "--run_dir", tmp_path / "zero", "--image_size", 64)
    done = bundle_run(["evaluate.yaml", "zero_shot.yaml"], *options, bundle=IMAGES)
    assert done.code == 0, done.text


def test_pretraining_in_pieces(bundle_run: BundleRun, tmp_path: Path) -> None:
    """Resumed after its first epoch it ends where it ends in one go, and its weights load."""
    small = ("--image_size", 64, "--steps", 3, "--batch_size", 2, "--objects", 2, "--exam", 1)
    folders = tmp_path / "whole", tmp_path / "pieces"
    for folder, *more in (
        (folders[0], "--epochs", 2),
        (folders[1], "--epochs", 1),
        (folders[1], "--epochs", 2, "--resume", True),
    ):
        schedule = ("--lr_scheduler::t_total", 6)
        done = bundle_run(["pretrain.yaml"], "--output_dir", folder, *small, *schedule, *more)
        assert done.code == 0, done.text
        assert "dice_box" in done.text
    whole, pieces = (load_file(folder / "weights.safetensors") for folder in folders)
    for key, value in whole.items():
        assert torch.equal(value, pieces[key]), key
    sam = build_sam("nano", folders[0] / "weights.safetensors", image_size=64)
    assert not torch.equal(
        sam.mask_decoder.iou_token.weight,
        build_sam("nano", "random", image_size=64).mask_decoder.iou_token.weight,
    )
    done = bundle_run(["pretrain.yaml"], "--output_dir", folders[0], *small)
    assert done.code != 0
    assert "holds a run already" in done.text


def test_overrides_reach_the_method(lora_run: Path) -> None:
    tensors = load_file(lora_run / "tuned.safetensors")
    lora = [tensor for name, tensor in tensors.items() if "lora" in name]
    assert lora
    assert all(4 in tensor.shape for tensor in lora)
    record = json.loads((lora_run / "run.json").read_text())
    assert record["rules"]["intensity"]["center"] == 40.0
    assert record["rules"]["intensity"]["width"] == 400.0


def test_curves_are_of_their_epoch(lora_run: Path) -> None:
    """A step has one loss, and a validation the number of its own epoch."""
    curves = EventAccumulator(str(lora_run / "logs")).Reload()
    losses = [(one.step, one.value > 0) for one in curves.Scalars("loss")]
    assert losses == [(step, True) for step in range(1, len(losses) + 1)]
    (validation,) = json.loads((lora_run / "state.json").read_text())["validations"]
    (logged,) = curves.Scalars("mean_dice")
    assert (logged.step, logged.value) == (1, pytest.approx(validation["dice"]))
    assert {f"mean_dice/{kind}" for kind in ("slices", "box3d", "none")} <= {
        *curves.Tags()["scalars"]
    }


def test_mlflow_is_asked_for(bundle_run: BundleRun, datalist: Path, tmp_path: Path) -> None:
    """Handlers of both engines have arguments of MONAI's; without the package there is a line."""
    if find_spec("mlflow"):
        pytest.skip("mlflow is installed here")
    options = ("--datalist", datalist, "--output_dir", tmp_path / "run", *SMALL)
    overlaid = [str(BUNDLE / "configs" / name) for name in ("train.yaml", "mlflow.yaml")]
    parser = ConfigParser(ConfigParser.load_config_files(overlaid))
    logged = [
        one
        for place in ("train", "validate")
        for one in parser[place]["handlers"]
        if isinstance(one, dict) and one["_target_"].endswith("MLFlowHandler")
    ]
    assert len(logged) == 2
    known = inspect.signature(MLFlowHandler).parameters
    assert all({key for key in one if key[0] != "_"} <= {*known} for one in logged)
    done = bundle_run(["train.yaml", "mlflow.yaml"], *options)
    assert done.code == 1
    assert "mlflow needs the package mlflow: pip install mlflow" in done.text
    assert not (tmp_path / "run").exists()


def test_what_mlflow_gets(bundle_run: BundleRun, datalist: Path, tmp_path: Path) -> None:
    """The settings and curves of a run; a stopped one goes on in it, with more epochs, slower."""
    run = tmp_path / "run"
    there = {"mishap": "mlflow_is_there"}
    options = ("--datalist", datalist, "--output_dir", run, *SMALL, "--epochs")
    recipes = ["train.yaml", "mlflow.yaml"]
    done = bundle_run(
        recipes, *options, 50, **there, after="validation mean_dice", number=signal.SIGTERM
    )
    assert "continues it" in done.text, done.text
    (stopped,) = json.loads((run / "mlflow.db").read_text())
    assert (stopped["name"], stopped["status"]) == (str(run), "RUNNING")
    epoch = json.loads((run / "state.json").read_text())["epoch"]
    ends = (epoch + 1, "--lr", "1.0e-5", "--resume", "True")
    done = bundle_run(recipes, *options, *ends, **there)
    assert done.code == 0, done.text
    (whole,) = json.loads((run / "mlflow.db").read_text())
    assert (whole["experiment"], whole["status"]) == ("medsam_tune", "FINISHED")
    assert {"method": "decoder", "model": "nano", "seed": "0"}.items() <= whole["params"].items()
    curves = EventAccumulator(str(run / "logs")).Reload()
    for name in ("loss", "mean_dice", "mean_dice/box3d", "mean_iou"):
        logged = {one.step: one.value for one in curves.Scalars(name)}
        assert {step for step, _ in whole["metrics"][name]} == {*logged}
        for step, value in whole["metrics"][name]:
            assert value == pytest.approx(logged[step], rel=1e-5)
    assert whole["metrics"]["mean_dice"][-1][0] == epoch + 1


def test_training_and_its_calibration_read_no_test_case(
    bundle_run: BundleRun, datalist: Path, tmp_path: Path
) -> None:
    """With files of no format for test cases: training and scores of the validation cases go on."""
    data = read_datalist(datalist)
    broken = tmp_path / "test.nii.gz"
    broken.write_bytes(b"no NIfTI")
    test = tuple(replace(case, image=broken, label=broken) for case in data.test)
    write_datalist(replace(data, test=test, present={}), tmp_path / "d.json")
    run = tmp_path / "run"
    done = bundle_run(
        ["train.yaml"], "--datalist", tmp_path / "d.json", "--output_dir", run, *SMALL
    )
    assert done.code == 0, done.text
    done = bundle_run(["evaluate.yaml"], "--run_dir", run, "--subset", "validation")
    assert done.code == 0, done.text
    done = bundle_run(["evaluate.yaml"], "--run_dir", run)
    assert done.code == 1
    assert "test.nii.gz" in done.text


def test_evaluate(bundle_run: BundleRun, lora_run: Path, datalist: Path) -> None:
    done = bundle_run(["evaluate.yaml"], "--run_dir", lora_run)
    assert done.code == 0, done.text
    data = read_datalist(datalist)
    with (lora_run / "evaluation" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["name"]) for row in rows] == [
        (case.id, name) for case in data.test for name in data.labels.values()
    ]
    truth = np.asarray(nib.load(data.test[0].label).dataobj)
    assert int(rows[0]["truth_voxels"]) == int((truth == 1).sum())
    summary = json.loads((lora_run / "evaluation" / "summary.json").read_text())
    assert list(summary["by_prompts"]) == ["slices", "box3d"]
    assert "prompts: box3d (by one 3-D box)" in done.text
    assert (lora_run / "evaluation" / "box3d" / "metrics.csv").is_file()
    assert summary["tuning"] == "lora"
    assert 0.4 < summary["mean_ellipse_dice"] < 0.95
    assert len(list((lora_run / "evaluation" / "overlays").glob("*.png"))) == 1


def test_reading_and_frame_are_the_same_at_prediction(
    bundle_run: BundleRun, datalist: Path, tmp_path: Path
) -> None:
    """Coronal slices of even pixels, neighbours, squashed windows; few cases, mixed images."""
    data = read_datalist(datalist)
    one = tmp_path / "one.json"
    write_datalist(replace(data, training=data.training[:1]), one)
    configs = ["train.yaml", "method_lora.yaml", "few_shot.yaml"]
    reading = ("--rules::plane", "coronal", "--rules::spacing", "[0,6,0]")
    options = (*reading, "--rules::neighbours", True, "--rules::squash", True)
    options += ("--rules::window", 32, "--output_dir", "run")
    done = bundle_run(configs, "--datalist", one, *options, *SMALL, cwd=tmp_path)
    assert done.code == 0, done.text
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["rules"]["squash"]
    assert record["rules"]["window"] == 32
    assert record["rules"]["plane"] == "coronal"
    assert record["rules"]["spacing"] == [0, 6, 0]
    done = bundle_run(["evaluate.yaml"], "--run_dir", "run", cwd=tmp_path)
    assert done.code == 0, done.text
    case = data.test[0]
    truth = np.asarray(nib.load(case.label).dataobj)
    with (tmp_path / "run" / "evaluation" / "metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    assert int(row["truth_voxels"]) == int((truth == 1).sum())  # in the scan's own grid
    where = np.argwhere(truth == 1)
    box = [*where.min(0).tolist(), *(where.max(0) + 1).tolist()]
    (tmp_path / "boxes.json").write_text(json.dumps({"objects": [{"label": 1, "box3d": box}]}))
    options = ("--run_dir", "run", "--scans", case.image, "--output", "mask.nii.gz")
    done = bundle_run(["inference.yaml"], *options, "--prompts", "boxes.json", cwd=tmp_path)
    assert done.code == 0, done.text
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    assert mask.shape == truth.shape
    assert mask.any()
    middle = np.argwhere(mask).mean(0)
    assert (middle > box[:3]).all()
    assert (middle < box[3:]).all()


def test_zero_shot(bundle_run: BundleRun, datalist: Path, tmp_path: Path) -> None:
    options = ("--datalist", datalist, "--run_dir", "zero", "--image_size", 64)
    done = bundle_run(["evaluate.yaml", "zero_shot.yaml"], *options, cwd=tmp_path)
    assert done.code == 0, done.text
    summary = json.loads((tmp_path / "zero" / "evaluation" / "summary.json").read_text())
    assert summary["tuning"] is None
    assert summary["base"]["name"] == "nano"


def test_another_model_on_the_cases_of_a_run(
    bundle_run: BundleRun, lora_run: Path, tmp_path: Path
) -> None:
    """It gets the same boxes, and does not know the labels."""
    options = ("--run_dir", lora_run, "--output_dir", "own")
    other = ("--other", lora_run / "tuned.safetensors")
    done = bundle_run(["evaluate.yaml", "other_model.yaml"], *options, *other, cwd=tmp_path)
    assert done.code == 0, done.text
    summary = json.loads((tmp_path / "own" / "summary.json").read_text())
    assert summary["tuning"] == "lora"
    assert [*summary["by_prompts"]] == ["slices", "box3d"]


def test_half_the_bytes_give_the_same_dice(
    bundle_run: BundleRun,
    tune: Callable[..., tuple[int, str, str]],
    lora_run: Path,
    tmp_path: Path,
) -> None:
    """A trained file, and what `export --format tuned --dtype float16` makes of it."""
    small, whole = tmp_path / "small.safetensors", lora_run / "tuned.safetensors"
    words = ("--format", "tuned", "--dtype", "float16", "--output", small)
    code, _, err = tune("export", "--run", lora_run, *words)
    assert code == 0, err
    assert {one.dtype for one in load_file(small).values()} == {torch.float16}
    assert small.stat().st_size < 0.6 * whole.stat().st_size
    dice = []
    for other in (whole, small):
        options = ("--run_dir", lora_run, "--output_dir", other.stem, "--other", other)
        done = bundle_run(["evaluate.yaml", "other_model.yaml"], *options, cwd=tmp_path)
        assert done.code == 0, done.text
        with (tmp_path / other.stem / "metrics.csv").open() as file:
            dice.append([float(row["dice"]) for row in csv.DictReader(file) if row["dice"]])
    assert len(dice[0]) > 1
    assert min(dice[0]) > 0.4
    assert dice[1] == pytest.approx(dice[0], abs=1e-3)


def test_inference_writes_the_scans_own_grid(
    bundle_run: BundleRun, lora_run: Path, datalist: Path, tmp_path: Path
) -> None:
    case = read_datalist(datalist).test[0]
    box = {"label": 1, "box3d": [10, 10, 2, 30, 30, 6]}
    (tmp_path / "boxes.json").write_text(json.dumps({"space": "voxel", "objects": [box]}))
    options = ("--run_dir", lora_run, "--scans", case.image, "--output", "mask.nii.gz")
    done = bundle_run(["inference.yaml"], *options, "--prompts", "boxes.json", cwd=tmp_path)
    assert done.code == 0, done.text
    mask, scan = nib.load(tmp_path / "mask.nii.gz"), nib.load(case.image)
    assert mask.shape == scan.shape
    assert np.allclose(mask.affine, scan.affine, atol=1e-5)
    assert set(np.unique(mask.dataobj)) <= {0, 1}
    assert not np.asarray(mask.dataobj)[..., :2].any()


@pytest.mark.slow
def test_a_compiled_encoder_trains_as_one_that_is_not(datalist: Path, tmp_path: Path) -> None:
    """With recomputed blocks, in a process of its own, which keeps what it compiled."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    options = (*SMALL, "--datalist", datalist, "--epoch_slices", 8, "--gradient_checkpointing")
    losses = {}
    for compiled in (True, False):
        run, code = tmp_path / f"run_{compiled}", tmp_path / f"code_{compiled}"
        words = (*options, True, "--compile", compiled, "--output_dir", run)
        command = bundle_command(["train.yaml", "method_lora.yaml"], *words)
        place = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(code)}
        done = subprocess.run(
            command, cwd=BUNDLE, env=place, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert any(path.suffix == ".cpp" for path in code.rglob("*")) == compiled
        events = EventAccumulator(str(run / "logs")).Reload()
        losses[compiled] = [event.value for event in events.Scalars("loss")]
    assert losses[True] == pytest.approx(losses[False], abs=1e-3)


def test_unknown_override_is_refused_by_name(datalist: Path, tmp_path: Path) -> None:
    """In a process that nothing prepared."""
    options = ("--datalist", datalist, "--output_dir", tmp_path / "run", "--epoch", 2)
    command = bundle_command(["train.yaml"], *options)
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("medsam-tune: --epoch is no setting of this config; did you mean: ep")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("configs", "more"),
    [(["train.yaml", "method_adapter.yaml"], ()), (["train.yaml"], ("--cache", True))],
    ids=["adapter", "cached decoder"],
)
def test_same_seed_same_numbers_and_resume_goes_on(
    bundle_run: BundleRun,
    datalist: Path,
    tmp_path: Path,
    configs: list[str],
    more: tuple[object, ...],
) -> None:
    settings = (*SMALL[:2], *SMALL[4:], "--datalist", datalist, "--epochs", 2, "--batch_size", 4)
    settings = (*settings, *more)
    for name in ("first", "second"):
        assert not bundle_run(configs, *settings, "--output_dir", tmp_path / name).code
    options = (*settings, "--output_dir", tmp_path / "stopped")
    done = bundle_run(configs, *options, after="epoch 1 of 2", number=signal.SIGTERM)
    assert done.code == 143, done.text
    state = json.loads((tmp_path / "stopped" / "state.json").read_text())
    assert (state["state"], state["epoch"], state["epochs"]) == ("stopped", 1, 2)
    done = bundle_run(configs, *options, "--resume", True)
    assert done.code == 0, done.text
    assert "resumed from" in done.text
    assert "epoch 2 of 2: loss" in done.text
    assert "epoch 1 of 2: loss" not in done.text  # to begin again would end alike
    first, second, resumed = (
        load_file(tmp_path / name / "tuned.safetensors") for name in ("first", "second", "stopped")
    )
    for key, value in first.items():
        assert value.equal(second[key]), key
        assert value.equal(resumed[key]), key


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16")
def test_half_precision_on_a_cpu(bundle_run: BundleRun, datalist: Path, tmp_path: Path) -> None:
    """A training in bfloat16 takes the embeddings that were prepared for it, as if its own."""

    def losses(name: str, slices: str, *more: object) -> list[float]:
        options = ("--datalist", datalist, "--slices_dir", tmp_path / slices, *more, *SMALL)
        done = bundle_run(["train.yaml"], *options, "--output_dir", tmp_path / name)
        assert done.code == 0, done.text
        curves = EventAccumulator(str(tmp_path / name / "logs")).Reload()
        return [one.value for one in curves.Scalars("loss")]

    half = ("--amp", True, "--cache", True, "--cache_dtype", "float32", "--views", 1)
    prepare = ["train.yaml", "prepare.yaml", "prepare_embeddings.yaml"]
    options = ("--datalist", datalist, "--slices_dir", tmp_path / "a", *half, *SMALL)
    done = bundle_run(prepare, *options, "--output_dir", tmp_path / "none")
    assert done.code == 0, done.text
    prepared, own = losses("prepared", "a", *half), losses("own", "b", *half)
    assert prepared == own
    single = losses("single", "a", *half, "--amp", False)
    assert single != own
    assert single == pytest.approx(own, rel=0.05)
    made = [path for path in (tmp_path / "a").glob("embeddings*/*") if path.is_dir()]
    assert len(made) == 2


def test_a_run_is_not_written_over(bundle_run: BundleRun, lora_run: Path, datalist: Path) -> None:
    before = (lora_run / "tuned.safetensors").read_bytes()
    done = bundle_run(["train.yaml"], "--datalist", datalist, "--output_dir", lora_run, *SMALL)
    assert done.code != 0
    assert "holds a run already" in done.text
    assert (lora_run / "tuned.safetensors").read_bytes() == before


@BOTH
def test_monai_verifies_metadata(bundle: Path) -> None:
    verify_metadata(
        meta_file=str(bundle / "configs" / "metadata.json"),
        filepath=str(Path(__file__).parent / "meta_schema.json"),
    )


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_monai_verifies_network(method: str, bundle: Path) -> None:
    overlay = [] if method == "decoder" else [str(bundle / "configs" / f"method_{method}.yaml")]
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=[str(bundle / "configs" / "train.yaml"), *overlay],
        device="cpu",
        num_classes=1,  # else that of the datalist
    )


@pytest.mark.parametrize(
    "config",
    sorted(BUNDLES.glob("*/configs/*.yaml")),
    ids=lambda p: f"{p.parts[-3]}-{p.name}",
)
def test_the_package_has_what_a_config_names(config: Path) -> None:
    names = set(re.findall(r"medsam_tune(?:\.\w+)+", config.read_text()))
    assert not [name for name in names if locate(name) is None]


DOMAINS = (
    *("satellite", "satellite_nir", "scenes", "documents", "xray", "microscopy"),
    *("endoscopy", "thermal", "underwater"),
)


@pytest.mark.parametrize("config", DOMAINS)
def test_a_domain_is_an_overlay_of_known_settings(config: str) -> None:
    path = IMAGES / "configs"
    start(["run", "--config_file", f"['{path / 'train.yaml'}','{path / config}.yaml']"])


def parsed(*configs: str, **settings: object) -> ConfigParser:
    """Configs of the images' bundle laid over each other, of which nothing is made yet."""
    files = [str(IMAGES / "configs" / f"{name}.yaml") for name in configs]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.update(settings)
    return parser


def augmented(image: np.ndarray, *configs: str, **settings: object) -> torch.Tensor:
    """An image (C, H, W) in [0, 1] after the augmentation of configs, by a fixed seed."""
    augment = parsed(*configs, flip_prob=0.0, **settings).get_parsed_content("augment")
    augment.set_random_state(0)
    label = torch.zeros(1, *image.shape[1:])
    found = augment({"image": torch.from_numpy(image), "label": label, "before": label})
    return torch.as_tensor(found["image"])


@pytest.mark.parametrize("overlay", ["satellite", "satellite_nir"])
def test_satellite_is_the_recipe_that_it_says(overlay: str) -> None:
    """Adapters, 20 epochs, 5e-5 on SAM's weights, mirrors, and all four directions."""
    recipe = parsed("train", overlay)
    assert recipe.get_parsed_content("method") == "adapter"
    assert recipe.get("network_def")["bottleneck"] == 64
    assert (recipe.get("epochs"), recipe.get("key_metric")) == (20, "mean_iou")
    assert recipe.get("in_channels") == (4 if overlay == "satellite_nir" else 3)
    for model, rate in (("vit_b", 5e-5), ("vit_h", 5e-5), ("nano", RATES["adapter"]["nano"])):
        assert parsed("train", overlay, model=model).get_parsed_content("lr") == rate
    # No class of the ground has a side: labels mirror, by the rule of train.yaml.
    assert recipe.get("flip_prob") == parsed("train").get("flip_prob")
    assert mirror_probability({1: "building", 2: "road"}) == 0.5
    augment = parsed("train", overlay, flip_prob=0.5, bias_prob=0.0).get_parsed_content("augment")
    flip = next(one for one in augment.transforms if isinstance(one, RandFlipd))
    turn = next(one for one in augment.transforms if isinstance(one, RandRotate90d))
    assert (flip.prob, turn.prob, turn.max_k) == (0.5, 0.75, 3)
    assert {*flip.keys} == {*turn.keys} == {"image", "label", "before"}


def test_under_water_each_channel_has_its_own_brightness() -> None:
    only = {"augment::transforms::5::prob": 1.0} | {
        f"augment::transforms::{n}::prob": 0.0 for n in (0, 4, 6, 7, 8)
    }
    grey = np.full((3, 32, 32), 0.5, np.float32)
    more = {**only, "bias_prob": 0.0, "augment::transforms::1::roi_scale": 1.0}
    means = augmented(grey, "train", "underwater", **more).mean((1, 2))
    assert len({round(float(one), 3) for one in means}) == 3
    assert (means / 0.5 - 1).abs().max() <= 0.3 + 1e-6
    usual = augmented(grey, "train", **more).mean((1, 2))
    assert usual.unique().numel() == 1


def test_thermal_images_are_shaded() -> None:
    flat = np.full((3, 32, 32), 0.5, np.float32)
    quiet = {f"augment::transforms::{n}::prob": 0.0 for n in (0, 4, 5, 6, 7, 8)}
    quiet["augment::transforms::1::roi_scale"] = 1.0
    assert parsed("train", "thermal").get("bias_prob") == 0.3
    found = augmented(flat, "train", "thermal", **quiet, bias_prob=1.0)
    assert found.std() > 0.005
    assert torch.equal(found[0], found[1])  # it stays grey


def test_infrared_and_scenes_go_together() -> None:
    path = IMAGES / "configs"
    files = [path / f"{name}.yaml" for name in ("train", "satellite_nir", "scenes")]
    start(["run", "--config_file", str([*map(str, files)]), "--bands", "[1,2,3]"])


@pytest.mark.parametrize(
    ("model", "device", "half"),
    [("vit_b", "cuda", True), ("nano", "cuda", False), ("vit_b", "cpu", False)],
)
@BOTH
def test_where_a_training_is_in_half_precision(
    bundle: Path, model: str, device: str, half: bool
) -> None:
    """Not nano's, which would only start more kernels by it."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "train.yaml")
    parser.update({"model": model, "device": device})
    assert parser.get_parsed_content("amp") is half


@BOTH
def test_bundle_has_what_the_specification_requires(bundle: Path) -> None:
    for name in ("LICENSE", "configs/metadata.json", "docs/README.md", "models"):
        assert (bundle / name).exists()
    for config in (bundle / "configs").glob("*.yaml"):
        first = config.read_text().splitlines()[0]
        assert first.startswith("# "), f"{config.name} does not say what it is for"
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
