"""Cases of COCO's JSON: its images, and what its categories mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.description import IGNORE
from medsam_tune.cases.guesses import guessed_patient
from medsam_tune.cases.pairs import safe_name
from medsam_tune.errors import DataError, listed
from medsam_tune.formats import coco
from medsam_tune.formats.listing import entries_of
from medsam_tune.formats.open import name_from, stem_of

_PREFIX = "instances_"  # of COCO's own files: annotations/instances_val2017.json is of val2017/
_FOLDERS = ("", "images", "Images", "JPEGImages")


def coco_at(place: Path) -> Path | None:
    """The COCO file of a place: itself, or the one in a folder or in its `annotations/`.

    Raises:
        DataError: a folder with several.
    """
    if place.is_file():
        return place if coco.is_coco(place) else None
    inside = [folder for folder in (place, place / "annotations") if folder.is_dir()]
    found = [one for folder in inside for one in entries_of(folder) if coco.is_coco(one)]
    if len(found) > 1:
        raise DataError(
            f"{place}: holds several COCO files: {listed(str(one) for one in found)}; expected "
            f"one. Name the one that is meant, e.g. medsam-tune split {found[0]}"
        )
    return found[0] if found else None


def coco_cases(file: Path) -> tuple[tuple[Case, ...], dict[str, Any]]:
    """The images of a COCO file as cases, and what a dataset.json of its categories would say.

    The first folder of an image's `file_name` is its group; otherwise the name is a guess at it.
    Label ids are those of the categories that have an object, each one higher if one of them is 0.

    Raises:
        DataError: the file is refused, see `formats.coco.read`; images that are not there; no
            object in it.
    """
    found = coco.read(file)
    names = [picture.file_name for picture in found.pictures]
    root = _root(file, names)
    cases = tuple(_case(root / name, file, name) for name in names)
    used = found.used
    if not used:
        raise DataError(f"{file}: no annotation in it; expected objects of one category at least.")
    shift = 1 if 0 in used else 0
    labels = {number + shift: name for number, name in used.items()}
    content: dict[str, Any] = {"labels": {str(k): name for k, name in labels.items()}}
    if found.has_crowds:
        content[IGNORE] = max(labels) + 1
    return cases, content


def _root(file: Path, names: list[str]) -> Path:
    """The folder that the names of images are relative to: that which has most of them."""
    near = [file.parent, *([file.parent.parent] if file.parent.name == "annotations" else [])]
    inner = (*_FOLDERS, file.stem, file.stem.removeprefix(_PREFIX))
    places = [place / name for place in near for name in inner]
    return max(places, key=lambda place: sum((place / name).is_file() for name in names))


def _case(image: Path, file: Path, name: str) -> Case:
    group, slash, _ = name.partition("/")
    if slash:
        return Case(image, file, group, name=safe_name(name))
    return Case(image, file, guessed_patient(name_from(stem_of(image))), guessed=True)
