"""A scan in, a mask out: prompts on slices, each slice encoded once, the scan's own grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.inferers import Inferer
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.files import written_whole
from medsam_tune.formats.open import case_id
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.methods.tuned import load_tuned, read_header
from medsam_tune.prompts import SlicePrompts, ellipses_in_boxes
from medsam_tune.runs import read_record
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.frames import (
    ModelFrame,
    ScanGrid,
    resized,
    slices_from_volume,
    with_neighbours,
)
from medsam_tune.slices.intensity import Intensity, intensity_from
from medsam_tune.slices.rules import Reading


class PromptedSliceInferer(Inferer):
    """Segment a volume slice by slice from boxes; MONAI's `SliceInferer` cannot carry prompts.

    A slice is encoded once, however many boxes stand on it; slices without a box are not touched,
    nor are those without content, which hold one value in all pixels. Where masks overlap, the
    label with the higher logit wins.

    Args:
        slice_batch: slices encoded at once.
        prompt_batch: boxes decoded at once.
        squash: the model frame's, see `ModelFrame`; as in training.
    """

    def __init__(self, slice_batch: int = 8, prompt_batch: int = 64, squash: bool = False) -> None:
        self.slice_batch = slice_batch
        self.prompt_batch = prompt_batch
        self.squash = squash

    def __call__(
        self, inputs: Tensor, network: Any, prompts: SlicePrompts | None, *_: Any, **__: Any
    ) -> Tensor:
        """Label slices for a volume.

        Args:
            inputs: (Z, C, H, W) uint8 slices, on any device.
            network: a `PromptableSam`.
            prompts: boxes in the slice frame.

        Returns:
            (Z, H, W) int16 label slices, 0 where no mask is, on the device of `inputs`.

        Raises:
            DataError: no prompts.
        """
        if prompts is None:
            raise DataError(
                "the model segments what is prompted; give it a prompt file (--prompts), or train "
                "one that needs none (train --no-prompt)."
            )
        device = network.pixel_mean.device
        frame = ModelFrame((inputs.shape[-2], inputs.shape[-1]), network.image_size, self.squash)
        canvas = _Canvas(inputs)
        for chunk in _with_content(prompts.slices.unique(), inputs).split(self.slice_batch):
            if not len(chunk):  # a volume without a box
                break
            embedding = _encode(inputs[chunk.to(inputs.device)], network, frame)
            here = torch.isin(prompts.slices, chunk).nonzero().flatten()
            for part in here.split(self.prompt_batch):
                where = torch.searchsorted(chunk, prompts.slices[part]).to(device)
                boxes = frame.boxes(prompts.boxes[part]).to(device)
                logits, _quality = network.decode(embedding[where], boxes[:, None])
                canvas.paint(
                    frame.logits(logits.float())[:, 0], prompts.slices[part], prompts.labels[part]
                )
        return canvas.labels


class ClassSliceInferer(Inferer):
    """Segment a volume slice by slice with a model that needs no prompt.

    A class whose presence score is not above 0 leaves the slice empty, as does a slice without
    content, which holds one value in all pixels. Where masks overlap, the label with the higher
    logit wins.

    Args:
        labels: label id of each of the model's K classes.
        slice_batch: slices encoded at once.
        squash: the model frame's, see `ModelFrame`; as in training.
    """

    def __init__(self, labels: Iterable[int], slice_batch: int = 8, squash: bool = False) -> None:
        self.labels = torch.tensor(list(labels))
        self.slice_batch = slice_batch
        self.squash = squash

    def __call__(self, inputs: Tensor, network: Any, *_: Any, **__: Any) -> Tensor:
        """(Z, C, H, W) uint8 slices -> (Z, H, W) int16 label slices; prompts are not looked at."""
        frame = ModelFrame((inputs.shape[-2], inputs.shape[-1]), network.image_size, self.squash)
        canvas = _Canvas(inputs)
        for chunk in _with_content(torch.arange(len(inputs)), inputs).split(self.slice_batch):
            if not len(chunk):  # a volume without content
                break
            embedding = _encode(inputs[chunk.to(inputs.device)], network, frame)
            logits, presence = network.decode(embedding)
            rows, classes = (presence > 0).nonzero().unbind(1)
            if len(rows):
                found = frame.logits(logits[rows, classes][:, None].float())[:, 0]
                canvas.paint(found, chunk[rows.cpu()], self.labels[classes.cpu()])
        return canvas.labels


def volume_inferer(
    network: PromptableSam, labels: Iterable[int], slice_batch: int = 8, squash: bool = False
) -> PromptedSliceInferer | ClassSliceInferer:
    """The inferer that a model is for: by its prompts, or by its classes.

    Args:
        network: of either kind.
        labels: ids of what it was tuned for; the K-th class is the K-th in ascending order.
        slice_batch: slices encoded at once.
        squash: the model frame's, as in training.

    Raises:
        DataError: not as many labels as the model has classes.
    """
    if not network.classes:
        return PromptedSliceInferer(slice_batch, squash=squash)
    ids = sorted(labels)
    if len(ids) != network.classes:
        raise DataError(
            f"the model has {network.classes} classes, but {len(ids)} labels are given "
            f"({', '.join(map(str, ids))}); expected those it was tuned for."
        )
    return ClassSliceInferer(ids, slice_batch, squash)


class EllipseInferer(Inferer):
    """The baseline: each box filled with its inscribed ellipse. Needs no network."""

    def __call__(
        self, inputs: Tensor, network: Any, prompts: SlicePrompts, *_: Any, **__: Any
    ) -> Tensor:
        """(Z, C, H, W) slices and prompts -> (Z, H, W) int16 label slices."""
        canvas = _Canvas(inputs)
        size = (inputs.shape[-2], inputs.shape[-1])
        for part in torch.arange(len(prompts)).split(64):
            ellipses = ellipses_in_boxes(prompts.boxes[part], size)
            canvas.paint(ellipses, prompts.slices[part], prompts.labels[part])
        return canvas.labels


class _Canvas:
    """Label slices under the highest logit so far; 0 is the background's."""

    def __init__(self, inputs: Tensor) -> None:
        shape = (inputs.shape[0], *inputs.shape[-2:])
        self.labels = torch.zeros(shape, dtype=torch.int16, device=inputs.device)
        self._highest = torch.zeros(shape, device=inputs.device)

    def paint(self, logits: Tensor, slices: Tensor, labels: Tensor) -> None:
        """Lay (M, H, W) logits over what is there, each on its slice and for its label (M,)."""
        logits = logits.to(self.labels.device)
        for mask, z, label in zip(logits, slices.tolist(), labels.tolist(), strict=True):
            wins = mask > self._highest[z]
            self.labels[z][wins] = label
            self._highest[z][wins] = mask[wins]


