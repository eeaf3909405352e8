"""Scenes of any size, segmented window by window without prompts, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data.utils import compute_importance_map
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.console import tracked
from medsam_tune.engines import autocast
from medsam_tune.errors import DataError
from medsam_tune.formats import geotiff, vectors
from medsam_tune.formats.volume import label_dtype
from medsam_tune.inference.canvas import FoundObject
from medsam_tune.inference.embedded import plane_for
from medsam_tune.inference.planes import FAR_OUTSIDE, Asked, WholePlane
from medsam_tune.inference.polygons import write_polygons
from medsam_tune.inference.windows import WindowedPlane
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.streamed import StreamedSlice, streamed

STRIP = 4096
"""Width of the strips that a scene is segmented in, pixels of its slice; memory grows with it."""

LEVELS = 65535
"""Value of probability 1 in the file that polygons take their means from."""


class Block(NamedTuple):
    """A finished part of a scene, in pixels of its file.

    Attributes:
        row: first row.
        column: first column.
        labels: (h, w) label ids, 0 = background.
        probability: (h, w) float32 of the label that each pixel has; of the likeliest one in the
            background.
    """

    row: int
    column: int
    labels: NDArray[np.integer[Any]]
    probability: NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """The answer for a scene that is yet to be segmented: `write` does both.

    Windows, their blending and their say are those of `WindowedPlane`, so that the label map is the
    one that a volume in memory would get, but for pixels without data, which are background.

    Attributes:
        path: GeoTIFF that `slices.streamed.is_streamed` accepts.
        network: a `PromptableSam` with classes.
        rules: rules of training.
        labels: label id -> name of its classes.
        batch: number of windows encoded at once.
        strip: see `STRIP`.
        progress: show it on standard error.
        amp: compute in bfloat16; None: on a GPU.
    """

    path: Path
    network: Any
    rules: ScanRules
    labels: Mapping[int, str]
    batch: int = 1
    strip: int = STRIP
    progress: bool = False
    amp: bool | None = None

    @property
    def grid(self) -> ScanGrid:
        """Grid of the scene and its slice."""
        with streamed(self.path, self.rules) as slice_:
            return slice_.grid

    @property
    def objects(self) -> tuple[FoundObject, ...]:
        """No objects, as none were asked for; see `Found`."""
        return ()

    def write(self, output: Path) -> dict[Path, dict[int, int]]:
        """Segment the scene and write it, whole or not at all.

        Args:
            output: .tif of the label ids, in the scene's own pixels, place and coordinate system;
                or .gpkg or .geojson of polygons, see `polygons.write_polygons`.

        Returns:
            the file -> label id -> number of its pixels, of each that has one.

        Raises:
            DataError: the scene cannot be read; the network knows other classes.
        """
        counts: dict[int, int] = {}
        shaped = vectors.is_vector(output)
        with ExitStack() as stack:
            maps = output
            beside = None
            if shaped:
                output.parent.mkdir(parents=True, exist_ok=True)
                folder = stack.enter_context(TemporaryDirectory(dir=output.parent, prefix=".scene"))
                maps, beside = Path(folder) / "labels.tif", Path(folder) / "probability.tif"
            with streamed(self.path, self.rules) as slice_:
                self._write_maps(slice_, maps, beside, counts)
            if beside is not None:
                write_polygons(output, maps, self.labels, beside, LEVELS)
        return {output: dict(sorted(counts.items()))}

    def _write_maps(
        self, slice_: StreamedSlice, maps: Path, beside: Path | None, counts: dict[int, int]
    ) -> None:
        """Write label ids, and probabilities beside them; count the labels."""
        kind = label_dtype(np.array([max(self.labels, default=0)]))
        place = slice_.grid.georeference
        with ExitStack() as stack:
            file = stack.enter_context(geotiff.created(maps, slice_.native, kind, place))
            likely = None
            if beside is not None:
                levels = np.dtype(np.uint16)
                likely = stack.enter_context(
                    geotiff.created(beside, slice_.native, levels, place, overviews=False)
                )
            for block in self.blocks(slice_):
                found, numbers = np.unique(block.labels, return_counts=True)
                for label, number in zip(found.tolist(), numbers.tolist(), strict=True):
                    if label:
                        counts[label] = counts.get(label, 0) + number
                height, width = block.labels.shape
                rows, columns = (
                    (block.row, block.row + height),
                    (block.column, block.column + width),
                )
                file.write(block.labels.astype(kind), 1, window=(rows, columns))
                if likely is not None:
                    shares = (block.probability * LEVELS).round().astype(np.uint16)
                    likely.write(shares, 1, window=(rows, columns))

    @torch.inference_mode()
    def blocks(self, slice_: StreamedSlice) -> Iterator[Block]:
        """The parts of the label map, which cover the scene once.

        Args:
            slice_: the scene, open.
        """
        plane = plane_for(self.network, slice_.size, self.rules)
        ids = sorted(self.labels)
        if self.network.classes != len(ids):
            raise DataError(
                f"the model has {self.network.classes} classes, and {len(ids)} labels are given; "
                "expected those it was tuned for."
            )
        inner = plane.inner if isinstance(plane, WindowedPlane) else plane
        places = plane.places if isinstance(plane, WindowedPlane) else [(0, 0)]
        assert isinstance(inner, WholePlane)
        strips = _strips(slice_.native[1], slice_.size[1], self.strip)
        windows = [
            (
                strip,
                [(y, x) for y, x in places if x < strip.end and x + inner.size[1] > strip.first],
            )
            for strip in strips
        ]
        done = tracked(
            (one for strip in windows for one in strip[1]),
            "segment",
            sum(len(strip[1]) for strip in windows),
            "window",
            self.progress,
        )
        turns = iter(done)
        for strip, inside in windows:
            band = _Band(inner.size, strip, len(ids))
            for row in sorted({y for y, _ in inside}):
                yield from self._finished(slice_, band, row, ids)
                columns = [x for y, x in inside if y == row]
                for at in range(0, len(columns), self.batch):
                    part = columns[at : at + self.batch]
                    self._add(slice_, inner, band, row, part)
                    for _ in part:
                        next(turns)
            yield from self._finished(slice_, band, slice_.size[0], ids)
        next(turns, None)

    def _add(
        self,
        slice_: StreamedSlice,
        inner: WholePlane,
        band: _Band,
        row: int,
        columns: Sequence[int],
    ) -> None:
        """Add the answers of some windows of one row."""
        parts = [slice_.part(row, x, *inner.size) for x in columns]
        for x, (_, gaps) in zip(columns, parts, strict=True):
            band.note(x, gaps)
        seen = [
            (x, image) for x, (image, gaps) in zip(columns, parts, strict=True) if not gaps.all()
        ]
        if not seen:
            return
        kinds = self.network.classes
        with autocast(inner.device, self.amp):
            embeddings = inner.encode(torch.stack([image for _, image in seen]))
            rows = len(seen) * kinds
            asked = Asked(
                torch.zeros(rows, 0, 2),
                torch.zeros(rows, 0, dtype=torch.int64),
                torch.arange(kinds).repeat(len(seen)),
            )
            where = torch.arange(len(seen)).repeat_interleave(kinds)
            found = inner.decode(embeddings, where, asked)
        logits = found.logits.float().cpu().unflatten(0, (len(seen), kinds))
        says = torch.ones(len(seen), kinds)
        if found.presence is not None:
            says = (found.presence > 0).float().cpu().unflatten(0, (len(seen), kinds))
        for (x, _), one, say in zip(seen, logits, says, strict=True):
            band.add(x, one, say)

    def _finished(
        self, slice_: StreamedSlice, band: _Band, row: int, ids: Sequence[int]
    ) -> Iterator[Block]:
        """The part of a strip above a row of the slice, to which no further window comes."""
        if row <= band.top:
            return
        logits, gaps = band.take(row)  # (K, h, w)
        best, which = logits.max(0)
        labels = torch.tensor(ids)[which].masked_fill((best <= 0) | gaps, 0).numpy()
        probability = best.sigmoid().masked_fill(gaps, 0).numpy()
        rows = _nearest(slice_.native[0], slice_.size[0])
        first, last = np.searchsorted(rows, [row - len(labels), row])
        across = band.strip.columns - band.strip.first
        down = rows[first:last] - (row - len(labels))
        if first < last:
            yield Block(
                int(first),
                band.strip.native,
                labels[down][:, across],
                probability[down][:, across],
            )


class _Strip(NamedTuple):
    """Columns of a scene.

    Attributes:
        native: first column of the file.
        columns: (n,) column of the slice of each of its columns, ascending.
    """

    native: int
    columns: NDArray[np.int64]

    @property
    def first(self) -> int:
        """First column of the slice."""
        return int(self.columns[0])

    @property
    def end(self) -> int:
        """Column of the slice after its last."""
        return int(self.columns[-1]) + 1


class _Band:
    """Weighted logits of a strip, in the rows that windows are added to.

    Args:
        window: (h, w) of a window.
        strip: the strip.
        kinds: number of classes, K.

    Attributes:
        top: first row of the slice that it holds.
    """

    def __init__(self, window: tuple[int, int], strip: _Strip, kinds: int) -> None:
        self.top = 0
        self.strip = strip
        width = strip.end - strip.first
        self._logits = torch.zeros(kinds, window[0], width)
        self._weights = torch.zeros(kinds, window[0], width)
        self._gaps = torch.zeros(window[0], width, dtype=torch.bool)
        self._one = compute_importance_map(window, mode="gaussian", sigma_scale=0.125)

    def add(self, x: int, logits: Tensor, say: Tensor) -> None:
        """Add a window at column x of the slice: (K, h, w) logits; (K,) 1 where it has a say."""
        own, into = self._columns(x)
        weight = self._one[:, own] * say[:, None, None]
        self._logits[..., into] += weight * logits[..., own]
        self._weights[..., into] += weight

    def note(self, x: int, gaps: Tensor) -> None:
        """Note which pixels (h, w) of a window hold no data."""
        own, into = self._columns(x)
        self._gaps[:, into] |= gaps[:, own]

    def take(self, row: int) -> tuple[Tensor, Tensor]:
        """Blended logits (K, h, w) of the rows above one, and their gaps; they are forgotten."""
        count = row - self.top
        weights = self._weights[:, :count]
        logits = torch.where(weights > 0, self._logits[:, :count] / weights, -FAR_OUTSIDE)
        gaps = self._gaps[:count].clone()
        for kept in (self._logits, self._weights, self._gaps):
            rest = kept[..., count:, :].clone()
            kept.zero_()
            kept[..., : rest.shape[-2], :] = rest
        self.top = row
        return logits, gaps

    def _columns(self, x: int) -> tuple[slice, slice]:
        """Columns of a window that lie in the strip, and where."""
        first, end = max(x, self.strip.first), min(x + self._one.shape[1], self.strip.end)
        return slice(first - x, end - x), slice(first - self.strip.first, end - self.strip.first)


def _nearest(native: int, size: int) -> NDArray[np.int64]:
    """(native,) pixel of the slice for each of the file's, as `frames.resized` takes it."""
    return np.minimum(((np.arange(native) + 0.5) * (size / native)).astype(np.int64), size - 1)


def _strips(native: int, size: int, width: int) -> list[_Strip]:
    """Strips of about a width in pixels of the slice, which begin where tiles of the file do."""
    columns = _nearest(native, size)
    step = max(1, int(width * native / size) // geotiff.TILE) * geotiff.TILE
    return [_Strip(first, columns[first : first + step]) for first in range(0, native, step)]
