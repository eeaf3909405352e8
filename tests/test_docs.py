"""The pages: their links, commands and settings are those of the code. `make docs` builds them."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from medsam_tune.cli import app

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "sphinx"))

from extension import as_rst, markdown_of  # noqa: E402
from recipes import objects, page, settings  # noqa: E402

PAGES = sorted(
    [
        *(
            path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"
        ),  # commands of their time
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("tutorials/*.md"),
        *ROOT.glob("bundles/*/docs/README.md"),
    ]
)
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
TRAIN = sorted(ROOT.glob("bundles/*/configs/train.yaml"))


def commands(text: str) -> list[str]:
    """Lines of `medsam-tune` in fenced blocks and between backticks, continued lines joined."""
    fences = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(fences).replace("\\\n", " ").splitlines()
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    found = [line.strip().removeprefix("$ ") for line in [*lines, *spans]]
    return [line for line in found if re.match(r"medsam-tune [a-z]", line)]


@every_page
def test_commands_are_those_of_the_command_line(path: Path) -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    for line in commands(path.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        assert words[1] in known, line
        if "..." not in words and len(words) > 2:
            known[words[1]].make_context(words[1], words[2:])


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@every_page
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_weights_lie_where_download_puts_them() -> None:
    default = {one.name: one.default for one in get_command(app).commands["download"].params}  # type: ignore[attr-defined]
    for path in [*PAGES, *ROOT.glob("tutorials/*.ipynb")]:
        named = re.findall(r"([\w./-]*)sam_vit_[blh]_\w+\.pth", path.read_text(encoding="utf-8"))
        assert {*named} <= {f"{default['output']}/"}, path


def test_each_page_is_in_the_contents() -> None:
    contents = (ROOT / "docs" / "sphinx" / "contents.md").read_text(encoding="utf-8")
    pages = {str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.glob("docs/*.md")}
    assert pages <= {*contents.split()}


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.parts[-3])
def test_every_setting_of_a_training_is_explained(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = {setting.name: setting for setting in settings(text)}
    keys = [*yaml.safe_load(text)]
    plain = keys[keys.index("bundle_root") : keys.index("dataset_dir")]
    assert [name for name in found if "::" not in name] == plain
    assert {name for name in found if name.startswith("rules::")} == {
        f"rules::{key}" for key in yaml.safe_load(text)["rules"] if key != "_target_"
    }
    assert not [
        name
        for name, each in found.items()
        if not each.words and each.value != f"'@{name.split('::')[-1]}'"
    ]
    assert objects(text)["optimizer"] == "torch.optim.AdamW"
    assert "| `epochs: 20` | passes over" in page(path)


def test_the_readme_is_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110


def test_a_notebook_is_its_markdown() -> None:
    cells = [("markdown", "# Title"), ("code", "a = 1\n"), ("code", "%%bash -e\nls\n")]
    content = {"cells": [{"cell_type": kind, "source": [text]} for kind, text in cells]}
    page = "# Title\n\n```python\na = 1\n```\n\n```bash\nls\n```"
    assert markdown_of(json.dumps(content)) == page


def test_a_docstring_becomes_restructured_text() -> None:
    lines = ["Sizes of `a` and (C, *size), |A|.", "", "    name    what", "", "Args:", "    x: it"]
    assert as_rst(lines) == [
        r"Sizes of ``a``\  and (C, \*size), \|A\|.",
        *("", ".. code-block:: text", "", "", "    name    what"),
        *("", "Args:", "    x: it"),
    ]
