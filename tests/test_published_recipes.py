"""The overlays `notes_*` have the published values, in the objects that a training gets."""

from __future__ import annotations

from math import degrees
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import (
    Compose,
    Rand2DElasticd,
    RandFlipd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
)

from medsam_tune.training.batches import MixUp
from medsam_tune.training.losses import PromptLoss
from medsam_tune.training.rates import learning_rate
from medsam_tune.transforms import RandSaturationd

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
BOTH = pytest.mark.parametrize("bundle", ["sam_volume", "sam_image"])


def parsed(bundle: str, *overlays: str, **settings: Any) -> ConfigParser:
    """A training's config with overlays, as if of a datalist with two labels, none of a side."""
    files = [str(BUNDLES / bundle / "configs" / f"{name}.yaml") for name in ("train", *overlays)]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    usual = {"image_size": 64, "num_classes": 2, "flip_prob": 0.5, "bias_prob": 0.0}
    parser.update({**usual, **settings})
    return parser


@BOTH
def test_full(bundle: str) -> None:
    parser = parsed(bundle, "notes_full")
    found = [parser.get_parsed_content(key) for key in ("method", "lr", "epochs")]
    assert found == ["full", 1e-5, 50]
    assert parser.get_parsed_content("network_def").tuning.method == "full"


@BOTH
def test_decoder_by_cross_entropy(bundle: str) -> None:
    parser = parsed(bundle, "notes_decoder")
    assert [parser.get_parsed_content(key) for key in ("method", "lr")] == ["decoder", 1e-4]
    assert parser.get_parsed_content("network_def").tuning.method == "decoder"
    loss = parser.get_parsed_content("train::trainer::loss_function")
    assert isinstance(loss, PromptLoss)
    assert isinstance(loss.masks, torch.nn.BCEWithLogitsLoss)
    assert (loss.quality, loss.presence) == (1.0, 0.1)  # as the overlay's first lines say


@BOTH
def test_lora_of_scale_4_with_dropout_on_q_and_v(bundle: str) -> None:
    parser = parsed(bundle, "notes_lora")
    assert parser.get_parsed_content("lr") == learning_rate("lora", "nano") / 4
    model = parser.get_parsed_content("network_def")
    layers = {
        name: module for name, module in model.named_modules() if hasattr(module, "lora_dropout")
    }
    assert {name.rsplit(".", 1)[1] for name in layers} == {"q_proj", "v_proj"}
    blocks = {f"image_encoder.blocks.{n}.attn" for n in range(len(model.image_encoder.blocks))}
    assert blocks <= {name.rsplit(".", 1)[0] for name in layers}
    for layer in layers.values():
        assert (layer.r["default"], layer.lora_alpha["default"]) == (8, 32)
        assert layer.scaling["default"] == 4
        assert layer.lora_dropout["default"].p == 0.1


@BOTH
def test_adapter(bundle: str) -> None:
    parser = parsed(bundle, "notes_adapter")
    found = [parser.get_parsed_content(key) for key in ("method", "lr", "epochs")]
    assert found == ["adapter", 5e-5, 20]
    blocks = parser.get_parsed_content("network_def").image_encoder.blocks
    assert {block.adapter.down.out_features for block in blocks} == {64}


@BOTH
def test_few_shot(bundle: str) -> None:
    parser = parsed(bundle, "notes_few_shot")
    found = [parser.get_parsed_content(key) for key in ("method", "epochs", "patience")]
    assert found == ["lora", 100, 5]
    (stop,) = [one for one in parser["train::handlers"] if "StopWithoutGain" in str(one)]
    assert stop["patience"] == "@patience"
    layers = [m for m in parser.get_parsed_content("network_def").modules() if hasattr(m, "lora_A")]
    assert layers
    assert {layer.r["default"] for layer in layers} == {4}
    mixing = parser.get_parsed_content("train::trainer::prepare_batch")
    assert isinstance(mixing, MixUp)
    assert mixing.prob == 1
    assert mixing.shares.concentration1.item() == pytest.approx(0.2)
    assert mixing.shares.concentration0.item() == pytest.approx(0.2)


