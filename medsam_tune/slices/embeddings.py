"""Store of the embeddings of slices by a frozen encoder, or a frozen part of it, beside the slices.

An embedding is a chunk of zarr with a checksum, in a file of its own, which gets its name when it
is whole. So it can be written whenever a slice is first needed, by many processes at once. A folder
belongs to one encoder and one way in which slices reach it; its name has a hash of both. Nothing
but numbers is read, and nothing is written through links: a store may come from a stranger.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.storage import LocalStore, StorePath

from medsam_tune.errors import DataError
from medsam_tune.files import read_json, written_whole
from medsam_tune.slices.entries import DAMAGED, claim
from medsam_tune.slices.estimate import free_space, gigabytes
from medsam_tune.slices.store import PreparedCase

FORMAT = 1
"""Version of the embeddings; raise it when their content changes."""

FOLDER = "embeddings"
"""Folder in that of the slices."""

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Types that embeddings may be stored in."""

_STORED = {"float16": "float16", "bfloat16": "uint16", "float32": "float32"}  # zarr's words
_NAN: dict[str, str | int] = {"float16": "NaN", "uint16": 65535, "float32": "NaN"}
_ABOUT = "about.json"


class Place(NamedTuple):
    """Slice k of a case, in one view."""

    case: PreparedCase
    k: int
    view: int


@dataclass(frozen=True)
class EmbeddingEstimate:
    """Size of embeddings to make, and free space for them.

    Attributes:
        folder: folder of the embeddings.
        slices: number of slices.
        views: number of views of each.
        there: number of embeddings that are there already.
        bytes: size of those that are missing.
        free: free bytes on the disk of the folder.
    """

    folder: Path
    slices: int
    views: int
    there: int
    bytes: int
    free: int

    def __str__(self) -> str:
        return (
            f"{self.folder}: embeddings of {self.slices:,} slices in {self.views} views; "
            f"{self.there:,} are there, the others take {gigabytes(self.bytes)}; "
            f"{gigabytes(self.free)} free"
        )

    def refuse_full_disk(self) -> None:
        """Refuse to start if the embeddings will not fit.

        Raises:
            DataError: `free` is less than `bytes`.
        """
        if self.free < self.bytes:
            raise DataError(
                f"{self}. Make room (embeddings of other models there may be deleted), lower views "
                "(--set views=1), choose another folder (slices_dir), or leave cache out."
            )


