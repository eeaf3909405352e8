"""Inferers: label slices of a volume from prompts of any kind, or from none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from medsam_tune.console import tracked
from medsam_tune.engines import autocast
from medsam_tune.errors import DataError
from medsam_tune.inference.canvas import Canvas, Found, Labels
from medsam_tune.inference.embedded import Batch, EmbeddedVolume, KeptEmbeddings, plane_for
from medsam_tune.inference.prompt_files.label_maps import check_kind, prompts_of_labels
from medsam_tune.inference.propagation import Propagation, follow
from medsam_tune.inference.requests import Request
from medsam_tune.inference.scenes import Scene
from medsam_tune.inference.spool import MEMORY, Spool
from medsam_tune.prompts import SlicePrompts, ellipses_in_boxes
from medsam_tune.slices.frames import slices_from_volume, volume_from_slices
from medsam_tune.slices.rules import ScanRules


class VolumeInferer(Inferer):
    """Segment a volume slice by slice; MONAI's `SliceInferer` cannot carry prompts.

    Each slice is encoded once, for any number of prompts, and only if a prompt or an object on its
    way needs it. Slices without content (one value in all pixels) stay empty. Where masks overlap,
    the label with the highest logit wins.

    Args:
        labels: label ids that the network was tuned for; its K-th class is the K-th of them in
            ascending order. A network without classes takes prompts of any label.
        rules: rules of training, by which slices come into the network; by default they are padded.
        slice_batch: number of slices encoded at once; halved where the GPU's memory runs out. By
            default 8 on a GPU, and 1 on a CPU, whose caches more would leave.
        prompt_batch: number of prompts decoded at once; halved as well.
        propagation: rules by which objects are followed to other slices; by default its defaults.
        drop_absent: leave a mask out where the prompt was not drawn on that slice and the network
            says that its label is not there.
        separate: give a mask for each label, which may overlap, instead of a label map.
        embedding_budget: bytes of embeddings and logits in memory; beyond it they are in a
            temporary file.
        progress: show it on standard error.
        probabilities: keep the logits of each label, see `Found`.
        detailed: give a `Found` instead of its labels alone.
        instances: keep the numbers of the prompts' objects, see `Found`.
        kept: embeddings of earlier calls with the same network, for volumes that have a name.
    """

    def __init__(
        self,
        labels: Iterable[int] = (),
        rules: ScanRules | None = None,
        slice_batch: int | None = None,
        prompt_batch: int = 64,
        propagation: Propagation | None = None,
        drop_absent: bool = True,
        separate: bool = False,
        embedding_budget: int = MEMORY,
        progress: bool = False,
        probabilities: bool = False,
        detailed: bool = False,
        instances: bool = False,
        kept: KeptEmbeddings | None = None,
    ) -> None:
        self.labels = sorted(labels)
        self.kept = kept
        self.rules = rules
        self.propagation = propagation or Propagation()
        self.drop_absent = drop_absent
        self.separate = separate
        self.embedding_budget = embedding_budget
        self.progress = progress
        self.probabilities = probabilities
        self.detailed = detailed
        self.instances = instances
        self._slices = None if slice_batch is None else Batch(slice_batch, "slice")
        self._prompts = Batch(prompt_batch, "prompt")

    def __call__(
        self,
        inputs: Tensor,
        network: Any,
        prompts: SlicePrompts | Mapping[str, SlicePrompts | None] | None = None,
        *_: Any,
        name: str | None = None,
        **__: Any,
    ) -> Labels | Found | dict[str, Labels] | dict[str, Found]:
        """Segment a volume.

        Args:
            inputs: (Z, C, H, W) uint8 slices, on any device.
            network: a `PromptableSam`.
            prompts: prompts in the slice frame; None for every label of the network, on the slices
                where it says that the label is there. Of several, by name, each is answered from
                the same embeddings.
            name: name of the volume, by which its embeddings are kept.

        Returns:
            (Z, H, W) label slices in the smallest type that holds the ids, 0 = background, on the
            device of `inputs`. With `separate`, label id -> (Z, H, W) bool of the labels that were
            asked for. With `detailed`, a `Found` of either. Of several prompts, their name -> such
            a result.

        Raises:
            DataError: a network without classes gets no prompts; one with classes gets prompts for
                a label that it does not know, or other labels than its number of classes.
        """
        several = prompts if isinstance(prompts, Mapping) else {"": prompts}
        followed = any(one is not None and one.spread for one in several.values())
        volume = self.open(inputs, network, keep=followed, name=name)
        asked = self.separate, self.probabilities, self.instances
        found = self.segment(volume, network, several, *asked)
        if self.detailed:
            return found if isinstance(prompts, Mapping) else found[""]
        labels = {name: one.labels for name, one in found.items()}
        return labels if isinstance(prompts, Mapping) else labels[""]

    def open(
        self, inputs: Tensor, network: Any, keep: bool = True, name: str | None = None
    ) -> EmbeddedVolume:
        """A volume to be segmented, by one set of prompts after another.

        Args:
            inputs: (Z, C, H, W) uint8 slices, on any device.
            network: a `PromptableSam`.
            keep: keep the embeddings for later prompts.
            name: name of the volume, by which its embeddings are kept for later calls.
        """
        plane = plane_for(network, (inputs.shape[-2], inputs.shape[-1]), self.rules)
        batch = self._slices_for(network)
        kept = None if self.kept is None or name is None else (self.kept, name)
        return EmbeddedVolume(inputs, plane, batch, Spool(self.embedding_budget), keep, kept)

    def scene(
        self, path: Path, network: Any, names: Mapping[int, str], amp: bool | None = None
    ) -> Scene:
        """A scene that is segmented without prompts when it is written, see `Scene`.

        Args:
            path: GeoTIFF that `slices.streamed.is_streamed` accepts, by these rules.
            network: a `PromptableSam`.
            names: label id -> name.
            amp: see `Scene`.

        Raises:
            ValueError: the inferer has no rules.
        """
        if self.rules is None:
            raise ValueError("rules is None; expected those of training.")
        batch = self._slices_for(network).size
        return Scene(path, network, self.rules, names, batch=batch, progress=self.progress, amp=amp)

    def _slices_for(self, network: Any) -> Batch:
        """Number of slices that are encoded at once."""
        if self._slices is None:
            self._slices = Batch(1 if network.pixel_mean.device.type == "cpu" else 8, "slice")
        return self._slices

    def segment(
        self,
        volume: EmbeddedVolume,
        network: Any,
        prompts: Mapping[str, SlicePrompts | None],
        separate: bool = False,
        probabilities: bool = False,
        instances: bool = False,
    ) -> dict[str, Found]:
        """Answer several prompts; several threads may do so. See `__call__`.

        Args:
            volume: volume from `open`, for the same network.
            network: a `PromptableSam`.
            prompts: name -> prompts, or None.
            separate: give a mask for each label.
            probabilities: keep the logits of each label.
            instances: keep the numbers of the objects of each set of prompts.
        """
        classes = self.labels if network.classes else []
        if len(classes) != network.classes:
            raise DataError(
                f"the model has {network.classes} classes, but {len(classes)} labels are given "
                f"({', '.join(map(str, classes))}); expected those it was tuned for."
            )
        margin = self.propagation.margin
        requests = {
            name: Request(
                volume,
                one,
                classes,
                separate,
                self.drop_absent,
                margin,
                probabilities,
                instances,
            )
            for name, one in prompts.items()
        }
        try:
            self._draw(volume, [*requests.values()])
            walks = [walk for one in requests.values() for walk in one.walks()]
            follow(volume, walks, self.propagation, self._prompts, self.progress)
        finally:
            for one in requests.values():
                one.finish()
        return {name: one.found for name, one in requests.items()}

    def _draw(self, volume: EmbeddedVolume, requests: Sequence[Request]) -> None:
        """Answer all rows on their own slices."""
        which = torch.cat([one.rows.slices for one in requests]).unique()
        chunks = which.split(volume.batch.size) if len(which) else ()
        for chunk in tracked(chunks, "segment", len(which), "slice", self.progress, size=len):
            embeddings = volume.embed(chunk)
            for one in requests:
                one.answer(chunk, embeddings, self._prompts)


class BatchInferer(Inferer):
    """A `VolumeInferer` for MONAI's usual call: a batch of volumes in, a batch of label maps out.

    Args:
        inferer: inferer of the slices of one volume, without `separate`.
        prompts_as: what label maps among the prompts stand for, see `read_prompts`.
        amp: compute in bfloat16; None: where the volumes are on a GPU, as `predict` does.
    """

    def __init__(
        self, inferer: VolumeInferer, prompts_as: str = "slices", amp: bool | None = None
    ) -> None:
        check_kind(prompts_as)
        self.inferer = inferer
        self.prompts_as = prompts_as
        self.amp = amp

    def __call__(
        self, inputs: Tensor, network: Any, prompts: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """Segment the volumes of a batch, one after another.

        Args:
            inputs: (B, C, X, Y, Z) uint8, of `transforms.ScanRulesd`, on any device.
            network: a `PromptableSam`.
            prompts: (B, 1, X, Y, Z) label ids, of `transforms.PromptMapd`; None for every label of
                the network.

        Returns:
            (B, 1, X, Y, Z) label ids, 0 = background, with the metadata of `inputs`.

        Raises:
            DataError: as by `VolumeInferer`.
            ValueError: `amp` on a processor without bfloat16.
        """
        found = []
        maps = [None] * len(inputs) if prompts is None else convert_to_tensor(prompts.cpu())
        with autocast(inputs.device, self.amp):
            for volume, one in zip(convert_to_tensor(inputs), maps, strict=True):
                given = None if one is None else self._prompts(one)
                labels = self.inferer(slices_from_volume(volume), network, given)
                found.append(volume_from_slices(cast(Tensor, labels)[:, None]))
        made = torch.stack(found)
        return convert_to_dst_type(made, inputs, dtype=made.dtype)[0]

    def _prompts(self, label: Tensor) -> SlicePrompts:
        """Prompts of a label map (1, X, Y, Z)."""
        truth = slices_from_volume(label)[:, 0]
        ids = [int(one) for one in truth.unique() if one]
        return prompts_of_labels(truth, dict.fromkeys(ids, ""), self.prompts_as)


class EllipseInferer(Inferer):
    """Box-only baseline: each box filled with its inscribed ellipse. It needs no network."""

    def __call__(
        self, inputs: Tensor, network: Any, prompts: SlicePrompts, *_: Any, **__: Any
    ) -> Tensor:
        """(Z, C, H, W) slices and prompts -> (Z, H, W) label slices, from the rows with a box."""
        size = (inputs.shape[-2], inputs.shape[-1])
        labels = prompts.labels.unique().tolist()
        canvas = Canvas((len(inputs), *size), labels, Spool(), inputs.device)
        boxed = prompts.rows(prompts.boxed)
        for z in boxed.slices.unique():
            rows = boxed.rows(boxed.slices == z)
            canvas.paint(rows.slices, rows.labels, ellipses_in_boxes(rows.boxes, size))
            canvas.finish()
        return canvas.result
