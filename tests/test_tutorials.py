"""The notebooks of `tutorials/` as files; `make test-tutorials` runs them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from medsam_tune.cli import app

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str | None = None) -> list[Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if kind in (None, cell["cell_type"])]


def text_of(cell: Any) -> str:
    return "".join(cell["source"])


@each
def test_a_notebook_holds_no_results(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in cells(path, "code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert all(not cell["metadata"] for cell in content["cells"])


@each
def test_a_page_says_first_what_comes_of_it_and_last_what_to_change(path: Path) -> None:
    first, *_, last = cells(path)
    opening = text_of(first)
    assert opening.startswith(f"# {path.stem[0]}. ")
    assert "At the end you " in opening
    assert "minutes" in opening
    assert "## With vit_b and your own data" in text_of(last)
    assert "vit_b" in text_of(last).partition("own data")[2]


@each
def test_files_go_into_a_temporary_folder(path: Path) -> None:
    code = "\n".join(map(text_of, cells(path, "code")))
    assert "tempfile.mkdtemp()" in code


def commands(path: Path) -> list[str]:
    """Lines of `medsam-tune` in code and in text, continued lines joined; 1 for a variable.

    `command("train ...")` of a page is such a line too, of one or several strings.
    """
    found = []
    for cell in cells(path):
        text = text_of(cell).replace("\\\n", " ")
        found += re.findall(r"^ *medsam-tune (.+)$", text, re.MULTILINE)
        for strings in re.findall(r'command\(((?:\s*f?"[^"]*")+)', text):
            found.append("".join(re.findall(r'"([^"]*)"', strings)))
    return [re.sub(r"\$\w+|\{\w+\}", "1", line) for line in found]


@each
def test_commands_are_those_of_the_command_line(path: Path) -> None:
    assert commands(path)
    for line in commands(path):
        words = shlex.split(
            re.split(r" \d?>", line)[0], comments=True
        )  # where the output goes is the shell's
        command = get_command(app).commands.get(words[0])  # type: ignore[attr-defined]
        assert command is not None, line
        command.make_context(words[0], words[1:])


def test_the_table_names_each_page() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\w+\.ipynb)\)", page) == [path.name for path in NOTEBOOKS]
    assert NOTEBOOKS
