"""MONAI dictionary transforms between scans, slices and the model's input."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, MapTransform, Randomizable, Transform
from monai.utils import convert_to_tensor, ensure_tuple_rep
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.formats.volume import with_meta_of
from medsam_tune.slices.frames import ModelFrame, scaled
from medsam_tune.slices.intensity import Intensity, Percentiles, Window, Windows, ZScore
from medsam_tune.slices.recent import Recent
from medsam_tune.slices.store import PreparedCase

Data = Mapping[Hashable, Any]


class Intensityd(MapTransform):
    """A rule of `slices.intensity` on images of a dictionary.

    Args:
        keys: images (1, ...) in the scanner's unit; they become (C, ...) uint8.
        rule: intensity rule to apply.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self, keys: KeysCollection, rule: Intensity, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.rule = rule

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary with its images in 8 bits."""
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = self.rule(convert_to_tensor(found[key], track_meta=get_track_meta()))
        return found


class Windowd(Intensityd):
    """CT window on images of a dictionary, see `Window`.

    Args:
        keys: images (C, ...) in Hounsfield units; they become uint8.
        center: centre of the window, Hounsfield units.
        width: width of the window, Hounsfield units.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        center: float = 40.0,
        width: float = 400.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, Window(center, width), allow_missing_keys)


class Windowsd(Intensityd):
    """Several CT windows as channels, see `Windows`.

    Args:
        keys: images (1, ...) in Hounsfield units; they become (C, ...) uint8.
        windows: names in `WINDOWS`, or (center, width) in Hounsfield units; one per channel.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        windows: Sequence[str | tuple[float, float]] = ("lung", "abdomen", "bone"),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, Windows(tuple(windows)), allow_missing_keys)


class Percentilesd(Intensityd):
    """Percentiles of the voxels besides the background become 0 and 255, see `Percentiles`.

    Args:
        keys: images (C, ...); they become uint8.
        lower: percentile that becomes 0.
        upper: percentile that becomes 255.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, Percentiles(lower, upper), allow_missing_keys)


class ZScored(Intensityd):
    """Range around the mean of the voxels besides the background, see `ZScore`.

    Args:
        keys: images (C, ...); they become uint8.
        deviations: number of standard deviations below and above the mean that become 0 and 255.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self, keys: KeysCollection, deviations: float = 3.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, ZScore(deviations), allow_missing_keys)


class LoadSliced(Randomizable, Transform):
    """A slice from the store: `{"case": PreparedCase, "slice": k}` -> image, label, case id, k.

    The image is (C, H, W) float32 in [0, 1], the label (1, H, W) float32, both in the slice frame.
    Where the pieces of a label are objects of their own (`ScanRules.components`), the label is (2,
    H, W): ids, and numbers of objects.
    `before` is the label of the slice before or after, at random, from which an object would be
    followed to this one; `extents` says how much larger other boxes of a user are than the tight
    one: the rectangle of the object's 3-D box, and a box between those of two other slices, at
    random; see `MixedPromptsd`.

    With `view` in the dictionary, the side is that of the view: after the slice in even views,
    before it in odd ones. With `label_only`, there is no image.

    Args:
        kept: bytes of slices that each process keeps in memory, those that it read last.
    """

    def __init__(self, kept: int = 2**27) -> None:
        self._recent = Recent(kept)

    def randomize(self, data: Any = None) -> None:
        """Draw the side of the slice from which objects are followed, and the two other slices."""
        self._side = 1 if self.R.rand() < 0.5 else -1
        self._apart = self.R.rand(2)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Read one slice."""
        case, k = data["case"], data["slice"]
        self.randomize()
        if "view" in data:
            self._side = -1 if data["view"] % 2 else 1
        image: dict[Hashable, Any] = {}
        if not data.get("label_only"):
            image["image"] = torch.from_numpy(self._read(case, k, "image")).float() / 255
        beside = k + self._side
        if not 0 <= beside < case.shape[0]:
            beside = k - self._side
        label = self._label(case, k)
        objects = None if case.components is None else self._read(case, k, "objects")
        there = 0 <= beside < case.shape[0]
        return {
            **image,
            "label": label if objects is None else torch.cat([label, _as_label(objects)]),
            "before": self._label(case, beside) if there else torch.zeros_like(label),
            "extents": self._extents(case, k),
            "case": case.id,
            "slice": k,
        }

    def _label(self, case: PreparedCase, k: int) -> Tensor:
        """(1, H, W) float32, as MONAI's transforms make of label maps anyway."""
        return _as_label(self._read(case, k, "label"))

    def _read(self, case: PreparedCase, k: int, what: str) -> NDArray[Any]:
        key = (case.path, case.neighbours, case.components, k, what)
        return self._recent(key, lambda: getattr(case, f"{what}_slice")(k))

    def _extents(self, case: PreparedCase, k: int) -> dict[str, dict[int, Tensor]]:
        """Kind -> label -> (4,) how much larger its box is, as a share of the tight box's sides."""
        found: dict[str, dict[int, Tensor]] = {"rectangle": {}, "interpolated": {}}
        for label in case.boxes[k]:
            slices, boxes = case.tight(label)
            place = int(np.searchsorted(slices, k))
            around = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
            low = int(self._apart[0] * (place + 1))  # any slice with the label up to this one
            high = len(slices) - 1 - int(self._apart[1] * (len(slices) - place))
            ends = [low, high] if low < high else [place]
            between = [np.interp(k, slices[ends], side) for side in boxes[ends].T]
            for kind, box in (("rectangle", around), ("interpolated", np.array(between))):
                grown = (box - boxes[place]) * [-1, -1, 1, 1]
                sides = np.tile(boxes[place][2:] - boxes[place][:2], 2)
                found[kind][label] = torch.from_numpy((grown / sides).astype(np.float32))
        return found


