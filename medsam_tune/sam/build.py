"""Building of a SAM by name, with or without a checkpoint."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from segment_anything.modeling import (
    MaskDecoder,
    PromptEncoder,
    TwoWayTransformer,
)
from torch import Tensor, nn

from medsam_tune.errors import DataError
from medsam_tune.sam.checkpoints import read_state
from medsam_tune.sam.decoder import replace_decoder_attention
from medsam_tune.sam.encoder import ImageEncoder, split_qkv
from medsam_tune.sam.model import BaseModel, PromptableSam
from medsam_tune.sam.tiny import TinyViT, split_tiny

PATCH = 16

MAX_IMAGE_SIZE = 4096
"""Largest side of the input, pixels; the encoder's memory grows with its square."""

MAX_CHANNELS = 256
"""Largest number of image channels."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a SAM.

    Attributes:
        name: key in `ARCHITECTURES`.
        width, depth, heads: channels, blocks and attention heads of the image encoder.
        global_blocks: indices of the blocks with global attention; the others use windows.
        window: side of the windows, tokens.
        image_size: native side of the input, pixels.
        decoder_width: D, number of channels of the embedding, prompts and mask decoder.
        decoder_mlp: hidden width of the decoder's MLPs.
        decoder_heads: number of heads of the decoder's attention.
        encoder: "vit", SAM's own, or "tiny", TinyViT, whose sizes are fixed (`sam.tiny`).
        stride: pixels of the input per step of the embedding.
    """

    name: str
    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    image_size: int = 1024
    decoder_width: int = 256
    decoder_mlp: int = 2048
    decoder_heads: int = 8
    encoder: str = "vit"
    stride: int = PATCH


# vit_b, vit_l, vit_h as in segment_anything/build_sam.py, vit_t as in MobileSAM, vit_t_lite as in
# LiteMedSAM; nano is this package's own small model.
ARCHITECTURES: dict[str, Architecture] = {
    a.name: a
    for a in (
        Architecture(
            "nano",
            width=160,
            depth=6,
            heads=5,
            global_blocks=(1, 3, 5),
            window=8,
            image_size=256,
            decoder_width=96,
            decoder_mlp=768,
            decoder_heads=4,
            stride=8,
        ),
        Architecture("vit_t", 320, 12, 10, (), encoder="tiny"),
        Architecture("vit_t_lite", 320, 12, 10, (), image_size=256, encoder="tiny", stride=4),
        Architecture("vit_b", 768, 12, 12, (2, 5, 8, 11)),
        Architecture("vit_l", 1024, 24, 16, (5, 11, 17, 23)),
        Architecture("vit_h", 1280, 32, 16, (7, 15, 23, 31)),
    )
}


# Value of `checkpoint` for random weights from a fixed seed.
RANDOM = "random"
# nano's own weights, pre-trained on synthetic scenes; weights/README.md is their model card.
EMBEDDED = Path(__file__).parent / "weights" / "nano.safetensors"


