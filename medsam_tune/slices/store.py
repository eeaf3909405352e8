"""Store of checked, windowed slices on disk.

The store holds uint8 because SAM's input has 8 bits, or float16 where a rule of intensity keeps
finer steps. One chunk is one slice, so a training sample reads one slice only. An entry is written
to a temporary folder and renamed. Its slices and files have checksums, and its name has a hash of
its sources. The process that makes an entry holds its lock; the kernel frees it when the process
dies. So many processes can fill one store.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import zarr
from filelock import FileLock
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.cases.checks import label_values
from medsam_tune.cases.classes import PLAIN
from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case, voxel_hash
from medsam_tune.console import tracked
from medsam_tune.errors import DataError, about
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import files_of
from medsam_tune.slices.cut import cut, cut_label, grid_of, turned
from medsam_tune.slices.entries import (
    DAMAGED,
    FORMAT,
    claim,
    discard,
    making,
    open_array,
    put,
    read_entry,
    refuse_missing,
    remove_leftovers,
    seal,
    write_array,
)
from medsam_tune.slices.frames import with_neighbours
from medsam_tune.slices.objects import numbered
from medsam_tune.slices.rules import ScanRules


@dataclass(frozen=True)
class PreparedCase:
    """One scan in the slice store; opens its arrays on first use in each process.

    Attributes:
        path: folder of the entry.
        id: id of the case.
        shape: (Z, H, W) of the slices, which may be resampled.
        boxes: for each slice, label id -> tight box XYXY in pixels, upper bounds exclusive; by
            ascending id, without 0.
        has_label: True if there is a label map.
        has_truth: True if slices are resampled and a label map in the scan's own grid is kept.
        has_objects: True if the label tells objects of a label apart.
        components: pixels of the smallest object, see `ScanRules`; None: a label is one object.
        neighbours: True if the channels are the slice before, the slice and the slice after.
        constant: indices of slices without content: one value in all pixels.
        spacing: millimetres between voxels along Z, H and W of the scan's own grid, before slices
            are resampled; None where nothing says how large a pixel is.
        axes: directions in which columns, rows and slices run, such as "LPS".
        content: hash of the scan's voxels, and of its label's after a colon; see
            `cases.load.voxel_hash`.
    """

    path: Path
    id: str
    shape: tuple[int, int, int]
    boxes: list[dict[int, tuple[int, int, int, int]]]
    has_label: bool
    has_truth: bool
    has_objects: bool
    components: int | None
    neighbours: bool
    constant: frozenset[int]
    spacing: tuple[float, float, float] | None
    axes: str
    content: str
    _arrays: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _tight: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def labels_in_slice(self) -> list[tuple[int, ...]]:
        """Label ids in each slice, ascending, without 0."""
        return [tuple(boxes) for boxes in self.boxes]

    def tight(self, label: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The slices (N,) that have a label, ascending, and its tight boxes (N, 4) on them."""
        if label not in self._tight:
            slices = [k for k, boxes in enumerate(self.boxes) if label in boxes]
            boxes = [self.boxes[k][label] for k in slices]
            self._tight[label] = np.array(slices), np.array(boxes, dtype=np.float64)
        return self._tight[label]

    def image_slice(self, k: int) -> NDArray[np.uint8 | np.float16]:
        """Slice k as (C, H, W) uint8, or float16 in 0..255 of a rule that is `fine`.

        Raises:
            DataError: here and below, the entry was damaged or deleted after it was opened.
        """
        if not self.neighbours:
            return self._read("image", k)
        first, last = max(k - 1, 0), min(k + 1, self.shape[0] - 1)
        around = torch.from_numpy(self._read("image", slice(first, last + 1)))
        return with_neighbours(around)[k - first].numpy()

    def label_slice(self, k: int) -> NDArray[np.unsignedinteger]:
        """Label ids of slice k as (H, W) uint8, uint16 or uint32."""
        return self._read("label", k)

    def image(self) -> NDArray[np.uint8 | np.float16]:
        """All slices as (Z, C, H, W) uint8, or float16 as above."""
        image = self._read("image", slice(None))
        return with_neighbours(torch.from_numpy(image)).numpy() if self.neighbours else image

    def label(self) -> NDArray[np.unsignedinteger]:
        """All label slices as (Z, H, W) uint8, uint16 or uint32."""
        return self._read("label", slice(None))

    def truth(self) -> NDArray[np.unsignedinteger]:
        """The label map in the scan's own grid, to compare a prediction with."""
        return self._read("truth", slice(None)) if self.has_truth else self.label()

    def objects_slice(self, k: int) -> NDArray[np.int32] | None:
        """Numbers of the objects of slice k, (H, W); None: a label is one object."""
        return self._objects(k)

    def objects(self) -> NDArray[np.int32] | None:
        """Numbers of the objects of all slices, (Z, H, W), see `numbered`; None as above."""
        return self._objects(slice(None))

    def _objects(self, where: int | slice) -> NDArray[np.int32] | None:
        if self.components is None:
            return None
        given = self._read("objects", where) if self.has_objects else None
        return numbered(self._read("label", where), self.components, given)

    def _read(self, name: str, where: int | slice) -> NDArray[Any]:
        with about(f"case {self.id}"):
            if name == "label" and not self.has_label:
                raise DataError("has no label; expected one in the datalist.")
            try:
                array = self._array(name)
                refuse_missing(self.path, name)  # zarr reads zeros where an array's file is missing
                return np.asarray(array[where])
            except DAMAGED as error:
                raise DataError(
                    f"{self.path / name} cannot be read any more ({error}). Delete {self.path} and "
                    "start again; it is made anew."
                ) from error

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            self._arrays[name] = open_array(self.path, name)
        return self._arrays[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}


