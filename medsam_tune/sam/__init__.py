"""Segment Anything, differentiable and batched. It knows no scans."""

from medsam_tune.lazy import import_when_named

import_when_named(__name__)
