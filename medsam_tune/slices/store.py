"""Scans become checked, windowed slices on disk.

The store holds uint8 because SAM's input has 8 bits; one chunk is one slice, so a training sample
reads one slice and nothing else. An entry is written beside and renamed, its slices and files are
checksummed, and its name tells what it was made from. Who makes an entry holds its lock, which the
kernel frees when a process dies, so that any number of processes can fill one store.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from filelock import FileLock, Timeout
from monai.data import MetaTensor
from numpy.typing import NDArray
from tqdm import tqdm
from zarr.codecs import Crc32cCodec, ZstdCodec

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import Deformation, load_case
from medsam_tune.errors import DataError
from medsam_tune.formats.open import files_of
from medsam_tune.slices.frames import resized, slices_from_volume, with_neighbours
from medsam_tune.slices.intensity import Intensity
from medsam_tune.slices.rules import Reading

FORMAT = 3
"""Version of the entries; raise it when what they hold changes."""

_FILES = "files.json"  # size, modification time in ns and CRC-32 of each other file of an entry
_MAKING = ".making"  # folder for locks and unfinished entries
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class PreparedCase:
    """One scan in the slice store; opens its arrays on first use in each process.

    Attributes:
        path: of the entry.
        id: of the case.
        patient: whose scan it is.
        affine: (4, 4) float64 of the volume (X, Y, Z) in the scan's own grid, RAS+ millimetres.
        spacing: (z, y, x) millimetres of that grid.
        shape: (Z, H, W) of the slices, which may be resampled.
        labels_in_slice: for each slice the label ids in it, ascending, without 0.
        has_label: whether there is a label map.
        has_truth: whether there is one in the scan's own grid beside that of resampled slices.
        neighbours: whether a slice's channels are those before it, itself and after it.
        constant: indices of slices without content: one value in all pixels.
    """

    path: Path
    id: str
    patient: str
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    labels_in_slice: list[tuple[int, ...]]
    has_label: bool
    has_truth: bool = False
    neighbours: bool = False
    constant: frozenset[int] = frozenset()
    _arrays: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def image_slice(self, k: int) -> NDArray[np.uint8]:
        """Slice k as (C, H, W) uint8.

        Raises:
            DataError: here and below, the entry was damaged or deleted since it was opened.
        """
        if not self.neighbours:
            return self._read("image", k)
        first, last = max(k - 1, 0), min(k + 1, self.shape[0] - 1)
        around = torch.from_numpy(self._read("image", slice(first, last + 1)))
        return with_neighbours(around)[k - first].numpy()

    def label_slice(self, k: int) -> NDArray[np.unsignedinteger]:
        """Label ids of slice k as (H, W) uint8 or uint16."""
        return self._read("label", k)

    def image(self) -> NDArray[np.uint8]:
        """All slices as (Z, C, H, W) uint8."""
        image = self._read("image", slice(None))
        return with_neighbours(torch.from_numpy(image)).numpy() if self.neighbours else image

    def label(self) -> NDArray[np.unsignedinteger]:
        """All label slices as (Z, H, W) uint8 or uint16."""
        return self._read("label", slice(None))

    def truth(self) -> NDArray[np.unsignedinteger]:
        """The label map in the scan's own grid, what a prediction is measured against."""
        return self._read("truth", slice(None)) if self.has_truth else self.label()

    def _read(self, name: str, where: int | slice) -> NDArray[Any]:
        array = self._array(name)
        try:
            (self.path / _FILES).stat()  # zarr takes an array without its file for zeros
            return np.asarray(array[where])
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"case {self.id}: {self.path / name} cannot be read any more ({error}). Delete "
                f"{self.path} and start again; it is made anew."
            ) from error

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            if name == "label" and not self.has_label:
                raise DataError(f"case {self.id}: has no label; expected one in the datalist.")
            self._arrays[name] = zarr.open_array(self.path / name, mode="r")
        return self._arrays[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}


