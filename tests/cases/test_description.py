from __future__ import annotations

from pathlib import Path

import pytest

from medsam_tune.cases.description import (
    MODALITIES,
    Labels,
    known_modality,
    labels_said,
    labels_typed,
    of_dicom,
)
from medsam_tune.errors import DataError
from medsam_tune.formats.volume import HIGHEST_ID
from medsam_tune.slices.intensity import USUAL

SOURCE = Path("dataset.json")


def test_each_modality_has_its_usual_rule() -> None:
    assert tuple(USUAL) == MODALITIES


@pytest.mark.parametrize(
    ("said", "modality"),
    [
        ({"0": "CT"}, "CT"),
        ("CT", "CT"),
        (["CT"], "CT"),
        ({"0": "contrast-enhanced CT"}, "CT"),
        ({"0": "MRI"}, "MR"),
        ({"0": "T2", "1": "ADC"}, "MR"),  # the Decathlon's prostate
        ({"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, "MR"),
        ({"0": "LGE MRI"}, "MR"),
        ({"0": "X-ray"}, "XR"),
        ({"0": "ultrasound"}, "US"),
    ],
)
def test_modalities_that_are_certain(said: object, modality: str) -> None:
    assert known_modality(None, {"modality": said}, SOURCE) == modality
    assert known_modality(None, {"channel_names": said}, SOURCE) == modality


@pytest.mark.parametrize(
    "said",
    [
        {"0": "noNorm"},
        {"0": "zscore"},
        {"0": "PET"},
        {"0": "CT", "1": "PET"},
        {"0": "CT", "1": "MR"},
        {"0": "CT/MR"},
        {"0": "ACTH"},
        {"0": 5},
        {},
        5,
    ],
)
def test_modalities_that_are_asked_for(said: object) -> None:
    with pytest.raises(DataError, match=r"one of CT, MR, XR, US|which of CT, MR, XR, US"):
        known_modality(None, {"modality": said}, SOURCE)
    assert known_modality("MR", {"modality": said}, SOURCE) == "MR"


def test_the_way_out_fits_the_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Say it: e\.g\. --modality CT\.$"):
        known_modality(None, {}, tmp_path)
    with pytest.raises(DataError, match=r'Say it: e\.g\. "modality": "CT" in this file\.$'):
        known_modality(None, {}, SOURCE)


def test_dicoms_modality() -> None:
    assert [of_dicom(kind) for kind in ("CT", "MR", "DX", "CR", "MG", "US", "PT", "")] == [
        *("CT", "MR", "XR", "XR", "XR", "US"),
        *(None, None),
    ]


def test_labels_in_both_directions() -> None:
    expected = Labels({1: "liver", 2: "spleen"})
    assert labels_said({"labels": {"2": "spleen", "1": "liver"}}, SOURCE) == expected
    assert labels_said({"labels": {"background": 0, "spleen": 2, "liver": 1}}, SOURCE) == expected
    assert labels_said({}, SOURCE) == Labels()


@pytest.mark.parametrize(
    "content",
    [
        {"labels": {"liver": 1, "ignore": 9}},
        {"labels": {"1": "liver", "9": "ignore"}},
        {"labels": {"1": "liver"}, "ignore": 9},
        {"labels": {"1": "liver", "9": "ignore"}, "ignore": 9},
    ],
)
def test_ignore_is_no_label(content: dict[str, object]) -> None:
    labels = labels_said(content, SOURCE)
    assert labels == Labels({1: "liver"}, 9)
    assert labels.in_files == {1: "liver", 9: "ignore"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": {"1": ["a"]}}, r"label '1' is a region of the ids \['a'\]"),
        ({"labels": {"a": 1.0}}, r"label 'a': 1\.0 is not an id and a name"),
        ({"labels": {"a": None}}, r"label 'a': None is not an id and a name"),
        ({"labels": {"a": -1}}, r"label 'a': -1 is not an id and a name"),
        ({"labels": {"٣": "a"}}, ".*is not an id and a name"),  # Arabic digits
        ({"labels": {"1": " "}}, "label 1 has an empty name"),
        ({"labels": {"1": "a", "01": "b"}}, "label 1 has the names 'a' and 'b'"),
        ({"labels": {"a": HIGHEST_ID + 1}}, rf"label 'a' has the id {HIGHEST_ID + 1}; expec"),
        ({"labels": {"1": "a"}, "ignore": 1}, "label 1 has the names 'a' and 'ignore'"),
        ({"labels": {"1": "a", "2": "ignore"}, "ignore": 3}, "labels 2 and 3 are both named 'ign"),
        ({"labels": {"1": "a"}, "ignore": True}, "ignore is True; expected the id"),
        ({"labels": {"1": "a"}, "ignore": "2"}, "ignore is '2'; expected the id"),
        ({"labels": {"1": "a"}, "ignore": 0}, "ignore is 0; expected the id"),
    ],
)
def test_labels_that_are_none(content: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f"^dataset.json: {message}"):
        labels_said(content, SOURCE)


def test_a_label_that_is_the_background_is_said() -> None:
    with pytest.warns(UserWarning, match="label 0 is named 'liver'; 0 is the background"):
        assert labels_said({"labels": {"liver": 0, "spleen": 1}}, SOURCE).names == {1: "spleen"}


def test_typed_labels() -> None:
    assert labels_typed("2=spleen, 1=left kidney") == Labels({1: "left kidney", 2: "spleen"})
    assert labels_typed("1=liver,3=ignore") == Labels({1: "liver"}, 3)
    assert labels_typed("3=kidney,2=kidney,5=liver") == Labels(
        {3: "kidney", 5: "liver"}, united={2: 3}
    )
    for text, message in (
        ("liver=1", "'liver=1' is not an id and a name"),
        ("1", "'1' is not an id and a name"),
        ("1=liver,", "'' is not an id and a name"),
        ("1=a,1=b", "--labels: label 1 has the names 'a' and 'b'"),
        ("0=background", "names none but the background"),
    ):
        with pytest.raises(DataError, match=message):
            labels_typed(text)
