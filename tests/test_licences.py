"""No copyleft licence among what users install, and a list of licences that is current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.licences import UNKNOWN, is_copyleft, licence_of, runtime_packages

ROOT = Path(__file__).parents[1]


def test_no_package_that_users_need_is_copyleft() -> None:
    licences = {name: licence_of(name) for name in runtime_packages()}
    assert {"torch", "monai", "zarr", "peft"} <= licences.keys()
    assert not {name: text for name, text in licences.items() if is_copyleft(text)}
    assert not [name for name, text in licences.items() if text == UNKNOWN]


@pytest.mark.parametrize(
    ("licence", "copyleft"),
    [
        ("GPL-3.0-or-later", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("AGPL-3.0", True),
        ("MIT AND GPL-2.0-only", True),
        ("MIT OR GPL-2.0-only", False),
        ("GPL-3.0-only WITH GCC-exception-3.1", False),
        ("LGPL-2.1", False),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("MPL-2.0 AND MIT", False),
        ("BSD-3-Clause", False),
    ],
)
def test_copyleft_is_told_from_the_rest(licence: str, copyleft: bool) -> None:
    assert is_copyleft(licence) is copyleft


def test_the_page_has_the_pinned_set() -> None:
    """`make audit` writes it."""
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [tuple(line.split("==")) for line in lines if re.match(r"\w", line)]
    assert re.findall(r"^\| (\S+) \| (\d\S*) \|", page, re.MULTILINE) == pinned
