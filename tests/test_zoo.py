"""Bundles by the rules of MONAI's model zoo (its CONTRIBUTING.md), each by itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ckpt_export, verify_metadata

ROOT = Path(__file__).parents[1]
SCHEMA = Path(__file__).parent / "meta_schema.json"
LARGEST = 25 * 2**20  # bytes of a file
# Departures, which each bundle's page names.
DEPARTURES = {"output_dir", "train::dataset::data", "validate::dataset::data"}


@pytest.fixture(scope="module", params=["sam_volume", "sam_image"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, zipped as it is in the repository, and unpacked elsewhere."""
    folder = tmp_path_factory.mktemp("zoo")
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", ".")
    source = ROOT / "bundles" / request.param
    names = subprocess.run(listed, cwd=source, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, folder / "files" / name)
    packed = shutil.make_archive(str(folder / "bundle"), "zip", folder / "files")
    shutil.unpack_archive(packed, folder / request.param)
    return folder / str(request.param)


def config(bundle: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((bundle / "configs" / name).read_text())
    return content


def has(content: dict[str, Any], way: str) -> bool:
    """Whether a config has an item such as "train::trainer::max_epochs"."""
    for key in way.split("::"):
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True


def test_it_has_the_files_and_none_is_large(bundle: Path) -> None:
    for name in ("LICENSE", "large_files.yml", "models", "docs/README.md"):
        assert (bundle / name).exists()
    assert {
        f"{one}" for one in ("metadata.json", "inference.yaml", "train.yaml", "logging.conf")
    } <= {path.name for path in (bundle / "configs").iterdir()}
    assert all(path.stat().st_size <= LARGEST for path in bundle.rglob("*") if path.is_file())
    assert not [*bundle.rglob("*.py")]


def test_large_files_say_where_and_what(bundle: Path) -> None:
    for each in yaml.safe_load((bundle / "large_files.yml").read_text())["large_files"]:
        assert each["url"].startswith("https://")
        assert Path(each["path"]).parts[0] == "models"
        assert each["hash_type"] in ("md5", "sha1", "sha256", "sha512")
        assert re.fullmatch(r"[0-9a-f]{32,128}", each["hash_val"])


def test_no_path_of_a_person(bundle: Path) -> None:
    for path in bundle.rglob("*"):
        if path.is_file():
            assert not re.search(r"/(home|root|Users)/", path.read_text(encoding="utf-8")), path


def test_metadata(bundle: Path) -> None:
    path = bundle / "configs" / "metadata.json"
    verify_metadata(meta_file=str(path), filepath=str(SCHEMA))
    content = json.loads(path.read_text())
    assert content["version"] in content["changelog"]
    assert all(content[key] for key in ("name", "task", "description", "authors", "copyright"))


def test_keys_have_the_names_that_other_programs_look_for(bundle: Path) -> None:
    wanted = {
        "inference.yaml": ("bundle_root", "device", "network_def", "inferer", "output_dir"),
        "train.yaml": (
            *("bundle_root", "device", "dataset_dir", "output_dir", "val_interval"),
            *("train::trainer::max_epochs", "train::dataset", "train::handlers", "train::inferer"),
            *("validate::evaluator", "validate::handlers", "validate::dataset"),
            *("train::dataset::data", "validate::dataset::data"),
        ),
    }
    missing = {
        way for name, ways in wanted.items() for way in ways if not has(config(bundle, name), way)
    }
    assert missing == DEPARTURES
    handlers = [
        one for one in config(bundle, "train.yaml")["train"]["handlers"] if "interval" in one
    ]
    assert handlers[0]["interval"] == "@val_interval"


def test_the_page_has_what_a_reader_looks_for(bundle: Path) -> None:
    page = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert {"Data", "Commands", "Performance", "Limits"} <= {*titles}
    assert "Departures from the model zoo's rules" in titles
    assert "python -m monai.bundle run" in page
    links = re.findall(r"\]\(([^)#]+)\)", page)
    assert all((bundle / "docs" / link).exists() for link in links if "://" not in link)


def test_a_checkpoint_becomes_torchscript(bundle: Path, tmp_path: Path) -> None:
    configs = [str(bundle / "configs" / name) for name in ("train.yaml", "method_lora.yaml")]
    parser = ConfigParser()
    parser.read_config(configs)
    parser["num_classes"], parser["image_size"] = 2, 64  # the first is else that of a datalist
    network = parser.get_parsed_content("network_def").eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=configs,
        use_trace=True,
        input_shape=[1, 3, 64, 64],
        num_classes=2,
        image_size=64,
    )
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = torch.jit.load(tmp_path / "model.ts")(image)
        torch.testing.assert_close(found, network(image))
