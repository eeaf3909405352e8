"""Scans become checked, windowed slices on disk.

The store holds uint8 because SAM's input has 8 bits; one chunk is one slice, so a training sample
reads one slice and nothing else. An entry is written beside and renamed, its files are checksummed,
and its name tells what it was made from.
"""

from __future__ import annotations

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
from typing import Any, cast

import numpy as np
import zarr
from monai.data import MetaTensor
from numpy.typing import NDArray
from tqdm import tqdm

from medsam_tune.data.checks import DataError, check_image
from medsam_tune.data.datalist import Case
from medsam_tune.data.frames import slices_from_volume
from medsam_tune.data.intensity import Intensity
from medsam_tune.data.labels import TO_LPS, load_label
from medsam_tune.data.readers import files_of, load_image

FORMAT = 1
"""Version of the entries; raise it when what they hold changes."""

_CHECKSUMS = "crc32.json"


def load_case(case: Case, labels: Mapping[int, str]) -> tuple[MetaTensor, MetaTensor | None]:
    """Read, check and orient one scan.

    Args:
        case: the files.
        labels: label id -> name that the label may hold besides 0.

    Returns:
        image (1, X, Y, Z) float32 in the scanner's unit and label (1, X, Y, Z) int32 or None, both
        LPS, affines in nibabel's RAS+ millimetres; `meta["original_affine"]` and
        `meta["spatial_shape"]` are the file's own.

    Raises:
        DataError: see `check_image` and `load_label`.
    """
    image = load_image(case.id, case.image)
    check_image(case.id, image, case.image)
    image = cast(MetaTensor, TO_LPS(image))
    if case.label is None:
        return image, None
    return image, load_label(case.id, case.label, image, case.image, labels)


@dataclass(frozen=True)
class PreparedCase:
    """One scan in the slice store; opens its arrays on first use in each process.

    Attributes:
        path: of the entry.
        id: of the case.
        patient: whose scan it is.
        affine: (4, 4) float64 of the LPS volume (X, Y, Z), nibabel's RAS+ millimetres.
        spacing: (z, y, x) millimetres.
        shape: (Z, H, W).
        labels_in_slice: for each slice the label ids in it, ascending, without 0.
        has_label: whether there is a label map.
    """

    path: Path
    id: str
    patient: str
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    labels_in_slice: list[tuple[int, ...]]
    has_label: bool
    _arrays: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def image_slice(self, k: int) -> NDArray[np.uint8]:
        """Slice k as (C, H, W) uint8."""
        return np.asarray(self._array("image")[k])

    def label_slice(self, k: int) -> NDArray[np.unsignedinteger]:
        """Label ids of slice k as (H, W) uint8 or uint16."""
        return np.asarray(self._array("label")[k])

    def image(self) -> NDArray[np.uint8]:
        """All slices as (Z, C, H, W) uint8."""
        return np.asarray(self._array("image")[:])

    def label(self) -> NDArray[np.unsignedinteger]:
        """All label slices as (Z, H, W) uint8 or uint16."""
        return np.asarray(self._array("label")[:])

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
    """

    def __init__(self, root: Path, intensity: Intensity, labels: Mapping[int, str]) -> None:
        self.root = Path(root)
        self.intensity = intensity
        self.labels = labels

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
                return _open_entry(entry, case.patient)
            except (OSError, ValueError, KeyError, TypeError, zarr.errors.BaseZarrError) as error:
                warnings.warn(f"{entry}: is damaged ({error}) and is made again.", stacklevel=3)
                shutil.rmtree(entry)
        image, label = load_case(case, self.labels)
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
        return _open_entry(entry, case.patient)

    def _key(self, case: Case) -> str:
        """Changes when a source file, the rule, the labels or the format does."""
        made_from: list[object] = [FORMAT, self.intensity.describe(), sorted(self.labels)]
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
        slices = slices_from_volume(self.intensity(image.as_tensor())).numpy()  # (Z, C, H, W)
        affine = np.asarray(image.affine, dtype=np.float64)
        x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        group = zarr.open_group(folder, mode="w", zarr_format=3)
        _write_array(group, "image", slices)
        present: list[list[int]] = [[] for _ in slices]
        if label is not None:
            dtype = np.uint8 if max(self.labels, default=0) < 256 else np.uint16
            ids = slices_from_volume(label.as_tensor())[:, 0].numpy().astype(dtype)  # (Z, H, W)
            _write_array(group, "label", ids)
            present = [[int(i) for i in np.flatnonzero(np.bincount(s.ravel())) if i] for s in ids]
        attributes: dict[str, Any] = {
            "format": FORMAT,
            "case": case.id,
            "patient": case.patient,
            "affine": affine.tolist(),
            "spacing": [z, y, x],
            "shape": [slices.shape[0], *slices.shape[2:]],
            "labels_in_slice": present,
            "has_label": label is not None,
            "intensity": self.intensity.describe(),
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


def _open_entry(entry: Path, patient: str) -> PreparedCase:
    if _checksums(entry) != json.loads((entry / _CHECKSUMS).read_text()):
        raise ValueError("checksums differ")
    attributes: Mapping[str, Any] = zarr.open_group(entry, mode="r").attrs
    z, y, x = attributes["spacing"]
    depth, height, width = attributes["shape"]
    return PreparedCase(
        path=entry,
        id=str(attributes["case"]),
        patient=patient,  # the datalist's, which may have been corrected since
        affine=np.asarray(attributes["affine"], dtype=np.float64),
        spacing=(z, y, x),
        shape=(depth, height, width),
        labels_in_slice=[tuple(ids) for ids in attributes["labels_in_slice"]],
        has_label=bool(attributes["has_label"]),
    )
