"""Stock segment_anything: the model, the training loop of tutorials, its operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from segment_anything import modeling
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medsam_tune.sam.build import Architecture, architecture
from medsam_tune.training.losses import mask_losses, shares

BOXES = 4
"""Objects of each image."""


def stock_sam(
    name: str,
    size: int,
    device: str = "cpu",
    classes: Any = modeling,
    masks: int = 3,
    **given: Any,
) -> Sam:
    """A SAM of any architecture and input size, made on a device; positions are not zero.

    Args:
        name: architecture.
        size: side of the input, pixels.
        device: where its random weights are made.
        classes: stock segment_anything's `modeling`, or what a fork of it has in its place.
        masks: number of masks that the decoder makes beside the single one.
        given: what the fork's encoder, transformer and SAM take more.
    """
    arch = architecture(name)
    grid = size // arch.stride
    with torch.device(device):
        make = partial(classes.ImageEncoderViT, **given)
        encoder = _encoder(arch, grid, arch.depth, arch.global_blocks, make)
        for key, parameter in encoder.named_parameters():
            if "pos" in key:
                nn.init.normal_(parameter, std=0.1)
        transformer = classes.TwoWayTransformer(
            depth=2,
            embedding_dim=arch.decoder_width,
            num_heads=arch.decoder_heads,
            mlp_dim=arch.decoder_mlp,
            **given,
        )
        sam: Sam = classes.Sam(
            image_encoder=encoder,
            prompt_encoder=classes.PromptEncoder(
                arch.decoder_width, (grid, grid), (size, size), 16
            ),
            mask_decoder=classes.MaskDecoder(
                num_multimask_outputs=masks,
                transformer_dim=arch.decoder_width,
                transformer=transformer,
            ),
            **given,
        )
    return sam.to(device)  # its mean and deviation too, which are made on the CPU


def _encoder(
    arch: Architecture,
    grid: int,
    depth: int,
    global_blocks: tuple[int, ...],
    make: Callable[..., ImageEncoderViT] = ImageEncoderViT,
) -> ImageEncoderViT:
    return make(
        img_size=grid * arch.stride,
        patch_size=arch.stride,
        embed_dim=arch.width,
        depth=depth,
        num_heads=arch.heads,
        out_chans=arch.decoder_width,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=arch.window,
        global_attn_indexes=global_blocks,
    )


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Dice and cross-entropy of (B, P, h, w) logits and (B, P, S, S) masks."""
    return mask_losses(logits, shares(masks, logits)).mean()


def stock_step(sam: Sam, image: Tensor, boxes: Tensor, masks: Tensor) -> Tensor:
    """The loss of the tutorials' loop: the decoder takes one image at a time, with its boxes."""
    loss = image.new_zeros(())
    trains = any(p.requires_grad for p in sam.image_encoder.parameters())
    with torch.set_grad_enabled(trains):
        embeddings = sam.image_encoder(image)
    for b in range(len(image)):
        logits = stock_logits(sam, embeddings[b : b + 1], boxes[b])
        loss = loss + mask_loss(logits[None], masks[b][None])
    return loss / len(image)


def stock_logits(sam: Sam, embedding: Tensor, boxes: Tensor) -> Tensor:
    """Logits (P, h, w) of one image's embedding (1, D, G, G) and its boxes (P, 4)."""
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
    pe = sam.prompt_encoder.get_dense_pe()
    return sam.mask_decoder(embedding, pe, sparse, dense, multimask_output=False)[0][:, 0]


@cache
def operations(name: str, size: int, method: str) -> float:
    """FLOPs of an image through stock SAM, as torch counts them, without padded windows.

    Args:
        name: architecture.
        size: side of the input, pixels.
        method: "encoder" for its forward pass; or a method, for a training step with `BOXES` boxes
            from the image on: the gradients that it needs, and no operation that it adds.
    """
    arch = architecture(name)
    grid = size // arch.stride
    through = {"encoder": "forward", "decoder": "forward", "prompt": "forward", "full": "trained"}
    mode = through.get(method, "frozen")
    count = partial(_encoder_operations, arch, mode=mode)
    apart = len(arch.global_blocks)
    # Blocks with windows cost the same for each token: counted on one window, without padding.
    found = count(arch.window, arch.depth - apart, ()) * (grid / arch.window) ** 2
    found += count(grid, apart, tuple(range(apart))) - count(grid, 0, ())
    return found if method == "encoder" else found + _decoder_operations(name, size, method)


def _encoder_operations(
    arch: Architecture, grid: int, depth: int, global_blocks: tuple[int, ...], mode: str
) -> float:
    with torch.device("meta"):
        encoder = _encoder(arch, grid, depth, global_blocks)
        encoder.requires_grad_(mode == "trained")
        encoder.pos_embed.requires_grad_(mode != "forward")
        image = torch.empty(1, 3, grid * arch.stride, grid * arch.stride)
        with FlopCounterMode(display=False) as counter:
            found = encoder(image)
            if mode != "forward":
                found.sum().backward()
    return float(counter.get_total_flops())


def _decoder_operations(name: str, size: int, method: str) -> float:
    sam = stock_sam(name, size, "meta").requires_grad_(False)
    sam.mask_decoder.requires_grad_(method in ("decoder", "full"))
    if method == "prompt":  # learned tokens stand among those of the prompt
        sam.prompt_encoder.point_embeddings.requires_grad_(True)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        grid = sam.prompt_encoder.image_embedding_size
        embedding = torch.empty(1, architecture(name).decoder_width, *grid)
        embedding.requires_grad_(method not in ("decoder", "prompt"))
        stock_logits(sam, embedding, torch.empty(BOXES, 4)).sum().backward()
    return float(counter.get_total_flops())
