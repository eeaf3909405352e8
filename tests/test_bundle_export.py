"""A run as a MONAI bundle, as other programs of MONAI read it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.data import MetaTensor
from monai.transforms import LoadImaged, MapTransform, SaveImaged
from PIL import Image

from medsam_tune.bundle import start
from medsam_tune.bundle_export import export_bundle
from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import save_tuned
from medsam_tune.runs import RunRecord, write_record, write_state
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.intensity import Colours, Window
from medsam_tune.slices.rules import ScanRules
from tests.images import image_and_ids
from tests.inference.made import SAGITTAL, scan
from tests.scans import write_nifti

LABELS = {1: "liver", 7: "Spleen"}
RULES = ScanRules(Window(100, 200), "coronal", (4, 3, 5), neighbours=True, modality="CT")
RECORD = RunRecord(
    "/nowhere/d.json",
    "/nowhere/d.slices",
    None,
    RULES.describe(),
    Mending(fill_nan=0.0).describe(),
    0.0,
    0,
    mixture={"none": 1, "box": 1},
)
SCHEMA = Path(__file__).parent / "meta_schema.json"


def tuned(**options: Any) -> PromptableSam:
    """A model that finds something of both labels on every slice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"method": "lora", "rank": 2, "num_classes": 2, **options}
        model = apply_method(build_sam("nano", image_size=64), **options)
        if model.classes:
            with torch.no_grad():
                model.learned.present[:, -1] = 1
                model.learned.tokens.normal_(std=0.3)
                model.learned.gates.fill_(1)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> PromptableSam:
    return tuned()