class SliceStore:
    """Prepared scans under one folder; what is there and sound is not made again.

    Args:
        root: folder of the store, made if absent.
        intensity: rule from scanner values to uint8.
        labels: label id -> name.
        reading: plane and resampling of the slices, and what is mended instead of refused.
        deformation: of the copies among the cases.
    """

    def __init__(
        self,
        root: Path,
        intensity: Intensity,
        labels: Mapping[int, str],
        reading: Reading | None = None,
        deformation: Deformation | None = None,
    ) -> None:
        self.root = Path(root)
        self.intensity = intensity
        self.labels = labels
        self.reading = reading or Reading()
        self.deformation = deformation or Deformation()

    def prepare(
        self, cases: Sequence[Case], progress: bool = True, jobs: int = 2
    ) -> list[PreparedCase]:
        """Entries for all cases, in their order.

        Jobs are threads: reading and writing a scan holds the interpreter's lock for a twentieth of
        its time, and a process takes longer to start than a scan to prepare.

        Args:
            cases: scans, with or without labels.
            progress: show a bar on standard error, if that is a terminal.
            jobs: scans at once; each takes `checks.BYTES_PER_VOXEL` of memory.

        Raises:
            DataError: the first scan that is refused, see `load_case`; entries made before it, and
                by other jobs meanwhile, stay.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        found = [self.find(case) for case in cases]
        for case, there in zip(cases, found, strict=True):
            if there is None and (entry := self._entry(case)).exists():
                warnings.warn(f"{entry}: is damaged and is made again.", stacklevel=2)
        with ThreadPoolExecutor(jobs) as pool:
            done = pool.map(lambda case, there: there or self._make(case), cases, found)
            disable = None if progress else True
            return list(tqdm(done, total=len(cases), desc="prepare", unit="case", disable=disable))

    def find(self, case: Case) -> PreparedCase | None:
        """The entry of a case, or None if there is none that is sound.

        Raises:
            DataError: there is no such scan.
        """
        entry = self._entry(case)
        try:
            return self._open(entry, case)
        except _DAMAGED:
            return None

    def _make(self, case: Case) -> PreparedCase:
        """Write the entry of a case, unless another process has, while this one waited for it."""
        entry, making = self._entry(case), self.root / _MAKING
        making.mkdir(exist_ok=True)
        with FileLock(making / f"{entry.name}.lock"):
            if (there := self.find(case)) is not None:
                return there
            image, label = load_case(case, self.labels, self.reading)
            if case.copy:
                image, label = self.deformation(image, label, zlib.crc32(case.id.encode()))
            beside = Path(tempfile.mkdtemp(dir=making, prefix=f"{entry.name}."))
            try:
                os.chmod(beside, 0o755)  # mkdtemp's 0700 would keep the colleagues out
                self._write(beside, case, image, label)
                _put(beside, entry)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
            return self._open(entry, case)

    def _open(self, entry: Path, case: Case) -> PreparedCase:
        # The datalist's patient, who may have been corrected since.
        return _open_entry(entry, case.patient, self.reading.neighbours)

    def _remove_leftovers(self) -> None:
        """Delete what killed processes did not finish; a living one holds its entry's lock."""
        for path in (self.root / _MAKING).glob("*"):
            if path.is_dir():
                try:
                    with FileLock(path.with_suffix(".lock"), timeout=0):
                        shutil.rmtree(path, ignore_errors=True)
                except Timeout:
                    continue

    @property
    def label_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Of the label ids as stored."""
        return np.dtype(np.uint8 if max(self.labels, default=0) < 256 else np.uint16)

    def _entry(self, case: Case) -> Path:
        return self.root / f"{case.id}-{self._key(case)}"

    def _key(self, case: Case) -> str:
        """Changes when a source file, how it is read, the rule, the labels or the format does."""
        made_from: list[object] = [FORMAT, self.intensity.describe(), sorted(self.labels)]
        stored = dataclasses.replace(self.reading, neighbours=False)  # which are put together later
        made_from += [stored.describe(), case.series]
        if case.copy:
            made_from += [case.copy, self.deformation.describe()]
        for file in (case.image, case.label):
            if file is not None:
                if not file.exists():
                    raise DataError(f"case {case.id}: no such file: {file}. Correct the datalist.")
                for part in files_of(file):
                    status = part.stat()
                    made_from.append([os.path.abspath(part), status.st_size, status.st_mtime_ns])
        text = json.dumps(made_from, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _write(self, folder: Path, case: Case, image: MetaTensor, label: MetaTensor | None) -> None:
        affine = np.asarray(image.affine, dtype=np.float64)
        x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        size = self.reading.stored(image.shape[1:], affine)
        volume = self.intensity(resized(image.as_tensor(), size))
        slices = slices_from_volume(volume).numpy()  # (Z, C, H, W)
        group = zarr.open_group(folder, mode="w", zarr_format=3)
        _write_array(group, "image", slices)
        present: list[list[int]] = [[] for _ in slices]
        if label is not None:
            truth = label.as_tensor()
            stored = resized(truth, size, nearest=True)
            ids = slices_from_volume(stored)[:, 0].numpy().astype(self.label_dtype)  # (Z, H, W)
            _write_array(group, "label", ids)
            if stored is not truth:
                own = slices_from_volume(truth)[:, 0].numpy().astype(self.label_dtype)
                _write_array(group, "truth", own)
            present = [[int(i) for i in np.flatnonzero(np.bincount(s.ravel())) if i] for s in ids]
        attributes: dict[str, Any] = {
            "format": FORMAT,
            "case": case.id,
            "patient": case.patient,
            "affine": affine.tolist(),
            "spacing": [z, y, x],
            "shape": [slices.shape[0], *slices.shape[2:]],
            "labels_in_slice": present,
            "constant": np.flatnonzero(np.ptp(slices, axis=(2, 3)).max(1) == 0).tolist(),
            "has_label": label is not None,
            "has_truth": "truth" in group,
            "intensity": self.intensity.describe(),
            "reading": self.reading.describe(),
        }
        group.attrs.update(attributes)
        _seal(folder)


def _write_array(group: zarr.Group, name: str, data: NDArray[Any]) -> None:
    """(Z, ...) as one file in which each slice can be read alone."""
    array = group.create_array(
        name,
        shape=data.shape,
        chunks=(1, *data.shape[1:]),
        shards=data.shape,
        dtype=data.dtype,
        compressors=[ZstdCodec(), Crc32cCodec()],
        # An empty shard would not be written at all and could not be told from a lost one.
        config={"write_empty_chunks": True},
    )
    array[:] = np.ascontiguousarray(data)


def _seal(folder: Path) -> None:
    """Record the files of an entry, and have them on the disk before anything names them."""
    files = {}
    for path in sorted(folder.rglob("*")):
        _flush(path)
        if path.is_file():
            status, checksum = path.stat(), zlib.crc32(path.read_bytes())
            name = path.relative_to(folder).as_posix()
            files[name] = [status.st_size, status.st_mtime_ns, checksum]
    (folder / _FILES).write_text(json.dumps(files, indent=1))
    _flush(folder / _FILES)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(beside: Path, entry: Path) -> None:
    """Move a finished entry to its place, or its files over those of a damaged one.

    A process that has the damaged one open never meets a missing file.
    """
    if entry.exists():
        for file in sorted(beside.rglob("*"), key=lambda file: file.name == _FILES):
            if file.is_file():
                target = entry / file.relative_to(beside)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    else:
        os.replace(beside, entry)
    _flush(entry.parent)


def _check_files(entry: Path) -> None:
    """Refuse what is not as it was written; only files whose size or time differ are read."""
    for name, (size, time, checksum) in json.loads((entry / _FILES).read_text()).items():
        status = (entry / name).stat()
        if (status.st_size, status.st_mtime_ns) == (size, time):
            continue
        if zlib.crc32((entry / name).read_bytes()) != checksum:
            raise ValueError(f"{name} is not as it was written")


def _open_entry(entry: Path, patient: str, neighbours: bool) -> PreparedCase:
    _check_files(entry)
    # By zarr it takes ten times as long, and there may be thousands of cases.
    attributes: Mapping[str, Any] = json.loads((entry / "zarr.json").read_text())["attributes"]
    z, y, x = attributes["spacing"]
    depth, height, width = attributes["shape"]
    return PreparedCase(
        path=entry,
        id=str(attributes["case"]),
        patient=patient,
        affine=np.asarray(attributes["affine"], dtype=np.float64),
        spacing=(z, y, x),
        shape=(depth, height, width),
        labels_in_slice=[tuple(ids) for ids in attributes["labels_in_slice"]],
        has_label=bool(attributes["has_label"]),
        has_truth=bool(attributes["has_truth"]),
        neighbours=neighbours,
        constant=frozenset(attributes.get("constant", ())),
    )
