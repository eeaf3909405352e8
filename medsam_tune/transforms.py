"""MONAI transforms of this package, for any pipeline.

`SimpleITKReader` reads DICOM, NIfTI, NRRD and MetaImage for MONAI's `LoadImaged`. `Windowd`,
`Windowsd`, `Percentilesd` and `ZScored` bring scans to 8 bits, with `Window` and so on for arrays.
`BoxPromptsd` and `PointPromptsd` choose objects of label maps and prompt for them, `MixedPromptsd`
draws prompts of several kinds;
`KeepObjectsd` keeps an augmentation from losing them. `IgnoredPixelsd` finds what nobody annotated.
`RandWindowd` cuts windows from large slices; `RandSaturationd` makes colours stronger or weaker.
`ModelFramed` brings slices, masks, boxes and points into the model's square input, and back.
`LoadSliced` and `ShrinkLongestd` are for slices of a store. `ScanRulesd` makes of a scan what a
model saw in training, and leads masks back; `PromptMapd` brings label maps along, `Aftercared`
cleans masks.
"""

from medsam_tune.formats.reader import SimpleITKReader, scan_loader
from medsam_tune.inference.transforms import Aftercared, PromptMapd, ScanRulesd
from medsam_tune.slices.intensity import Percentiles, Window, Windows, ZScore
from medsam_tune.slices.transforms import (
    Intensityd,
    LoadSliced,
    ModelFramed,
    Percentilesd,
    ShrinkLongestd,
    Windowd,
    Windowsd,
    ZScored,
)
from medsam_tune.training.mixture import MixedPromptsd
from medsam_tune.training.prompting import (
    BoxPromptsd,
    IgnoredPixelsd,
    KeepObjectsd,
    PointPromptsd,
)
from medsam_tune.training.saturation import RandSaturationd
from medsam_tune.training.windows import RandWindowd

__all__ = [
    "Aftercared",
    "BoxPromptsd",
    "IgnoredPixelsd",
    "Intensityd",
    "KeepObjectsd",
    "LoadSliced",
    "MixedPromptsd",
    "ModelFramed",
    "Percentiles",
    "Percentilesd",
    "PointPromptsd",
    "PromptMapd",
    "RandSaturationd",
    "RandWindowd",
    "ScanRulesd",
    "ShrinkLongestd",
    "SimpleITKReader",
    "Window",
    "Windowd",
    "Windows",
    "Windowsd",
    "ZScore",
    "ZScored",
    "scan_loader",
]
