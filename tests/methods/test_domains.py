"""Domains share one frozen base, bit for bit, and do not touch each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.methods import apply_method
from medsam_tune.methods.domains import Domains, load_elsewhere
from medsam_tune.methods.lora import adapted_layers
from medsam_tune.methods.tuned import save_tuned, tuned_tensors
from medsam_tune.sam.build import build_sam, fingerprint
from medsam_tune.sam.model import PromptableSam
from tests.conftest import image_and_boxes
from tests.methods.test_methods import ROWS, call, train

Build = Callable[..., PromptableSam]
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "ct": ("lora", {"rank": 2}),
    "mr": ("lora", {"rank": 4, "where": "encoder", "use_dora": True}),
    "xray": ("adapter", {"bottleneck": 4}),
    "tiles": ("prompt", {"tokens": 3}),
    "pages": ("decoder", {}),
}
_PISSA = peft.LoraConfig(r=2, init_lora_weights="pissa")


@pytest.fixture
def domains(tiny_sam: Build) -> Domains:
    """One trained domain for every kind of method."""
    made = Domains(tiny_sam())
    for name, (method, options) in SETS.items():
        train(made.create(name, method, **options), steps=2)
    return made.eval()


def test_the_base_stays_bit_equal_and_is_shared(tiny_sam: Build, domains: Domains) -> None:
    assert fingerprint(domains.base) == fingerprint(tiny_sam())
    own = {p.data_ptr() for p in domains.base.parameters()}
    for name in domains:
        tuned = [p for p in domains[name].parameters() if p.requires_grad]
        frozen = [p for p in domains[name].parameters() if not p.requires_grad]
        assert tuned
        assert {p.data_ptr() for p in frozen} <= own
        assert own.isdisjoint(p.data_ptr() for p in tuned)


def test_a_mixed_batch_equals_each_image_by_its_own_domain(domains: Domains) -> None:
    image, boxes = image_and_boxes(images=6)
    names = ["mr", "ct", "pages", "ct", "tiles", "xray"]
    with torch.no_grad():
        logits, quality, presence = domains(image, names, boxes, return_quality=True)
        alone = [
            domains[name](image[i, None], boxes[i, None], return_quality=True)
            for i, name in enumerate(names)
        ]
        plain = domains.base(image, boxes)
    assert torch.allclose(logits, torch.cat([one.logits for one in alone]), atol=1e-5)
    assert torch.allclose(quality, torch.cat([one.quality for one in alone]), atol=1e-5)
    assert presence is None
    assert all(not torch.allclose(a, b, atol=1e-4) for a, b in zip(logits, plain, strict=True))
    with torch.no_grad():
        assert torch.equal(domains(image, "ct", boxes), domains["ct"](image, boxes))


def test_a_mixed_batch_trains_only_the_domains_in_it(domains: Domains) -> None:
    image, boxes = image_and_boxes()
    domains(image, ["ct", "mr"], boxes).square().mean().backward()
    moved = {n for n in domains if any(p.grad is not None for p in domains[n].parameters())}
    assert moved >= {"ct", "mr"}
    assert all(p.grad is None for p in domains.base.parameters())


def test_domains_come_from_files_and_go(domains: Domains, tiny_sam: Build, tmp_path: Path) -> None:
    image, boxes = image_and_boxes()
    again = Domains(tiny_sam())
    for name in domains:
        path = save_tuned(domains[name], tmp_path / f"{name}.safetensors")
        again.add(name, path)
        with torch.no_grad():
            assert torch.equal(again[name](image, boxes), domains[name](image, boxes))
    assert list(again) == list(SETS)
    with torch.no_grad():
        before = again["ct"](image, boxes)
        again.remove("mr")
        assert torch.equal(again["ct"](image, boxes), before)
    assert "mr" not in again
    again.add("mr", tmp_path / "mr.safetensors")
    assert len(again) == len(SETS)


def test_loras_combine_by_weight(tiny_sam: Build) -> None:
    domains = Domains(tiny_sam())
    for name, rank in (("a", 2), ("b", 3)):
        train(domains.create(name, "lora", rank=rank), steps=3)
    model = domains.combine("mix", {"a": 0.25, "b": 2.0})

    def delta(name: str) -> torch.Tensor:
        layer = domains[name].get_submodule("image_encoder.blocks.0.attn.q_proj")
        return layer.get_delta_weight("default").detach()  # type: ignore[no-any-return,operator]

    expected = 0.25 * delta("a") + 2.0 * delta("b")
    assert float((delta("mix") - expected).abs().max()) < 1e-5
    assert float(expected.abs().max()) > 1e-4
    assert model.tuning is not None
    same_rank = domains.combine("svd", {"a": 1.0, "b": 1.0}, "svd", svd_rank=5)
    layer = same_rank.get_submodule("image_encoder.blocks.0.attn.q_proj")
    assert layer.r == {"default": 5}


LORAS = {name: row.options for name, row in ROWS.items() if row.method == "lora"} | {
    "rslora-alpha": {"rank": 4, "use_rslora": True, "alpha": 16},
    "rslora-by-layer": {
        "rank": 3,
        "use_rslora": True,
        "rank_pattern": {"image_encoder.blocks.0.attn.q_proj": 6},
        "alpha_pattern": {"image_encoder.blocks.1.attn.q_proj": 9},
    },
    "last-two": {"rank": 2, "last_blocks": 2, "where": "encoder"},
    "some": {"rank": 2, "exclude_modules": ["image_encoder.blocks.0.attn.v_proj"]},
    "orthogonal": {"rank": 2, "init_lora_weights": "orthogonal"},
    "bias": {"rank": 2, "lora_bias": True},
}
NOT_SUMMED = {"dora": "use_dora", "dora-labels": "use_dora", "bias": "lora_bias"}


@pytest.mark.parametrize("name", LORAS)
def test_the_mean_of_a_lora_and_itself_is_the_lora(
    tiny_sam: Build, tmp_path: Path, name: str
) -> None:
    """Each LoRA of the matrix of methods: to the last digits, or refused by name."""
    made = apply_method(tiny_sam(), "lora", **LORAS[name])
    train(made, steps=2)
    path = save_tuned(made.eval(), tmp_path / "a.safetensors")
    domains = Domains(tiny_sam().eval())
    for part in "ab":
        domains.add(part, path)
    half = {"a": 0.5, "b": 0.5}
    alone = all(".lora_" in key for key in tuned_tensors(made))
    if not alone or name in NOT_SUMMED:
        said = f"with {NOT_SUMMED[name]}" if alone else "is not LoRA alone"
        with pytest.raises(ValueError, match=f"domain 'a' .*{said}"):
            domains.combine("mean", half)
        assert list(domains) == ["a", "b"]
        return
    domains.combine("mean", half)
    again = domains.add("again", save_tuned(domains["mean"], tmp_path / "mean.safetensors"))
    with torch.no_grad():
        expected = call(made).logits
        assert float((call(tiny_sam().eval()).logits - expected).abs().max()) > 1e-2
        torch.testing.assert_close(call(domains["mean"]).logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(call(again).logits, call(domains["mean"]).logits)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"where": "encoder"}, {"where": "both"}),
        ({"where": "both"}, {"last_blocks": 2}),
        ({"where": "encoder", "last_blocks": 1}, {"where": "decoder"}),
        ({"use_rslora": True, "alpha": 8}, {"alpha": 1}),
        ({"exclude_modules": ["image_encoder.blocks.0.attn.v_proj"]}, {"where": "encoder"}),
        ({"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0]}, {}),
    ],
)
def test_loras_of_other_layers_and_scales_combine(
    tiny_sam: Build, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """The update of each layer is the sum of those that it has."""
    domains = Domains(tiny_sam())
    train(domains.create("a", "lora", rank=2, **one), steps=2)
    train(domains.create("b", "lora", rank=3, **other), steps=2)
    weights = {"a": 0.25, "b": 2.0}
    for parts in (weights, dict(reversed(weights.items()))):
        mixed = _updates(domains.combine("mix", parts))
        domains.remove("mix")
        both = {name: _updates(domains[name]) for name in parts}
        assert mixed.keys() == both["a"].keys() | both["b"].keys()
        for layer, update in mixed.items():
            expected = sum(weights[name] * both[name].get(layer, 0) for name in weights)
            torch.testing.assert_close(update, expected, rtol=1e-4, atol=1e-6)


def _updates(model: PromptableSam) -> dict[str, torch.Tensor]:
    """Name of a layer -> LoRA's update of its weight."""
    layers = {name: model.get_submodule(name) for name in adapted_layers(model)}
    return {k: layer.get_delta_weight("default").detach() for k, layer in layers.items()}  # type: ignore[operator]


