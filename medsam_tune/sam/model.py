"""`PromptableSam`: Segment Anything as one differentiable module, B images x P prompts at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder
from torch import Tensor, nn

# SAM's training statistics, RGB in 0..255 (segment_anything/build_sam.py).
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)
NORMALISATIONS = ("sam", "medsam")


@dataclass(frozen=True)
class BaseModel:
    """What a base model is: enough to build it again and to refuse a tuned file of another one.

    Attributes:
        name: key of `medsam_tune.sam.build.ARCHITECTURES`, e.g. "vit_b".
        image_size: side S of the square input, pixels.
        in_channels: image channels.
        normalisation: "sam" (mean and standard deviation) or "medsam" (input stays in [0, 1]).
        sha256: hash of the weights before anything was tuned.
    """

    name: str
    image_size: int
    in_channels: int
    normalisation: str
    sha256: str

    def as_dict(self) -> dict[str, str | int]:
        """The fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Tuning:
    """Which method was applied to a base, with the options it was applied with."""

    method: str
    options: dict[str, object]


class PromptableSam(nn.Module):
    """Segment Anything: image encoder, prompt encoder and mask decoder, composed.

    The three parts are `segment_anything.modeling`'s own (with `encoder.Attention` inside the
    first) under their own names, so a state dict differs from a stock one by split `qkv` only.

    Args:
        image_encoder: (B, C, S, S) -> (B, D, S/16, S/16).
        prompt_encoder: prompts -> sparse (N, T, D) and dense (N, D, S/16, S/16) embeddings.
        mask_decoder: the stock decoder; its layers are called on all prompts of a batch at once.
        in_channels: channels of the image; beyond RGB the mean of the RGB statistics is used.
        normalisation: "sam" or "medsam", see `BaseModel`.
    """

    base: BaseModel
    tuning: Tuning | None = None
    random_weights: bool = False

    def __init__(
        self,
        image_encoder: ImageEncoderViT,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        in_channels: int = 3,
        normalisation: str = "sam",
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.image_size: int = image_encoder.img_size
        mean, std = _statistics(in_channels, normalisation)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def encode(self, image: Tensor) -> Tensor:
        """Embed images.

        Args:
            image: (B, C, S, S) float in [0, 1], model frame.

        Returns:
            (B, D, S/16, S/16) float embedding; may be kept and given to `decode` many times.

        Raises:
            ValueError: another shape, or an integer image.
        """
        if image.ndim != 4 or image.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"image has shape {tuple(image.shape)}; expected (B, C, {self.image_size}, "
                f"{self.image_size}). Bring slices into the model frame first (ModelFrame)."
            )
        if not image.is_floating_point():
            raise ValueError(f"image is {image.dtype}; expected float in [0, 1]. Divide by 255.")
        return self.image_encoder((image - self.pixel_mean) / self.pixel_std)  # type: ignore[no-any-return,operator]

    def decode(
        self,
        embedding: Tensor,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Masks for P prompts on each of B embedded images, in one pass of the decoder.

        Args:
            embedding: (B, D, S/16, S/16) float, from `encode`.
            boxes: (B, P, 4) float XYXY, model frame, upper bounds exclusive.
            points: (B, P, N, 2) float XY, model frame.
            point_labels: (B, P, N) 1 = inside, 0 = outside, -1 = padding.
            masks: (B, P, S/4, S/4) float logits of an earlier mask.
            Without any prompt P is 1.

        Returns:
            logits: (B, P, S/4, S/4) float, > 0 inside, model frame at a quarter of S.
            quality: (B, P) float, the decoder's own estimate of the IoU.

        Raises:
            ValueError: prompts of different B or P, or points without labels.
        """
        prompts = self._prompt_count(embedding.shape[0], boxes, points, point_labels, masks)
        flat = embedding.shape[0] * prompts
        sparse, dense = self.prompt_encoder(
            points=None
            if points is None or point_labels is None
            else (points.reshape(flat, -1, 2), point_labels.reshape(flat, -1)),
            boxes=None if boxes is None else boxes.reshape(flat, 4),
            masks=None if masks is None else masks.reshape(flat, 1, *masks.shape[-2:]),
        )
        logits, quality = _predict_masks(
            self.mask_decoder,
            embedding.repeat_interleave(prompts, dim=0),
            self.prompt_encoder.get_dense_pe(),
            sparse.expand(flat, -1, -1),
            dense,
        )
        size = logits.shape[-2:]
        return (
            logits[:, 0].reshape(-1, prompts, *size),
            quality[:, 0].reshape(-1, prompts),
        )

    def forward(
        self,
        image: Tensor,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        masks: Tensor | None = None,
        return_quality: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`decode(encode(image), ...)`; arguments as there.

        Returns:
            logits (B, P, S/4, S/4), and with `return_quality` also quality (B, P).
        """
        logits, quality = self.decode(self.encode(image), boxes, points, point_labels, masks)
        return (logits, quality) if return_quality else logits

    @staticmethod
    def _prompt_count(
        images: int,
        boxes: Tensor | None,
        points: Tensor | None,
        point_labels: Tensor | None,
        masks: Tensor | None,
    ) -> int:
        if (points is None) != (point_labels is None):
            raise ValueError("points and point_labels come together; one of them is missing.")
        given = {"boxes": boxes, "points": points, "point_labels": point_labels, "masks": masks}
        shapes = {name: tuple(p.shape[:2]) for name, p in given.items() if p is not None}
        if any(shape[0] != images for shape in shapes.values()) or len(set(shapes.values())) > 1:
            raise ValueError(
                f"prompts are for (B, P) = {shapes}, the embedding holds {images} images; "
                "every prompt needs the images' B and the same P."
            )
        return next(iter(shapes.values()))[1] if shapes else 1


def _predict_masks(
    decoder: MaskDecoder, src: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """Stock `MaskDecoder.predict_masks` for N (image, prompt) pairs.

    The stock method repeats one image over its prompts, so a batch of images would need a loop.

    Args:
        decoder: the stock decoder (or one with adapted layers).
        src: (N, D, h, w) image embedding of each pair.
        image_pe: (1, D, h, w) positional encoding.
        sparse: (N, T, D) prompt tokens.
        dense: (N, D, h, w) prompt masks.

    Returns:
        masks (N, 4, 4h, 4w) logits and quality (N, 4); index 0 is the single-mask output.
    """
    n, d, h, w = src.shape
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(n, -1, -1), sparse], dim=1)
    hidden, src = decoder.transformer(src + dense, image_pe.expand(n, -1, -1, -1), tokens)
    upscaled = decoder.output_upscaling(src.transpose(1, 2).reshape(n, d, h, w))
    weights = torch.stack(
        [mlp(hidden[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )  # (N, 4, D/8)
    masks = torch.einsum("nkd,ndhw->nkhw", weights, upscaled)
    return masks, decoder.iou_prediction_head(hidden[:, 0])


def _statistics(in_channels: int, normalisation: str) -> tuple[Tensor, Tensor]:
    """Per-channel mean and standard deviation for images in [0, 1], each (C, 1, 1)."""
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation {normalisation!r} is unknown; known: {NORMALISATIONS}.")
    if normalisation == "medsam":
        return torch.zeros(in_channels, 1, 1), torch.ones(in_channels, 1, 1)
    pair = []
    for rgb in (_PIXEL_MEAN, _PIXEL_STD):
        values = list(rgb) if in_channels >= 3 else []
        values += [sum(rgb) / 3] * (in_channels - len(values))
        pair.append(torch.tensor(values).view(-1, 1, 1) / 255)
    return pair[0], pair[1]
