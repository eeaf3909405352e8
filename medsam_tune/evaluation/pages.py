"""Pages of results: templates with one style, which need no network.

What users named is escaped, and a policy in the page lets no script run but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined


def render(template: str, context: Mapping[str, Any], script: str | None = None) -> str:
    """Make a page.

    Args:
        template: file name of a template of this room that extends `page.html.j2`.
        context: what the template shows; `title`, `subtitle` and `sections` (pairs of id and name)
            at least.
        script: file name of the page's script; None for none.
    """
    text = "" if script is None else _resource(script)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    source = f"'sha256-{digest}'" if text else "'none'"
    pages = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=FunctionLoader(_resource),
    )
    page = pages.get_template(template)
    return page.render(**context, script=text, script_source=source)


def _resource(name: str) -> str:
    return (files("medsam_tune.evaluation") / name).read_text(encoding="utf-8")
