"""Masks as DICOM SEG or RTSTRUCT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.files import refuse_taken
from medsam_tune.formats.dicom.codes import Structure, structures
from medsam_tune.formats.dicom.rtstruct_writing import structure_set, write_structure_set
from medsam_tune.formats.dicom.seg_writing import (
    SEGMENTATIONS,
    Masks,
    try_segmentation,
    write_segmentation,
)
from medsam_tune.formats.dicom.sources import WAY_OUT, Algorithm, Sources, read_sources
from medsam_tune.formats.open import format_of, scan_at
from medsam_tune.version import __version__

KINDS = {"seg": "a DICOM SEG", "rtstruct": "an RTSTRUCT"}
"""Name of a format -> what it is, for messages."""


@dataclass(frozen=True)
class Source:
    """What a DICOM result says of its origin; other formats do without.

    Attributes:
        scan: file or folder of the scan; None for an image in memory.
        series: SeriesInstanceUID (or its end) where a folder holds several.
        tuned: sha256 of the tuned file; empty where there is none.
        run: folder of the run, whose name is written; empty where there is none.
        prompted: whether the scan has prompts, so that the result is semi-automatic.
        codes: CSV of codes and colours of the labels, see `formats.dicom.codes.structures`.
        segmentation: what a SEG holds: "binary" or "labelmap".
        algorithm: name of the program.
        version: its version.
    """

    scan: str | Path | None = None
    series: str | None = None
    tuned: str = ""
    run: str | Path = ""
    prompted: bool = False
    codes: str | Path | None = None
    segmentation: str = SEGMENTATIONS[0]
    algorithm: str = "medsam_tune"
    version: str = __version__

    def __post_init__(self) -> None:
        if self.segmentation not in SEGMENTATIONS:
            raise ValueError(
                f"segmentation is {self.segmentation!r}; expected {' or '.join(SEGMENTATIONS)}."
            )

    @property
    def drawn_by(self) -> Algorithm:
        """The program, the run and the weights, as DICOM names them."""
        run = Path(self.run).resolve().name if str(self.run) else ""
        facts = {"run": run, "tuned_sha256": self.tuned}
        known = {name: text for name, text in facts.items() if text}
        return Algorithm(self.algorithm, self.version, known, self.tuned, self.prompted)

    def images(self, kind: str) -> Sources:
        """The images that a result of a kind of `KINDS` refers to.

        Raises:
            DataError: the scan is not DICOM; as in `read_sources`.
        """
        what = KINDS[kind]
        if self.scan is None or format_of(scan_at(Path(self.scan))) is not None:
            scan = "an image in memory" if self.scan is None else self.scan
            raise DataError(f"{scan}: is not DICOM; {what} refers to DICOM images. {WAY_OUT}")
        return read_sources(Path(self.scan), self.series, what)

    def described(self, labels: Mapping[int, str]) -> list[Structure]:
        """Codes and colours of the labels.

        Raises:
            DataError: a table of codes that cannot be used.
        """
        return structures(labels, None if self.codes is None else Path(self.codes))


def write(
    path: Path,
    masks: Masks,
    affine: NDArray[np.float64],
    labels: Mapping[int, str],
    source: Source,
    kind: str,
) -> None:
    """Write masks, whole or not at all.

    Args:
        path: file to write.
        masks: label ids (I, J, K) in the scan's own grid, or label id -> such a mask.
        affine: (4, 4) from indices (i, j, k) to RAS+ millimetres.
        labels: label id -> name, of each label that is described.
        source: origin of the masks.
        kind: one of `KINDS`.

    Raises:
        DataError: a refusal of `check`; masks that do not lie on the images.
    """
    images, described = source.images(kind), source.described(labels)
    shape = (next(iter(masks.values())) if isinstance(masks, Mapping) else masks).shape
    images.check(shape, affine)
    if kind == "rtstruct":
        write_structure_set(path, masks, images, described, source.drawn_by)
    else:
        how = source.segmentation
        write_segmentation(path, masks, images, described, source.drawn_by, how)


def check(
    path: Path, labels: Mapping[int, str], source: Source, kind: str, separate: bool = False
) -> None:
    """Refuse what cannot be written: an empty result is made of the images, and thrown away.

    Args:
        path: file to write.
        labels: label id -> name.
        source: origin of the masks.
        kind: one of `KINDS`.
        separate: masks may overlap.

    Raises:
        DataError: highdicom is not installed; codes that cannot be used; a scan that is not DICOM;
            images that a result cannot refer to, or cannot be made of; a file that is one of them.
        ValueError: a labelmap as RTSTRUCT, or of masks that may overlap.
    """
    if source.segmentation != Source.segmentation and (separate or kind != "seg"):
        raise ValueError(
            f"segmentation is {source.segmentation!r}, which is for a DICOM SEG without separate; "
            f"expected {Source.segmentation}."
        )
    described = source.described(labels)
    images, algorithm = source.images(kind), source.drawn_by
    refuse_taken(path, overwrite=True, inputs=images.series.files)
    if kind == "rtstruct":
        nothing: dict[int, tuple[()]] = {one.label: () for one in described}
        structure_set(path, nothing, images, described, algorithm)
    else:
        try_segmentation(path, images, described, algorithm, source.segmentation)
