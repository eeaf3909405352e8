"""Fine-tune Segment Anything on your own scans with MONAI, and know how good it got."""

from medsam_tune.errors import DataError
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.methods import METHODS, apply_method
from medsam_tune.methods.export import export_sam
from medsam_tune.methods.tuned import load_tuned, save_tuned
from medsam_tune.sam.build import build_sam
from medsam_tune.version import __version__

__all__ = [
    "METHODS",
    "DataError",
    "Segmenter",
    "__version__",
    "apply_method",
    "build_sam",
    "export_sam",
    "load_tuned",
    "save_tuned",
]
