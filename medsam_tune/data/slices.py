"""Scans become checked, windowed slices on disk.

The store holds uint8 because SAM's input has 8 bits; one chunk is one slice, so a training sample
reads one slice and nothing else. An entry is written beside and renamed, its files are checksummed,
and its name tells what it was made from.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from monai.data import MetaTensor
from numpy.typing import NDArray
from tqdm import tqdm

from medsam_tune.data.checks import DataError
from medsam_tune.data.datalist import Case
from medsam_tune.data.frames import resized, slices_from_volume, with_neighbours
from medsam_tune.data.intensity import Intensity
from medsam_tune.data.readers import files_of
from medsam_tune.data.reading import Reading
from medsam_tune.data.scans import load_case

FORMAT = 2
"""Version of the entries; raise it when what they hold changes."""

_CHECKSUMS = "crc32.json"


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
        """Slice k as (C, H, W) uint8."""
        image = self._array("image")
        if not self.neighbours:
            return np.asarray(image[k])
        first, last = max(k - 1, 0), min(k + 1, self.shape[0] - 1)
        around = torch.from_numpy(np.asarray(image[first : last + 1]))
        return with_neighbours(around)[k - first].numpy()

    def label_slice(self, k: int) -> NDArray[np.unsignedinteger]:
        """Label ids of slice k as (H, W) uint8 or uint16."""
        return np.asarray(self._array("label")[k])

    def image(self) -> NDArray[np.uint8]:
        """All slices as (Z, C, H, W) uint8."""
        image = np.asarray(self._array("image")[:])
        return with_neighbours(torch.from_numpy(image)).numpy() if self.neighbours else image

    def label(self) -> NDArray[np.unsignedinteger]:
        """All label slices as (Z, H, W) uint8 or uint16."""
        return np.asarray(self._array("label")[:])

    def truth(self) -> NDArray[np.unsignedinteger]:
        """The label map in the scan's own grid, what a prediction is measured against."""
        return np.asarray(self._array("truth")[:]) if self.has_truth else self.label()

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
    """

    def __init__(
        self,
        root: Path,
        intensity: Intensity,
        labels: Mapping[int, str],
        reading: Reading | None = None,
    ) -> None:
        self.root = Path(root)
        self.intensity = intensity
        self.labels = labels
        self.reading = reading or Reading()

    def prepare(self, cases: Sequence[Case], progress: bool = True) -> list[PreparedCase]:
        """Entries for all cases, in their order.

        Args:
            cases: scans, with or without labels.
            progress: show a bar on standard error, if that is a terminal.

        Raises:
            DataError: a scan that is refused, see `load_case`; entries made before it stay.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        bar = tqdm(cases, desc="prepare", unit="case", disable=None if progress else True)
        return [self._prepare_one(case) for case in bar]

    def _prepare_one(self, case: Case) -> PreparedCase:
        entry = self.root / f"{case.id}-{self._key(case)}"
        if entry.exists():
            try:
                return self._open(entry, case)
            except (OSError, ValueError, KeyError, TypeError, zarr.errors.BaseZarrError) as error:
                warnings.warn(f"{entry}: is damaged ({error}) and is made again.", stacklevel=3)
                shutil.rmtree(entry)
        image, label = load_case(case, self.labels, self.reading)
        beside = Path(tempfile.mkdtemp(dir=self.root, prefix=f".{entry.name}."))
        try:
            os.chmod(beside, 0o755)  # mkdtemp's 0700 would keep the colleagues out
            self._write(beside, case, image, label)
            try:
                os.replace(beside, entry)
            except OSError:
                if not entry.exists():  # otherwise another process was first with the same
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return self._open(entry, case)

    def _open(self, entry: Path, case: Case) -> PreparedCase:
        # The datalist's patient, who may have been corrected since.
        return _open_entry(entry, case.patient, self.reading.neighbours)

    def _key(self, case: Case) -> str:
        """Changes when a source file, how it is read, the rule, the labels or the format does."""
        made_from: list[object] = [FORMAT, self.intensity.describe(), sorted(self.labels)]
        stored = dataclasses.replace(self.reading, neighbours=False)  # which are put together later
        made_from += [stored.describe(), case.series]
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
        size = self.reading.size(image.shape[1:], (x, y, z))
        volume = self.intensity(resized(image.as_tensor(), size))
        slices = slices_from_volume(volume).numpy()  # (Z, C, H, W)
        group = zarr.open_group(folder, mode="w", zarr_format=3)
        _write_array(group, "image", slices)
        present: list[list[int]] = [[] for _ in slices]
        if label is not None:
            dtype = np.uint8 if max(self.labels, default=0) < 256 else np.uint16
            truth = label.as_tensor()
            stored = resized(truth, size, nearest=True)
            ids = slices_from_volume(stored)[:, 0].numpy().astype(dtype)  # (Z, H, W)
            _write_array(group, "label", ids)
            if stored is not truth:
                own = slices_from_volume(truth)[:, 0].numpy().astype(dtype)
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
        (folder / _CHECKSUMS).write_text(json.dumps(_checksums(folder), indent=1))


def _write_array(group: zarr.Group, name: str, data: NDArray[Any]) -> None:
    """(Z, ...) as one file in which each slice can be read alone."""
    array = group.create_array(
        name,
        shape=data.shape,
        chunks=(1, *data.shape[1:]),
        shards=data.shape,
        dtype=data.dtype,
        # An empty shard would not be written at all and could not be told from a lost one.
        config={"write_empty_chunks": True},
    )
    array[:] = np.ascontiguousarray(data)


def _checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of each file of an entry, geometry and slice index included."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != _CHECKSUMS)
    return {file.relative_to(folder).as_posix(): zlib.crc32(file.read_bytes()) for file in files}


def _open_entry(entry: Path, patient: str, neighbours: bool) -> PreparedCase:
    if _checksums(entry) != json.loads((entry / _CHECKSUMS).read_text()):
        raise ValueError("checksums differ")
    attributes: Mapping[str, Any] = zarr.open_group(entry, mode="r").attrs
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
