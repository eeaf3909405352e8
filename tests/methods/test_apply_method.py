"""`apply_method` refuses what a method does not take, records the rest, and adds class tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from medsam_tune.methods import METHODS, apply_method
from medsam_tune.sam.model import PromptableSam, Tuning

Build = Callable[..., PromptableSam]


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("decoder", {"rank": 4}, "method 'decoder' has no option 'rank'; its options: multimask."),
        ("prompt", {"rank": 4}, "no option 'rank'; its options: tokens, mask_decoder."),
        ("lora", {"num_classes": 0}, "num_classes is 0; expected a whole number from 1 to 65536."),
        (
            "full",
            {"num_classes": 2, "class_tokens": 0},
            "class_tokens is 0; expected a whole number from 1 to 65536.",
        ),
        (
            "prompt",
            {"num_classes": 2, "tokens": 4},
            "with num_classes the tokens are the classes'; set class_tokens.",
        ),
    ],
)
def test_refusals(tiny_sam: Build, method: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        apply_method(tiny_sam(), method, **options)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_applied_is_recorded(tiny_sam: Build, method: str) -> None:
    assert apply_method(tiny_sam(), method).tuning == Tuning(method, {})
    sam = apply_method(tiny_sam(), method, num_classes=3)
    assert sam.tuning == Tuning(method, {"num_classes": 3, "class_tokens": 10})
    assert sam.classes == 3
    assert sam.learned.tokens.shape == (3, 10, 16)
    fewer = apply_method(tiny_sam(), method, num_classes=2, class_tokens=4)
    assert fewer.tuning == Tuning(method, {"num_classes": 2, "class_tokens": 4})
    assert fewer.learned.tokens.shape == (2, 4, 16)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS)
def test_a_decoder_that_cannot_learn_is_warned_of(tiny_sam: Build, method: str) -> None:
    sam = tiny_sam()
    sam.random_weights = True
    if method in ("decoder", "full"):
        apply_method(sam, method)
        return
    with pytest.warns(UserWarning, match=f"tiny has random weights and '{method}' leaves its mask"):
        apply_method(sam, method)
    sam = tiny_sam()
    sam.random_weights = True
    apply_method(sam, method, mask_decoder=True)


def test_a_single_class_needs_no_prompt(tiny_sam: Build) -> None:
    sam = apply_method(tiny_sam(), "decoder", num_classes=1)
    assert sam.classes == 1
    assert sam(torch.rand(2, 3, 96, 96)).shape[:2] == (2, 1)
