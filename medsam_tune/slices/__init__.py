"""Steps from a volume to the model's input, and back."""

from medsam_tune.lazy import import_when_named

import_when_named(__name__)