class Deformation(Protocol):
    """Protocol of a maker of deformed copies, such as `training.deformation.Deformation`."""

    def describe(self) -> dict[str, object]:
        """Return its settings as JSON."""

    def __call__(
        self, image: MetaTensor, label: MetaTensor | None, seed: int
    ) -> tuple[MetaTensor, MetaTensor | None]:
        """Deform image and label (1, W, H, K), turned to the plane; the seed fixes the result."""


class SliceStore:
    """Prepared scans in one folder; sound entries are not made again.

    Args:
        root: folder of the store: one made by a store, an empty one, or one to make.
        rules: rules from scans to slices.
        labels: label id -> name.
        mending: choice of faults to mend; by default all are refused.
        deformation: maker of the copies among the cases; None if there are no copies.
    """

    def __init__(
        self,
        root: Path,
        rules: ScanRules,
        labels: Mapping[int, str],
        mending: Mending | None = None,
        deformation: Deformation | None = None,
    ) -> None:
        self.root = Path(root)
        self.rules = rules
        self.labels = labels
        self.mending = mending or Mending()
        self.deformation = deformation

    def prepare(
        self, cases: Sequence[Case], progress: bool = True, jobs: int = 2
    ) -> list[PreparedCase]:
        """Make the missing entries; return those of all cases, in order.

        Jobs are threads: a scan holds the interpreter's lock for a twentieth of its time, and
        starting a process takes longer than preparing a scan.

        Args:
            cases: scans, with or without labels.
            progress: show it on standard error.
            jobs: number of scans at once; each takes `formats.volume.BYTES_PER_VOXEL` of
                memory, a deformed copy five times as much.

        Raises:
            DataError: a folder with other files in it, or the first refused scan, see `load_case`;
                entries made before it, and by other jobs meanwhile, stay.
        """
        claim(self.root)
        remove_leftovers(self.root)
        found = [self.find(case) for case in cases]
        for case, there in zip(cases, found, strict=True):
            if there is None and (entry := self._entry(case)).exists():
                warnings.warn(f"{entry}: is damaged and is made again.", stacklevel=2)
        # Starts zarr's thread here: where memory is too little for it, a job would wait forever.
        zarr.open_group({}, mode="w")
        with ThreadPoolExecutor(jobs) as pool:
            done = pool.map(lambda case, there: there or self._make(case), cases, found)
            return list(tracked(done, "prepare", len(cases), show=progress))

    def find(self, case: Case) -> PreparedCase | None:
        """The entry of a case, or None if it is missing or damaged.

        Raises:
            DataError: the scan does not exist.
        """
        entry = self._entry(case)
        try:
            return self._open(entry, case)
        except DAMAGED:
            return None

    def _make(self, case: Case) -> PreparedCase:
        """Write the entry of a case, unless another process wrote it while this one waited."""
        entry, unfinished = self._entry(case), making(self.root)
        with FileLock(unfinished / f"{entry.name}.lock"):
            if (there := self.find(case)) is not None:
                return there
            image, label = load_case(case, self.labels, self.mending, self.rules.expected)
            content = voxel_hash(image)
            content += "" if label is None else f":{voxel_hash(label)}"
            if case.copy:
                image, label = self._deformed(case, image, label)
            beside = Path(tempfile.mkdtemp(dir=unfinished, prefix=f"{entry.name}."))
            try:
                os.chmod(beside, 0o755)  # mkdtemp's 0700 would lock colleagues out
                self._write(beside, case, image, label, content)
                put(beside, entry)
            finally:
                discard(beside)
            return self._open(entry, case)

    def _deformed(
        self, case: Case, image: MetaTensor, label: MetaTensor | None
    ) -> tuple[MetaTensor, MetaTensor | None]:
        if self.deformation is None:
            raise ValueError(f"case {case.id} is a copy; the store has no deformation to make it.")
        grid = grid_of(image, self.rules)
        seed = zlib.crc32(case.id.encode())
        turned_label = None if label is None else turned(label, grid)
        return self.deformation(turned(image, grid), turned_label, seed)

    def _open(self, entry: Path, case: Case) -> PreparedCase:
        attributes = read_entry(entry, case.id)
        depth, height, width = attributes["shape"]
        return PreparedCase(
            path=entry,
            id=case.id,
            shape=(depth, height, width),
            boxes=[
                {label: (x0, y0, x1, y1) for label, x0, y0, x1, y1 in rows}
                for rows in attributes["boxes"]
            ],
            has_label=attributes["has_label"],
            has_truth=attributes["has_truth"],
            has_objects=attributes["has_objects"],
            components=self.rules.components,
            neighbours=self.rules.neighbours,
            constant=frozenset(attributes["constant"]),
            spacing=attributes["spacing"] and (*attributes["spacing"],),
            axes=attributes["axes"],
            content=attributes["content"],
        )

    @property
    def label_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Type of the stored label ids."""
        highest = max(self.labels, default=0)
        types = (np.uint8, np.uint16, np.uint32)
        return np.dtype(next(t for t in types if highest <= np.iinfo(t).max))

    def _entry(self, case: Case) -> Path:
        return self.root / f"{case.id}-{self._key(case)}"

    def _key(self, case: Case) -> str:
        """Hash of the source files, the reading, the rules, the labels and the format."""
        made_from: list[object] = [FORMAT, self.rules.stored.describe(), sorted(self.labels)]
        made_from += [self.mending.describe(), case.series]
        if case.copy and self.deformation is not None:
            made_from += [case.copy, self.deformation.describe()]
        if case.coding != PLAIN:
            made_from.append(case.coding.describe())
        if case.region is not None:
            made_from.append(list(case.region))
        for file in (case.image, case.label):
            if file is None:
                continue
            if not file.exists():
                with about(f"case {case.id}"):
                    raise DataError(f"no such file: {file}. Correct the datalist.")
            for part in files_of(file):
                status = part.stat()
                made_from.append([os.path.abspath(part), status.st_size, status.st_mtime_ns])
        text = json.dumps(made_from, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _write(
        self, folder: Path, case: Case, image: MetaTensor, label: MetaTensor | None, content: str
    ) -> None:
        with about(f"case {case.id}"):
            slices, grid = cut(image, self.rules.stored)  # (Z, C, H, W)
        group = zarr.open_group(folder, mode="w", zarr_format=3)
        write_array(group, "image", slices.numpy())
        boxes: list[list[list[int]]] = [[] for _ in slices]
        if label is not None:
            stored, own = cut_label(label, grid)  # (Z, H, W)
            write_array(group, "label", stored.numpy().astype(self.label_dtype))
            if own is not None:
                write_array(group, "truth", own.numpy().astype(self.label_dtype))
            if label.shape[0] > 1:
                objects, _ = cut_label(cast(MetaTensor, label[1:]), grid)
                write_array(group, "objects", objects.numpy().astype(np.uint32))
            boxes = [_boxes(ids) for ids in stored]
        known = image.meta.get("spacing_known", True)
        attributes: dict[str, Any] = {
            "case": case.id,
            "spacing": [*map(float, grid.spacing[::-1])] if known else None,
            "axes": grid.axes,
            "content": content,
            "shape": [slices.shape[0], *slices.shape[2:]],
            "boxes": boxes,
            "constant": np.flatnonzero(np.ptp(slices.numpy(), axis=(2, 3)).max(1) == 0).tolist(),
            "has_label": label is not None,
            "has_truth": "truth" in group,
            "has_objects": "objects" in group,
            "format": FORMAT,
            "rules": self.rules.stored.describe(),
            "mending": self.mending.describe(),
        }
        group.attrs.update(attributes)
        seal(folder)


def _boxes(label: Tensor) -> list[list[int]]:
    """Rows of label id, x0, y0, x1, y1 of a label slice (H, W), by ascending id."""
    ids = [i for i in label_values(label[..., None]) if i]
    rows = []
    for i in ids:
        mask = label == i
        y, x = mask.any(1).nonzero(), mask.any(0).nonzero()
        rows.append([i, *(int(v) for v in (x[0, 0], y[0, 0], x[-1, 0] + 1, y[-1, 0] + 1))])
    return rows
