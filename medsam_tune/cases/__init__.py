"""Cases: which files belong together, and whether they are sound."""

from medsam_tune.lazy import import_when_named

import_when_named(__name__)
