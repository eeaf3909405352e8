"""`medsam-tune`: thin over the bundles. It prints the bundle command that it runs.

Commands import what they need inside: `--help` answers at once.
"""

from __future__ import annotations

from medsam_tune.cli.command import app, main
from medsam_tune.lazy import import_when_named

__all__ = ["app", "main"]

import_when_named(__name__)
