"""Multi-frame DICOM: where each frame of a file lies, and its values, by highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.headers import (
    Instance,
    import_highdicom,
    import_pydicom,
    orientation_in,
    position_in,
    rescale_in,
    spacing_in,
    understood,
    without_warnings,
)
from medsam_tune.formats.dicom.pixels import bright, fill_padding


def frames_of(one: Instance) -> list[Instance]:
    """The frames of a multi-frame file, each with its own place.

    Args:
        one: the file.

    Raises:
        DataError: a value that cannot be read, or geometry that is none.
    """
    with understood(one.path):
        header = import_pydicom().dcmread(one.path, stop_before_pixels=True, force=True)
        return placed_frames(one, header)


def placed_frames(one: Instance, header: Any) -> list[Instance]:
    """The frames of a file, by its header; what no functional group says stays unknown.

    Args:
        one: the file.
        header: pydicom data set with the functional groups of the frames.

    Raises:
        DataError: a value that cannot be read, or geometry that is none.
    """
    frames = []
    with understood(one.path):
        for index in range(one.frames):
            place, direction, size, values = (
                functional_group(header, index, name)
                for name in (
                    "PlanePosition",
                    "PlaneOrientation",
                    "PixelMeasures",
                    "PixelValueTransformation",
                )
            )
            frames.append(
                replace(
                    one,
                    frames=1,
                    frame=index + 1,
                    position=position_in(place, one.path),
                    orientation=orientation_in(direction, one.path),
                    spacing=spacing_in(size, one.path),
                    rescale=rescale_in(values) or one.rescale,
                )
            )
    return frames


def functional_group(header: Any, index: int, name: str) -> Any:
    """What a file says of one frame, of the frame itself or of all of them.

    Args:
        header: pydicom data set.
        index: number of the frame from 0.
        name: name of the group's sequence without "Sequence", e.g. "PlanePosition".

    Returns:
        a pydicom data set, empty where there is no such group.
    """
    own = (header.get("PerFrameFunctionalGroupsSequence") or ())[index : index + 1]
    for groups in (*own, *(header.get("SharedFunctionalGroupsSequence") or ())):
        if found := groups.get(f"{name}Sequence"):
            return found[0]
    return {}


def read_frames(frames: Sequence[Instance], modality: str, notes: list[str]) -> NDArray[np.float32]:
    """Values of the frames of one file, as those of single images would be.

    Args:
        frames: frames from `frames_of`, in any order.
        modality: modality of the series.
        notes: list to which changes of the values are added.

    Returns:
        (I, J, K) float32, columns, rows and frames in the order given.

    Raises:
        DataError: highdicom is not installed, or the frames cannot be decoded.
    """
    one = frames[0]
    highdicom = import_highdicom(one.path, "a multi-frame file")
    # Neither scanner-specific units nor how a screen would show them.
    raw = {"apply_real_world_transform": False, "apply_presentation_lut": False}
    numbers = [frame.frame for frame in frames]
    try:
        with without_warnings():
            image = highdicom.imread(one.path)
            array = _stacked(image.get_frames(numbers, dtype=np.float32, **raw))
            stored = array
            if one.padding is not None:
                stored = _stacked(image.get_frames(numbers, apply_modality_transform=False, **raw))
    except Exception as error:
        raise DataError(
            f"{one.path}: its {len(frames)} frames cannot be read ({type(error).__name__}); "
            "expected an enhanced multi-frame scan. Export it as single images."
        ) from error
    low, high = one.padding or (np.inf, np.inf)
    fill_padding(array, (stored >= low) & (stored <= high), modality, notes)
    return bright(array, modality, notes) if one.photometric == "MONOCHROME1" else array


def _stacked(frames: NDArray[Any]) -> NDArray[np.float32]:
    """(frames, rows, columns) -> (columns, rows, frames), with memory of its own."""
    return np.array(frames.transpose(2, 1, 0), dtype=np.float32, order="F")
