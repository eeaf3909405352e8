"""What stands around the package: how it is cited, and the container that nobody here builds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from medsam_tune import __version__

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docs" / "docker" / "Dockerfile"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_the_citation_is_of_this_version() -> None:
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(content["version"]) == __version__
    assert {
        "cff-version",
        "message",
        "title",
        "authors",
    } <= content.keys()  # what the form asks for
    assert content["license"] == "Apache-2.0"
    for one in [content, *content["references"]]:
        assert all({*who} <= {"name", "family-names", "given-names"} for who in one["authors"])


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKER.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line]  # type: ignore[misc]


def test_the_container_takes_files_that_are_there() -> None:
    ignored = (DOCKER.parent / "Dockerfile.dockerignore").read_text().splitlines()
    taken = {name for key, rest in instructions() if key == "COPY" for name in rest.split()[:-1]}
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == taken
    assert all((ROOT / name).exists() for name in taken)


def test_the_container_is_a_user_with_known_extras() -> None:
    found = instructions()
    assert found[0][0] == "FROM"
    assert ("USER", "1000") in found
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", DOCKER.read_text())
    assert {*extras.split(",")} <= EXTRAS.keys()
    python = re.search(r"^FROM python:3\.(\d+)-", DOCKER.read_text(), re.MULTILINE)
    assert python is not None
    assert int(python[1]) in (11, 12)  # what is tested


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_is_explained(extra: str) -> None:
    assert f"| `{extra}` |" in (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
