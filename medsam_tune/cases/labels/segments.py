"""Which label a segment of a DICOM SEG is: that of its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from medsam_tune.errors import DataError, listed

_SAYS_NOTHING = re.compile(
    r"(segment|segmentation|seg|label|class|region|roi|mask|object|structure|unnamed|unknown)?"
    r"(?P<number>\d*)"
)


def says_nothing(name: str, number: int) -> bool:
    """Whether a name, such as "Segment_2", names no organ, and no other number than its own."""
    found = _SAYS_NOTHING.fullmatch(_folded(name))
    return found is not None and found["number"].lstrip("0") in ("", str(number))


def label_of_name(name: str, labels: Mapping[int, str]) -> int | None:
    """The label of a name, without regard to case, spaces, "_" and "-".

    Args:
        name: name of a segment.
        labels: label id -> name.

    Returns:
        its id; None if no label has the name, or several.
    """
    for alike in (str, str.casefold, _folded):
        found = [label for label, other in labels.items() if alike(other) == alike(name)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def labels_of_segments(segments: Mapping[int, str], labels: Mapping[int, str]) -> dict[int, int]:
    """The label of each segment.

    A segment is the label of its name, as most files count their segments from 1. Its number is the
    label id where the segment's name or that label's says nothing, and no name contradicts: each
    segment that has a label's name has its number too.

    Args:
        segments: number -> name.
        labels: label id -> name.

    Returns:
        number of the segment -> label id, of the segments that are a label.
    """
    found = {}
    for number, name in segments.items():
        same = _folded(labels.get(number, "")) == _folded(name) and number in labels
        label = number if same else label_of_name(name, labels)
        if label is not None:
            found[number] = label
    if any(number != label for number, label in found.items()):
        return found
    for number, name in segments.items():
        if number in labels and number not in found:
            nothing = says_nothing(name, number) or says_nothing(labels[number], number)
            found |= {number: number} if nothing else {}
    return found


def refuse_unclear(
    segments: Mapping[int, str],
    found: Mapping[int, int],
    drawn: Iterable[int],
    labels: Mapping[int, str],
    path: Path,
) -> None:
    """Refuse segments with voxels that are no label, or one label together.

    Args:
        segments: number -> name.
        found: see `labels_of_segments`.
        drawn: numbers of the segments with a voxel.
        labels: label id -> name.
        path: the file.

    Raises:
        DataError: names the segments and the labels.
    """
    drawn = sorted(drawn)
    known = listed(f"{label} ({name})" for label, name in labels.items()) or "none"
    lost = [f"{n} ({segments.get(n, 'without a name')})" for n in drawn if n not in found]
    if lost:
        raise DataError(
            f"the SEG has segments whose names are of no label: {listed(lost)} ({path}); known: "
            f"{known}. The numbers of segments are no label ids. Give segments and labels the same "
            "names: rename the segments, or the labels in the datalist; or remove the segments."
        )
    for label in sorted({found[n] for n in drawn}):
        same = [n for n in drawn if found[n] == label]
        if len(same) > 1:
            raise DataError(
                f"segments {listed(map(str, same))} are all {labels[label]!r} ({path}); expected "
                "one. Join them, or rename all but one."
            )


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())
