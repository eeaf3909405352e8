"""Disk space that a slice store will need, from the headers of the scans."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam_tune.cases.datalist import Case
from medsam_tune.console import tracked
from medsam_tune.errors import DataError, about
from medsam_tune.formats.open import read_grid
from medsam_tune.formats.volume import check_memory
from medsam_tune.slices.store import SliceStore

COMPRESSED = {"image": 0.3, "label": 0.05}
"""Typical share of the bytes after compression (measured: a CT of 512 x 512 in the abdominal window
0.31, small noisy MR 0.86; label maps 0.001 to 0.045)."""


@dataclass(frozen=True)
class Estimate:
    """Size of the slices to prepare, and free space for them.

    Attributes:
        root: folder of the store.
        cases: number of all cases.
        there: number of cases that are prepared already; nothing below counts them.
        slices: number of slices to prepare.
        bytes: size of their images and labels, uncompressed.
        compressed: typical size after compression, by `COMPRESSED`, bytes.
        free: free bytes on the disk of the store.
    """

    root: Path
    cases: int
    there: int
    slices: int
    bytes: int
    compressed: float
    free: int

    def __str__(self) -> str:
        if self.there == self.cases:
            return f"{self.root}: all {self.cases} cases are prepared"
        return (
            f"{self.root}: {self.cases} cases, {self.there} of them prepared; {self.slices:,} "
            f"slices to prepare, at most {gigabytes(self.bytes)}, typically "
            f"{gigabytes(self.compressed)}; {gigabytes(self.free)} free"
        )

    def refuse_full_disk(self) -> None:
        """Refuse to start if the slices will not fit.

        Raises:
            DataError: `free` is less than `compressed`.
        """
        if self.free < self.compressed:
            raise DataError(
                f"{self.root}: {self.slices:,} slices will typically take "
                f"{gigabytes(self.compressed)}, at most {gigabytes(self.bytes)}; "
                f"{gigabytes(self.free)} are free on its disk. Make room, or choose another folder "
                "with --slices-dir."
            )


def estimate(store: SliceStore, cases: Sequence[Case], progress: bool = True) -> Estimate:
    """Read the headers of all scans that are not prepared yet.

    Args:
        store: store to fill.
        cases: cases to fill it with.
        progress: show it on standard error.

    Raises:
        DataError: a scan that is missing, cannot be read, or does not fit into memory.
    """
    there = slices = image_bytes = label_bytes = 0
    channels = store.rules.stored.channels
    value_bytes = 2 if getattr(store.rules.intensity, "fine", False) else 1
    id_bytes = store.label_dtype.itemsize
    for case in tracked(cases, "headers", show=progress):
        if store.find(case) is not None:
            there += 1
            continue
        with about(f"case {case.id}"):
            grid = read_grid(case.image, case.series, case.region)
            check_memory(case.image, grid.shape)
        size = store.rules.grid(grid.shape, grid.affine, grid.spacing_known).size
        slices += size[2]
        voxels = math.prod(size)
        image_bytes += voxels * channels * value_bytes
        label_bytes += voxels * id_bytes if case.label else 0
    return Estimate(
        root=store.root,
        cases=len(cases),
        there=there,
        slices=slices,
        bytes=image_bytes + label_bytes,
        compressed=image_bytes * COMPRESSED["image"] + label_bytes * COMPRESSED["label"],
        free=free_space(store.root),
    )


def free_space(folder: Path) -> int:
    """Free bytes on the disk of a folder, which may not exist yet."""
    places = (folder.absolute(), *folder.absolute().parents)
    return shutil.disk_usage(next(place for place in places if place.exists())).free


def gigabytes(size: float) -> str:
    """A number of bytes for a message."""
    return f"{size / 1e9:.3g} GB"
