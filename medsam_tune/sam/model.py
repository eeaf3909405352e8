"""`PromptableSam`: Segment Anything as one differentiable module, B images x P prompts at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from torch import Tensor, nn

from medsam_tune.prompts import Prompts
from medsam_tune.sam.decoder import predict_masks
from medsam_tune.sam.encoder import ImageEncoder
from medsam_tune.sam.learned import LearnedTokens
from medsam_tune.sam.prompting import embed_prompts
from medsam_tune.sam.tiny import TinyViT

# SAM's training statistics, RGB in 0..255 (segment_anything/build_sam.py).
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)
NORMALISATIONS = ("sam", "medsam")


@dataclass(frozen=True)
class BaseModel:
    """Description of a base model, to build it again and to refuse tuned files of another base.

    Attributes:
        name: key of `medsam_tune.sam.build.ARCHITECTURES`, e.g. "vit_b".
        image_size: S, side of the square input, pixels.
        in_channels: number of image channels.
        normalisation: "sam" (mean and standard deviation) or "medsam" (input stays in [0, 1]).
        sha256: hash of the weights before tuning, as they were read, before they are fitted to size
            and channels: equal on all processors.
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
    """Method that was applied to a base, and its options."""

    method: str
    options: dict[str, Any]


class Masks(NamedTuple):
    """Masks of P prompts on each of B images.

    Attributes:
        logits: (B, P, 4G, 4G) float, > 0 inside, model frame (4G is S/4, and S in LiteMedSAM).
        quality: (B, P) float, the decoder's estimate of the mask's IoU.
        presence: (B, P) float, the logit of the class's presence in the image; None for a model
            without learned class tokens.
    """

    logits: Tensor
    quality: Tensor
    presence: Tensor | None = None


