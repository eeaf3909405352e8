"""The numbers of a report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown(context: Mapping[str, Any]) -> str:
    """The same numbers as Markdown, without figures."""
    parts = [f"# {escaped(context['title'])}", escaped(context["subtitle"])]
    parts += [escaped(line) for line in context["plain"]]
    parts += [f"> {escaped(line)}" for line in context["warnings"]]
    for one in [*context["tables"], *context["groups"]]:
        parts += [f"## {escaped(one['caption'])}", table(one["head"], one["rows"])]
    if context["jitter"] is not None:
        one = context["jitter"]["table"]
        parts += [f"## {escaped(one['caption'])}", table(one["head"], one["rows"])]
    if context["confidence"]:
        parts.append("## Does the model know how good its masks are?")
        parts += [escaped(one["caption"]) for one in context["confidence"]]
    if context["training"]:
        parts += ["## Training", escaped(context["training"]["caption"])]
    parts.append(escaped(context["footnote"]))
    one = context["cases"]
    parts += [f"## {escaped(one['caption'])}", table(one["head"], one["rows"])]
    return "\n\n".join([*parts, *behind(context)]) + "\n"


def behind(context: Mapping[str, Any]) -> list[str]:
    """The rules of the scores, and what stands behind the numbers."""
    parts = ["## Rules of the scores"]
    parts.append("\n".join(f"- {escaped(line)}" for line in context["rules"]))
    for part in context["facts"]:
        parts += [f"## {escaped(part['name'])}", table(["what", "value"], part["rows"])]
    return parts


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; every cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell if cell == '---' else escaped(cell) for cell in line)} |"
        for line in lines
    )


def escaped(text: object) -> str:
    """A text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", " ".join(str(text).split()))
