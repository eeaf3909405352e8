"""What a JSON file, or a user, says of a data set: its modality, and what its labels mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from medsam_tune.cases.checks import DICOM_KINDS
from medsam_tune.errors import DataError, listed, warn
from medsam_tune.formats.volume import HIGHEST_ID, Region

MODALITIES = ("CT", "MR", "XR", "US", "RGB")
"""Known modalities: XR are radiographs in any depth, US ultrasound in 8 bits, RGB 2-D images in
colours or grey: aerial, documents, microscopy, photographs."""

IGNORE = "ignore"
"""Name of nnU-Net's label for voxels that nobody annotated; no organ."""

_WORDS = {
    "CT": r"ct|cta|ce-?ct|computed tomography",
    "MR": r"mri?|mra|t1|t1-?(w|c|ce|gd|n)|t2|t2-?(w|f|star)|t2\*|flair|adc|dwi|swi|dce(-?mri?)?|"
    r"magnetic resonance",
    "XR": r"xr|x-?rays?|dx|cr|radiographs?",
    "US": r"us|ultrasound",
    "RGB": r"rgb|r|g|b|red|green|blue|colou?rs?|aerial|satellite|photos?|photographs?",
}
"""Modality -> words in dataset.json that are certain to mean it, in any case."""


@dataclass(frozen=True)
class Labels:
    """What the values of a data set's labels mean.

    Attributes:
        names: label id -> name, by ascending id, without the background 0.
        ignore: id of voxels that nobody annotated; None if there is none.
        united: further value of a label -> its id.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    ignore: int | None = None
    united: Mapping[int, int] = field(default_factory=dict)

    @property
    def in_files(self) -> dict[int, str]:
        """Id -> name of every value that a label may hold besides 0."""
        return {**self.names, **({} if self.ignore is None else {self.ignore: IGNORE})}


def known_modality(given: str | None, content: Mapping[str, Any], source: Path) -> str:
    """The modality that is given, or that a JSON file's content speaks of.

    Args:
        given: name that a user gave; None for what the content says.
        content: content of a JSON file, of which `modality` or `channel_names` is looked at.
        source: that file, for messages.

    Raises:
        DataError: none, several, or none of `MODALITIES`.
    """
    known = ", ".join(MODALITIES)
    if given is not None:
        if given not in MODALITIES:
            raise DataError(f"modality is {given!r}; expected one of {known}.")
        return given
    said = content.get("modality", content.get("channel_names", {}))
    if isinstance(said, dict):
        said = list(said.values())
    texts = [said] if isinstance(said, str) else said
    texts = [text for text in texts if isinstance(text, str)] if isinstance(texts, list) else []
    meant = {_meant(text) for text in texts}
    if len(meant) == 1 and (modality := meant.pop()) is not None:
        return modality
    found = f"{listed(texts)!r} is not plainly one of" if texts else "nothing says which of"
    way = "e.g. --modality CT" if source.is_dir() else 'e.g. "modality": "CT" in this file'
    raise DataError(f"{source}: {found} {known}. Say it: {way}.")


def of_dicom(modality: str) -> str | None:
    """The one of `MODALITIES` that DICOM's Modality means; None if it means another."""
    return next((one for one, kinds in DICOM_KINDS.items() if modality in kinds), None)


def _meant(text: str) -> str | None:
    """The modality that words speak of; None for no modality, and for several."""
    found = {
        modality
        for modality, words in _WORDS.items()
        if re.search(rf"(?<![a-z0-9])({words})(?![a-z0-9])", text.lower().replace("_", " "))
    }
    return found.pop() if len(found) == 1 else None


def labels_said(content: Mapping[str, Any], source: Path) -> Labels:
    """Label ids and names in either direction: {"1": "spleen"}, or nnU-Net's {"spleen": 1}.

    A label that is named "ignore", or whose id is `content`'s own "ignore", is no organ.

    Args:
        content: content of a JSON file, of which `labels` and `ignore` are looked at.
        source: that file, for messages.

    Raises:
        DataError: ids or names that are none, a region of several ids, an id or a name twice.
    """
    said = content.get("labels", {})
    if not isinstance(said, dict):
        raise DataError(f'{source}: labels is not an object; expected e.g. {{"1": "spleen"}}.')
    ids = [_id_and_name(key, value, source) for key, value in said.items()]
    ignore = content.get(IGNORE)
    if ignore is not None:
        if type(ignore) is not int or not 0 < ignore <= HIGHEST_ID:
            raise DataError(
                f"{source}: ignore is {shown(ignore)}; expected the id, from 1 to {HIGHEST_ID}, of "
                "the voxels that nobody annotated."
            )
        ids.append((ignore, IGNORE))
    return labels_from(ids, source)


