from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsam_tune.cases.audit import check_place
from medsam_tune.cases.blocks import in_blocks, side_from
from medsam_tune.cases.datalist import Case, Datalist, leaks_of, read_datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.cases.splits import split_cases
from medsam_tune.errors import DataError
from tests import geo
from tests.images import image_folder

geopandas = pytest.importorskip("geopandas", reason="the extra geo is not installed")


def scene(folder: Path, size: tuple[int, int] = (96, 48)) -> Datalist:
    bands, ids = geo.bands_and_ids(3, size)
    geo.write(folder / "images/a.tif", bands)
    geo.write(folder / "masks/a.tif", ids[None])
    return find_cases(folder)


@pytest.mark.parametrize("side", ["12m", "24px", "24 px"])
def test_a_large_scene_is_cut_into_blocks(tmp_path, side):
    data = in_blocks(scene(tmp_path / "d"), side_from(side))
    assert [case.id for case in data.training][:5] == [
        *("a_r00_c00", "a_r00_c01", "a_r00_c02", "a_r00_c03", "a_r01_c00")
    ]
    covered = np.zeros((48, 96), int)
    for case in data.training:
        x0, y0, x1, y1 = case.region
        covered[y0:y1, x0:x1] += 1
        assert case.patient == case.id
    assert (covered == 1).all()
    image, label = load_case(data.training[5], data.labels_in_files)
    bands, ids = geo.bands_and_ids(3, (96, 48))
    np.testing.assert_array_equal(image[..., 0].numpy(), bands[:, 24:, 24:48].transpose(0, 2, 1))
    np.testing.assert_array_equal(label[0, ..., 0].numpy(), ids[24:, 24:48].T)


def test_blocks_are_split_and_read_again(tmp_path):
    data = split_cases(in_blocks(scene(tmp_path / "d"), side_from("24px")), (0.5, 0.25, 0.25))
    assert [len(data.training), len(data.validation), len(data.test)] == [4, 2, 2]
    write_datalist(data, tmp_path / "d.json")
    assert read_datalist(tmp_path / "d.json") == data


def test_blocks_of_one_scene_are_no_copies(tmp_path):
    data = split_cases(in_blocks(scene(tmp_path / "d"), side_from("24px")), (0.5, 0.25, 0.25))
    write_datalist(data, tmp_path / "d.json")
    report = check_place(tmp_path / "d.json", progress=False)
    assert not report.twice
    assert not report.leaks
    assert len(report.findings) == 8


def test_chips_are_grouped_by_where_they_lie(tmp_path):
    bands, ids = geo.bands_and_ids(0, (32, 32))
    for k in range(4):
        for row in range(2):
            where = geo.transform(0.5, (733600 + 16 * k, 3725120 - 16 * row))
            geo.write(tmp_path / "d/images" / f"c{k}{row}.tif", bands, where=where)
            geo.write(tmp_path / "d/masks" / f"c{k}{row}.tif", ids[None], where=where)
    data = in_blocks(find_cases(tmp_path / "d"), side_from("32m"))
    groups: dict[str, set[str]] = {}
    for case in data.training:
        groups.setdefault(case.patient, set()).add(case.id)
    assert sorted(map(sorted, groups.values())) == [
        ["c00", "c01", "c10", "c11"],
        ["c20", "c21", "c30", "c31"],
    ]
    assert all(case.region is None for case in data.training)


def test_overlapping_chips_of_two_blocks_are_said(tmp_path):
    bands, ids = geo.bands_and_ids(0, (32, 32))
    for k in range(2):
        where = geo.transform(0.5, (733600 + 12 * k + 8, 3725100))
        geo.write(tmp_path / "d/images" / f"c{k}.tif", bands, where=where)
        geo.write(tmp_path / "d/masks" / f"c{k}.tif", ids[None], where=where)
    data = find_cases(tmp_path / "d")
    with pytest.warns(UserWarning, match="c0 and c1 overlap and lie in different blocks, so that"):
        in_blocks(data, side_from("20m"))


def test_regions_that_overlap_in_two_subsets_leak(tmp_path):
    data = scene(tmp_path / "d")
    parts = [
        Case(data.training[0].image, None, name, name=name, region=region)
        for name, region in {"p": (0, 0, 20, 20), "q": (19, 0, 40, 20), "r": (40, 0, 60, 9)}.items()
    ]
    leaking = Datalist("d", "RGB", {1: "a"}, (parts[0],), (parts[1],), (parts[2],))
    assert leaks_of(leaking) == ["p in training and q in validation overlap"]


@pytest.mark.parametrize("text", ["120", "m", "0m", "-3m", "1e3m", "120 km"])
def test_a_side_has_a_unit(text):
    with pytest.raises(
        ValueError, match=r"--blocks is '.*'; expected the side of a block in metre"
    ):
        side_from(text)


def test_what_is_refused(tmp_path):
    images = find_cases(image_folder(tmp_path / "i", groups=1))
    with pytest.raises(
        DataError, match=r"case tile_0-part_0: the size of a pixel is unknown .*512p"
    ):
        in_blocks(images, side_from("12m"))
    with pytest.raises(DataError, match=r"is smaller than a block, and has no place on the ground"):
        in_blocks(images, side_from("100px"))
    assert len(in_blocks(images, side_from("24px")).training) == 4
    data = scene(tmp_path / "d")
    far = geo.outlines(geo.bands_and_ids(3)[1], geo.transform(0.5, (0, 0)))
    frame = geopandas.GeoDataFrame(geometry=[one for one, _ in far], crs=geo.UTM)
    frame.to_file(tmp_path / "far.gpkg")
    outside = replace(data, training=(replace(data.training[0], label=tmp_path / "far.gpkg"),))
    with pytest.raises(DataError, match=r"far\.gpkg: all 3 polygons, such as feature 0, lie outsi"):
        in_blocks(outside, side_from("24px"))
    geo.write(tmp_path / "d/masks/a.tif", geo.bands_and_ids(3)[1][None])
    with pytest.raises(DataError, match=r"case a: the mask has 64 x 48 pixels, the image 96 x 48"):
        in_blocks(data, side_from("24px"))


def test_white_masks_of_images_with_pixels_without_data(tmp_path):
    """White is the label, and the id of pixels without data another."""
    bands, ids = geo.bands_and_ids(3)
    bands[:, :, :5], ids[:, :5] = 0, 0
    geo.write(tmp_path / "images/a.tif", bands, nodata=0)
    geo.write(tmp_path / "masks/a.tif", 255 * ids[None])
    data = find_cases(tmp_path)
    assert (data.labels, data.ignore) == ({1: "label 1"}, 254)
    _, label = load_case(data.training[0], data.labels_in_files)
    np.testing.assert_array_equal(label[0, 5:, :, 0].T == 1, ids[:, 5:])
    assert (label[0, :5] == 254).all()
    assert (label[0, 5:] != 254).all()
