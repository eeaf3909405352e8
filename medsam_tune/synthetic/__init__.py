"""Synthetic scans and scenes: no patient, no download."""

from medsam_tune.lazy import import_when_named

import_when_named(__name__)
