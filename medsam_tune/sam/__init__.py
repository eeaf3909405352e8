"""Segment Anything, differentiable and batched. Knows nothing of files of scans."""

from medsam_tune.lazy import import_when_named

import_when_named(__name__)
