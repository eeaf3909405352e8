"""Fine-tuning in Python, on batches of images, masks and prompts from any loader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medsam_tune.console import LOG
from medsam_tune.methods import apply_method
from medsam_tune.sam.model import PromptableSam
from medsam_tune.training.losses import PromptLoss, loss_of_prompts
from medsam_tune.training.optimizers import parameter_groups
from medsam_tune.training.rates import learning_rate, token_rate


def finetune(
    model: PromptableSam,
    loader: Iterable[Mapping[str, Any]],
    epochs: int = 10,
    lr: float | None = None,
    loss: nn.Module | None = None,
    weight_decay: float = 0.01,
    method: str | None = None,
) -> list[float]:
    """Fine-tune a model on the batches of a loader, with AdamW at a constant rate.

    The recipes (`medsam-tune train`) do more: augmentation, validation, checkpoints, a schedule.

    Args:
        model: model from `build_sam` or `apply_method`, on the device to train on; changed in
            place, and left in evaluation mode, also by an error or Ctrl-C.
        loader: batches, given anew in each epoch: a `DataLoader`, or a list. A batch is a dict with

            - `images` (B, C, S, S) float in [0, 1], model frame;
            - `masks` (B, P, h, w) bool or 0 and 1, of the objects that the prompts mean; S x S,
              S/4 x S/4, or the resolution of the logits (S/4 in SAM, S/2 in nano, S in LiteMedSAM);
            - `prompts`, a dict of arguments of `PromptableSam.forward`, pixels of the model frame:
              `boxes` (B, P, 4) float XYXY; `points` (B, P, N, 2) float XY with `point_labels`
              (B, P, N) int, 1 inside, 0 outside, -1 padding; `masks`; `classes`. Those that are
              None are left out. Boxes and points lie in the image, 0 to S; a pixel beyond is
              rounding.

            With one object in each image, prompts may be as SAM's prompt encoder takes them:
            `boxes` (B, 4), and `points` a pair, coordinates (B, N, 2) and labels (B, N).
        epochs: number of passes over the loader.
        lr: learning rate; by default the recipes', see `training.rates`.
        loss: `PromptLoss`, or any loss of torch or MONAI on logits, such as `BCEWithLogitsLoss`,
            for the masks; beside it the quality keeps its loss, see `loss_of_prompts`.
        weight_decay: that of AdamW.
        method: key of `METHODS`, applied to a model that has none yet, by default "decoder". A
            model that has one goes on with it.

    Returns:
        mean loss of each epoch.

    Raises:
        ValueError: an empty loader, unknown prompts, other shapes or values than above, another
            method than the model's, or a call within `torch.no_grad()`.
        FloatingPointError: the loss is NaN or infinite.

    Example:
        >>> model = build_sam("vit_b", "checkpoints/sam_vit_b_01ec64.pth")
        >>> finetune(model, loader, epochs=10, lr=1e-4)
        >>> save_tuned(model, "tuned.safetensors")
    """
    if not torch.is_grad_enabled():
        raise ValueError(
            "gradients are off here; call finetune outside of torch.no_grad() and inference_mode()."
        )
    criterion = loss_of_prompts(loss or PromptLoss())
    if model.tuning is None:
        method = method or "decoder"
        apply_method(model, method)
    elif method in (None, model.tuning.method):
        method = model.tuning.method
    else:
        raise ValueError(
            f"method is {method!r}, and the model is tuned by {model.tuning.method!r} already; "
            "build a fresh base for another, or leave method out."
        )
    rate = learning_rate(method, model.base.name) if lr is None else lr
    groups = parameter_groups(model, rate, token_lr=token_rate(method, model.base.name, rate))
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=weight_decay)
    device = model.pixel_mean.device
    means = []
    model.train()
    try:
        for epoch in range(1, epochs + 1):
            losses = []
            for batch in loader:
                images, masks, prompts = _moved(batch, device, model.classes)
                output = model(images, **prompts, return_quality=True)
                _refuse_other_grids(masks, images, output.logits)
                found = criterion(output, masks)
                if not torch.isfinite(found):
                    raise FloatingPointError(
                        f"loss is {float(found.detach())} in epoch {epoch}; lower the learning "
                        f"rate, {rate:g}."
                    )
                optimizer.zero_grad()
                found.backward()
                optimizer.step()
                losses.append(found.detach())
            if not losses:
                raise ValueError(f"the loader gives no batch in epoch {epoch}; expected some.")
            means.append(float(torch.stack(losses).mean()))
            LOG.info(f"epoch {epoch} of {epochs}: loss {means[-1]:.4f}")
    finally:
        model.eval()
    return means


def _moved(
    batch: Mapping[str, Any], device: Any, classes: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Images, masks as bool, and prompts of a batch, on a device."""
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"a batch is a {type(batch).__name__}; expected a dict with images, masks and prompts."
        )
    if missing := sorted({"images", "masks", "prompts"} - batch.keys()):
        raise ValueError(
            f"a batch has {', '.join(map(str, batch))}; expected images, masks and prompts: "
            f"{missing[0]} is missing."
        )
    for key, kind in (("images", Tensor), ("masks", Tensor), ("prompts", Mapping)):
        if not isinstance(batch[key], kind):
            expected = "a tensor" if kind is Tensor else "a dict, such as {'boxes': boxes}"
            raise ValueError(f"{key} are a {type(batch[key]).__name__}; expected {expected}.")
    images, masks = batch["images"].to(device), batch["masks"].to(device)
    images = images.float() if images.dtype == torch.float64 else images
    low, high = float(images.amin()), float(images.amax())
    if not (low >= -0.5 and high <= 1.5):  # a little outside [0, 1] may be noise; NaN is refused
        raise ValueError(
            f"images are from {low:g} to {high:g}; expected [0, 1], without mean and deviation, "
            "which the model applies itself."
        )
    if not (float(masks.amin()) >= 0 and float(masks.amax()) <= 1):
        raise ValueError(
            f"masks are from {float(masks.amin()):g} to {float(masks.amax()):g}; expected 0 and 1, "
            "or false and true. Divide masks of 0 and 255 by 255."
        )
    prompts = {key: value.to(device) for key, value in _prompts(batch["prompts"]).items()}
    counts = {tuple(value.shape[:2]) for value in prompts.values()} or {(len(images), classes or 1)}
    if masks.ndim != 4 or len(masks) != len(images) or counts != {tuple(masks.shape[:2])}:
        shapes = {key: tuple(value.shape) for key, value in prompts.items()}
        raise ValueError(
            f"masks have shape {tuple(masks.shape)}, images {tuple(images.shape)}, prompts "
            f"{shapes}; expected masks (B, P, h, w), and prompts of the same B and P."
        )
    if "boxes" in prompts:
        _refuse_other_pixels("boxes", prompts["boxes"], images)
    if {"points", "point_labels"} <= prompts.keys():
        placed = prompts["point_labels"] >= 0  # no padding
        _refuse_other_pixels("points", prompts["points"][placed], images)
    return images, masks > 0.5, prompts


