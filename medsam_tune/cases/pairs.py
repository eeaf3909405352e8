"""Pairs of image and label, by the names of files in two folders, or by a table."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.guesses import guessed_patient
from medsam_tune.errors import DataError, listed
from medsam_tune.formats import image as images
from medsam_tune.formats import vectors
from medsam_tune.formats.listing import entries_of, files_below
from medsam_tune.formats.open import ENDINGS, format_of, name_from, scans_among, stem_of

CHANNEL = "_0000"
"""What the names of nnU-Net's images end in."""

TABLE = ".csv"
"""Ending of a table of pairs."""

_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"), ("images", "masks"))
OR_PAIRS = "".join(f", or {images}/ and {labels}/" for images, labels in _FOLDERS)
"""The folders that are looked for, as words of a message."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST = 64  # letters of a case's name
_HEADERS = ({"image", "img", "file"}, {"label", "mask", "annotation"})


def has_folders(folder: Path) -> bool:
    """Whether there are a folder of images and one of labels, in it or in each of its folders."""
    return bool(folders_of_pairs(folder))


def folder_pairs(folder: Path) -> tuple[Case, ...]:
    """Images and labels of the same name.

    Images may lie in folders of `images/`, and the two folders in folders of the data set
    (`tile 1/images/`, `tile 1/masks/`); the first of these folders is then the patient, or what
    images have in common. nnU-Net's channel goes from a name if that finds a label. Where the
    images lie in folders and the labels do not, names alone decide, if each is there once.

    Raises:
        DataError: no such folders; images without a label, or labels without an image; two files
            whose names differ in the ending alone.
    """
    places = folders_of_pairs(folder)
    if not places:
        raise DataError(f"{folder}: no known layout; expected a dataset.json{OR_PAIRS}.")
    found: list[Case] = []
    for group, (image_folder, label_folder) in places.items():
        scans = _keyed(image_folder)
        inner = {key.rpartition("/")[0] for key in scans}
        by_key = _keyed(label_folder, inner)
        named = set(by_key)
        alone: dict[str, Path] = {}
        for key, image in scans.items():
            if key not in named and (match := re.fullmatch(r"(.*)_000[1-9]", key)):
                if match[1] in named:
                    raise several_channels(image.with_name(stem_of(image)[:-5]))
            key = key if key in by_key else key.removesuffix(CHANNEL)
            label = by_key.pop(key, None)
            if label is None:
                alone[key] = image
            else:
                found.append(_case(image, label, f"{group}/{key}" if group else key))
        for key, label in _by_name_alone(alone, by_key).items():
            found.append(_case(alone.pop(key), label, f"{group}/{key}" if group else key))
            by_key = {other: file for other, file in by_key.items() if file != label}
        if alone or by_key:
            images_left = listed(str(file.relative_to(image_folder)) for file in alone.values())
            labels_left = listed(str(file.relative_to(label_folder)) for file in by_key.values())
            raise DataError(
                f"{image_folder.parent}: images without a label: {images_left or 'none'}; labels "
                f"without an image: {labels_left or 'none'}; "
                "expected one label of the same name for each image. Add or remove files."
            )
    return tuple(found)


def table_pairs(table: Path) -> tuple[Case, ...]:
    """The pairs of a CSV of two columns, image and label, or three, with the patient.

    Args:
        table: file in UTF-8, with or without a header; paths are relative to its folder.

    Raises:
        DataError: the table cannot be read; a line of another number of columns.
    """
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        head = lines[0] if lines else ""
        delimiter = next((sign for sign in ",;\t" if sign in head), ",")
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    except OSError as error:
        raise DataError(f"{table}: cannot be read ({error.strerror}). Correct the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{table}: is not CSV in UTF-8 ({error}). Save it again as such."
        ) from error
    if rows and all(
        cell.casefold() in known for cell, known in zip(rows[0], _HEADERS, strict=False)
    ):
        rows[0] = []
    width = next((len(row) for row in rows if any(row)), 0)
    cases = []
    for number, row in enumerate(rows, start=1):
        if not any(row):
            continue
        if len(row) != width or width not in (2, 3) or not all(row):
            raise DataError(
                f"{table}: line {number} has {len([c for c in row if c])} values; expected two, "
                "image,label, or three, image,label,patient, in every line. Correct the line."
            )
        image, label = (table.parent / cell for cell in row[:2])
        plain = stem_of(image)
        patient = row[2] if width == 3 else guessed_patient(name_from(plain))
        cases.append(Case(image, label, patient, guessed=width == 2))
    names = [case.id for case in cases]
    if len({*names}) == len(names):
        return tuple(cases)
    return tuple(
        Case(c.image, c.label, c.patient, name=safe_name(row[0]), guessed=c.guessed)
        for c, row in zip(cases, [row for row in rows if any(row)], strict=True)
    )


def several_channels(image: Path) -> DataError:
    """Refusal of an image with a file for each channel."""
    return DataError(
        f"{image}: has several channels, a file for each ({CHANNEL}, _0001, ...); expected one "
        "image for each label. Copy the channel to train on, with its labels, into a folder."
    )


def safe_name(text: str) -> str:
    """A case's name from a relative path: letters, digits, "-", "_" and ".", at most 64 of them."""
    name = _UNSAFE.sub("_", stem_of(Path(text.replace("/", "-"))))
    name = name if name[:1].isalnum() else f"x{name}"
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def folders_of_pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Name of a folder of the data set, or "" of itself -> its folders of images and of labels."""
    if own := image_and_label_folders(folder):
        return {"": own}
    inside = [one for one in entries_of(folder) if one.is_dir()] if folder.is_dir() else []
    pairs = {one.name: image_and_label_folders(one) for one in inside}
    return {name: pair for name, pair in pairs.items() if pair is not None}


def image_and_label_folders(folder: Path) -> tuple[Path, Path] | None:
    """The folders of images and of labels in a folder, if it has both."""
    for image_name, label_name in _FOLDERS:
        if (folder / image_name).is_dir() and (folder / label_name).is_dir():
            return folder / image_name, folder / label_name
    return None


def _by_name_alone(images: Mapping[str, Path], labels: Mapping[str, Path]) -> dict[str, Path]:
    """Key of an image -> its label, where the labels lie flat and no name is there twice."""
    of_name = {key.rpartition("/")[2]: key for key in images}
    if len(of_name) < len(images) or any("/" in key for key in labels):
        return {}
    return {key: labels[name] for name, key in of_name.items() if name in labels}


def _case(image: Path, label: Path, key: str) -> Case:
    """A case by its key: the relative path without the ending."""
    group, _, _ = key.partition("/")
    if group == key:
        return Case(image, label, guessed_patient(name_from(key)), guessed=True)
    return Case(image, label, group, name=safe_name(key))


def _keyed(folder: Path, inner: set[str] | None = None) -> dict[str, Path]:
    """Relative path without the ending -> scan or label.

    Args:
        folder: folder of images or of labels.
        inner: relative paths of folders to look into; None for those that hold images.

    Raises:
        DataError: two files of one name and different endings.
    """
    found = [*_walk(folder, "", inner)]
    kept = {*scans_among(path for _, path in found)}
    keyed: dict[str, Path] = {}
    for key, path in found:
        if path not in kept and format_of(path) is not None:
            continue
        if (other := keyed.setdefault(key, path)) is not path:
            raise DataError(
                f"{folder}: {other.name} and {path.name} differ in their endings alone; expected "
                "one file of each name. Take one out."
            )
    return keyed


def _walk(folder: Path, prefix: str, inner: set[str] | None) -> Iterator[tuple[str, Path]]:
    """Files of known endings, and folders: of a DICOM series, or of a file for each organ."""
    for path in entries_of(folder):
        key = f"{prefix}{stem_of(path)}"
        if path.is_dir():
            below = f"{prefix}{path.name}"
            opens = (
                any(one.name.lower().endswith(images.ENDINGS) for one in files_below(path))
                if inner is None
                else any(one == below or one.startswith(f"{below}/") for one in inner)
            )
            if opens:
                yield from _walk(path, f"{below}/", inner)
            else:
                yield key, path
        elif path.name.lower().endswith((*ENDINGS, ".dcm", *(vectors.ENDINGS if inner else ()))):
            yield key, path
        elif inner and vectors.is_in_pixels(path):
            yield f"{prefix}{path.stem}", path
