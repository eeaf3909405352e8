"""Scans become checked, windowed slices on disk, and slices become training samples.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
import zarr
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Orientation, Randomizable
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from medsam_tune.data.checks import DataError, check_image, check_pair, load_image
from medsam_tune.data.datalist import Case
from medsam_tune.data.frames import ModelFrame, slices_from_volume
from medsam_tune.data.intensity import Intensity
from medsam_tune.prompts import boxes_from_masks

FORMAT = 1
"""Version of the entries; raise it when what they hold changes."""

_CHECKSUMS = "crc32.json"

Augment = Callable[[dict[str, Tensor]], Mapping[Any, Tensor]]


def load_case(case: Case, labels: Iterable[int]) -> tuple[MetaTensor, MetaTensor | None]:
    """Read, check and orient one scan.

    Args:
        case: the files.
        labels: ids that the label may hold besides 0.

    Returns:
        image (1, X, Y, Z) float32 in the scanner's unit and label (1, X, Y, Z) int32 or None, both
        LPS, affines in nibabel's RAS+ millimetres; `meta["original_affine"]` and
        `meta["spatial_shape"]` are the file's own.

    Raises:
        DataError: see `check_image` and `check_pair`.
    """
    to_lps = Orientation(axcodes="LPS", labels=None)
    image = load_image(case.id, case.image)
    check_image(case.id, image, case.image)
    if case.label is None:
        return cast(MetaTensor, to_lps(image)), None
    label = load_image(case.id, case.label)
    check_pair(case.id, image, label, labels, case.image, case.label)
    return cast(MetaTensor, to_lps(image)), cast(MetaTensor, to_lps(label).to(torch.int32))


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
                if not file.is_file():
                    raise DataError(f"case {case.id}: no such file: {file}. Correct the datalist.")
                status = file.stat()
                made_from.append([os.path.abspath(file), status.st_size, status.st_mtime_ns])
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


class SliceDataset(Dataset[dict[str, Any]]):
    """All slices with foreground as training samples with box prompts.

    Indexed by `(index, seed)`, as `SeededSampler` gives it: the seed fixes everything random in
    the sample, so that it does not depend on the number of workers. A plain index is its own seed.
    A slice whose labels the augmentation moves out of sight is used as it is.

    Args:
        cases: with labels.
        labels: ids to take objects from.
        image_size: S, side of the model's input, pixels.
        objects: P, objects per sample, drawn with replacement from the labels present.
        jitter: standard deviation of each box side's shift as a share of the box's side.
        augment: MONAI transform of `{"image": (C, H, W) float32 in [0, 1], "label": (1, H, W)
            float32}`, in the slice frame; its randomness is set by `set_random_state`.

    Raises:
        DataError: no slice of any case has one of the labels.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        labels: Iterable[int],
        image_size: int,
        objects: int = 4,
        jitter: float = 0.05,
        augment: Augment | None = None,
    ) -> None:
        self.cases = list(cases)
        self.labels = tuple(labels)
        self.image_size = image_size
        self.objects = objects
        self.jitter = jitter
        self.augment = augment
        self.index = [
            (case, k)
            for case in range(len(self.cases))
            for k, present in enumerate(self.cases[case].labels_in_slice)
            if set(present) & set(self.labels)
        ]
        if not self.index:
            raise DataError(
                f"no slice of {len(self.cases)} cases has one of the labels "
                f"{', '.join(map(str, self.labels))}; expected at least one slice with foreground."
                " Check the label maps."
            )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One sample.

        Args:
            key: index of the slice, or (index, seed).

        Returns:
            `image` (C, S, S) float32 in [0, 1], one channel repeated to 3; `masks` (P, S, S) bool;
            `boxes` (P, 4) float32 XYXY in the model frame; `labels` (P,) int64; `case` id; `slice`
            index.
        """
        index, seed = key if isinstance(key, tuple) else (key, key)
        number, k = self.index[index]
        case = self.cases[number]
        image = torch.from_numpy(case.image_slice(k)).float() / 255
        label = torch.from_numpy(case.label_slice(k).astype(np.float32))[None]
        found = None
        if self.augment is not None:
            augmented, moved = self._augmented(self.augment, image, label, seed)
            found = self._masks(moved)
            image = image if found is None else augmented
        masks, ids = found or self._masks(label) or self._small_masks(label)
        generator = torch.Generator().manual_seed(seed)
        picks = torch.randint(len(ids), (self.objects,), generator=generator)
        chosen = masks[picks]  # (P, S, S)
        image = self._frame(image).image(image[None])[0]
        return {
            "image": image.expand(3, -1, -1) if image.shape[0] == 1 else image,
            "masks": chosen,
            "boxes": boxes_from_masks(chosen, jitter=self.jitter, generator=generator),
            "labels": ids[picks],
            "case": case.id,
            "slice": k,
        }

    def _frame(self, image: Tensor) -> ModelFrame:
        """Of (C, H, W); the augmentation may have cropped the slice."""
        return ModelFrame((image.shape[-2], image.shape[-1]), self.image_size)

    def _augmented(
        self, augment: Augment, image: Tensor, label: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        if isinstance(augment, Randomizable):
            augment.set_random_state(seed=seed)
        with _plain_tensors():
            result = augment({"image": image, "label": label})
        return result["image"].clamp(0, 1), result["label"]

    def _masks(self, label: Tensor) -> tuple[Tensor, Tensor] | None:
        """Masks (n, S, S) of the labels that the model frame shows, and their ids (n,)."""
        ids = self._ids(label)
        if len(ids) == 0:
            return None
        masks = self._frame(label).masks((label == ids[:, None, None])[None])[0]
        seen = masks.flatten(1).any(1)
        return (masks[seen], ids[seen]) if seen.any() else None

    def _small_masks(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """The same, but a pixel is inside if any of the slice's pixels in it is."""
        ids = self._ids(label)
        objects = (label == ids[:, None, None]).float()
        height, width = self._frame(label).inner
        masks = torch.zeros(len(ids), self.image_size, self.image_size, dtype=torch.bool)
        masks[:, :height, :width] = F.adaptive_max_pool2d(objects, (height, width)) > 0
        return masks, ids

    def _ids(self, label: Tensor) -> Tensor:
        """The wanted ids in (1, H, W), ascending int64."""
        present = [int(value) for value in label.unique()]
        return torch.tensor([value for value in present if value in self.labels]).long()


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """MONAI's transforms without MetaTensor, which costs more than they do on a slice."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


class SeededSampler(Sampler[tuple[int, int]]):
    """`(index, seed)` in an order that depends on the seed and the epoch only.

    Epochs continue one endless sequence of shuffled passes, so each slice is drawn equally often
    whatever the length of an epoch.

    Args:
        length: of the dataset.
        seed: of order and samples.
        num_samples: length of an epoch; by default one pass.
    """

    def __init__(self, length: int, seed: int = 0, num_samples: int | None = None) -> None:
        self.size = length
        self.seed = seed
        self.num_samples = self.size if num_samples is None else num_samples
        self.epoch = 0
        if self.size < 1 or self.num_samples < 1:
            raise DataError(
                f"{self.num_samples} samples from {self.size} slices; expected at least one of each"
            )

    def set_epoch(self, epoch: int) -> None:
        """Fix the place in the sequence that the next iteration starts from."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start = self.epoch * self.num_samples
        stop = start + self.num_samples
        seeds = np.random.default_rng([self.seed, 1, self.epoch]).integers(2**31, size=len(self))
        place = 0
        for number in range(start // self.size, -(-stop // self.size)):
            order = np.random.default_rng([self.seed, 0, number]).permutation(self.size)
            begin = number * self.size
            for index in order[max(start - begin, 0) : stop - begin]:
                yield int(index), int(seeds[place])
                place += 1