class EmbeddingStore:
    """Embeddings of one frozen encoder, made in one way.

    Args:
        root: folder of a slice store.
        name: name of the model, the start of the folder's name.
        made_by: all that an embedding depends on besides the slice and the view, as JSON.
        shape: (D, G, G) of an embedding, or (G, G, W) of the tokens before a block.
        dtype: "float16", "bfloat16" or "float32", the stored type.

    Raises:
        ValueError: another dtype.
    """

    def __init__(
        self,
        root: str | Path,
        name: str,
        made_by: Mapping[str, Any],
        shape: tuple[int, int, int],
        dtype: str = "float16",
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"cache_dtype is {dtype!r}; expected one of {', '.join(DTYPES)}.")
        self.root = Path(root)
        self.shape = shape
        self.dtype = DTYPES[dtype]
        self._stored = _STORED[dtype]
        # Through JSON, as it is compared with what a file says.
        self.made_by: dict[str, Any] = json.loads(
            json.dumps({**made_by, "format": FORMAT, "shape": shape, "dtype": dtype})
        )
        text = json.dumps(self.made_by, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder = self.root / FOLDER / f"{name}-{digest}"
        self._arrays: dict[tuple[Path, int], Any] = {}

    def open(self) -> None:
        """Make the folder, and say in it what it is of.

        Raises:
            DataError: a folder of other embeddings, or a link in its place.
        """
        claim(self.root)
        self._refuse_links(self.root / FOLDER, self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / _ABOUT
        if about.exists():
            if read_json(about) != self.made_by:
                raise DataError(f"{about}: is of other embeddings. Delete {self.folder}.")
            return
        with written_whole(about) as file:
            file.write_text(json.dumps(self.made_by, indent=1))

    def __contains__(self, place: Place) -> bool:
        """Whether an embedding is there; it may be damaged."""
        return self._chunk(place).is_file()

    def find(self, place: Place) -> Tensor | None:
        """An embedding (D, G, G) in the stored type; None if it is missing or damaged."""
        if place not in self:
            return None
        try:
            values = np.asarray(self._array(place)[place.k])
        except DAMAGED as error:
            warnings.warn(
                f"{self._chunk(place)}: is damaged and is made again ({error}).", stacklevel=2
            )
            return None
        found = torch.from_numpy(values)
        return found.view(torch.bfloat16) if self.dtype == torch.bfloat16 else found

    def rounded(self, embeddings: Tensor, places: Sequence[Place]) -> Tensor:
        """Embeddings (N, D, G, G) of N places in the stored type, as `find` will give them.

        Raises:
            DataError: a value that the type does not hold; names the first such slice.
        """
        found = embeddings.detach().to(self.dtype)
        whole = torch.isfinite(found).flatten(1).all(1)
        if not bool(whole.all()):
            place = places[int((~whole).nonzero()[0])]
            raise DataError(
                f"case {place.case.id}: the embedding of slice {place.k} has values that "
                f"{self.made_by['dtype']} does not hold. Store another type: --set "
                "cache_dtype=bfloat16."
            )
        return found

    def put(self, place: Place, embedding: Tensor) -> None:
        """Keep an embedding (D, G, G) of the stored type, on the CPU."""
        values = embedding.view(torch.uint16) if self._stored == "uint16" else embedding
        self._array(place)[place.k] = values.numpy()

    def estimate(self, slices: Iterable[tuple[PreparedCase, int]], views: int) -> EmbeddingEstimate:
        """Size of the embeddings that are missing.

        Args:
            slices: case and k of each slice.
            views: number of views of each.
        """
        wanted = [*slices]
        there = sum(Place(case, k, view) in self for case, k in wanted for view in range(views))
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        missing = len(wanted) * views - there
        return EmbeddingEstimate(
            self.folder, len(wanted), views, there, missing * size, free_space(self.folder)
        )

    def _view(self, place: Place) -> Path:
        return self.folder / place.case.path.name / f"view_{place.view}"

    def _chunk(self, place: Place) -> Path:
        return self._view(place) / f"{place.k}.0.0.0"

    def _array(self, place: Place) -> Any:
        key = (place.case.path, place.view)
        if key not in self._arrays:
            folder = self._view(place)
            self._refuse_links(self.folder, folder.parent, folder)
            folder.mkdir(parents=True, exist_ok=True)
            described = self._description(place.case.shape[0])
            try:
                same = json.loads((folder / "zarr.json").read_text()) == described
            except (OSError, ValueError):
                same = False
            if not same:
                with written_whole(folder / "zarr.json") as file:
                    file.write_text(json.dumps(described, indent=1))
            # By our own description: what a file names, zarr would run.
            self._arrays[key] = zarr.Array.from_dict(StorePath(LocalStore(folder)), described)
        return self._arrays[key]

    def _description(self, slices: int) -> dict[str, Any]:
        """An array in zarr 3's words. Without compression, which would save 7 % of an embedding."""
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [slices, *self.shape],
            "data_type": self._stored,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *self.shape]}},
            "chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}},
            # What no embedding holds: zarr does not write a chunk of fill values.
            "fill_value": _NAN[self._stored],
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            "attributes": {},
        }

    def _refuse_links(self, *folders: Path) -> None:
        for folder in folders:
            if folder.is_symlink():
                raise DataError(
                    f"{folder}: is a link; nothing is written through links. Delete it."
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}