def strong(parser: ConfigParser) -> list[Any]:
    """The transforms of an augmentation that always change a sample, and the mirrors."""
    augment = parser.get_parsed_content("augment")
    assert isinstance(augment, Compose)
    return [
        one
        for one in augment.transforms
        if isinstance(one, RandFlipd) or getattr(one, "prob", 0) == 1
    ]


@BOTH
def test_augmentation_of_few_shot(bundle: str) -> None:
    """30 degrees, mirrors, and brightness, contrast and saturation (of colours) by 0.3."""
    elastic, *rest = strong(parsed(bundle, "notes_few_shot"))
    assert isinstance(elastic, Rand2DElasticd)
    turn = elastic.rand_2d_elastic.rand_affine_grid.rotate_range
    assert degrees(*turn) == pytest.approx(30, abs=0.05)
    left_right, up_down, *colours = rest
    assert (left_right.flipper.spatial_axis, left_right.prob) == (1, 0.5)
    assert (up_down.flipper.spatial_axis, up_down.prob) == (0, 0.0)
    brightness, contrast, *saturation = colours
    assert type(brightness) is RandScaleIntensityd
    assert brightness.scaler.factors == (-0.3, 0.3)
    assert type(contrast) is RandScaleIntensityFixedMeand
    assert contrast.scaler.factors == (-0.3, 0.3)
    assert [(type(one), one.factors) for one in saturation] == (
        [(RandSaturationd, 0.3)] if bundle == "sam_image" else []
    )


@BOTH
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_augmented_sample_keeps_its_range_and_its_labels(bundle: str, channels: int) -> None:
    augment = parsed(bundle, "notes_few_shot").get_parsed_content("augment")
    augment.set_random_state(seed=0)
    label = torch.zeros(1, 48, 40)
    label[:, 12:36, 10:30] = 2
    for _ in range(5):
        image = torch.rand(channels, 48, 40)
        found = augment({"image": image, "label": label, "before": torch.zeros(1, 48, 40)})
        assert found["image"].shape[0] == channels
        assert found["image"].shape[1:] == found["label"].shape[1:]
        assert 0 <= found["image"].min() <= found["image"].max() <= 1
        assert set(found["label"].unique().tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("overlays", "settings", "expected"),
    [
        (["satellite"], {}, 0.5),
        (["microscopy"], {}, 0.5),
        (["documents"], {}, 0.0),
        ([], {"turn_prob": 0.75, "flip_prob": 0.0}, 0.0),  # labels of a side
        ([], {"flip_ud_prob": 0.25}, 0.25),
    ],
)
def test_up_down_where_nothing_is_up(
    overlays: list[str], settings: dict[str, Any], expected: float
) -> None:
    parser = parsed("sam_image", *overlays, "notes_few_shot", **settings)
    up_down = [one for one in strong(parser) if isinstance(one, RandFlipd)][1]
    assert up_down.prob == expected


def test_ct_by_its_full_range() -> None:
    window = parsed("sam_volume", "notes_ct").get_parsed_content("intensity")
    assert (window.low, window.low + window.width) == (-1024, 3071)
    values = torch.tensor([-2000.0, -1024, 0, 3071, 4000]).view(1, -1, 1, 1)
    found = window(values).flatten() / 255
    assert found.dtype == torch.float16
    assert torch.allclose(found.float(), torch.tensor([0, 0, 1024 / 4095, 1, 1]), atol=1e-3)


def test_mr_by_mean_and_deviation() -> None:
    rule = parsed("sam_volume", "notes_mr").get_parsed_content("intensity")
    values = torch.linspace(100, 300, 1001).view(1, -1, 1, 1)
    scores = (values - values.mean()) / values.std(correction=0)
    found = rule(values).float() / 255 * 6 - 3  # three deviations on either side
    assert torch.allclose(found, scores, atol=6 / 255)
