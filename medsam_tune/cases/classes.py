"""Class maps: which colour or value of a mask is which class.

`classes.json` in the folder of a data set, or a file that a user names:

    {"classes": [{"id": 1, "name": "road", "color": "#6EC1E4"},
                 {"id": 2, "name": "unlabeled", "color": [155, 155, 155], "ignore": true}]}

Without ids, classes are numbered from 1 in their order. A class that is named "ignore", or says
`"ignore": true`, is no class: nobody annotated its pixels. A class that is named "background", or
"unlabeled" without that, is the background 0. `"instances": true` says that a mask's values are
numbers of objects, all of the one class. `"column": "type"` names the column of polygons that says
their class, by its name or id. The files of Supervisely (`title`, `color`) are read too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from medsam_tune.cases.description import BACKGROUND, IGNORE, Labels, labels_from
from medsam_tune.errors import DataError, listed
from medsam_tune.files import read_json
from medsam_tune.formats.volume import HIGHEST_ID

FILE = "classes.json"
"""Name of the class map in the folder of a data set."""

_NAMES = ("name", "title")
_COLOURS = ("color", "colour")
_HEX = re.compile(r"#?([0-9a-fA-F]{6}|[0-9a-fA-F]{3})")


@dataclass(frozen=True)
class Coding:
    """How masks say their labels, where values are not simply the ids.

    Attributes:
        colours: colour, such as "#6EC1E4" in capitals, -> label id, 0 for the background.
        instances: True if values are numbers of objects, all of the one label.
        column: column of polygons that says their class; empty where all are of one label.
        values: text in that column -> label id, 0 for the background; labels' own names and ids
            need none.
        united: value of a label map or a mask -> label id that it is read as.
    """

    colours: Mapping[str, int] = field(default_factory=dict)
    instances: bool = False
    column: str = ""
    values: Mapping[str, int] = field(default_factory=dict)
    united: Mapping[int, int] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The entries of a datalist's file for `coding_said`, without those that say nothing."""
        said: dict[str, Any] = {"colours": dict(self.colours)} if self.colours else {}
        for name in ("instances", "column", "values"):
            if value := getattr(self, name):
                said[name] = dict(value) if name == "values" else value
        if self.united:
            said["united"] = {str(value): number for value, number in self.united.items()}
        return said


PLAIN = Coding()
"""Values are the ids."""


@dataclass(frozen=True)
class ClassMap:
    """The content of a class map.

    Attributes:
        labels: names of the ids.
        coding: how masks say them.
    """

    labels: Labels
    coding: Coding

    def content(self) -> dict[str, Any]:
        """What a dataset.json of the same labels says."""
        ignore = {} if self.labels.ignore is None else {IGNORE: self.labels.ignore}
        return {"labels": {str(k): name for k, name in self.labels.names.items()}, **ignore}


def read_classes(path: Path) -> ClassMap:
    """Read a class map.

    Args:
        path: JSON file, see the module.

    Raises:
        DataError: the file cannot be read; a class without a name, an id or a colour that is none,
            or is there twice; instances of several classes.
    """
    content = read_json(path)
    given = content.get("classes")
    if not isinstance(given, list) or not given:
        raise DataError(
            f'{path}: classes is {shown(given)}; expected a list such as [{{"id": 1, "name": '
            '"road", "color": "#6EC1E4"}].'
        )
    classes = [_class(one, f"{path}: class {number}") for number, one in enumerate(given)]
    taken = {one.id for one in classes if one.id is not None}
    free = (number for number in range(1, len(classes) + len(taken) + 2) if number not in taken)
    ids: list[tuple[int, str]] = []
    colours: list[tuple[str, int]] = []
    words: list[tuple[str, int]] = []
    ignored = [one for one in classes if one.ignored]
    for one in classes:
        if one.ignored:
            continue
        back = one.id is None and one.name.casefold() in BACKGROUND
        number = 0 if back else next(free) if one.id is None else one.id
        ids.append((number, one.name))
        words.append((one.name, number))
        colours += [] if one.colour is None else [(one.colour, number)]
    if ignored:  # one id for all, as no loss and no score tells them apart
        number = next((one.id for one in ignored if one.id), None) or next(free)
        ids.append((number, IGNORE))
        colours += [(one.colour, number) for one in ignored if one.colour is not None]
        words += [(one.name, number) for one in ignored]
    labels = labels_from(ids, path)
    instances = content.get("instances", False)
    if type(instances) is not bool:
        raise DataError(f"{path}: instances is {shown(instances)}; expected true or false.")
    if instances and len(labels.names) != 1:
        raise DataError(
            f"{path}: instances of {len(labels.names)} classes; expected one class, as the values "
            "of a mask are numbers of objects. Give several classes as COCO json."
        )
    column = _column_said(content, path)
    other = {name: number for name, number in words if labels.in_files.get(number) != name}
    return ClassMap(
        labels, Coding(_each_once(colours, path), instances, column, other if column else {})
    )


