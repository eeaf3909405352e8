"""Recipes as pages: every setting of a config, its value, and what its own comments say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# Where the settings of a config end, and the objects that are made of them begin.
FIRST_OBJECTS = ("dataset_dir", "predictions", "initialize")
WHOLE = ("train", "evaluate", "inference")
"""Configs that are complete; all others are laid over one of them."""
KEY = re.compile(
    r"(?P<indent> *)(?P<key>[\w:+]+):(?: (?P<value>[^ #].*?))?(?: +# (?P<beside>.*))?$"
)
# A comment that opens so is the title of the settings after it.
TITLE = re.compile(r"(The \w+)\.\s*(.*)")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: as `--set` takes it, such as "rules::plane".
        value: its default, as it stands in the config; "" of one that holds others.
        words: its comments, those above it first; "" without.
        title: title of the settings that it opens; "" in between.
    """

    name: str
    value: str
    words: str
    title: str


def opening(text: str) -> tuple[str, str]:
    """A config's first comment, without its signs, and all after it."""
    lines = text.splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[2:] for line in lines[:count]), "\n".join(lines[count:]).strip("\n")


def settings(text: str) -> list[Setting]:
    """Every setting of a config, up to the objects that are made of them.

    Settings within another, such as those of `rules`, are listed by themselves.

    Args:
        text: content of a config.
    """
    found: list[Setting] = []
    above: list[str] = []
    parent = ""
    for line in opening(text)[1].splitlines():
        if line.startswith("# "):
            above.append(line[2:])
            continue
        match = KEY.match(line)
        if match is None or len(match["indent"]) > 2:
            continue
        name, value = match["key"], match["value"] or ""
        if not match["indent"]:
            parent = name
        if name in FIRST_OBJECTS:
            break
        if name in ("imports", "_target_"):
            continue
        words = " ".join(above)
        title, words = heading.groups() if (heading := TITLE.match(words)) else ("", words)
        above = []
        if match["indent"]:
            name = f"{parent}::{name}"
        words = " ".join(part for part in (words, match["beside"]) if part)
        found.append(Setting(name, value, words, title))
    return found


def objects(text: str) -> dict[str, str]:
    """Objects that a config makes of its settings, by name: the class or function of each."""
    after = re.split(rf"^(?={'|'.join(FIRST_OBJECTS)}:)", text, maxsplit=1, flags=re.M)[-1]
    return dict(re.findall(r"^(\w+):(?: \{|\n {2})_target_: ([\w.]+)", after, re.M))


def is_copy(path: Path, other: Path) -> bool:
    """True where another file has the same text."""
    return other.is_file() and other.read_bytes() == path.read_bytes()


def page(path: Path) -> str:
    """What a config is for, and its settings, as Markdown.

    A config that is laid over another is shown whole, as it is short.

    Args:
        path: a config of a bundle.
    """
    text = path.read_text(encoding="utf-8")
    first, rest = opening(text)
    shown = f"```{{code-block}} text\n:class: wraps\n\n{first}\n```\n\n"
    if path.stem not in WHOLE:
        return f"{shown}```yaml\n{rest}\n```\n"
    for setting in settings(text):
        if setting.title or setting.name == "bundle_root":
            shown += f"\n| {setting.title or 'setting'} | |\n|---|---|\n"
        value = f"{setting.name}: {setting.value}".removesuffix(": ")
        shown += f"| {_code(value)} | {setting.words.replace('|', chr(92) + '|')} |\n"
    shown += "\n| made of them | by |\n|---|---|\n"
    return shown + "".join(f"| `{key}` | `{made}` |\n" for key, made in objects(text).items())


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"