@pytest.fixture(scope="module")
def bundle(model: PromptableSam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(model, RECORD, LABELS, tmp_path_factory.mktemp("b") / "organs")


def segmenter(model: PromptableSam) -> Segmenter:
    """What `predict` does."""
    return Segmenter(model, RULES, LABELS, "cpu", mending=Mending(**RECORD.mending))


@pytest.fixture(scope="module")
def case(model: PromptableSam, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A scan, and the mask that `predict` writes of it."""
    path = scan(tmp_path_factory.mktemp("scans"), SAGITTAL, (12, 6, 10))
    voxels = nib.load(path).get_fdata(dtype=np.float32)
    voxels[3, 2, 4] = np.nan  # to be mended
    write_nifti(path, voxels, SAGITTAL)
    mask = segmenter(model).segment(path)[0].numpy()
    assert set(np.unique(mask)) == {0, *LABELS}
    return path, mask


def test_what_is_written(bundle: Path) -> None:
    assert {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()} == {
        *("LICENSE", "docs/README.md", "models/model.pt"),
        *(f"configs/{name}" for name in ("inference.yaml", "metadata.json", "logging.conf")),
    }
    texts = [p.read_text() for p in bundle.rglob("*") if p.is_file() and p.suffix != ".pt"]
    assert not [text for text in texts if "nowhere" in text or str(bundle) in text]
    assert "| 7 | Spleen |" in (bundle / "docs" / "README.md").read_text()


def test_monai_verifies_it(bundle: Path) -> None:
    metadata = bundle / "configs" / "metadata.json"
    verify_metadata(meta_file=str(metadata), filepath=str(SCHEMA))
    config = str(bundle / "configs" / "inference.yaml")
    verify_net_in_out("network_def", str(metadata), config, device="cpu")
    content = json.loads(metadata.read_text())
    assert content["version"] in content["changelog"]
    packages = content["required_packages_version"]
    assert packages["medsam_tune"]
    pred = content["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == {"0": "background", "1": "liver", "7": "Spleen"}
    assert content["network_data_format"]["inputs"]["image"]["modality"] == "CT"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "decoder", "rank": None},
        {"method": "adapter", "rank": None, "mask_decoder": True},
        {"method": "prompt", "rank": None},
    ],
    ids=lambda options: options.get("method", "lora"),
)
def test_the_model_loads_strictly(tmp_path: Path, options: dict[str, Any]) -> None:
    given = {key: value for key, value in options.items() if value is not None}
    model = tuned(**given) if "rank" not in options else _without_rank(given)
    folder = export_bundle(model, RECORD, LABELS, tmp_path / "b")
    network = parser(folder).get_parsed_content("network_def")
    assert not network.random_weights
    state = torch.load(folder / "models" / "model.pt", weights_only=True)
    network.load_state_dict(state, strict=True)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network(image), model(image))
    assert network.base == model.base


def _without_rank(options: dict[str, Any]) -> PromptableSam:
    model = apply_method(build_sam("nano", image_size=64), num_classes=2, **options)
    return model.eval()


def parser(bundle: Path) -> ConfigParser:
    """The config as MONAI Deploy reads it; MONAI Label sets `bundle_root` besides."""
    found = ConfigParser()
    found.read_meta(json.loads((bundle / "configs" / "metadata.json").read_text()))
    found.read_config(bundle / "configs" / "inference.yaml")
    found.parse()
    return found


def network_of(bundle: Path, config: ConfigParser) -> PromptableSam:
    network = config.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt"))
    return network


@torch.no_grad()
@pytest.mark.parametrize("largest", [False, True])
def test_as_monai_label_reads_it(
    bundle: Path, case: tuple[Path, np.ndarray], largest: bool
) -> None:
    """See monailabel/tasks/infer/bundle.py and basic_infer.py (0.8.5)."""
    path, wanted = case
    config = parser(bundle)
    network = network_of(bundle, config)
    options = config.get_parsed_content("displayable_configs", instantiate=True)
    assert options == {
        "smooth_slices": 0.0,
        "min_volume_ml": 0.0,
        "largest_component": False,
        "fill_holes": False,
    }
    data: dict[str, Any] = {"image": str(path), **options, "largest_component": largest}
    config["displayable_configs"].update({name: data[name] for name in options})
    config.parse()
    config.config["device"] = "cpu"
    first, *steps = config.get_parsed_content("preprocessing").transforms
    assert isinstance(first, LoadImaged)
    first._loader.image_only = False
    for step in (first, *steps):
        data = step(data)
    data["pred"] = config.get_parsed_content("inferer")(data["image"][None], network)[0]
    for step in config.get_parsed_content("postprocessing").transforms:
        if not isinstance(step, SaveImaged):
            data = step(data)
    mask = data["pred"]
    assert isinstance(mask, MetaTensor)
    assert (mask.shape, mask.dtype) == ((1, 12, 6, 10), torch.uint8)
    assert np.array_equal(mask[0].numpy(), wanted) == (not largest)
    assert list(data["image"].meta["spatial_shape"]) == [12, 6, 10]  # for Restored
    np.testing.assert_allclose(data["image"].meta["original_affine"], SAGITTAL)


@torch.no_grad()
def test_as_monai_deploy_reads_it(bundle: Path, case: tuple[Path, np.ndarray]) -> None:
    """See monai/deploy/operators/monai_bundle_inference_operator.py (4.0.0)."""
    path, wanted = case
    config = parser(bundle)
    assert isinstance(config.get_parsed_content("device"), torch.device)
    config.config["device"] = "cpu"
    network = network_of(bundle, config)
    before, after = (config.get_parsed_content(f"{name}processing") for name in ("pre", "post"))
    for compose in (before, after):
        kept = [
            s for s in compose.transforms if not re.search("(Load|Save)Image", type(s).__name__)
        ]
        assert len(kept) == len(compose.transforms) - 1
        compose.transforms = tuple(kept)
        assert isinstance(kept[0], MapTransform)
    voxels = np.asarray(nib.load(path).dataobj)
    meta = {"affine": SAGITTAL, "original_affine": SAGITTAL, "original_channel_dim": "no_channel"}
    inputs = before({"image": MetaTensor.ensure_torch_and_prune_meta(voxels, meta)})
    inferer = config.get_parsed_content("inferer")
    (pred,) = inferer(inputs=inputs["image"][None], network=network)
    mask = after({"pred": pred, **inputs})["pred"]
    np.testing.assert_array_equal(mask[0].numpy(), wanted)


def test_monai_runs_it_from_inside(
    bundle: Path, case: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, wanted = case
    monkeypatch.chdir(bundle)
    folders = {"dataset_dir": str(path.parent), "output_dir": str(tmp_path)}
    monai.bundle.run(config_file="configs/inference.yaml", device="cpu", **folders)
    written = nib.load(tmp_path / "scan_mask.nii.gz")
    np.testing.assert_array_equal(written.dataobj, wanted)
    np.testing.assert_allclose(written.affine, SAGITTAL)
    assert os.listdir(tmp_path) == ["scan_mask.nii.gz"]
    config = str(bundle / "configs" / "inference.yaml")
    assert ConfigParser.load_config_file(config)["initialize"] == ["$medsam_tune.bundle.start()"]
    words = ["run", "--config_file", config, "--dataset_dri"]
    with pytest.raises(ValueError, match=r"--dataset_dri is no .* did you mean: dataset_dir"):
        start([*words, "x"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({1: "liver", 256: "vein"}, r"label 256 \(vein\): expected ids up to 255"),
        ({1: "Liver", 2: "liver"}, r"label 2 \('liver'\) has the name of label 1 in lower case"),
        ({1: "liver", 2: "Background"}, "has the name of label 0 in lower case"),
        ({1: "liver", 2: "$print(1)"}, r"names::2 '\$print\(1\)' would be a program"),
        ({1: "liver", 2: "a @::b"}, "would be a program, a reference or a key"),
    ],
)
def test_labels_that_others_would_lose_are_refused(
    model: PromptableSam, tmp_path: Path, labels: dict[int, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        export_bundle(model, RECORD, labels, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_settings_that_would_be_programs_are_refused(model: PromptableSam, tmp_path: Path) -> None:
    strange = {**RECORD.rules, "_target_": "os.system"}
    with pytest.raises(DataError, match="rules '_target_' would be a program"):
        export_bundle(model, replace(RECORD, rules=strange), LABELS, tmp_path / "b")


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> tuple[PromptableSam, Path]:
    """A model without labels of its own, and its bundle."""
    model = apply_method(build_sam("nano", image_size=64), "decoder").eval()
    record = replace(RECORD, mixture={"box": 1})
    return model, export_bundle(model, record, LABELS, tmp_path_factory.mktemp("p") / "any")


def test_models_that_need_prompts_take_a_label_map(
    prompted: tuple[PromptableSam, Path], case: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    """As MONAI Deploy reads it: tensors of other inputs are arguments of the inferer."""
    model, folder = prompted
    boxes = np.zeros((12, 6, 10), np.uint8)
    boxes[2:9, 1:4, 2:7], boxes[9:12, 3:6, 4:9] = 7, 1
    maps = write_nifti(tmp_path / "scan.nii.gz", boxes, SAGITTAL)
    wanted = segmenter(model).segment(case[0], maps)[0].numpy()
    assert set(np.unique(wanted)) == {0, 1, 7}
    metadata = folder / "configs" / "metadata.json"
    verify_metadata(meta_file=str(metadata), filepath=str(SCHEMA))
    config = parser(folder)
    config.config["device"] = "cpu"
    names = [*json.loads(metadata.read_text())["network_data_format"]["inputs"]]
    assert names == ["image", "prompts"]
    given = {}
    for name, path in zip(names, (case[0], maps), strict=True):
        file = nib.load(path)
        meta = {"affine": file.affine, "original_affine": file.affine}
        given[name] = MetaTensor.ensure_torch_and_prune_meta(np.asarray(file.dataobj), meta)
    before = config.get_parsed_content("preprocessing").transforms
    assert [type(step).__name__ for step in before[:2]] == ["LoadImaged", "LoadImaged"]
    for step in before[2:]:
        given = step(given)
    inferer, network = config.get_parsed_content("inferer"), network_of(folder, config)
    with torch.no_grad():
        (pred,) = inferer(given["image"][None], network, prompts=given["prompts"][None])
        with pytest.raises(DataError, match="the model segments what is prompted"):
            inferer(given["image"][None], network)  # as MONAI Label calls it
    steps = config.get_parsed_content("postprocessing").transforms
    mask = steps[1](steps[0]({"pred": pred, **given}))["pred"]
    np.testing.assert_array_equal(mask[0].numpy(), wanted)


def test_monai_runs_it_with_a_folder_of_label_maps(
    prompted: tuple[PromptableSam, Path],
    case: tuple[Path, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, folder = prompted
    monkeypatch.chdir(folder)
    boxes = np.zeros((12, 6, 10), np.uint8)
    boxes[2:9, 1:4, 2:7] = 7
    maps = write_nifti(tmp_path / "maps" / "scan.nii", boxes, SAGITTAL)
    folders = {"dataset_dir": str(case[0].parent), "output_dir": str(tmp_path / "masks")}
    folders |= {"prompts_dir": str(maps.parent)}
    monai.bundle.run(config_file="configs/inference.yaml", device="cpu", **folders)
    wanted = segmenter(model).segment(case[0], maps)[0].numpy()
    written = nib.load(tmp_path / "masks" / "scan_mask.nii.gz")
    np.testing.assert_array_equal(written.dataobj, wanted)
    assert "--prompts_dir MAPS" in (folder / "docs" / "README.md").read_text()


@pytest.mark.parametrize("by_maps", [False, True], ids=["alone", "by label maps"])
def test_images_in_colours_get_the_masks_of_predict(
    model: PromptableSam,
    prompted: tuple[PromptableSam, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_maps: bool,
) -> None:
    images, maps = tmp_path / "images", None
    images.mkdir()
    pixels, ids = image_and_ids(1)
    Image.fromarray(pixels).save(images / "a.png")
    rules = ScanRules(Colours(), modality="RGB", gsd=0.1)  # of no known pixel, so left out
    folders = {"dataset_dir": str(images), "output_dir": str(tmp_path / "masks")}
    if by_maps:
        model, maps = prompted[0], tmp_path / "maps" / "a.png"
        maps.parent.mkdir()
        Image.fromarray(np.where(ids == 1, 7, ids == 2).astype(np.uint8)).save(maps)
        folders["prompts_dir"] = str(maps.parent)
    record = replace(RECORD, rules=rules.describe(), mending={}, mixture={"box": 1, "none": 1})
    record = replace(record, mixture={"box": 1}) if by_maps else record
    folder = export_bundle(model, record, LABELS, tmp_path / "b")
    monkeypatch.chdir(folder)
    monai.bundle.run(config_file="configs/inference.yaml", device="cpu", **folders)
    wanted = Segmenter(model, rules, LABELS, "cpu").segment(images / "a.png", maps)[0]
    written = np.asarray(Image.open(tmp_path / "masks" / "a_mask.png"))
    np.testing.assert_array_equal(written, wanted.numpy()[..., 0].T)
    assert len(np.unique(written)) > 1
    assert "masks are PNG" in (folder / "docs" / "README.md").read_text()


def test_masks_of_geotiff_lie_where_it_lies(
    model: PromptableSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geo = pytest.importorskip("tests.geo")
    bands, _ = geo.bands_and_ids(1)
    scene = geo.write(tmp_path / "images" / "a.tif", bands[:3])
    rules = ScanRules(Colours(), modality="RGB", gsd=0.4)  # the file has 0.5 m
    record = replace(RECORD, rules=rules.describe(), mending={})
    folder = export_bundle(model, record, LABELS, tmp_path / "b")
    monkeypatch.chdir(folder)
    folders = {"dataset_dir": str(scene.parent), "output_dir": str(tmp_path / "masks")}
    monai.bundle.run(config_file="configs/inference.yaml", device="cpu", **folders)
    assert os.listdir(tmp_path / "masks") == ["a_mask.tif"]
    wanted = Segmenter(model, rules, LABELS, "cpu").segment(scene)[0].numpy()[..., 0].T
    with (
        geo.rasterio.open(tmp_path / "masks" / "a_mask.tif") as mask,
        geo.rasterio.open(scene) as image,
    ):
        np.testing.assert_array_equal(mask.read(1), wanted)
        assert (mask.crs, mask.transform) == (image.crs, image.transform)
    assert len(np.unique(wanted)) > 1


def test_the_command(model: PromptableSam, tune: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_tuned(model, run / "tuned.safetensors", LABELS)
    write_record(run, RECORD)
    write_state(run, "finished")
    words = ("export", "--format", "bundle", "--run", run, "--output", tmp_path / "b")
    code, out, err = tune(*words)
    assert code == 0, err
    assert "b: a MONAI bundle of liver, Spleen" in out
    assert "python -m monai.bundle run --config_file configs/inference.yaml" in err
    before = sorted((tmp_path / "b").rglob("*"))
    code, _, err = tune(*words)
    assert code == 1
    assert "b: is there already; delete it or choose another" in err
    assert sorted((tmp_path / "b").rglob("*")) == before