def tolerance_said(
    content: Mapping[str, Any], labels: Mapping[int, str], source: Path
) -> float | dict[str, float] | None:
    """Tolerance of the surface Dice: one number for all labels, or by their names.

    Args:
        content: content of a JSON file, of which `tolerance` is looked at; None if it says none.
        labels: label id -> name.
        source: that file, for messages.

    Raises:
        DataError: neither, a negative number, or a name that no label has.
    """
    said = content.get("tolerance")
    named = said if isinstance(said, dict) else {"": 0.0 if said is None else said}
    for name, value in named.items():
        if type(value) not in (int, float) or not 0 <= value < float("inf"):
            raise DataError(
                f"{source}: tolerance is {shown(said)}; expected millimetres, 0 or more, for all "
                'labels, or for some: {"spleen": 3}.'
            )
        if name and name not in labels.values():
            raise DataError(
                f"{source}: tolerance names {shown(name)}; expected one of the labels: "
                f"{listed(labels.values())}."
            )
    return said


def region_said(said: Any, where: str) -> Region | None:
    """Part of an image that a case is: None, or x0, y0, x1, y1.

    Raises:
        DataError: anything else; `where` names the entry.
    """
    if said is None:
        return None
    if isinstance(said, list) and len(said) == 4 and all(type(n) is int for n in said):
        x0, y0, x1, y1 = said
        if 0 <= x0 < x1 and 0 <= y0 < y1:
            return x0, y0, x1, y1
    raise DataError(
        f"{where}: region is {shown(said)}; expected x0, y0, x1, y1 in pixels of the image, upper "
        "bounds exclusive."
    )


def columns_said(entry: Mapping[str, Any]) -> dict[str, str]:
    """What the entry of a case says besides its files, such as {"site": "A"}: text and numbers."""
    return {
        key: str(value)
        for key, value in entry.items()
        if key not in _ENTRY and isinstance(value, (str, int, float)) and str(value).strip()
    }


_ENTRY = {"image", "label", "patient", "series", "name", "region"}


def labels_typed(text: str) -> Labels:
    """Labels from a command line, such as "1=liver,2=spleen", or "2=kidney,3=kidney" for one label.

    Raises:
        DataError: not of this form, an id of two names, or no label.
    """
    ids: list[tuple[int, str]] = []
    first: dict[str, int] = {}
    united: dict[int, int] = {}
    for part in text.split(","):
        key, equals, name = part.partition("=")
        if not equals or not re.fullmatch(r"\d{1,10}", key.strip(), re.ASCII) or not name.strip():
            raise DataError(
                f"--labels {text}: {part!r} is not an id and a name; expected e.g. "
                "--labels 1=liver,2=spleen."
            )
        number = first.setdefault(name.strip(), int(key))
        if number not in (0, int(key)):
            united[int(key)] = number
        else:
            ids.append((int(key), name.strip()))
    labels = replace(labels_from(ids, "--labels"), united=united)
    if twice := [number for number in united if number in (0, *labels.in_files)]:
        raise DataError(
            f"--labels {text}: {twice[0]} has two names; expected one name for each id. Take one "
            "out."
        )
    if not labels.names:
        raise DataError(f"--labels {text}: names none but the background; expected e.g. 1=liver.")
    return labels


def labels_from(ids: Iterable[tuple[int, str]], source: Path | str) -> Labels:
    """Labels from pairs of id and name, each of which is there once.

    Args:
        ids: ids and names; 0 is the background.
        source: where they stand, for messages.

    Raises:
        DataError: an id of several names, a name of several ids, or an id that is too large.
    """
    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for number, name in ids:
        if number > HIGHEST_ID:
            raise DataError(
                f"{source}: label {shown(name)} has the id {number}; expected at most "
                f"{HIGHEST_ID}. Renumber the label."
            )
        if names.setdefault(number, name) != name:
            raise DataError(
                f"{source}: label {number} has the names {shown(names[number])} and "
                f"{shown(name)}; expected one name for each id. Take one out."
            )
        if numbers.setdefault(name, number) != number:
            raise DataError(
                f"{source}: labels {numbers[name]} and {number} are both named {shown(name)}; "
                "expected one id for each name. Rename one, or unite them: medsam-tune split "
                f"--labels {numbers[name]}={name},{number}={name}."
            )
    background = names.pop(0, "background")
    if background.strip().casefold() not in BACKGROUND:
        warn(f"{source}: label 0 is named {shown(background)}; 0 is the background, and no label.")
    ignore = numbers.get(IGNORE)
    names.pop(-1 if ignore is None else ignore, None)
    return Labels(dict(sorted(names.items())), ignore)


BACKGROUND = {"background", "bg", "backgound", "back", "none", "unlabelled", "unlabeled", "clear"}
"""Names, in lower case, of what is no label."""


def _id_and_name(key: str, value: Any, source: Path) -> tuple[int, str]:
    if isinstance(value, list):
        raise DataError(
            f"{source}: label {shown(key)} is a region of the ids {shown(value)}; regions are not "
            "supported, expected one id for each name. Name the ids instead: medsam-tune split "
            "--labels 1=edema,2=core, or labels of another dataset.json."
        )
    number, name = (value, key) if type(value) is int else (key, value)
    text = str(number)
    if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or not isinstance(name, str):
        raise DataError(
            f"{source}: label {shown(key)}: {shown(value)} is not an id and a name; expected e.g. "
            '"1": "spleen".'
        )
    if not name.strip():
        raise DataError(f"{source}: label {text} has an empty name; expected e.g. spleen.")
    return int(text), name
