"""Fine-tune Segment Anything on your own scans with MONAI, and know how good it got."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medsam_tune.errors import DataError
from medsam_tune.lazy import import_when_named
from medsam_tune.version import __version__

if TYPE_CHECKING:
    from medsam_tune.inference.segmenter import Segmenter
    from medsam_tune.methods import METHODS, apply_method
    from medsam_tune.methods.export import export_sam
    from medsam_tune.methods.tuned import load_tuned, save_tuned
    from medsam_tune.sam.build import build_sam
    from medsam_tune.training.finetuning import finetune

__all__ = [
    "METHODS",
    "DataError",
    "Segmenter",
    "__version__",
    "apply_method",
    "build_sam",
    "export_sam",
    "finetune",
    "load_tuned",
    "save_tuned",
]

# Not imported here: torch and MONAI take seconds.
_HOMES = {
    "METHODS": "methods",
    "Segmenter": "inference.segmenter",
    "apply_method": "methods",
    "build_sam": "sam.build",
    "export_sam": "methods.export",
    "finetune": "training.finetuning",
    "load_tuned": "methods.tuned",
    "save_tuned": "methods.tuned",
}
import_when_named(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