def _with_content(which: Tensor, inputs: Tensor) -> Tensor:
    """Those indices of slices (Z, C, H, W) that do not hold one value in all pixels."""
    slices = inputs[which.to(inputs.device)].flatten(2)
    if not len(slices):
        return which
    return which[(slices.amax(2) > slices.amin(2)).any(1).to(which.device)]


def _encode(slices: Tensor, network: Any, frame: ModelFrame) -> Tensor:
    """(N, C, H, W) uint8 slices -> their embeddings, on the network's device."""
    image = frame.image(slices.to(network.pixel_mean.device).float() / 255)
    return network.encode(to_channels(image, network.base.in_channels))  # type: ignore[no-any-return]


def to_channels(image: Tensor, channels: int) -> Tensor:
    """(N, C, ...) -> (N, channels, ...): one channel is repeated, anything else must fit."""
    if image.shape[1] == channels:
        return image
    if image.shape[1] != 1:
        raise ValueError(f"image has {image.shape[1]} channels, the model takes {channels}.")
    return image.expand(-1, channels, *image.shape[2:])


@dataclass(frozen=True)
class PromptedScan:
    """A scan ready for the inferer, and the way back to its own grid.

    Attributes:
        case: id of the scan.
        image: (Z, C, H, W) uint8 slices.
        prompts: boxes in the slice frame; None for models that need none.
        grid: where the file's voxels lie.
    """

    case: str
    image: Tensor
    prompts: SlicePrompts | None
    grid: ScanGrid


class LoadPromptedScan:
    """Transform: paths of a scan and of its prompts -> `PromptedScan`.

    Args:
        intensity: what the model was tuned with.
        labels: label id -> name that prompts may name.
        reading: as in training.
    """

    def __init__(
        self, intensity: Intensity, labels: Mapping[int, str], reading: Reading | None = None
    ) -> None:
        self.intensity = intensity
        self.labels = labels
        self.reading = reading or Reading()

    def __call__(self, item: Mapping[str, Any]) -> PromptedScan:
        """Read one scan.

        Args:
            item: `scan`, a file or a DICOM folder; `series`, the SeriesInstanceUID (or its end)
                where the folder holds several; `prompts`, a prompt file, its content
                (`read_prompts`), or None.

        Raises:
            DataError: a scan or prompts that are not usable.
        """
        path = Path(item["scan"])
        case = Case(path, None, "", item.get("series"))
        image, _ = load_case(case, self.labels, self.reading)
        grid = grid_of(image, self.reading)
        prompts = item["prompts"]
        volume = image.as_tensor()
        if grid.size is not None:
            volume = resized(volume, grid.size)
        slices = slices_from_volume(self.intensity(volume))
        return PromptedScan(
            case=case_id(path),
            image=with_neighbours(slices) if self.reading.neighbours else slices,
            prompts=None if prompts is None else read_prompts(prompts, grid, self.labels),
            grid=grid,
        )


