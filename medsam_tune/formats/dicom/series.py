"""Which series of DICOM images there are, by the headers of their files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError, listed
from medsam_tune.formats.dicom.geometry import affine_of, flat_affine, in_order
from medsam_tune.formats.dicom.headers import Instance, instance_of, read_header, understood
from medsam_tune.formats.listing import files_below

# Objects that are no scan, although some have pixels.
_DERIVED = {"SEG", "RTDOSE", "RTSTRUCT", "PR", "SR", "KO", "REG"}


@dataclass(frozen=True)
class Series:
    """One series of images, its files in the order in which they were found.

    Attributes:
        uid: SeriesInstanceUID.
        study: hash of StudyInstanceUID.
        patient: hash of PatientID, which only tells whether two patients are the same; empty where
            there is none.
        modality: Modality, such as "CT"; empty where the header does not say.
        number: SeriesNumber, or None.
        instances: headers of the files.
        frame: FrameOfReferenceUID, the coordinate system of its positions; empty where unknown.
    """

    uid: str
    study: str
    patient: str
    modality: str
    number: int | None
    instances: tuple[Instance, ...]
    frame: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K): columns, rows and images."""
        return *self.instances[0].size, sum(one.frames for one in self.instances)

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) RAS+ millimetres as far as the headers say; gaps and tilt are not looked for."""
        instances = [self.instances[i] for i in in_order(self.instances)]
        positions = [one.position for one in instances if one.position is not None]
        if instances[0].orientation is None or len(positions) < len(instances):
            return flat_affine(instances[0])
        return affine_of(instances[0], np.stack(positions))

    @property
    def files(self) -> list[Path]:
        """Paths of all instances."""
        return [one.path for one in self.instances]

    def __str__(self) -> str:
        columns, rows, frames = self.shape
        number = "" if self.number is None else f"number {self.number}, "
        what = "image" if frames == 1 else "images"
        uid = self.uid or "without UID"
        return f"{number}{self.modality or '?'}, {columns} x {rows}, {frames} {what}, {uid}"


def find_series(place: Path | Sequence[Path]) -> list[Series]:
    """The image series below a folder, by modality, number and UID.

    Args:
        place: folder, which is searched with its sub-folders, or one file, or files.

    Returns:
        At least one series. Segmentations, structure sets and other objects without a scan are
        left out, as is DICOMDIR.

    Raises:
        DataError: nothing there is an image; the message counts what is there.
    """
    return find_objects(place)[0]


def find_objects(
    place: Path | Sequence[Path], kinds: Collection[str] = ()
) -> tuple[list[Series], list[Path]]:
    """The image series below a folder, and the files of other kinds.

    Args:
        place: folder, file or files, as in `find_series`.
        kinds: modalities of the other files that are wanted, e.g. "SEG".

    Returns:
        The series, as `find_series` gives them; and the files of those kinds, by path.

    Raises:
        DataError: nothing there is an image.
    """
    found: dict[str, list[Any]] = {}
    wanted: list[Path] = []
    others: Counter[str] = Counter()
    paths = list(_files(place))
    for path in paths:
        header = read_header(path)
        if header is None:
            others["not DICOM"] += 1
            continue
        with understood(path):
            kind = str(header.get("Modality") or "")
            if kind in _DERIVED or not ("Rows" in header and "Columns" in header):
                others[kind or "without pixels"] += 1
                if kind in kinds:
                    wanted.append(path)
            else:
                uid = str(header.get("SeriesInstanceUID", ""))
                found.setdefault(uid, []).append((path, header))
    if not found:
        raise _nothing_there(place, len(paths), others)
    series = [_series(uid, members) for uid, members in found.items()]
    return sorted(series, key=lambda s: (s.modality, s.number or 0, s.uid)), wanted


def choose_series(place: Path | Sequence[Path], uid: str | None = None) -> Series:
    """The one series of a folder, or the one that is asked for.

    Args:
        place: folder, file or files, as in `find_series`.
        uid: SeriesInstanceUID, or its end.

    Raises:
        DataError: several series and no `uid`, or none that ends so.
    """
    series = find_series(place)
    chosen = series
    if uid:
        chosen = [one for one in series if one.uid == uid] or [
            one for one in series if one.uid.endswith(uid)
        ]
    if len(chosen) == 1:
        return chosen[0]
    there = listed(map(str, series), 5, "; ")
    if uid:
        raise DataError(
            f"{_name(place)}: {len(chosen)} series end in {uid!r}; expected one of: {there}."
        )
    raise DataError(
        f"{_name(place)}: {len(series)} series: {there}; expected one, as two cannot be one "
        "volume. Choose by series_uid (predict: --series), or give each a folder of its own."
    )


def _files(place: Path | Sequence[Path]) -> Iterator[Path]:
    """All files of a place in a stable order, without DICOMDIR and clutter."""
    if not isinstance(place, (str, Path)):
        yield from map(Path, place)
        return
    place = Path(place)
    if not place.exists():
        raise DataError(f"{place}: no such file or folder. Correct the path.")
    if place.is_file():
        yield place
        return
    yield from (path for path in files_below(place) if path.name != "DICOMDIR")


def _nothing_there(place: Path | Sequence[Path], count: int, others: Counter[str]) -> DataError:
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(others.items())) or "none"
    return DataError(
        f"no image DICOM in {_name(place)}: {count} files, {kinds}; expected the images of a "
        "series. Give the folder that holds them."
    )


def _name(place: Path | Sequence[Path]) -> str:
    if isinstance(place, (str, Path)):
        return str(place)
    files = list(place)
    return f"{len(files)} files ({files[0]}, ...)" if files else "no file"


def _series(uid: str, members: Sequence[tuple[Path, Any]]) -> Series:
    path, first = members[0]
    with understood(path):
        number = first.get("SeriesNumber")
        return Series(
            uid=uid,
            study=_hash(first.get("StudyInstanceUID")),
            patient=_hash(first.get("PatientID")),
            modality=str(first.get("Modality") or ""),
            number=None if number is None else int(number),
            instances=tuple(instance_of(path, header) for path, header in members),
            frame=str(first.get("FrameOfReferenceUID") or ""),
        )


def _hash(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()[:12] if value else ""
