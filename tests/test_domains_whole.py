"""`domains` and then `predict --domains`, with real trainings of two domains on one base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medsam_tune.cases.datalist import read_datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.files import file_hash
from medsam_tune.runs import TUNED
from medsam_tune.synthetic.phantom import write_phantoms
from tests.images import image_folder

Tune = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_each_scan_of_a_mixed_datalist_gets_its_domains_own_mask(
    tune: Tune, tmp_path: Path
) -> None:
    """Bit for bit, of scans and of images, by boxes; the LoRAs are combined and judged."""
    write_phantoms(tmp_path / "scans", count=4, shape=(48, 40, 8), spacing=(7.2, 6.4, 15.0))
    image_folder(tmp_path / "tiles", groups=4)
    domains, entries = {}, []
    (tmp_path / "boxes").mkdir()
    for name, folder in (("ct", "scans"), ("aerial", "tiles")):
        data = split_cases(find_cases(tmp_path / folder), (0.5, 0.25, 0.25))
        write_datalist(data, tmp_path / folder / "d.json")
        domains[name] = {"datalist": f"{folder}/d.json"}
        for k, case in enumerate(read_datalist(tmp_path / folder / "d.json").cases[:2]):
            ending = ".nii.gz" if name == "ct" else case.image.suffix
            scan = tmp_path / "mixed" / f"{name}_{k}{ending}"
            scan.parent.mkdir(exist_ok=True)
            shutil.copy(case.image, scan)
            entries.append({"image": f"mixed/{scan.name}", "domain": name})
            given = (
                {"box3d": [10, 10, 2, 30, 30, 6]}
                if name == "ct"
                else {"slices": {"0": {"box": [4, 20, 20, 40]}}}
            )
            objects = [{"label": 1, **given}, {"label": 2, **given}][k:]
            (tmp_path / "boxes" / f"{name}_{k}.json").write_text(json.dumps({"objects": objects}))
    settings = {"epochs": 1, "num_workers": 0, "epoch_slices": 8, "pictures": 0}
    recipe = {"method": "lora", "image_size": 64, "class_agnostic": True, "settings": settings}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "domains": domains}))
    (tmp_path / "mixed.json").write_text(json.dumps({"test": entries}))
    output = tmp_path / "domains"
    code, out, err = tune("domains", tmp_path / "recipe.yaml", "--output", output)
    assert code == 0, err
    assert "Combined is the mean of the LoRAs of ct, aerial." in out
    matrix = json.loads((output / "domains.json").read_text())["matrix"]
    models = {"ct", "aerial", "untouched", "combined"}
    assert {cases: {*row} for cases, row in matrix.items()} == {"ct": models, "aerial": models}

    words = ("--prompts", tmp_path / "boxes", "--output", tmp_path / "masks")
    code, _, err = tune("predict", tmp_path / "mixed.json", "--domains", output, *words)
    assert code == 0, err
    for entry in entries:
        scan = tmp_path / str(entry["image"])
        stem = scan.name.partition(".")[0]
        (mask,) = [one for one in (tmp_path / "masks").glob(f"{stem}.*") if one.suffix != ".json"]
        record = (tmp_path / "masks" / f"{stem}.prediction.json").read_text()
        assert file_hash(output / str(entry["domain"]) / TUNED) in record
        alone = tmp_path / f"alone_{mask.name}"
        words = ("--prompts", tmp_path / "boxes" / f"{stem}.json", "--output", alone)
        code, _, err = tune("predict", scan, "--run", output / str(entry["domain"]), *words)
        assert code == 0, err
        found, expected = (_voxels(one) for one in (mask, alone))
        assert expected.any()
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def _voxels(mask: Path) -> np.ndarray:
    if mask.suffix == ".png":
        return np.asarray(Image.open(mask))
    return np.asarray(nib.load(mask).dataobj)
