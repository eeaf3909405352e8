"""Pages of results: templates with one style, which need no network.

What users named is escaped, and a policy in the page lets no script run but the page's own.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined


def render(template: str, context: Mapping[str, Any], *scripts: str) -> str:
    """Make a page.

    Args:
        template: file name of a template of this room that extends `page.html.j2`.
        context: what the template shows; `title`, `subtitle` and `sections` (pairs of id and name)
            at least.
        scripts: files of the page's scripts in this room; those that end in .gz are compressed.
    """
    texts = [resource(name) for name in scripts]
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in texts]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    pages = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=FunctionLoader(resource),
    )
    page = pages.get_template(template)
    return page.render(**context, scripts=texts, script_sources=sources)


def resource(name: str) -> str:
    """Text of a file of this room; one that ends in .gz is unpacked."""
    content = (files("medsam_tune.evaluation") / name).read_bytes()
    return (gzip.decompress(content) if name.endswith(".gz") else content).decode()
