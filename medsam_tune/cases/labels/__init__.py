"""Labels of scans: one file for each kind."""

from medsam_tune.lazy import import_when_named

import_when_named(__name__)
