"""Files that hold one and the same DICOM image."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medsam_tune.formats.dicom.headers import Instance, import_pydicom, without_warnings
from medsam_tune.formats.dicom.structure import is_longer_than_its_file
from medsam_tune.formats.itk import itk_name


def without_copies(
    members: Sequence[tuple[str, Instance]],
) -> tuple[tuple[Instance, ...], str]:
    """Take each image once, by its SOPInstanceUID.

    Args:
        members: SOPInstanceUIDs and images of one series; an empty UID is none.

    Returns:
        the first file of each image; and what is wrong, if two files of one UID are not the same
        image, otherwise an empty text.
    """
    first: dict[str, Instance] = {}
    taken: list[Instance] = []
    fault = ""
    for uid, one in members:
        other = first.setdefault(uid, one) if uid else one
        if other is one:
            taken.append(one)
        elif not fault and not _same(other, one):
            fault = (
                f"{one}: has the SOPInstanceUID of {other.name}, but other pixels or another "
                "place; expected one image of each UID. Find out which of the two is right, and "
                "take the other out."
            )
    return tuple(taken), fault


def _same(first: Instance, second: Instance) -> bool:
    """Whether two files show the same pixels at the same place; their texts may differ."""
    if filecmp.cmp(first.path, second.path, shallow=False):
        return True
    return repr(replace(second, path=first.path)) == repr(first) and _same_pixels(
        first.path, second.path
    )


def _same_pixels(first: Path, second: Path) -> bool:
    """Compare the stored bytes; the decoded values, where only one of two is compressed."""
    import SimpleITK as sitk

    try:
        stored = [_stored(path) for path in (first, second)]
        if stored[0] == stored[1]:
            return True
        if any(is_longer_than_its_file(path) for path in (first, second)):
            return False
        one, other = (sitk.GetArrayFromImage(sitk.ReadImage(itk_name(p))) for p in (first, second))
    except Exception:  # whatever a broken file makes the two stumble on
        return False
    return bool(np.array_equal(one, other))


def _stored(path: Path) -> Any:
    with without_warnings():
        header = import_pydicom().dcmread(path, force=True)
        return header.file_meta.get("TransferSyntaxUID"), header["PixelData"].value
