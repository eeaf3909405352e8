"""Made-up aerial images: outlines, classes and files."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.synthetic.aerial import make_aerial, write_aerials, write_satellite


@pytest.fixture(scope="module")
def scene():
    return make_aerial(np.random.default_rng(3), (192, 256), crops=True)


def test_outlines_are_the_label(scene):
    assert (scene.image.shape, scene.label.shape) == ((4, 192, 256), (192, 256))
    assert set(np.unique(scene.label)) == {0, 1, 2, 3}
    assert scene.outlines.keys() == {1, 2, 3}
    buildings, count = ndimage.label(scene.label == 1)
    middles = [outline.mean(0) for outline in scene.outlines[1]]
    assert count == len(middles) > 2
    for outline in scene.outlines[1]:
        inside = outline[:, 0].min() > 0 and outline[:, 0].max() < 256
        if inside and outline[:, 1].min() > 0 and outline[:, 1].max() < 192:
            x, y = outline.T
            area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
            at = outline[:3].mean(0).astype(int)[::-1]  # inside of rectangles and of L
            assert (buildings == buildings[tuple(at)]).sum() == pytest.approx(area, rel=0.05)


def test_crops_are_seen_in_infrared_alone():
    crop, soil = [], []
    for seed in range(4):
        made = make_aerial(np.random.default_rng(seed), crops=True)
        field = ndimage.binary_erosion(made.label == 3, iterations=3)
        around = ndimage.binary_dilation(made.label == 3, iterations=9) & (made.label == 0)
        around &= ~ndimage.binary_dilation(made.label > 0, iterations=3)
        crop.append(np.median(made.image[:, field], axis=1))
        soil.append(np.median(made.image[:, around], axis=1))
    red, green, blue, infrared = np.mean(crop, 0) - np.mean(soil, 0)
    assert max(map(abs, (red, green, blue))) < 12
    assert infrared > 50


def test_files_are_a_data_set_of_scenes(tmp_path):
    folder = write_aerials(tmp_path / "a", scenes=2, parts=2, size=(64, 96))
    found = find_cases(folder)
    assert (found.labels, found.modality) == ({1: "building", 2: "road"}, "RGB")
    assert [case.patient for case in found.training] == ["scene_00"] * 2 + ["scene_01"] * 2
    image, label = load_case(found.training[0], found.labels)
    assert (image.shape, label.shape) == ((3, 96, 64, 1), (1, 96, 64, 1))
    again = write_aerials(tmp_path / "b", scenes=2, parts=2, size=(64, 96))
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*.*"))]
    assert len(names) == 9
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert len({(folder / name).read_bytes() for name in names if "images" in name.parts}) == 4


@pytest.mark.parametrize("ending", [".geojson", ".gpkg"])
def test_scenes_with_a_place_and_their_polygons(tmp_path, ending):
    pytest.importorskip("geopandas", reason="the extra geo is not installed")
    folder = write_satellite(tmp_path / "a", scenes=2, seed=3, size=(160, 200), ending=ending)
    found = find_cases(folder)
    assert (found.labels, found.modality) == ({1: "building", 2: "road"}, "RGB")
    for scene, case in enumerate(found.training):
        image, label = load_case(case, found.labels)
        assert (image.shape, label.shape) == ((4, 200, 160, 1), (2, 200, 160, 1))
        assert (image.meta["stored"], float(image.pixdim[0])) == ("uint16", 300.0)
        assert 255 < image.max() <= 2040
        drawn = make_aerial(np.random.default_rng([3, scene]), (160, 200)).label
        ids = label[0, ..., 0].numpy().T
        assert np.mean(ids == drawn) > 0.999  # by rasterio, and by outlines in pixels
        count = ndimage.label(drawn == 1)[1]
        assert len(np.unique(label[1][label[0] == 1])) == count > 1
    if ending == ".geojson":
        again = write_satellite(tmp_path / "b", scenes=2, seed=3, size=(160, 200))
        names = [path.relative_to(folder) for path in folder.rglob("*.*")]
        assert len(names) == 5
        assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)
