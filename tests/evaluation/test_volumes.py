"""Parts of scans: cropped to what is there, small, in their place, and nothing else."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medsam_tune.evaluation import volumes
from medsam_tune.evaluation.volumes import load_part, nifti_bytes, part_of, save_part, write_part

SHAPE = (12, 40, 50)


def maps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, truth and prediction."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (12, 3, 40, 50), dtype=torch.uint8, generator=generator)
    truth = torch.zeros(SHAPE, dtype=torch.long)
    truth[5:7, 20:25, 20:30] = 300
    prediction = torch.zeros(SHAPE, dtype=torch.long)
    prediction[6:8, 22:26, 18:28] = 7
    return image, truth, prediction


def test_a_part_holds_both_objects_and_what_is_around_them() -> None:
    image, truth, prediction = maps()
    part = part_of(image, truth, prediction, [7, 9, 300], (5.0, 2.0, 1.0), "LPS")
    assert part is not None
    assert (part.labels, part.thinned) == ([7, 300], (1, 1, 1))
    # 10 mm, and a voxel for what is less: 3, 6 and 11 voxels.
    box = np.s_[2:11, 14:32, 7:41]
    assert np.array_equal(part.image, image[box[0], 1, box[1], box[2]].numpy())
    assert np.array_equal(part.truth, np.where(truth[box] == 300, 2, 0))
    assert np.array_equal(part.prediction, np.where(prediction[box] == 7, 1, 0))
    assert {one.dtype for one in (part.image, part.truth, part.prediction)} == {np.dtype("uint8")}


def test_nothing_to_show() -> None:
    image, truth, prediction = maps()
    assert part_of(image, truth, prediction, [8]) is None


def test_large_parts_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "MOST_VOXELS", 1000)
    image, truth, _ = maps()
    whole = torch.ones(SHAPE, dtype=torch.long) * 7
    part = part_of(image, truth, whole, [7, 300], (5.0, 2.0, 1.0))
    assert part is not None
    assert part.truth.size <= 1000
    z, y, x = part.thinned
    assert np.array_equal(part.truth, np.where(truth[::z, ::y, ::x] == 300, 2, 0))
    assert part.spacing == (5.0 * z, 2.0 * y, 1.0 * x)
    assert x > y > z  # the closest voxels first


@pytest.mark.parametrize("axes", ["LPS", "PSR", "RAI"])
def test_the_affine_is_that_of_the_directions(axes: str) -> None:
    image, truth, prediction = maps()
    part = part_of(image, truth, prediction, [7], (5.0, 2.0, 1.0), axes)
    assert part is not None
    assert "".join(nib.aff2axcodes(part.affine)) == axes
    assert nib.affines.voxel_sizes(part.affine).tolist() == [1.0, 2.0, 5.0]


def test_files_say_nothing_but_voxels(tmp_path: Path) -> None:
    image, truth, prediction = maps()
    part = part_of(image, truth, prediction, [7, 300], (5.0, 2.0, 1.0), "LPS")
    assert part is not None
    save_part(tmp_path / "a.npz", part)
    again = load_part(tmp_path / "a.npz")
    assert all(np.array_equal(value, getattr(again, name)) for name, value in vars(part).items())
    write_part(tmp_path / "case", again)
    for name in volumes.PARTS:
        content = (tmp_path / "case" / f"{name}.nii.gz").read_bytes()
        assert content[3:8] == bytes(5)  # neither a name nor a time
        read = nib.Nifti1Image.from_bytes(gzip.decompress(content))
        assert np.array_equal(np.asarray(read.dataobj).transpose(2, 1, 0), getattr(part, name))
        for key in ("descrip", "aux_file", "intent_name", "db_name"):
            assert not bytes(read.header[key]).strip(b"\0")
        assert not read.header.extensions
    assert nifti_bytes(part.truth, part.affine) == nifti_bytes(part.truth, part.affine)