def coding_said(
    content: Mapping[str, Any], labels: Mapping[int, str] | None, source: Path
) -> Coding:
    """What a datalist's file says of its masks.

    Args:
        content: the file's JSON.
        labels: id -> name of every value besides 0; None takes any id.
        source: the file, for messages.

    Raises:
        DataError: colours that are none, or of an id that has no name.
    """
    said, instances = content.get("colours", {}), content.get("instances", False)
    if not isinstance(said, Mapping) or type(instances) is not bool:
        raise DataError(
            f"{source}: colours is {shown(said)}, instances {shown(instances)}; expected e.g. "
            '{"#6EC1E4": 1}, and true or false.'
        )
    pairs = []
    for key, number in said.items():
        if type(number) is not int or (labels is not None and number not in (0, *labels)):
            known = listed(map(str, (0, *(labels or ()))))
            raise DataError(
                f"{source}: colour {shown(key)} is of {shown(number)}; expected the id of a label, "
                f"one of {known}."
            )
        pairs.append((_colour(key, f"{source}: colours"), number))
    words = content.get("values", {})
    if not isinstance(words, Mapping) or any(
        n != 0 and n not in (labels or {}) for n in words.values()
    ):
        raise DataError(
            f"{source}: values is {shown(words)}; expected the class of each text of the column, "
            'e.g. {"house": 1}.'
        )
    column = _column_said(content, source)
    united = _united_said(content, labels, source)
    return Coding(_each_once(pairs, source), instances, column, dict(words), united)


def _united_said(
    content: Mapping[str, Any], labels: Mapping[int, str] | None, source: Path
) -> dict[int, int]:
    said = content.get("united", {})
    if isinstance(said, Mapping) and all(
        re.fullmatch(r"[1-9]\d{0,9}", value, re.ASCII)
        and type(number) is int
        and (labels is None or (number in labels and int(value) not in labels))
        for value, number in said.items()
    ):
        return {int(value): number for value, number in said.items()}
    raise DataError(
        f"{source}: united is {shown(said)}; expected the label that each further value is read "
        'as, e.g. {"3": 2}.'
    )


def _column_said(content: Mapping[str, Any], source: Path) -> str:
    column = content.get("column", "")
    if not isinstance(column, str):
        raise DataError(
            f"{source}: column is {shown(column)}; expected the name of the column of "
            "polygons that says their class."
        )
    return column


def shown_colour(red: int, green: int, blue: int) -> str:
    """The text of a colour, such as "#6EC1E4"."""
    return f"#{red:02X}{green:02X}{blue:02X}"


@dataclass(frozen=True)
class _Class:
    name: str
    id: int | None
    colour: str | None
    ignored: bool


def _class(said: Any, where: str) -> _Class:
    if not isinstance(said, Mapping):
        raise DataError(f"{where} is {shown(said)}; expected an object with a name.")
    name = next((said[key] for key in _NAMES if key in said), None)
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: name is {shown(name)}; expected text, such as road.")
    number = said.get("id")
    if number is not None and (type(number) is not int or not 0 <= number <= HIGHEST_ID):
        raise DataError(
            f"{where}: id is {shown(number)}; expected a whole number from 0 to {HIGHEST_ID}."
        )
    ignored = said.get(IGNORE, name.strip().casefold() == IGNORE)
    if type(ignored) is not bool:
        raise DataError(f"{where}: ignore is {shown(ignored)}; expected true or false.")
    colour = next((said[key] for key in _COLOURS if said.get(key) is not None), None)
    return _Class(name.strip(), number, None if colour is None else _colour(colour, where), ignored)


def _colour(said: Any, where: str) -> str:
    """A colour as `shown_colour` writes it."""
    if isinstance(said, str) and (found := _HEX.fullmatch(said.strip())):
        text = found[1] if len(found[1]) == 6 else "".join(2 * letter for letter in found[1])
        return f"#{text.upper()}"
    if isinstance(said, list) and len(said) == 3:
        if all(type(value) is int and 0 <= value <= 255 for value in said):
            return shown_colour(*said)
    raise DataError(
        f'{where}: color is {shown(said)}; expected "#6EC1E4", or red, green and blue from 0 to '
        "255, [110, 193, 228]."
    )


def _each_once(pairs: Iterable[tuple[str, int]], source: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    twice = [colour for colour, number in pairs if found.setdefault(colour, number) != number]
    if twice:
        raise DataError(
            f"{source}: several classes have the colour {listed(twice)}; expected each colour once."
        )
    return found
