"""Class maps of masks."""

from __future__ import annotations

import json

import pytest

from medsam_tune.cases.classes import Coding, coding_said, read_classes
from medsam_tune.errors import DataError

ROAD = {"id": 1, "name": "road", "color": "#6ec1e4"}


def write(folder, *classes, **more):
    path = folder / "classes.json"
    path.write_text(json.dumps({"classes": [*classes], **more}))
    return path


def test_ids_names_and_colours(tmp_path):
    found = read_classes(write(tmp_path, ROAD, {"id": 7, "name": "house", "colour": [1, 2, 255]}))
    assert found.labels.names == {1: "road", 7: "house"}
    assert found.labels.ignore is None
    assert found.coding == Coding({"#6EC1E4": 1, "#0102FF": 7})
    assert found.content() == {"labels": {"1": "road", "7": "house"}}


def test_supervisely(tmp_path):
    """Numbered in its order; what nobody annotated is background unless the map says ignore."""
    classes = [
        {"title": "Unlabeled", "shape": "polygon", "color": "#9B9B9B", "geometry_config": {}},
        {"title": "Water", "shape": "polygon", "color": "#50E3C2", "geometry_config": {}},
        {"title": "Road", "shape": "polygon", "color": "#DE597F", "geometry_config": {}},
    ]
    found = read_classes(write(tmp_path, *classes, tags=[]))
    assert found.labels.names == {1: "Water", 2: "Road"}
    assert found.coding.colours == {"#9B9B9B": 0, "#50E3C2": 1, "#DE597F": 2}
    classes[0]["ignore"] = True
    found = read_classes(write(tmp_path, *classes, tags=[]))
    assert (found.labels.names, found.labels.ignore) == ({1: "Water", 2: "Road"}, 3)
    assert found.coding.colours["#9B9B9B"] == 3


def test_all_ignored_classes_are_one(tmp_path):
    cloud = {"id": 9, "name": "cloud", "color": "#fff", "ignore": True}
    ignore = {"name": "Ignore", "color": "#000"}
    found = read_classes(write(tmp_path, ROAD, cloud, ignore))
    assert (found.labels.names, found.labels.ignore) == ({1: "road"}, 9)
    assert found.coding.colours == {"#6EC1E4": 1, "#FFFFFF": 9, "#000000": 9}


@pytest.mark.parametrize(
    ("classes", "more", "text"),
    [
        ([], {}, r"classes is \[\]; expected a list such as"),
        ([3], {}, "class 0 is 3; expected an object with a name"),
        ([{"id": 1}], {}, "class 0: name is None; expected text, such as road"),
        ([{"name": "a", "id": "1"}], {}, "class 0: id is '1'; expected a whole number"),
        ([{"name": "a", "ignore": 1}], {}, "class 0: ignore is 1; expected true or false"),
        ([{"name": "a", "color": "red"}], {}, "class 0: color is 'red'; expected \"#6EC1E4\""),
        ([{"name": "a", "color": [1, 2, 256]}], {}, r"class 0: color is \[1, 2, 256\]; expected"),
        (
            [ROAD, {"name": "b", "color": [110, 193, 228]}],
            {},
            "several classes have the colour #6EC1E4; expected",
        ),
        ([ROAD, {"name": "road"}], {}, "labels 1 and 2 are both named 'road'"),
        ([ROAD, {"name": "b", "id": 1}], {}, "label 1 has the names 'road' and 'b'"),
        ([ROAD, {"name": "b"}], {"instances": True}, "instances of 2 classes; expected one class"),
        ([ROAD], {"instances": 1}, "instances is 1; expected true or false"),
    ],
)
def test_what_is_no_class_map(tmp_path, classes, more, text):
    with pytest.raises(DataError, match=rf"classes\.json: {text}"):
        read_classes(write(tmp_path, *classes, **more))


def test_a_datalist_keeps_the_coding(tmp_path):
    for coding in (Coding(), Coding({"#6EC1E4": 1, "#000000": 0}), Coding({}, instances=True)):
        assert coding_said(coding.describe(), {1: "road"}, tmp_path) == coding
    for said, text in (
        ({"colours": {"#6EC1E4": 2}}, "colour '#6EC1E4' is of 2; expected the id of a label"),
        ({"colours": {"x": 1}}, "colours: color is 'x'"),
        ({"colours": [1]}, r"colours is \[1\], instances False; expected"),
        ({"instances": "yes"}, r"colours is \{\}, instances 'yes'; expected"),
    ):
        with pytest.raises(DataError, match=text):
            coding_said(said, {1: "road"}, tmp_path)
