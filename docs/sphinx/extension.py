"""What Sphinx lacks: notebooks without results, recipes as pages, rooms of the package as pages."""

from __future__ import annotations

import json
import pkgutil
import re
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import recipes
from docutils import nodes
from docutils.parsers.rst import directives
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def markdown_of(notebook: str) -> str:
    """Cells of a notebook as Markdown: text as it stands, code in fences.

    Args:
        notebook: content of an .ipynb file.
    """
    parts = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            language = "bash" if text.startswith("%%bash") else "python"
            code = re.sub(r"\A%%.*\n", "", text).strip()
            text = f"```{language}\n{code}\n```"
        parts.append(text)
    return "\n\n".join(parts)


CONTENTS = {
    "README": (Path(__file__).parent / "contents.md").read_text(encoding="utf-8"),
    "tutorials/README": "```{toctree}\n:hidden:\n:glob:\n\n[0-9]*\n```\n",
}
"""Page -> the tables of contents below it. They are no text of the page where files are browsed."""


def add_contents(app: Sphinx, name: str, text: list[str]) -> None:
    """Handler of Sphinx when it has read a page."""
    text[0] += "\n" + CONTENTS.get(name, "")


class NotebookParser(MystParser):
    """Parser of notebooks: as their Markdown. Nothing is run."""

    supported = ("ipynb",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Parse a notebook into a document."""
        super().parse(markdown_of(inputstring), document)


class RecipeDirective(SphinxDirective):
    """`{recipe} PATH`: what a config is for, and every setting of it, from its own comments."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Nodes of the tables."""
        path = Path(self.env.srcdir) / self.arguments[0]
        self.env.note_dependency(path)
        return self.parse_text_to_nodes(recipes.page(path))


class RecipesDirective(SphinxDirective):
    """`{recipes} FOLDER`: every overlay of a bundle; `:not: OTHER` leaves out copies of others."""

    required_arguments = 1
    option_spec: ClassVar = {"not": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Nodes of a section for each."""
        root = Path(self.env.srcdir)
        other = root / self.options["not"] if "not" in self.options else None
        parts = []
        for path in sorted((root / self.arguments[0]).glob("*.yaml")):
            self.env.note_dependency(path)
            same = other and recipes.is_copy(path, other / path.name)
            if path.stem not in recipes.WHOLE and not same:
                parts.append(f"### {path.stem}\n\n{recipes.page(path)}")
        return self.parse_text_to_nodes("\n\n".join(parts), allow_section_headings=True)


class RoomDirective(SphinxDirective):
    """`{room} NAME`: the public names of a module, or of all modules of a package, by autodoc."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Nodes of a section for each module."""
        text = "\n\n".join(
            f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```"
            for name in modules_of(self.arguments[0])
        )
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def modules_of(name: str) -> list[str]:
    """A module, and if it is a package all modules below it, by name."""
    module = import_module(name)
    below = pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}.")
    return [name, *(each.name for each in below)]


# Lines that are indented after an empty one, and are no part of a section such as "Args:".
TABLE = re.compile(r"((?:\n\n {4}\S.*(?:\n(?: {4}.*)?(?=\n|\Z))*)+)")
CODE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")


def as_rst(lines: list[str]) -> list[str]:
    """A docstring of this package as reStructuredText.

    Single backticks hold code, `*` and `|` mean nothing, and indented tables stay as they are.
    """
    done = []
    for part in TABLE.split("\n".join(lines)):
        if TABLE.fullmatch(part):
            done.append(f"\n\n.. code-block:: text\n{part}")
            continue
        texts = CODE.split(part)  # text, code, text, ...
        texts[::2] = (re.sub(r"(?<![*\\])([*|])(?!\*)", r"\\\1", text) for text in texts[::2])
        texts[1::2] = (f"``{' '.join(code.split())}``\\ " for code in texts[1::2])
        done.append("".join(texts))
    return "".join(done).split("\n")


def write_rst(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Handler of autodoc, before its Google sections are read."""
    lines[:] = as_rst(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it."""
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(NotebookParser)
    app.add_directive("recipe", RecipeDirective)
    app.add_directive("recipes", RecipesDirective)
    app.add_directive("room", RoomDirective)
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", write_rst, priority=400)  # napoleon: 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
