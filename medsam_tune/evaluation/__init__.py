"""Scores of whole cases, and pictures."""

from medsam_tune.lazy import import_when_named

import_when_named(__name__)
