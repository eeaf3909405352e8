"""Learning rates of what trains."""

from __future__ import annotations

import pytest
import torch

from medsam_tune.methods import apply_method
from medsam_tune.training.optimizers import WarmupCosine, parameter_groups
from tests.inference.made import Build


def test_one_rate_is_one_group(tiny_sam: Build) -> None:
    sam = apply_method(tiny_sam(), "full")
    (group,) = parameter_groups(sam, 0.1)
    assert group["lr"] == 0.1
    assert [id(p) for p in group["params"]] == [id(p) for p in sam.parameters() if p.requires_grad]


@pytest.mark.parametrize("method", ["decoder", "lora", "prompt"])
def test_learned_tokens_have_their_own_rate(tiny_sam: Build, method: str) -> None:
    sam = apply_method(tiny_sam(), method, num_classes=2)
    groups = parameter_groups(sam, 0.1, token_lr=0.7)
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    for key, p in sam.named_parameters():
        if p.requires_grad:
            assert found.pop(id(p)) == (0.7 if key.startswith("learned.") else 0.1), key
    assert not found


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_groups_are_the_same_at_any_rates(tiny_sam: Build, decay: float) -> None:
    """A checkpoint at lr 0.1 is taken at lr 0.2, also where one of them is the tokens' rate."""
    sam = apply_method(tiny_sam(), "full", num_classes=2)
    rates = ((0.1, 0.2), (0.2, 0.2), (0.2, None))
    one, *others = (
        [[id(p) for p in group["params"]] for group in parameter_groups(sam, lr, decay, token_lr)]
        for lr, token_lr in rates
    )
    assert others == [one, one]


@pytest.mark.parametrize("method", ["full", "lora", "adapter"])
def test_rates_fall_towards_the_input(tiny_sam: Build, method: str) -> None:
    sam = apply_method(tiny_sam(), method)
    names = {id(p): key for key, p in sam.named_parameters()}
    rates = {
        names[id(p)]: group["lr"]
        for group in parameter_groups(sam, 1.0, layer_decay=0.5)
        for p in group["params"]
    }
    assert rates.keys() == {k for k, p in sam.named_parameters() if p.requires_grad}
    expected = {"blocks.0.": 0.125, "blocks.1.": 0.25, "blocks.2.": 0.5, "pos_embed": 0.0625}
    for key, rate in rates.items():
        wanted = next((value for part, value in expected.items() if part in key), None)
        if key.startswith("image_encoder.patch_embed"):
            wanted = 0.0625
        assert rate == (wanted or 1.0), key
    with pytest.raises(ValueError, match="layer_decay is 0; expected more than 0"):
        parameter_groups(sam, 1.0, layer_decay=0)


@pytest.mark.parametrize("end", [0.0, 0.01])
def test_the_rate_stays_at_the_end_of_its_schedule(end: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupCosine(optimizer, warmup_steps=2, t_total=16, end_lr=end)
    rates = []
    for _ in range(25):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:3] == [0, 0.5, 1]
    assert rates[9] == pytest.approx(0.5)  # half of the cosine's 14 steps
    assert rates[16:] == [end] * 9
