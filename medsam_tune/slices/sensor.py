"""Rule of colours for the images of one sensor: the range of each band, measured on training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medsam_tune.cases.datalist import Case
from medsam_tune.errors import DataError, about
from medsam_tune.formats.open import load_image
from medsam_tune.slices.colours import Colours
from medsam_tune.slices.contrast import plain

SAMPLED = 64
"""Number of images, evenly chosen, that are measured."""

PIXELS = 100_000
"""Number of pixels of each, evenly chosen, that are measured."""


def for_sensor(
    cases: Sequence[Case],
    channels: int = 3,
    bands: Sequence[int] | None = None,
    lower: float = 0.5,
    upper: float = 99.5,
) -> Colours:
    """The rule for images of one sensor.

    Images of 8 bits are taken as they are. Of 11 and 16 bits and float, percentiles of each band
    over all images become 0 and 255, so that a dark image stays dark; the limits are recorded with
    the run.

    Args:
        cases: training cases.
        channels: number of channels C.
        bands: numbers of the bands, from 1, that become the channels; None takes all.
        lower: percentile that becomes 0.
        upper: percentile that becomes 255.

    Raises:
        DataError: an image that cannot be read, or lacks a band; images of different depths.
    """
    rule = Colours(channels, lower, upper, bands=bands)
    kinds: dict[str, str] = {}
    found: list[list[np.ndarray]] = [[] for _ in range(channels)]
    step = max(1, len(cases) // SAMPLED)
    for case in cases[::step][:SAMPLED]:
        with about(f"case {case.id}"):
            image = load_image(case.image, region=case.region)
            kinds.setdefault(str(image.meta["stored"]), case.id)
            chosen = plain(rule.chosen(image)).flatten(1)
        part = chosen[:, :: max(1, chosen.shape[1] // PIXELS)].numpy()
        for channel, values in enumerate(np.broadcast_to(part, (channels, part.shape[1]))):
            found[channel].append(values[np.isfinite(values)])
    if "uint8" in kinds:
        if len(kinds) > 1:
            some = ", ".join(f"{kind} ({case})" for kind, case in kinds.items())
            raise DataError(
                f"images of different depths: {some}; expected those of one sensor. Bring them to "
                "one depth, or give each its own datalist."
            )
        return rule
    limits = [np.percentile(np.concatenate(one), [lower, upper]).tolist() for one in found]
    # A band of one value has no range.
    spread = [(low, high if high > low else low + 1) for low, high in limits]
    return Colours(channels, lower, upper, spread, bands)