class PromptableSam(nn.Module):
    """Segment Anything: image encoder, prompt encoder and mask decoder, composed.

    The three parts come from `segment_anything.modeling` (with `encoder.Attention` in the first)
    and keep their names, so a state dict differs from a stock one by the split `qkv` only.

    Args:
        image_encoder: encoder (B, C, S, S) -> (B, D, G, G); G is S/16, and S/4 in LiteMedSAM.
        prompt_encoder: prompts -> sparse (N, T, D) and dense (N, D, G, G) embeddings.
        mask_decoder: stock decoder; its layers are called on all prompts of a batch at once.
        in_channels: channels of the image; channels after RGB use the mean of the RGB statistics.
        normalisation: "sam" or "medsam", see `BaseModel`.
    """

    base: BaseModel
    tuning: Tuning | None = None
    random_weights: bool = False

    def __init__(
        self,
        image_encoder: ImageEncoder | TinyViT,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        in_channels: int = 3,
        normalisation: str = "sam",
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.learned: LearnedTokens | None = None  # set by a method
        self.image_size: int = image_encoder.img_size
        mean, std = _statistics(in_channels, normalisation)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def train(self, mode: bool = True) -> PromptableSam:
        """Set training mode, but keep the statistics of (TinyViT's) batch normalisation.

        Batches are small here, and statistics are no parameters that a method tunes.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    @property
    def classes(self) -> int:
        """K of a model that knows K classes, by prompts or without; else 0."""
        return 0 if self.learned is None else self.learned.classes

    @property
    def frozen_blocks(self) -> int | None:
        """Number of encoder blocks before the first that is trained; None if none of it is."""
        encoder = self.image_encoder
        if not any(p.requires_grad for p in encoder.parameters()):
            return None
        if not isinstance(encoder, ImageEncoder):
            return 0
        start = (*encoder.patch_embed.parameters(), encoder.pos_embed)
        if any(p is not None and p.requires_grad for p in start):
            return 0
        trained = (any(p.requires_grad for p in block.parameters()) for block in encoder.blocks)
        return next((n for n, one in enumerate(trained) if one), len(encoder.blocks))

    def encode_frozen(self, image: Tensor) -> Tensor:
        """The part of `encode` that training does not change.

        Args:
            image: see `encode`.

        Returns:
            (B, D, G, G) embedding, if nothing of the encoder is trained; else the tokens
            (B, G, G, W) that the first trained block takes.

        Raises:
            ValueError: the first block is trained already; or see `encode`.
        """
        if (blocks := self.frozen_blocks) == 0:
            raise ValueError("the image encoder is trained from its first block on.")
        normalised = self._normalised(image)
        part = () if blocks is None else (0, blocks)
        return self.image_encoder(normalised, *part)  # type: ignore[no-any-return]

    def encode_rest(self, frozen: Tensor) -> Tensor:
        """Embeddings (B, D, G, G) from what `encode_frozen` gave."""
        blocks = self.frozen_blocks
        return frozen if blocks is None else self.image_encoder(frozen, blocks)

    def encode(self, image: Tensor) -> Tensor:
        """Embed images.

        Args:
            image: (B, C, S, S) float in [0, 1], model frame.

        Returns:
            (B, D, G, G) float embedding; `decode` can use it many times.

        Raises:
            ValueError: another shape, or an integer image.
        """
        return self.image_encoder(self._normalised(image))  # type: ignore[no-any-return]

    def _normalised(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"image has shape {tuple(image.shape)}; expected (B, C, {self.image_size}, "
                f"{self.image_size}). Bring slices into the model frame first (ModelFrame)."
            )
        if not image.is_floating_point():
            raise ValueError(f"image is {image.dtype}; expected float in [0, 1]. Divide by 255.")
        return (image - self.pixel_mean) / self.pixel_std  # type: ignore[operator]

    def decode(self, embedding: Tensor, prompts: Prompts = Prompts()) -> Masks:
        """Masks for P prompts on each of B embedded images, in one pass of the decoder.

        Args:
            embedding: (B, D, G, G) float, from `encode`.
            prompts: prompts of the same B; without any, P is 1, or K with learned class tokens.

        Returns:
            logits (B, P, 4G, 4G), quality (B, P) and presence (B, P).

        Raises:
            ValueError: prompts of different B or P, points without labels, or classes missing, out
                of range, or given to a model without them.
        """
        logits, quality, presence = self.decode_masks(embedding, prompts, which=slice(0, 1))
        return Masks(logits.squeeze(2), quality.squeeze(2), presence)

    def decode_masks(
        self, embedding: Tensor, prompts: Prompts = Prompts(), which: slice = slice(1, 4)
    ) -> Masks:
        """Several masks for each prompt, for a point that may mean a part or the whole.

        Args:
            embedding: (B, D, G, G) float, from `encode`.
            prompts: prompts, see `decode`.
            which: slice of the decoder's four masks: the first is `decode`'s, the other three are
                SAM's multi-mask output.

        Returns:
            logits (B, P, M, 4G, 4G); quality (B, P, M), the mask with the highest is the best
            estimate; presence (B, P).

        Raises:
            ValueError: see `decode`.
        """
        each, classes = self._counted(embedding, prompts)
        count = embedding.shape[0] * each
        sparse, dense, absent = embed_prompts(self.prompt_encoder, count, prompts.flattened())
        learned = None if self.learned is None else self.learned(classes, count)
        logits, quality, token = predict_masks(
            self.mask_decoder,
            embedding.repeat_interleave(each, dim=0) + dense,
            self.prompt_encoder.get_dense_pe(),
            sparse,
            absent,
            which,
            learned,
        )
        presence = None
        logits, quality = logits.unflatten(0, (-1, each)), quality.unflatten(0, (-1, each))
        if self.learned is not None and classes is not None:
            presence = self.learned.presence(token, classes).unflatten(0, (-1, each))
            asked, placed = classes.unflatten(0, (-1, each)), prompts.placed
            asked = asked if placed is None else asked.masked_fill(placed, -1)
            coarse = self.learned.coarse_logits(embedding, asked, logits.shape[-2:])
            logits = logits + coarse[:, :, None]
        return Masks(logits, quality, presence)

    def forward(
        self,
        image: Tensor,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        masks: Tensor | None = None,
        classes: Tensor | None = None,
        return_quality: bool = False,
        embedded: bool = False,
    ) -> Tensor | Masks:
        """Compute `decode(encode(image), Prompts(...))` from separate tensors.

        Args:
            image: (B, C, S, S) float in [0, 1], model frame; with `embedded` what
                `encode_frozen` gave.
            boxes: (B, P, 4) float, see `Prompts`.
            points: (B, P, N, 2) float, see `Prompts`.
            point_labels: (B, P, N) int, see `Prompts`.
            masks: (B, P, 4G, 4G) float, see `Prompts`.
            classes: (B, P) int64, see `Prompts`.
            return_quality: give quality and presence as well.
            embedded: the frozen part of the encoder ran already.

        Returns:
            logits (B, P, 4G, 4G), or with `return_quality` all of `Masks`.

        Raises:
            ValueError: see `encode` and `decode`.
        """
        prompts = Prompts(boxes, points, point_labels, masks, classes)
        found = self.decode(self.encode_rest(image) if embedded else self.encode(image), prompts)
        return found if return_quality else found.logits

    def _counted(self, embedding: Tensor, prompts: Prompts) -> tuple[int, Tensor | None]:
        """P of the prompts, and the class of each of all B * P, checked against the model."""
        images = embedding.shape[0]
        if (prompts.points is None) != (prompts.point_labels is None):
            raise ValueError("points and point_labels come together; one of them is missing.")
        shapes = {name: tuple(tensor.shape[:2]) for name, tensor in prompts.given.items()}
        count = next(iter(shapes.values()))[1] if shapes else self.classes or 1
        if any(shape != (images, count) for shape in shapes.values()):
            raise ValueError(
                f"prompts are for (B, P) = {shapes}, the embedding holds {images} images; every "
                "prompt needs the images' B and the same P."
            )
        classes = prompts.classes
        if not self.classes:
            if classes is not None:
                raise ValueError("classes are given, but the model has no learned class tokens.")
            return count, None
        if classes is None:
            if shapes:
                raise ValueError(
                    f"the model knows {self.classes} classes; give the class of each prompt, or -1."
                )
            classes = torch.arange(count, device=embedding.device).expand(images, -1)
        # A training step on a GPU does not wait for the answer; an index out of range fails there.
        checked = classes.numel() and not (self.training and classes.is_cuda)
        if checked and not -1 <= int(classes.min()) <= int(classes.max()) < self.classes:
            raise ValueError(
                f"classes are from {int(classes.min())} to {int(classes.max())}; expected 0 to "
                f"{self.classes - 1}, or -1 for none."
            )
        return count, classes.flatten()


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