def _refuse_other_pixels(key: str, places: Tensor, images: Tensor) -> None:
    """Refuse coordinates (..., XY) that are no pixels of images (B, C, H, W)."""
    if not places.numel():
        return
    h, w = images.shape[-2:]
    low, high = float(places.min()), float(places.max())
    beyond = places.unflatten(-1, (-1, 2)) - torch.tensor([w, h], device=places.device)
    if low < -1 or float(beyond.max()) > 1:
        raise ValueError(
            f"{key} are from {low:g} to {high:g}, outside of the images of {h} x {w}; expected "
            "pixels of these. Scale them as the images were scaled, or clip them."
        )
    if 0 <= low and high <= 1:
        raise ValueError(
            f"{key} are from {low:g} to {high:g}; expected pixels, not shares of the images of "
            f"{h} x {w}. Multiply them by its sides."
        )


def _refuse_other_grids(masks: Tensor, images: Tensor, logits: Tensor) -> None:
    """Refuse masks that are neither at the images' grid, a quarter of it, nor at the logits'."""
    found, side = tuple(masks.shape[-2:]), images.shape[-1]
    known = {side: "the images'", logits.shape[-1]: "the logits'", side // 4: "SAM's logits'"}
    if found not in {(one, one) for one in known}:
        raise ValueError(
            f"masks are {found[0]} x {found[1]}; expected square ones of "
            f"{', '.join(f'{one} ({whose})' for one, whose in known.items())}. Resize them as the "
            "images were."
        )


_SHAPES = {
    "boxes": "B, P, 4",
    "points": "B, P, N, 2",
    "point_labels": "B, P, N",
    "masks": "B, P, h, w",
    "classes": "B, P",
}


def _prompts(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Prompts of P objects in each image; those of one object, as SAM takes them, get P = 1."""
    prompts = {key: value for key, value in given.items() if value is not None}
    pair = prompts.get("points")
    if isinstance(pair, tuple | list):  # a DataLoader makes a list of a tuple
        if len(pair) != 2 or "point_labels" in prompts:
            raise ValueError(
                f"points are {len(pair)} tensors, with {', '.join(prompts)}; expected a pair, "
                "coordinates and labels, or one tensor with point_labels."
            )
        prompts["points"], prompts["point_labels"] = pair
    for key, value in prompts.items():
        if key not in _SHAPES:
            raise ValueError(f"prompts have {key!r}; expected some of {', '.join(_SHAPES)}.")
        sides = _SHAPES[key].split(", ")
        if not isinstance(value, Tensor):
            raise ValueError(f"{key} are a {type(value).__name__}; expected a tensor.")
        shape = tuple(value.shape)
        if key in ("boxes", "points", "point_labels") and len(shape) == len(sides) - 1:
            prompts[key] = value = value[:, None]  # P = 1
        if value.ndim != len(sides) or (sides[-1].isdigit() and value.shape[-1] != int(sides[-1])):
            raise ValueError(f"{key} have shape {shape}; expected ({_SHAPES[key]}).")
        if not torch.isfinite(value).all():
            raise ValueError(f"{key} hold NaN or infinity; expected numbers, in pixels.")
    boxes, labels = prompts.get("boxes"), prompts.get("point_labels")
    if boxes is not None and bool((boxes[..., 2:] < boxes[..., :2]).any()):
        raise ValueError(
            "a box ends before it starts; expected x0, y0, x1, y1 in pixels, with x0 <= x1 and "
            "y0 <= y1."
        )
    if labels is not None and not bool(((labels >= -1) & (labels <= 1)).all()):
        raise ValueError("a point label is none of 1 (in), 0 (out) and -1 (no point).")
    points = prompts.get("points")
    if points is not None and labels is not None and points.shape[:-1] != labels.shape:
        raise ValueError(
            f"points have shape {tuple(points.shape)}, their labels {tuple(labels.shape)}; "
            "expected a label for each point."
        )
    return prompts
