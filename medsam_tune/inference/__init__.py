"""Steps from a scan and its prompts to a mask."""

from medsam_tune.lazy import import_when_named

import_when_named(__name__)
