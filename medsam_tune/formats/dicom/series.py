"""Which series of DICOM images there are, by the headers of their files."""

from __future__ import annotations

import filecmp
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError, listed, warn
from medsam_tune.formats.dicom.copies import without_copies
from medsam_tune.formats.dicom.headers import (
    ENDINGS,
    NO_SCANS,
    DamagedFileError,
    Instance,
    import_pydicom,
    instance_of,
    is_of_images,
    read_header,
    understood,
)
from medsam_tune.formats.dicom.patients import patient_key
from medsam_tune.formats.listing import files_below, is_clutter


@dataclass(frozen=True)
class Series:
    """One series of images, its files in the order in which they were found.

    Attributes:
        uid: SeriesInstanceUID.
        study: StudyInstanceUID.
        patient: keyed hash of PatientID, which only tells whether two patients are the same; of the
            study, where there is none; empty where there is neither.
        modality: Modality, such as "CT"; empty where the header does not say.
        number: SeriesNumber, or None.
        instances: headers of the files.
        frame: FrameOfReferenceUID, the coordinate system of its positions; empty where unknown.
        copies: number of files that were left out because they repeat another.
        fault: why it cannot be read, e.g. a damaged file; empty for a sound series.
    """

    uid: str
    study: str
    patient: str
    modality: str
    number: int | None
    instances: tuple[Instance, ...]
    frame: str = ""
    copies: int = 0
    fault: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K): columns, rows and images."""
        return *self.instances[0].size, sum(one.frames for one in self.instances)

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


def is_uid(text: str) -> bool:
    """Whether a text is made of the signs of a UID; a header may hold any text in its place."""
    return re.fullmatch(r"[0-9][0-9.]{0,63}", text) is not None


@dataclass(frozen=True)
class Found:
    """DICOM objects of a place.

    Attributes:
        series: series of images, by modality, number and UID; some may have a `fault`.
        labels: file of a kind that was asked for -> its Modality.
        problems: damaged file that belongs to no known series -> the reason.
    """

    series: tuple[Series, ...]
    labels: dict[Path, str]
    problems: dict[Path, str]


def find_objects(
    place: Path | Sequence[Path], kinds: Collection[str] = (), secret: bytes | None = None
) -> Found:
    """The image series below a folder, and the files of other kinds.

    A damaged file is a fault of its series; if it does not say which that is, of every series that
    has files in its folder.

    Args:
        place: folder, which is searched with its sub-folders, or one file, or files.
        kinds: modalities of the other files that are wanted, e.g. "SEG".
        secret: key of the patients' hashes, see `patient_key`.

    Raises:
        DataError: nothing there is an image; the message counts what is there. Segmentations,
            structure sets and other objects without a scan are no images, nor is DICOMDIR.
    """
    import_pydicom()
    images: dict[str, list[_Image]] = {}
    labels: dict[Path, str] = {}
    by_uid: dict[str, Path] = {}  # of the labels
    damaged: list[tuple[Path, str, str]] = []  # with the series, and why
    misnamed: list[tuple[Path, str]] = []  # images of a modality that has none, with the series
    unknown: list[Path] = []
    others: Counter[str] = Counter()
    paths = list(_files(place))
    for path in paths:
        uid = ""
        try:
            header = read_header(path)
            if header is None:
                unknown.append(path)
                continue
            with understood(path):
                uid = str(header.get("SeriesInstanceUID") or "")
                kind = str(header.get("Modality") or "")
                own = str(header.get("SOPInstanceUID") or "")
            if kind not in NO_SCANS and "Rows" in header and "Columns" in header:
                image = _image_of(path, header, kind, own, secret)
                images.setdefault(uid, []).append(image)
                continue
        except DataError as error:
            uid = error.series if isinstance(error, DamagedFileError) else uid
            damaged.append((path, uid, str(error)))
            continue
        others[kind or "without pixels"] += 1
        if is_of_images(header):
            misnamed.append((path, uid))
        if kind in kinds:
            first = by_uid.setdefault(own, path)
            if own and first is not path and filecmp.cmp(first, path, shallow=False):
                warn(f"{path}: a copy of {first.name}; taken once.")
            else:
                labels[path] = kind
    for path, uid in misnamed:
        if uid in images:
            why = f"{path}: its Modality is none of images, but it is in a series of them."
            damaged.append((path, uid, f"{why} Copy it again, or take it out."))
    scans = [image.instance.path for members in images.values() for image in members]
    for path in _like_images(unknown, scans):
        text = f"{path}: is named as DICOM images are, but is none ({path.stat().st_size} bytes)."
        damaged.append((path, "", f"{text} Copy it again, or take it out."))
    others["not DICOM"] = len(unknown)
    series, problems = _with_faults([_series(*each) for each in images.items()], damaged)
    if not series and not problems:
        raise _nothing_there(place, len(paths), +others)
    ordered = sorted(series, key=lambda s: (s.modality, s.number or 0, s.uid))
    return Found(tuple(ordered), labels, problems)


def _like_images(unknown: Iterable[Path], images: Iterable[Path]) -> Iterator[Path]:
    """Files that are no DICOM although their names end so, or are those of images but for digits.

    A slice of zero bytes would otherwise be left out without a word.
    """
    known = {(path.parent, _but_for_digits(path)) for path in images}
    for path in unknown:
        if path.name.lower().endswith(ENDINGS) or (path.parent, _but_for_digits(path)) in known:
            yield path


def _but_for_digits(path: Path) -> str:
    return re.sub(r"\d+", "0", path.name)


def _with_faults(
    series: Sequence[Series], damaged: Sequence[tuple[Path, str, str]]
) -> tuple[list[Series], dict[Path, str]]:
    """Give each damaged file to its series, or to those in its folder; the rest is left over."""
    faults = {one.uid: one.fault for one in series}
    folders: dict[Path, set[str]] = defaultdict(set)
    for one in series:
        for path in one.files:
            folders[path.parent].add(one.uid)
    problems = {}
    for path, uid, why in damaged:
        # A UID that is cut off, or was not reached, is the beginning of the whole one.
        owners = {uid} & set(faults) or {one for one in folders[path.parent] if one.startswith(uid)}
        for owner in owners:
            faults[owner] = faults[owner] or why
        if not owners:
            problems[path] = why
    return [replace(one, fault=faults[one.uid]) for one in series], problems


def choose_series(
    place: Path | Sequence[Path], uid: str | None = None, secret: bytes | None = None
) -> Series:
    """The one series of a folder, or the one that is asked for.

    Args:
        place: folder, file or files, as in `find_objects`.
        uid: SeriesInstanceUID, or its end.
        secret: key of the patient's hash, see `patient_key`.

    Raises:
        DataError: several series and no `uid`, or none that ends so; a damaged file.
    """
    found = find_objects(place, secret=secret)
    series = found.series
    if found.problems and not (uid and series):
        raise DataError(next(iter(found.problems.values())))
    chosen = list(series)
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
        yield from (path for path in map(Path, place) if not is_clutter(path))
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


@dataclass(frozen=True)
class _Image:
    """One image, and what it says of its series.

    Attributes:
        instance: what its pixels are and where they lie.
        uid: its SOPInstanceUID.
        modality, study, patient, frame: as in `Series`.
        number: as in `Series`.
    """

    instance: Instance
    uid: str
    modality: str
    study: str
    patient: str
    frame: str
    number: int | None


def _image_of(path: Path, header: Any, modality: str, uid: str, secret: bytes | None) -> _Image:
    with understood(path):
        study, number = str(header.get("StudyInstanceUID") or ""), header.get("SeriesNumber")
        return _Image(
            instance=instance_of(path, header),
            uid=uid,
            modality=modality,
            study=study,
            patient=patient_key(str(header.get("PatientID") or study), secret),
            frame=str(header.get("FrameOfReferenceUID") or ""),
            number=None if number is None else int(number),
        )


def _series(uid: str, images: Sequence[_Image]) -> Series:
    instances, fault = without_copies([(image.uid, image.instance) for image in images])
    first = images[0]
    return Series(
        uid=uid,
        study=first.study,
        patient=first.patient,
        modality=first.modality,
        number=first.number,
        instances=instances,
        frame=first.frame,
        copies=len(images) - len(instances),
        fault=fault or _mixture(images),
    )


def _mixture(images: Sequence[_Image]) -> str:
    """What is wrong with images of several modalities or coordinate systems, if they are."""
    for what, values in (
        ("Modality", [image.modality for image in images]),
        ("FrameOfReferenceUID", [image.frame for image in images]),
    ):
        counts = Counter(filter(None, values))  # what a header lacks contradicts nothing
        if len(counts) > 1:
            usual, count = counts.most_common(1)[0]
            odd = next(i for i, value in enumerate(values) if value not in ("", usual))
            return (
                f"{images[odd].instance}: its {what} is another than that of {count} of "
                f"{len(images)} images of its series; expected one. Export the series again, or "
                "take the file out."
            )
    return ""
