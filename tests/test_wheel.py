"""A wheel by itself: installed outside a checkout, used from an empty folder, without a network."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CUT = "from tests_network import cut; cut()"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `make build` does, by what is installed."""
    folder = tmp_path_factory.mktemp("dist")
    words = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    command = [sys.executable, "-m", "pip", *map(str, words), "--quiet", str(ROOT)]
    subprocess.run(command, check=True, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_a_wheel_carries_what_it_needs_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        *(f"medsam_tune/bundles/sam_{kind}/configs/train.yaml" for kind in ("volume", "image")),
        "medsam_tune/bundles/exported/configs/inference.yaml",
        "medsam_tune/sam/weights/nano.safetensors",
        "medsam_tune/evaluation/report.html.j2",
        "medsam_tune/evaluation/niivue/niivue.umd.js.gz",
        "medsam_tune/evaluation/niivue/LICENSES.txt",
        "medsam_tune/formats/dicom/codes.csv",
        "medsam_tune/py.typed",
    }
    assert wanted <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"medsam_tune"}
    assert not [name for name in names if name.endswith((".pt", ".pth", ".pyc", ".key"))]


@pytest.mark.slow
def test_it_trains_and_predicts_from_an_empty_folder_without_a_network(
    wheel: Path, tmp_path: Path
) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    words = ("install", "--no-deps", "--no-index", "--target", site, wheel)
    subprocess.run([sys.executable, "-m", "pip", *map(str, words), "--quiet"], check=True)
    # Loaded by every Python process, those of data loaders included.
    (site / "tests_network.py").write_text((ROOT / "tests" / "network.py").read_text())
    (site / "sitecustomize.py").write_text(CUT + "\n")

    def run(code: str, *words: object) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)],
            **{"cwd": empty, "capture_output": True, "text": True, "check": False},
            env={"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HOME": str(empty)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    phantoms = "count=6, shape=(48, 40, 8), spacing=(7.2, 6.4, 15.0)"
    run(
        "import pathlib, medsam_tune\n"
        f"assert medsam_tune.__file__.startswith({str(site)!r})\n"
        "from medsam_tune.synthetic.phantom import write_phantoms\n"
        f"write_phantoms(pathlib.Path('scans'), {phantoms})"
    )
    command = "from medsam_tune.cli import main; main()"
    run(command, "split", "scans", "--fractions", 0.6, 0.2, 0.2)
    small = ("--image-size", 64, "--set", "epochs=1", "--set", "num_workers=0")
    run(command, "train", "lora", "--datalist", "datalist.json", "--output", "run", *small)
    assert "results:" in run(command, "evaluate", "--run", "run")
    scan = next((empty / "scans" / "imagesTr").glob("*.nii.gz"))
    run(command, "predict", scan, "--run", "run", "--output", "mask.nii.gz")
    assert (empty / "mask.nii.gz").is_file()
    assert {path.name for path in empty.iterdir()} >= {"datalist.json", "run", "mask.nii.gz"}
