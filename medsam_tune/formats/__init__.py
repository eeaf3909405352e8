"""File formats of scans and label maps: one file reads and writes one format."""

from medsam_tune.lazy import import_when_named

import_when_named(__name__)
