"""SECURITY.md tells what is done about each input, and which test shows it."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_the_tests_that_it_names_exist() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGE)
    assert len(named) > 15
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, (file, name)


def test_every_untrusted_input_names_a_test() -> None:
    table = PAGE.split("| what | what is done | shown by |")[1].split("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) == 10
    assert all(re.search(r"`tests/\S+::test_\w+`", row.split("|")[3]) for row in rows)


def test_its_lower_bounds_are_those_of_the_package() -> None:
    bounds = re.findall(r"^\| ([\w-]+) \| >= (\S+) \|", PAGE, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["dicom"]
    needed = {r.name: r.specifier for r in map(Requirement, lines)}
    assert len(bounds) > 8
    for name, bound in bounds:
        assert f">={bound}" in str(needed[name]), name
