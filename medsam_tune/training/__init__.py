"""Parts that training adds to MONAI."""

from medsam_tune.lazy import import_when_named

import_when_named(__name__)