def build_sam(
    name: str | Architecture = "nano",
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    in_channels: int = 3,
    normalisation: str = "sam",
    gradient_checkpointing: bool = False,
) -> PromptableSam:
    """A `PromptableSam`, ready for inference or for `apply_method`.

    Args:
        name: key of `ARCHITECTURES`, e.g. "nano" or "vit_b" (or an `Architecture` of your own).
        checkpoint: checkpoint of SAM, MedSAM, MobileSAM ("vit_t"), LiteMedSAM ("vit_t_lite"), one
            from `export_sam`, or one of these inside a training program's own (`read_state`);
            loaded strictly. "random" gives random weights from a fixed seed. If None, "nano" gets
            its embedded weights, every other model random ones.
        image_size: S, side of the input, a multiple of 16; positions are interpolated if it differs
            from the native size.
        in_channels: number of image channels; the first layer is inflated if it is not 3.
        normalisation: "sam" for weights of SAM and MobileSAM, "medsam" for both MedSAMs.
        gradient_checkpointing: recompute the encoder's blocks in the backward pass, for memory.

    Returns:
        the model in evaluation mode, on the CPU, float32.

    Raises:
        ValueError: an unknown name, or a wrong size.
        DataError: a checkpoint that is unreadable, of another model, or not finite.
        FileNotFoundError: the checkpoint does not exist.
    """
    arch = name if isinstance(name, Architecture) else architecture(name)
    size = image_size or arch.image_size
    if size % PATCH or not 2 * PATCH <= size <= MAX_IMAGE_SIZE:
        raise ValueError(
            f"image_size {size} is no multiple of {PATCH} of at least {2 * PATCH} and at most "
            f"{MAX_IMAGE_SIZE}."
        )
    if not 1 <= in_channels <= MAX_CHANNELS:
        raise ValueError(
            f"in_channels is {in_channels}; expected at least 1 and at most {MAX_CHANNELS}."
        )
    state = None
    random = str(checkpoint) == RANDOM
    if checkpoint is None and arch == ARCHITECTURES["nano"]:
        checkpoint = EMBEDDED
    if checkpoint is not None and not random:
        state = read_checkpoint(checkpoint, arch)
        arch = _at_size_of(state, arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, prompt_encoder, decoder = _parts(arch)
        _initialise(encoder, prompt_encoder)
    parts = nn.ModuleDict(
        {"image_encoder": encoder, "prompt_encoder": prompt_encoder, "mask_decoder": decoder}
    )
    if state is not None:
        stored = _channels_of(state)
        if stored not in (3, in_channels):
            raise DataError(
                f"{checkpoint}: is of a model for {stored} channels; in_channels is {in_channels}. "
                f"Set in_channels to {stored}."
            )
        _inflate(encoder, stored)
        if not _is_meta(parts):
            parts.load_state_dict(state)
    elif not random and not _is_meta(parts):
        warnings.warn(f"{arch.name} without a checkpoint has random weights.", stacklevel=2)
    base = BaseModel(arch.name, size, in_channels, normalisation, fingerprint(parts))
    _resize(encoder, prompt_encoder, size, arch.stride)  # processors differ in the last bit
    _inflate(encoder, in_channels)
    encoder.gradient_checkpointing = gradient_checkpointing
    sam = PromptableSam(encoder, prompt_encoder, decoder, in_channels, normalisation)
    sam.random_weights = state is None and not _is_meta(sam)
    sam.base = base
    return sam.eval()


def architecture(name: str) -> Architecture:
    """The `Architecture` of a name; an unknown name is refused."""
    if name not in ARCHITECTURES:
        raise ValueError(f"model {name!r} is unknown; known: {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]


def fingerprint(module: nn.Module) -> str:
    """Sha256 of the names, shapes and float32 values of a module's state dict."""
    if _is_meta(module):
        return ""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def read_checkpoint(path: str | Path, arch: Architecture) -> dict[str, Tensor]:
    """A SAM state dict with split q, k, v, checked to fit `arch` at any input size.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file does not fit; one line that names the file and the reason.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; expected a .pth or .safetensors. medsam-tune download "
            f"fetches the published ones into checkpoints/."
        )
    state = read_state(path)
    found = _architecture_of(state)
    if found != arch.name:
        raise DataError(
            f"{path}: checkpoint is {found or 'no SAM known here'}, asked for {arch.name}. "
            f"Name its model, or give a checkpoint of {arch.name}."
        )
    try:
        state = split_tiny(split_qkv(state))
    except (KeyError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path}: its attention layers are not those of {arch.name} ({error}). Give a "
            f"checkpoint of {arch.name}."
        ) from error
    arch = _at_size_of(state, arch)
    channels = _channels_of(state)
    if not (PATCH <= arch.image_size <= MAX_IMAGE_SIZE and 1 <= channels <= MAX_CHANNELS):
        raise DataError(
            f"{path}: checkpoint is for images of {arch.image_size} pixels, {channels} channels; "
            f"expected {PATCH} to {MAX_IMAGE_SIZE} pixels and at most {MAX_CHANNELS} channels."
        )
    with torch.device("meta"):
        encoder, prompt_encoder, decoder = _parts(arch)
        _inflate(encoder, channels)
    expected = nn.ModuleDict(
        {"image_encoder": encoder, "prompt_encoder": prompt_encoder, "mask_decoder": decoder}
    ).state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        raise DataError(
            f"{path}: checkpoint does not fit {arch.name}: {len(missing)} tensors are missing "
            f"{missing[:3]} and {len(extra)} are unknown {extra[:3]}."
        )
    whole = [k for k in expected if state[k].is_floating_point() != expected[k].is_floating_point()]
    if whole:
        raise DataError(
            f"{path}: {whole[0]} is {state[whole[0]].dtype}, {arch.name} needs "
            f"{expected[whole[0]].dtype}. Save it as float32."
        )
    odd = [k for k in expected if state[k].shape != expected[k].shape]
    if odd:
        raise DataError(
            f"{path}: {odd[0]} has shape {tuple(state[odd[0]].shape)}, {arch.name} needs "
            f"{tuple(expected[odd[0]].shape)} ({len(odd)} such tensors)."
        )
    bad = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if bad:
        raise DataError(f"{path}: {len(bad)} tensors hold NaN or Inf, the first is {bad[0]}.")
    return state


def _architecture_of(state: Mapping[str, Tensor]) -> str | None:
    """The name of the architecture, from the state dict's first layer."""
    vit = state.get("image_encoder.pos_embed")
    if vit is not None and vit.ndim:
        widths = {a.width: a.name for a in ARCHITECTURES.values() if a.encoder == "vit"}
        return widths.get(vit.shape[-1])
    tiny = state.get("image_encoder.patch_embed.seq.0.c.weight")
    if tiny is not None and tiny.ndim:
        return "vit_t" if tiny.shape[-1] == 3 else "vit_t_lite"
    return None


def _channels_of(state: Mapping[str, Tensor]) -> int:
    """Number of image channels of a state dict; 3 if the first layer is missing or odd."""
    names = ("image_encoder.patch_embed.proj.weight", "image_encoder.patch_embed.seq.0.c.weight")
    first = next((state[name] for name in names if name in state), None)
    return 3 if first is None or first.ndim != 4 else first.shape[1]


def _at_size_of(state: Mapping[str, Tensor], arch: Architecture) -> Architecture:
    """The architecture with the input size of a state dict's positions."""
    positions = state.get("image_encoder.pos_embed")
    if positions is None or positions.ndim != 4:
        return arch  # the comparison of names and shapes reports the error
    return replace(arch, image_size=positions.shape[1] * arch.stride)


def _parts(arch: Architecture) -> tuple[ImageEncoder | TinyViT, PromptEncoder, MaskDecoder]:
    grid = arch.image_size // arch.stride
    encoder: ImageEncoder | TinyViT
    if arch.encoder == "tiny":
        encoder = TinyViT(arch.image_size, arch.stride // 4, arch.decoder_width)
    else:
        encoder = ImageEncoder(
            img_size=arch.image_size,
            patch_size=arch.stride,
            embed_dim=arch.width,
            depth=arch.depth,
            num_heads=arch.heads,
            out_chans=arch.decoder_width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=arch.window,
            global_attn_indexes=arch.global_blocks,
        )
    prompt_encoder = PromptEncoder(
        embed_dim=arch.decoder_width,
        image_embedding_size=(grid, grid),
        input_image_size=(arch.image_size, arch.image_size),
        mask_in_chans=16,
    )
    decoder = MaskDecoder(
        transformer_dim=arch.decoder_width,
        transformer=TwoWayTransformer(
            depth=2,
            embedding_dim=arch.decoder_width,
            mlp_dim=arch.decoder_mlp,
            num_heads=arch.decoder_heads,
        ),
    )
    replace_decoder_attention(decoder)
    return encoder, prompt_encoder, decoder


@torch.no_grad()
def _initialise(encoder: ImageEncoder | TinyViT, prompt_encoder: PromptEncoder) -> None:
    """Usual initial weights of a ViT; stock SAM has none, because it always loads weights.

    Positions of prompts get frequencies from half to four times stock's, so that the corners of
    small boxes differ from the first step on.
    """
    if isinstance(encoder, ImageEncoder):
        nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    frequencies = prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    frequencies.mul_(torch.logspace(-1, 2, frequencies.shape[1], base=2))


@torch.no_grad()
def _resize(
    encoder: ImageEncoder | TinyViT, prompt_encoder: PromptEncoder, size: int, stride: int
) -> None:
    """Interpolate absolute and global relative positions to another input size."""
    if size == encoder.img_size:
        return
    grid = size // stride
    if isinstance(encoder, ImageEncoder):  # TinyViT has positions within windows only
        pos = encoder.pos_embed.permute(0, 3, 1, 2)
        pos = F.interpolate(pos, size=(grid, grid), mode="bicubic", antialias=grid < pos.shape[-1])
        encoder.pos_embed = nn.Parameter(pos.permute(0, 2, 3, 1).contiguous())
        for block in encoder.blocks:
            if block.window_size == 0:
                for name in ("rel_pos_h", "rel_pos_w"):
                    table = getattr(block.attn, name).T[None]  # (1, head width, 2 * grid - 1)
                    table = F.interpolate(table, size=2 * grid - 1, mode="linear")
                    setattr(block.attn, name, nn.Parameter(table[0].T.contiguous()))
    encoder.img_size = size
    prompt_encoder.input_image_size = (size, size)
    prompt_encoder.image_embedding_size = (grid, grid)
    prompt_encoder.mask_input_size = (4 * grid, 4 * grid)


@torch.no_grad()
def _inflate(encoder: ImageEncoder | TinyViT, in_channels: int) -> None:
    """Change the first layer to another number of channels; keep its output's scale.

    RGB weights stay, and more channels start as their mean. One or two channels start as the mean.
    """
    vit = isinstance(encoder, ImageEncoder)
    name = "patch_embed.proj" if vit else "patch_embed.seq.0.c"
    old = encoder.get_submodule(name)
    if not isinstance(old, nn.Conv2d) or in_channels == old.in_channels:
        return
    mean = old.weight.mean(dim=1, keepdim=True)
    kept = old.weight if in_channels > 3 else old.weight[:, :0]
    weight = torch.cat([kept, mean.expand(-1, in_channels - kept.shape[1], -1, -1)], dim=1)
    old.weight = nn.Parameter(weight * (old.in_channels / in_channels))
    old.in_channels = in_channels


def _is_meta(module: nn.Module) -> bool:
    return any(p.is_meta for p in module.parameters())
