"""Codes of labels: each right, found by name, or given by a table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from pydicom.sr._concepts_dict import concepts

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom import codes
from medsam_tune.formats.dicom.codes import Code, Structure, structures


def snomed() -> dict[str, set[str]]:
    """Code -> its meanings, as pydicom has them from the standard."""
    found: dict[str, set[str]] = {}
    for entries in concepts["SCT"].values():
        for value, (meaning, _) in entries.items():
            found.setdefault(value, set()).add(meaning)
    return found


def rows() -> list[dict[str, str]]:
    with Path(codes.__file__).with_suffix(".csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def one(name: str) -> Structure:
    return structures({3: name})[0]


def test_every_code_of_the_package_is_in_the_standard() -> None:
    known = snomed()
    said = [codes.ANATOMICAL_STRUCTURE, codes.TISSUE, *codes.SIDES.values()]
    for row in rows():
        for column in ("category", "type", "region"):
            if row[column]:
                said.append(Code(*row[column].split("^")))
    for code in said:
        assert code.scheme == "SCT"
        meanings = {text.removesuffix(" (qualifier value)") for text in known[code.value]}
        assert code.meaning in meanings, code


def test_each_name_is_there_once() -> None:
    names = [codes._words(row["label"]) for row in rows()]
    assert len(names) == len(set(names)) > 350


@pytest.mark.parametrize("name", ["left kidney", "kidney_left", "Kidney Left", "KIDNEY-left"])
def test_a_side_in_the_name(name: str) -> None:
    found = one(name)
    assert found.name == name
    assert (found.type, found.side) == (Code("SCT", "64033007", "Kidney"), codes.SIDES["left"])


@pytest.mark.parametrize(
    ("name", "meaning", "side"),
    [
        ("liver", "Liver", None),
        ("heart_atrium_left", "Left atrium", None),  # the type says the side
        ("lung_middle_lobe_right", "Middle lobe of right lung", None),
        ("lung_upper_lobe_right", "Upper lobe of lung", "right"),
        ("vertebrae_T11", "T11 vertebra", None),
        ("rib_right_7", "Rib", "right"),
        ("iliac_vena_left", "Iliac vein", "left"),
        ("adrenal_gland_left", "Adrenal gland", "left"),
    ],
)
def test_names_of_totalsegmentator(name: str, meaning: str, side: str | None) -> None:
    found = one(name)
    assert found.type.meaning == meaning
    assert found.side == (codes.SIDES[side] if side else None)


def test_lesions_are_in_their_organ() -> None:
    found = one("liver_tumor")
    assert found.category.meaning == "Morphologically Abnormal Structure"
    assert (found.type.meaning, found.region) == ("Neoplasm", Code("SCT", "10200004", "Liver"))
    assert one("kidney_cyst_left").side == codes.SIDES["left"]


@pytest.mark.parametrize("name", ["organ 17", "left", "left right kidney", "", "_", "liver 2"])
def test_an_unknown_name_is_a_tissue(name: str, recwarn: pytest.WarningsRecorder) -> None:
    found = one(name)
    assert (found.category, found.type) == (codes.ANATOMICAL_STRUCTURE, codes.TISSUE)
    assert found.side is found.region is None
    assert found.name
    assert not recwarn


def test_colours_tell_labels_apart() -> None:
    labels = {1: "kidney_left", 2: "kidney_right", 3: "organ 1", 4: "organ 2", 5: "liver"}
    colours = [one.colour for one in structures(labels)]
    assert len(set(colours)) == len(labels)
    assert colours[4] == (0xDD, 0x82, 0x65)


def table(folder: Path, text: str) -> Path:
    path = folder / "codes.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_a_table_goes_before_what_is_known(tmp_path: Path) -> None:
    text = (
        "label, name,type,category,laterality,colour,region\n"
        '2,"Lesion, old",SCT^52988006^Lesion,SCT^49755003^Morphologically Abnormal Structure,,'
        "#010203,SCT^39607008^Lung\n\n"
        "LIVER,,,,,#FF0000,\n"
        "kidney_left,,99X^42^Our kidney,,,,\n"
    )
    labels = {1: "liver", 2: "spot", 7: "kidney_left", 9: "spleen"}
    liver, spot, kidney, spleen = structures(labels, table(tmp_path, text))
    assert (liver.colour, liver.type.meaning) == ((255, 0, 0), "Liver")
    assert (spot.name, spot.type.value, spot.colour) == ("Lesion, old", "52988006", (1, 2, 3))
    assert (spot.region, spot.side) == (Code("SCT", "39607008", "Lung"), None)
    assert (kidney.type, kidney.side) == (Code("99X", "42", "Our kidney"), None)
    assert spleen == structures(labels)[3]
    sided = structures({1: "organ"}, table(tmp_path, "label,laterality\n1,Both\n"))
    assert sided[0].side == codes.SIDES["both"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"codes\.csv: its columns are none; expected label, and any of name, category, type"),
        ("label,kind\n", r"its columns are label, kind; expected label, and any of"),
        ("name\nliver\n", r"its columns are name; expected label"),
        ("label,name,name\n", r"each once\. Correct the first line\.$"),
        (
            "label\nheart\n",
            r"line 2: no label is 'heart'; expected an id or a name of: 1 \(liver\)",
        ),
        ("label\n1\nliver\n", r"line 3: label 1 is there already; expected one line for each"),
        (
            "label,type\n1,Liver\n",
            r"line 2: type is 'Liver'; expected scheme\^code\^meaning, such as",
        ),
        ("label,category\n1,A^B\n", r"category is 'A\^B'; expected"),
        ("label,region\n1,A^B^\n", r"region is 'A\^B\^'; expected"),
        (f"label,type\n1,SCT^{'1' * 17}^x\n", r"type is 'SCT\^1{17}\^x'"),
        (
            "label,laterality\n1,up\n",
            r"laterality is 'up'; expected left, right, both, or nothing\.$",
        ),
        ("label,colour\n1,red\n", r"colour is 'red'; expected such as #dd8265\.$"),
        ("label,name\n1,a,b\n", r"line 2: has more cells than the first line; put a text with com"),
        ('label,name\n1,"a\n', r"is not CSV in UTF-8 \("),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        structures({1: "liver"}, table(tmp_path, text))


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read \(No such file or directory\)"):
        structures({1: "liver"}, tmp_path / "gone.csv")
    (tmp_path / "x.csv").write_bytes(b"label\n\xff\n")
    with pytest.raises(DataError, match=r"x\.csv: is not CSV in UTF-8 \("):
        structures({1: "liver"}, tmp_path / "x.csv")
