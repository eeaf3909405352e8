"""Pages of results: their tables, and sections that are each measured by a call of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medsam_tune.files import written_whole


def put(page: Path, head: str, title: str, body: str) -> None:
    """Set a section of a page; the others stay as they are, in the order of their titles.

    Args:
        page: file, made if it is missing.
        head: what stands above all sections.
        title: title of the section.
        body: its text.
    """
    before = page.read_text().split("\n## ")[1:] if page.exists() else []
    sections = dict(one.split("\n", 1) for one in before) | {title: f"\n{body}\n"}
    with written_whole(page) as beside:
        beside.write_text(
            head + "".join(f"\n## {key}\n{sections[key]}" for key in sorted(sections))
        )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a table, its cells as they are, code spans too; none without rows."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    head = [*head]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *body] if body else []
