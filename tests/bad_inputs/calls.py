"""What is called by inputs of several subjects, and the shared checks of what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from segment_anything import SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from tests.scans import LABELS, small_scan

Pair = tuple[MetaTensor, MetaTensor | None]


def load(case: Case) -> Pair:
    """Ours."""
    return load_case(case, LABELS)


def monai(case: Case) -> Pair:
    """Plain MONAI with its default readers."""
    files = {"image": case.image, "label": case.label}
    item = {key: str(file) for key, file in files.items() if file is not None}
    keys = list(item)
    found = cast(dict, Compose([LoadImaged(keys), EnsureChannelFirstd(keys)])(item))
    return found["image"], found.get("label")


def predictor() -> SamPredictor:
    """A tiny stock SAM behind segment-anything's own interface, on one slice of the scan."""
    torch.manual_seed(0)
    sam = Sam(
        ImageEncoderViT(img_size=64, embed_dim=32, depth=1, num_heads=2, out_chans=32),
        PromptEncoder(32, (4, 4), (64, 64), 16),
        MaskDecoder(
            transformer_dim=32, transformer=TwoWayTransformer(1, 32, 2, 64), num_multimask_outputs=3
        ),
    ).eval()
    return SamPredictor(sam)


def sam_mask(image: np.ndarray | None = None, **prompt: Any) -> Callable[[Any], np.ndarray]:
    """The mask (H, W) that segment-anything gives for a prompt, as a call."""

    def call(_: Any) -> np.ndarray:
        sam = predictor()
        slice_ = small_scan()[0][..., 3].T.astype(np.uint8)[..., None].repeat(3, -1)
        sam.set_image(slice_ if image is None else image)
        return sam.predict(multimask_output=False, **prompt)[0][0]

    return call


def same_in_world(found: MetaTensor, array: np.ndarray, affine: np.ndarray) -> None:
    """Each voxel of `array` lies where the (1, X, Y, Z) image has it, and has its value."""
    there = nib.affines.apply_affine(
        np.linalg.inv(np.asarray(found.affine, dtype=np.float64)) @ affine,
        np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), -1),
    )
    indices = np.round(there).astype(int)
    assert np.abs(there - indices).max() < 1e-3
    assert sorted(found.shape[1:]) == sorted(array.shape)
    assert (indices >= 0).all()
    assert (indices < found.shape[1:]).all()
    values = np.asarray(found.as_tensor()[0])[tuple(np.moveaxis(indices, -1, 0))]
    np.testing.assert_allclose(values, array, atol=1e-3)
