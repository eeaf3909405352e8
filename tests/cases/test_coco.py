"""Data sets in COCO's JSON: where the images lie, and what the labels are."""

from __future__ import annotations

import pytest

from medsam_tune.cases.audit import check_place
from medsam_tune.cases.datalist import read_datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.formats import coco
from tests.coco_files import HEIGHT, WIDTH, annotation, photo, write
from tests.conftest import REAL_DATA


def image(name, number=7):
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}


@pytest.mark.parametrize(
    ("file", "picture", "name"),
    [
        ("samples.json", "a.png", "a.png"),
        ("samples.json", "images/a.png", "a.png"),
        ("train/_annotations.coco.json", "train/a.png", "a.png"),
        ("annotations/instances_val2017.json", "val2017/a.png", "a.png"),
        ("annotations/instances.json", "images/a.png", "a.png"),
        ("annotations/instances.json", "doc/a.png", "doc/a.png"),
    ],
)
def test_layouts(tmp_path, file, picture, name):
    path = write(tmp_path / file, annotation(), images=[image(name)])
    photo(tmp_path / picture)
    place = path.parent.parent if path.parent.name == "annotations" else path.parent
    for given in (path, place):
        (case,) = find_cases(given).training
        assert (case.image, case.label) == (tmp_path / picture, path)
        assert check_place(given, progress=False).outcome == 0


def test_what_a_datalist_says(tmp_path):
    images = [image("doc1/a.png"), image("doc2/a.png", 8)]
    path = write(
        tmp_path / "c.json", annotation(), annotation(2, 4, image_id=8, iscrowd=1), images=images
    )
    photo(tmp_path / "doc1/a.png")
    photo(tmp_path / "doc2/a.png", seed=1)
    found = find_cases(path)
    assert (found.modality, found.labels, found.ignore) == ("RGB", {1: "text", 4: "table"}, 5)
    assert [case.patient for case in found.training] == ["doc1", "doc2"]
    assert len({case.id for case in found.training}) == 2
    assert not any(case.guessed for case in found.training)
    write_datalist(found, tmp_path / "datalist.json")
    assert read_datalist(tmp_path / "datalist.json") == found


def test_unused_categories_are_no_labels_and_zero_is_moved(tmp_path):
    photo(tmp_path / "a.png")
    named = [{"id": n, "name": name} for n, name in enumerate(("all", "text", "rest"))]
    path = write(tmp_path / "c.json", annotation(), categories=named)
    assert find_cases(path).labels == {1: "text"}
    write(path, annotation(), annotation(2, 0), categories=named)
    assert find_cases(path).labels == {1: "all", 2: "text"}


@pytest.mark.parametrize(
    ("annotations", "images", "message"),
    [
        ([annotation()], [image("b.png")], r"1 of 2 files are missing: .*b\.png"),
        ([], [image("a.png")], "no annotation in it"),
    ],
)
def test_what_is_refused(tmp_path, annotations, images, message):
    photo(tmp_path / "a.png")
    with pytest.raises(DataError, match=message):
        find_cases(write(tmp_path / "c.json", *annotations, images=images))


def test_several_files_and_other_json_are_refused(tmp_path):
    photo(tmp_path / "a.png")
    first = write(tmp_path / "c.json", annotation())
    write(tmp_path / "annotations" / "d.json", annotation())
    with pytest.raises(DataError, match=r"holds several COCO files: .*c\.json, .*d\.json"):
        find_cases(tmp_path)
    write_datalist(find_cases(first), tmp_path / "datalist.json")
    with pytest.raises(DataError, match=r"datalist\.json: is no COCO file"):
        find_cases(tmp_path / "datalist.json")


@pytest.mark.real_data
def test_publaynet() -> None:
    folder = REAL_DATA / "publaynet"
    if not folder.is_dir():
        pytest.skip("document pages are not here: publaynet beside the repository")
    found = find_cases(folder)
    assert dict(found.labels) == {1: "text", 2: "title", 3: "list", 4: "table", 5: "figure"}
    _, label = load_case(found.training[0], found.labels_in_files)
    assert label is not None
    picture = coco.read(found.training[0].label).picture_of(found.training[0].image)
    assert len(label[1].unique()) - 1 == len(picture.objects)
