"""What is mended in a file."""

from __future__ import annotations

from medsam_tune.formats.mending import Mending


def test_nothing_is_mended_by_default() -> None:
    assert Mending().describe() == {
        "fill_nan": None,
        "volume_index": None,
        "resample_uneven": False,
        "resample_label": False,
        "strict": False,
    }


def test_mending_comes_back_from_its_description() -> None:
    mending = Mending(fill_nan=-1.0, volume_index=2, resample_label=True)
    assert Mending(**mending.describe()) == mending