def test_a_combined_domain_comes_back_from_its_file(tiny_sam: Build, tmp_path: Path) -> None:
    domains = Domains(tiny_sam())
    for name in "ab":
        train(domains.create(name, "lora", rank=2), steps=2)
    path = save_tuned(domains.combine("mix", {"a": 0.5, "b": 0.5}), tmp_path / "mix.safetensors")
    image, boxes = image_and_boxes()
    with torch.no_grad():
        expected = domains["mix"](image, boxes)
        assert torch.equal(domains.add("again", path)(image, boxes), expected)


def test_refusals_name_what_is_there(domains: Domains, tiny_sam: Build, tmp_path: Path) -> None:
    image, boxes = image_and_boxes()
    with pytest.raises(ValueError, match="domain 'us' is not there; domains: ct, mr, xray, tiles"):
        domains(image, ["ct", "us"], boxes)
    with pytest.raises(ValueError, match="domain 'us' is not there"):
        domains.remove("us")
    with pytest.raises(ValueError, match="1 domains for 2 images"):
        domains(image, ["ct"], boxes)
    with pytest.raises(ValueError, match="domain 'ct' is there already"):
        domains.create("ct", "prompt")
    with pytest.raises(ValueError, match="domain 'xray' is not LoRA alone"):
        domains.combine("mix", {"ct": 1.0, "xray": 1.0})
    with pytest.raises(ValueError, match="init_lora_weights='pissa' rewrites the base's weights"):
        domains.create("us", "lora", init_lora_weights="pissa")
    with pytest.raises(ValueError, match="the base is tuned by 'lora'"):
        Domains(apply_method(tiny_sam(), "lora"))
    other = tiny_sam(image_size=128)
    path = save_tuned(apply_method(other, "prompt"), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: was tuned on tiny with image_size"):
        domains.add("us", path)
    for config in ({"peft_type": "LORA", "init_lora_weights": "pissa"}, _PISSA):
        with pytest.raises(ValueError, match=r"'pissa' rewrites .* expected one of \(True, False"):
            domains.create("us", "lora", config=config)
    domains.create("us", "lora", rank=2, mask_decoder=True)
    with pytest.raises(ValueError, match="domain 'us' is not LoRA alone"):
        domains.combine("mix", {"ct": 1.0, "us": 1.0})
    domains.remove("us")
    with pytest.raises(ValueError, match=r"domain 'us' is not there; domains: none\. Add it first"):
        Domains(tiny_sam())["us"]
    assert list(domains) == list(SETS)


def test_prompts_go_with_their_image(domains: Domains) -> None:
    image, _ = image_and_boxes(images=3)
    given = {
        "points": torch.rand(3, 2, 2, 2) * 96,
        "point_labels": torch.tensor([[[1, 0], [1, -1]]]).repeat(3, 1, 1),
        "masks": torch.randn(3, 2, 24, 24),
    }
    with torch.no_grad():
        found = domains(image, ["ct", "xray", "ct"], **given)
        for i, name in enumerate(("ct", "xray", "ct")):
            one = {key: value[i, None] for key, value in given.items()}
            assert torch.allclose(found[i], domains[name](image[i, None], **one)[0], atol=1e-5)


def test_new_domains_train_as_the_base_does(tiny_sam: Build) -> None:
    domains = Domains(tiny_sam())
    assert not any(p.requires_grad for p in domains.base.parameters())
    first = domains.create("a", "lora", rank=2, lora_dropout=0.5)
    assert not any(module.training for module in first.modules())
    domains.train()
    later = domains.create("b", "lora", rank=3, lora_dropout=0.5)
    assert all(module.training for module in later.modules())
    layer = domains.combine("c", {"a": 1.0, "b": 1.0}).get_submodule(
        "image_encoder.blocks.0.attn.q_proj"
    )
    assert layer.r == {"default": 5}  # "cat" is the default: the ranks' sum


def test_elsewhere_a_model_has_no_labels(tmp_path: Path) -> None:
    """It answers as it does to a prompt of no class; the untouched base is there by itself."""
    tuned = apply_method(build_sam("nano", image_size=64), "lora", num_classes=2)
    image, boxes = image_and_boxes(64)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    path = save_tuned(tuned.eval(), tmp_path / "ct.safetensors", {1: "liver", 2: "spleen"})
    none = torch.full(boxes.shape[:2], -1)
    with torch.inference_mode():
        expected = tuned(image, boxes, classes=none)
        torch.testing.assert_close(load_elsewhere(path, path)(image, boxes), expected)
        untouched = build_sam("nano", image_size=64).eval()(image, boxes)
        torch.testing.assert_close(load_elsewhere(None, path)(image, boxes), untouched)
    assert not torch.allclose(expected, untouched)
    larger = apply_method(build_sam("nano", image_size=128), "decoder")
    other = save_tuned(larger, tmp_path / "mr.safetensors")
    with pytest.raises(DataError, match=r"image_size 128, that of .* has 64"):
        load_elsewhere(other, path)
