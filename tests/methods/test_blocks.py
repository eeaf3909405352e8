"""The encoder's blocks come in their order, and no more are asked for than there are."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medsam_tune.methods.blocks import encoder_blocks
from medsam_tune.sam.model import PromptableSam

Build = Callable[..., PromptableSam]
NAMES = [f"image_encoder.blocks.{i}" for i in range(3)]


def test_last_blocks(tiny_sam: Build) -> None:
    sam = tiny_sam()
    assert list(encoder_blocks(sam)) == NAMES
    for last in (1, 2, 3):
        found = encoder_blocks(sam, last)
        assert list(found) == NAMES[-last:]
        assert all(found[name] is sam.get_submodule(name) for name in found)


@pytest.mark.parametrize("last", [-1, 0, 4])
def test_refusals(tiny_sam: Build, last: int) -> None:
    with pytest.raises(ValueError, match=f"last_blocks is {last}; tiny has 1 to 3"):
        encoder_blocks(tiny_sam(), last)
