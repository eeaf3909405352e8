"""The report in 3-D: whole, offline, and with the voxels that it should show."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.evaluation.pages import resource
from medsam_tune.evaluation.report import write_report
from medsam_tune.evaluation.results import INDEX
from medsam_tune.evaluation.viewer import LICENCES, SCRIPTS
from medsam_tune.evaluation.volumes import PARTS, Part, part_of, write_part
from tests.evaluation.test_report import NASTY, Page, evaluated

NIIVUE = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"


def with_volumes(folder: Path, name: str = "liver", **about: Any) -> Part:
    """An evaluation with the volume of its picture."""
    evaluated(folder, **about)
    truth = torch.zeros(8, 20, 30, dtype=torch.long)
    truth[2:6, 5:15, 5:20] = 1
    image = torch.randint(0, 256, (8, 1, 20, 30), dtype=torch.uint8)
    part = part_of(image, truth, truth.roll(2, 2) * 2, [1, 2], (3.0, 1.0, 1.0), "LPS")
    assert part is not None
    write_part(folder / "overlays" / "case_3", part)
    index = json.loads((folder / "overlays" / INDEX).read_text())
    labels = [{"value": 1, "name": name, "colour": "#3f90da"}]
    index["pictures"][0]["volume"] = {"thinned": [1, 2, 2], "labels": labels}
    (folder / "overlays" / INDEX).write_text(json.dumps(index))
    return part


def data_of(page: Page) -> dict[str, Any]:
    (text,) = (one for one in page.scripts if one.startswith("{"))
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_page_holds_the_voxels_of_the_worst_cases(tmp_path: Path) -> None:
    part = with_volumes(tmp_path, NASTY)
    text = write_report(tmp_path, viewer=True).read_text()
    (case,) = data_of(Page(text))["cases"]
    assert case["case"] == "case_3"
    assert case["labels"] == [{"value": 1, "name": NASTY, "colour": "#3f90da"}]
    assert "One voxel of 2 x 2 x 1" in case["said"]
    for name in PARTS:
        read = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(case[name])))
        assert np.array_equal(np.asarray(read.dataobj).transpose(2, 1, 0), getattr(part, name))
        assert not bytes(read.header["descrip"]).strip(b"\0")
    assert "<script>alert" not in text
    assert 'href="#viewer"' in text


def test_a_page_with_volumes_needs_no_network(tmp_path: Path) -> None:
    """No element loads anything, and the policy refuses whatever a script might ask for."""
    with_volumes(tmp_path)
    page = Page(write_report(tmp_path, viewer=True).read_text())
    for _, attributes in page.tags:
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/png;base64,"))
    scripts = [resource(name) for name in ("report.js", *SCRIPTS)]
    assert [one for one in page.scripts if not one.startswith("{")] == scripts
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
        + " ".join(f"'sha256-{digest}'" for digest in digests)
    )


def test_reports_without_it_stay_small(tmp_path: Path) -> None:
    with_volumes(tmp_path)
    text = write_report(tmp_path).read_text()
    assert "niivue" not in text.lower()
    assert len(text) < 100_000


def test_niivue_is_the_published_one_with_its_licences() -> None:
    script = resource(SCRIPTS[0])
    assert hashlib.sha256(script.encode()).hexdigest() == NIIVUE
    assert not re.search("</script|<!--", script)  # either would end it, or change how it is read
    licences = resource(LICENCES)
    assert NIIVUE in licences
    assert "Copyright (c) 2021, Niivue" in licences


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "overlays" / INDEX).unlink(), "holds no volume of a case"),
        (
            lambda folder: (folder / "overlays" / "case_3" / "truth.nii.gz").unlink(),
            "truth.nii.gz: no such file; the evaluation is not whole",
        ),
    ],
)
def test_evaluations_without_volumes(
    tmp_path: Path, break_it: Callable[[Path], object], message: str
) -> None:
    with_volumes(tmp_path)
    break_it(tmp_path)
    with pytest.raises(DataError, match=message):
        write_report(tmp_path, tmp_path / "page.html", viewer=True)
    assert not (tmp_path / "page.html").exists()


def test_images_of_one_slice_are_refused(
    tmp_path: Path, tune: Callable[..., tuple[int, str, str]]
) -> None:
    with_volumes(tmp_path, flat=True)
    code, _, said = tune("report", "--run", tmp_path, "--viewer")
    assert code == 1
    assert "images of one slice; expected scans for --viewer" in said
    assert "Leave it out" in said


def test_the_command(tmp_path: Path, tune: Callable[..., tuple[int, str, str]]) -> None:
    with_volumes(tmp_path)
    page = tmp_path / "page.html"
    assert tune("report", "--run", tmp_path, "--output", page, "--viewer")[0] == 0
    assert data_of(Page(page.read_text()))["cases"]
