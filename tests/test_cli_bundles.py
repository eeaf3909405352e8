"""Which bundle a command takes: that of its data or its run, and which overlays fit a method."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from medsam_tune.bundle import bundle_folder, bundle_name
from medsam_tune.cases.datalist import write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.runs import read_record
from tests.images import image_folder

SMALL = ["--image-size", "64", "--set", "epochs=1", "--set", "epoch_slices=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = image_folder(tmp_path_factory.mktemp("images") / "d", groups=3)
    write_datalist(split_cases(find_cases(folder), (0.34, 0.33, 0.33)), folder / "d.json")
    return folder


def test_a_run_keeps_its_bundle(tune: Any, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--datalist", images / "d.json", "--output", run, "--overlay", "microscopy")
    code, _, err = tune("train", "decoder", *flags, *SMALL)
    assert code == 0, err
    record = read_record(run)
    assert (record.bundle, record.rules["components"]) == ("image", 16)
    code, _, err = tune("evaluate", "--run", run, "--prompts", "slices")
    assert code == 0, err
    assert "sam_image/configs/evaluate.yaml" in err
    code, _, err = tune("evaluate", "--run", run, "--bundle", "volume")
    assert code == 1
    assert f"--bundle is volume, and {run} was trained by the bundle image; leave --bundle" in err
    code, _, err = tune("predict", "a.png", "--run", run, "--output", "m.png", "--bundle", "volume")
    assert code == 1
    assert "was trained by the bundle image" in err


def test_bundles_of_data(tune: Any, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in ("tuning", "data"):
        module = import_module(f"medsam_tune.cli.{name}")
        monkeypatch.setattr(module, "run_bundle", lambda bundle, *rest: seen.append(bundle))
    datalist = images / "d.json"
    tune("prepare", datalist)
    tune("evaluate", "--zero-shot", "--datalist", datalist, "--output", images / "z")
    tune("train", "lora", "--datalist", datalist, "--output", images / "o")
    tune("train", "lora", "--datalist", "no.json", "--output", images / "o")
    tune("train", "lora", "--datalist", datalist, "--output", images / "o", "--bundle", "volume")
    assert seen == ["image", "image", "image", "volume", "volume"]


def test_slices_are_prepared_by_the_overlays_of_a_training(
    tune: Any, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    module = import_module("medsam_tune.cli.data")
    monkeypatch.setattr(module, "run_bundle", lambda bundle, configs, *_: seen.append(configs))
    words = ("prepare", images / "d.json", "--overlay", "satellite", "--overlay", "scenes")
    code, _, err = tune(*words)
    assert code == 0, err
    assert seen == [
        ["train.yaml", "method_adapter.yaml", "satellite", "scenes", "prepare.yaml"],
    ]
    assert f"train adapter --datalist {images / 'd.json'} --overlay satellite --overlay sc" in err
    tune(*words[:2], "--overlay", "documents")
    assert seen[1] == ["train.yaml", "documents", "prepare.yaml"]
    code, _, err = tune(*words[:2], "--overlay", "no")
    assert (code, "no: no such config here, nor in the bundle" in err) == (1, True)


def test_an_overlay_of_another_method_is_refused(tune: Any, images: Path, tmp_path: Path) -> None:
    flags = ("--datalist", images / "d.json", "--output", tmp_path / "run")
    for name in ("satellite.yaml", "satellite_nir"):
        code, _, err = tune("train", "lora", *flags, "--overlay", name)
        assert code == 1
        assert "is of the method adapter, and the command says lora; say `adapter`" in err
    mine = tmp_path / "mine.yaml"
    mine.write_text(json.dumps({"method": "full"}))
    code, _, err = tune("train", "decoder", *flags, "--overlay", mine)
    assert (code, "mine.yaml is of the method full" in err) == (1, True)
    assert not (tmp_path / "run").exists()


def test_names_of_bundles(tmp_path: Path) -> None:
    assert bundle_name(str(bundle_folder("image"))) == "image"
    (tmp_path / "sam_image" / "configs").mkdir(parents=True)
    assert bundle_name(str(tmp_path / "sam_image")) == str(tmp_path / "sam_image")
