"""Codes, sides and colours of labels, for DICOM SEG and RTSTRUCT.

`codes.csv` beside this module has the codes of usual organs and lesions by the names that labels
have, each from pydicom's dictionary of SNOMED CT. What is not in it is a tissue in an anatomical
structure.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from medsam_tune.errors import DataError, listed

COLUMNS = ("label", "name", "category", "type", "laterality", "colour", "region")
"""Columns of a table of codes; all but the first may be left out."""

NAME_LENGTH = 64
"""Bytes of a segment's name at most: DICOM's LO has 64 letters, but some programs count bytes."""

_OWN = Path(__file__).with_suffix(".csv")
_CODE = re.compile(r"([^\^\\]{1,16})\^([^\^\\]{1,16})\^([^\^\\]{1,64})")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
# Colours of labels that have none: those of matplotlib's tab10.
_PALETTE = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)


@dataclass(frozen=True)
class Code:
    """A code of a scheme.

    Attributes:
        scheme: its designator, such as "SCT" for SNOMED CT.
        value: the code.
        meaning: what it means, in words.
    """

    scheme: str
    value: str
    meaning: str


ANATOMICAL_STRUCTURE = Code("SCT", "91723000", "Anatomical Structure")
TISSUE = Code("SCT", "85756007", "Tissue")
SIDES = {
    "left": Code("SCT", "7771000", "Left"),
    "right": Code("SCT", "24028007", "Right"),
    "both": Code("SCT", "51440002", "Right and left"),
}
"""Words of the column laterality -> code."""


@dataclass(frozen=True)
class Structure:
    """What a label is.

    Attributes:
        label: its id.
        name: its name, of at most `NAME_LENGTH` bytes in UTF-8.
        category: what kind of thing it is, e.g. an anatomical structure.
        type: what it is, e.g. a kidney.
        side: left, right or both; None where the type says it, or there is none.
        region: where it is, e.g. of a lesion in the liver; None where the type says it.
        colour: red, green and blue, 0 to 255.
    """

    label: int
    name: str
    category: Code
    type: Code
    side: Code | None
    region: Code | None
    colour: tuple[int, int, int]


def structures(labels: Mapping[int, str], table: Path | None = None) -> list[Structure]:
    """Describe labels by their names, or as a table says.

    A name is found in the package's own table without regard to case, "_" and the order of its
    words; "left" and "right" are its side. What is not found is a tissue.

    Args:
        labels: label id -> name.
        table: CSV with `COLUMNS`. `label` is the id or the name of a label, `name` another name for
            its segment; `category`, `type` and `region` are codes as SCT^10200004^Liver;
            `laterality` is left, right or both, `colour` is such as #dd8265. Empty cells keep what
            the package knows.

    Returns:
        one for each label, by id.

    Raises:
        DataError: a table that cannot be read, or with something else in it.
    """
    rows = {} if table is None else _given(table, labels)
    found: list[Structure] = []
    taken: Counter[str] = Counter()  # colours
    for position, (label, name) in enumerate(sorted(labels.items())):
        known, side = _known(name)
        row = known | {key: text for key, text in rows.get(label, {}).items() if text}
        if rows.get(label, {}).get("type") and not rows[label].get("laterality"):
            side = ""  # the type of the table says it, or nothing does
        region, side = row.get("region", ""), row.get("laterality") or side
        colour = row.get("colour") or _PALETTE[position % len(_PALETTE)]
        found.append(
            Structure(
                label,
                _written(row.get("name") or name),
                _code(row["category"]) if row.get("category") else ANATOMICAL_STRUCTURE,
                _code(row["type"]) if row.get("type") else TISSUE,
                SIDES[side] if side else None,
                _code(region) if region else None,
                _shade(colour, taken[colour]),
            )
        )
        taken[colour] += 1
    return found


def _known(name: str) -> tuple[dict[str, str], str]:
    """The row of the package's own table for a name, and the side that the name says beyond it."""
    words = _words(name)
    if row := _own_rows().get(words):
        return dict(row), ""
    sides = [word for word in words if word in SIDES]
    plain = tuple(word for word in words if word not in SIDES)
    row = _own_rows().get(plain)
    if row is None or len(sides) != 1:
        return {}, ""
    return dict(row), sides[0]


