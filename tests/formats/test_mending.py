"""What is mended in a file."""

from __future__ import annotations

from typing import Any

import pytest

from medsam_tune.errors import DataError
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strict": "no"}, "strict is 'no'; expected true or false"),
        ({"resample_label": 1}, "resample_label is 1; expected true or false"),
        ({"resample_uneven": None}, "resample_uneven is None; expected"),
        ({"fill_nan": "abc"}, "fill_nan is 'abc'; expected a finite number"),
        ({"fill_nan": float("nan")}, "fill_nan is nan"),
        ({"fill_nan": True}, "fill_nan is True"),
        ({"volume_index": "0"}, "volume_index is '0'; expected 0, 1, 2"),
        ({"volume_index": -1}, "volume_index is -1"),
    ],
)
def test_values_of_another_type_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Mending(**options)
