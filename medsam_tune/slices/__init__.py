"""From a volume to what the model sees, and back."""

from medsam_tune.lazy import import_when_named

import_when_named(__name__)