@cache
def _own_rows() -> dict[tuple[str, ...], dict[str, str]]:
    return {_words(row["label"]): row for _, row in _rows(_OWN)}


def _words(name: str) -> tuple[str, ...]:
    """Words of a name in an order that is always the same."""
    return tuple(sorted(re.findall(r"[^\W_]+", name.casefold())))


def _given(table: Path, labels: Mapping[int, str]) -> dict[int, dict[str, str]]:
    """Rows of a user's table by label id, checked."""
    ids = {name.casefold(): label for label, name in labels.items()}
    found: dict[int, dict[str, str]] = {}
    for line, row in _rows(table):
        text = row["label"]
        number = int(text) if text.isdecimal() and len(text) < 12 else None
        label = number if number in labels else ids.get(text.casefold())
        if label is None:
            known = listed(f"{number} ({name})" for number, name in sorted(labels.items()))
            raise DataError(
                f"{table}, line {line}: no label is {text!r}; expected an id or a name of: "
                f"{known}. Correct the table, or take the line out."
            )
        if label in found:
            raise DataError(
                f"{table}, line {line}: label {label} is there already; expected one line for each."
            )
        _check_row(f"{table}, line {line}", row)
        found[label] = row
    return found


def _check_row(where: str, row: Mapping[str, str]) -> None:
    for column in ("category", "type", "region"):
        if (text := row.get(column, "")) and not _CODE.fullmatch(text):
            raise DataError(
                f"{where}: {column} is {text!r}; expected scheme^code^meaning, such as "
                "SCT^10200004^Liver."
            )
    if (text := row.get("laterality", "")) and text.lower() not in SIDES:
        raise DataError(
            f"{where}: laterality is {text!r}; expected {', '.join(SIDES)}, or nothing."
        )
    if (text := row.get("colour", "")) and not _COLOUR.fullmatch(text):
        raise DataError(f"{where}: colour is {text!r}; expected such as #dd8265.")


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a table and their cells, without blanks around them."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            odd = [column for column in columns if column not in COLUMNS]
            if odd or "label" not in columns or len(set(columns)) < len(columns):
                raise DataError(
                    f"{table}: its columns are {', '.join(columns) or 'none'}; expected label, and "
                    f"any of {', '.join(COLUMNS[1:])}, each once. Correct the first line."
                )
            reader.fieldnames = columns
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{table}, line {reader.line_num}: has more cells than the first line; put "
                        "a text with commas into quotes."
                    )
                cells = {key: (text or "").strip() for key, text in row.items()}
                if any(cells.values()):
                    cells["laterality"] = cells.get("laterality", "").lower()
                    yield reader.line_num, cells
    except OSError as error:
        raise DataError(f"{table}: cannot be read ({error.strerror}). Correct --codes.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{table}: is not CSV in UTF-8 ({error}). Save the table as such."
        ) from error


def _code(text: str) -> Code:
    return Code(*text.split("^"))


def _shade(text: str, before: int) -> tuple[int, int, int]:
    """A colour; darker where labels before have it, so that neighbours are told apart."""
    part = 1 - 0.2 * (before % 3)
    red, green, blue = (round(part * value) for value in bytes.fromhex(text[1:]))
    return red, green, blue


def _written(name: str) -> str:
    r"""A name as DICOM can hold it: one line, without "\", which divides texts there."""
    safe = "".join(letter if letter.isprintable() and letter != "\\" else "_" for letter in name)
    return safe.strip().encode()[:NAME_LENGTH].decode(errors="ignore").strip() or "_"