def prepare_scan(
    item: PromptedScan, device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, None, tuple[SlicePrompts | None], dict[str, Any]]:
    """`prepare_batch` of an evaluator over `PromptedScan`s; volumes stay where they are loaded."""
    return item.image, None, (item.prompts,), {}


class WriteMask:
    """Handler of an evaluator over `PromptedScan`s: writes the mask in the scan's own grid.

    Args:
        path: of the mask, .nii or .nii.gz.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def attach(self, engine: Engine) -> None:
        """Called by MONAI for each handler."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """After each scan."""
        state: Any = engine.state
        labels = state.output["pred"]
        write_mask(labels, state.batch.grid, self.path)
        engine.logger.info(f"{self.path}: {int((labels > 0).sum())} voxels in the mask")


def grid_of(image: MetaTensor, reading: Reading | None = None) -> ScanGrid:
    """The grid of the file that an oriented (C, X, Y, Z) MetaTensor was loaded from.

    Args:
        image: from `load_case`.
        reading: what it was loaded with.
    """
    shape: list[int] = np.asarray(image.meta["spatial_shape"]).tolist()
    affine = np.asarray(image.meta["original_affine"], dtype=np.float64)
    reading = reading or Reading()
    size = reading.stored(shape, affine)
    return ScanGrid(affine, (shape[0], shape[1], shape[2]), reading.axes(affine), size)


def write_mask(labels: Tensor, grid: ScanGrid, path: str | Path) -> Path:
    """Write label slices as NIfTI in the scan's own grid, whole or not at all.

    Args:
        labels: (Z, H, W) integer label slices.
        grid: of the scan.
        path: ends in .nii or .nii.gz.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(f"{path}: expected a name that ends in .nii or .nii.gz.")
    array = grid.to_file(labels)
    dtype = np.uint8 if array.max(initial=0) < 256 else np.int16
    image = nib.Nifti1Image(array.astype(dtype), grid.affine)
    image.header.set_xyzt_units("mm")
    with written_whole(path) as beside:
        nib.save(image, beside)
    return path


class Segmenter:
    """A tuned model with all it needs to segment a scan: the Python side of `predict`.

    Args:
        model: a tuned `PromptableSam`.
        intensity: what it was tuned with.
        labels: label id -> name.
        device: where it runs; a GPU if there is one.
        inferer: how volumes are cut up.
        reading: as in training.

    Example:
        >>> segmenter = Segmenter.from_run("runs/liver")
        >>> segmenter.predict("scan.nii.gz", "boxes.json", "mask.nii.gz")
    """

    def __init__(
        self,
        model: PromptableSam,
        intensity: Intensity,
        labels: Mapping[int, str],
        device: str | torch.device | None = None,
        inferer: Inferer | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.load = LoadPromptedScan(intensity, labels, reading)
        self.inferer = inferer or volume_inferer(model, labels)

    @classmethod
    def from_run(
        cls, run: str | Path, checkpoint: str | Path | None = None, **options: Any
    ) -> Segmenter:
        """The model of a training run's output folder.

        Args:
            run: folder written by `medsam-tune train`.
            checkpoint: the base's checkpoint, if it moved since.
            options: of the constructor.
        """
        record = read_record(run)
        tuned = Path(run) / "tuned.safetensors"
        model = load_tuned(tuned, checkpoint=checkpoint or record.checkpoint)
        labels = read_header(tuned).labels
        options.setdefault("inferer", volume_inferer(model, labels, squash=record.squash))
        reading = Reading(**record.reading)
        return cls(model, intensity_from(record.intensity), labels, reading=reading, **options)

    def __call__(
        self, scan: str | Path, prompts: str | Path | Mapping[str, Any] | None = None
    ) -> NDArray[np.generic]:
        """Label array (I, J, K) in the scan's own grid, 0 = background."""
        item = self.load({"scan": scan, "prompts": prompts})
        return item.grid.to_file(self._labels(item))

    def predict(
        self, scan: str | Path, prompts: str | Path | Mapping[str, Any] | None, output: str | Path
    ) -> Path:
        """Segment a scan and write the mask as NIfTI in the scan's own grid.

        Args:
            scan: NIfTI, NRRD or MetaImage file, or a DICOM folder.
            prompts: prompt file, its content, or None for a model that needs none.
            output: of the mask, .nii or .nii.gz.
        """
        item = self.load({"scan": scan, "prompts": prompts})
        return write_mask(self._labels(item), item.grid, output)

    @torch.inference_mode()
    def _labels(self, item: PromptedScan) -> Tensor:
        return self.inferer(item.image, self.model, item.prompts)  # type: ignore[no-any-return]