def _as_label(ids: NDArray[Any]) -> Tensor:
    return torch.from_numpy(ids.astype(np.float32))[None]


class ShrinkLongestd(MapTransform):
    """Shrink slices whose longest side is above a limit; smaller ones stay as they are.

    Augmentation of fewer pixels is faster, and the model's input needs no more. It has no inverse,
    and comes before prompts.

    Args:
        keys: images or label maps (C, H, W).
        longest: largest side, pixels.
        mode: "bilinear" or "nearest"; one for all keys, or one per key.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        longest: int,
        mode: str | Sequence[str] = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.longest = longest
        self.mode = _modes(mode, len(self.keys))

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary with its slices shrunk."""
        found = dict(data)
        for key, mode in self.key_iterator(found, self.mode):
            image = convert_to_tensor(found[key], track_meta=get_track_meta())
            size = (int(image.shape[1]), int(image.shape[2]))
            if max(size) > self.longest:
                frame = ModelFrame(size, self.longest)
                small = _resized(_as_slices(image), frame.inner, mode)
                found[key] = _like(small, image, *frame.scale)
        return found


class ModelFramed(MapTransform, InvertibleTransform):
    """Bring slices with their masks, boxes and points into the model's square input.

    The longest side becomes S and the other is padded at the right or the bottom; with `squash`
    both become S. All images of a dictionary have the same size.

    Args:
        keys: images (C, H, W), or volumes (C, H, W, D) whose slices are stacked along the last
            axis; they become (C, S, S) or (C, S, S, D).
        image_size: S, side of the model's input, pixels.
        squash: scale both sides to S instead of padding the shorter one.
        mode: "bilinear" for images and logits, "nearest" for masks and label maps; one for all
            keys, or one per key. A bool mask that "nearest" would lose keeps the pixels it touches.
        boxes: key of boxes (..., 4) XYXY, from the slice frame to the model frame.
        points: key of points (..., 2) XY, from the slice frame to the model frame.
        allow_missing_keys: skip keys that are absent; boxes and points may always be absent.

    The inverse brings images, masks, logits of any resolution, boxes and points of the model frame
    back into the slice frame. It takes the nearest pixel where MONAI's `Invertd` asks for it; other
    masks come back as float32.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_size: int,
        squash: bool = False,
        mode: str | Sequence[str] = "bilinear",
        boxes: str = "boxes",
        points: str = "points",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if type(image_size) is not int or image_size < 1:
            raise ValueError(f"image_size is {image_size!r}; expected pixels, at least 1.")
        self.image_size = image_size
        self.squash = squash
        self.mode = _modes(mode, len(self.keys))
        self.boxes = boxes
        self.points = points

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary in the model frame."""
        found = dict(data)
        sizes: dict[Hashable, tuple[int, int]] = {}
        for key, mode in self.key_iterator(found, self.mode):
            image = convert_to_tensor(found[key], track_meta=get_track_meta())
            sizes[key] = (int(image.shape[1]), int(image.shape[2]))
            frame = ModelFrame(sizes[key], self.image_size, self.squash)
            framed = _like(_framed(_as_slices(image), frame, mode), image, *frame.scale)
            found[key] = self.push_transform(  # type: ignore[no-untyped-call]
                framed, orig_size=tuple(image.shape[1:]), extra_info={"mode": mode}
            )
        if len(set(sizes.values())) > 1:
            raise ValueError(f"images have the sizes {sizes}; expected one for all keys.")
        if sizes:
            self._scale(found, *frame.scale)
        return found

    def inverse(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary in the slice frame."""
        found = dict(data)
        x = y = 1.0
        for key in self.key_iterator(found):
            info = self.pop_transform(found[key])
            nearest, size = info["extra_info"]["mode"] == "nearest", tuple(info["orig_size"][:2])
            frame = ModelFrame(size, self.image_size, self.squash)
            slices = _as_slices(found[key])
            values = _resized(slices, (self.image_size,) * 2, "nearest" if nearest else "bilinear")
            back = (
                frame.back(values.float(), nearest)
                if values.numel()
                else values.new_zeros((*values.shape[:2], *size))
            )
            x, y = 1 / frame.scale[0], 1 / frame.scale[1]
            found[key] = _like(back.to(slices.dtype) if nearest else back, found[key], x, y)
        self._scale(found, x, y)
        return found

    def _scale(self, found: dict[Hashable, Any], x: float, y: float) -> None:
        """Scale boxes and points, where they are there, to float32."""
        for key in (self.boxes, self.points):
            if found.get(key) is not None:
                values = convert_to_tensor(found[key], torch.float32, wrap_sequence=True)
                found[key] = scaled(values, x, y)


def _modes(mode: str | Sequence[str], count: int) -> tuple[str, ...]:
    modes = tuple(ensure_tuple_rep(mode, count))
    if not set(modes) <= {"bilinear", "nearest"}:
        raise ValueError(f"mode is {mode!r}; expected 'bilinear' or 'nearest', one for each key.")
    return modes


def _framed(slices: Tensor, frame: ModelFrame, mode: str) -> Tensor:
    """(N, C, H, W) -> (N, C, S, S); bilinear gives float32 or float64."""
    if not slices.numel():
        return slices.new_zeros((*slices.shape[:2], frame.image_size, frame.image_size))
    if mode == "bilinear":
        return frame.image(slices if slices.dtype == torch.float64 else slices.float())
    if slices.dtype == torch.bool:
        return frame.masks(slices)
    return F.pad(_resized(slices, frame.inner, mode), frame.padding)


def _like(slices: Tensor, image: Tensor, x: float, y: float) -> Tensor:
    """(N, C, h, w) in the layout of an image, its affine scaled by new pixels per old one."""
    made = with_meta_of(image, slices[0] if image.ndim == 3 else slices.permute(1, 2, 3, 0))
    if isinstance(made, MetaTensor):
        step = torch.ones(len(made.affine) - 1, dtype=made.affine.dtype)  # old pixels per new pixel
        step[:2] = 1 / torch.tensor([y, x], dtype=made.affine.dtype)
        scale = torch.diag(torch.cat([step, step.new_ones(1)]))
        scale[:-1, -1] = (step - 1) / 2  # pixel centres are at whole numbers
        made.affine = made.affine @ scale
    return made


def _as_slices(image: Tensor) -> Tensor:
    """(C, H, W) or (C, H, W, D) -> (1 or D, C, H, W), without MONAI's metadata."""
    plain: Tensor = convert_to_tensor(image, track_meta=False)
    return plain[None] if plain.ndim == 3 else plain.permute(3, 0, 1, 2)


def _resized(slices: Tensor, size: tuple[int, ...], mode: str) -> Tensor:
    """(N, C, H, W) at another size: nearest, of the same type; or bilinear, antialiased, float."""
    if tuple(slices.shape[-2:]) == size or not slices.numel():
        return slices
    if mode == "nearest":
        found = F.interpolate(slices.float(), size, mode="nearest-exact")
        return found.to(slices.dtype)
    return F.interpolate(slices.float(), size, mode="bilinear", antialias=True)
