"""Is the result of a recipe with SAM's own weights where others' results are?

    python benchmarks/real_weights/in_range.py synapse runs/synapse/evaluation/summary.json

Exits with 0 if each score is in its range, with 1 if one is not. docs/real_weights.md has the same
ranges, and where they come from.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Published:
    """A score that somebody published.

    Attributes:
        prompts: kind of prompts that it is of, as `evaluate` names them.
        dice: mean Dice.
        apart: how far from it a sound run may be: other splits, other prompts, other pixels.
        source: who published it.
    """

    prompts: str
    dice: float
    apart: float
    source: str


RANGES: dict[tuple[str, str], Published] = {
    ("spleen", "vit_b"): Published(
        "none", 0.96, 0.05, "MONAI model zoo, spleen_ct_segmentation: 3-D U-Net, 9 cases"
    ),
    ("spleen", "vit_t"): Published(
        "none", 0.96, 0.08, "the same, for an encoder of a tenth of the parameters"
    ),
    ("flare22", "vit_b"): Published(
        "slices", 0.93, 0.05, "arXiv 2606.04705: MedSAM on FLARE22, boxes from clicks"
    ),
    ("synapse", "vit_b"): Published("none", 0.8188, 0.04, "SAMed, arXiv 2304.13785"),
    ("synapse", "vit_h"): Published("none", 0.8430, 0.04, "SAMed_h, in SAMed's repository"),
    ("spacenet", "vit_b"): Published(
        "none", 0.829, 0.08, "DeepLabV3+ on SpaceNet 2 Paris, Hugging Face Abhatta7"
    ),
}
"""(data, base model) -> what was published of it. Of PubLayNet there are scores of boxes alone."""


def verdicts(data: str, summary: dict[str, Any]) -> list[tuple[bool, str]]:
    """Whether each score is as it should be, and a line that says so.

    A score by boxes must beat the ellipse in each box, whoever published what.

    Args:
        data: first part of a key of `RANGES`, or other data.
        summary: content of `summary.json`.
    """
    model = summary["base"]["name"]
    found = []
    for kind, scores in summary["by_prompts"].items():
        dice, ellipse = scores["mean_dice"], scores["mean_ellipse_dice"]
        if kind != "none" and ellipse is not None:
            better = dice > ellipse
            word = "above" if better else "NOT above: the model has learned nothing but the box"
            found.append((better, f"{kind}: Dice {dice:.3f}, {word} the ellipse's {ellipse:.3f}"))
    published = RANGES.get((data, model))
    if published is None:
        found.append((True, f"nothing published is known of {data} with {model}"))
    elif published.prompts not in summary["by_prompts"]:
        wanted = f"evaluate --prompts {published.prompts}"
        found.append((False, f"no score by {published.prompts!r}; run medsam-tune {wanted}"))
    else:
        dice = summary["by_prompts"][published.prompts]["mean_dice"]
        low, high = published.dice - published.apart, min(published.dice + published.apart, 1.0)
        place = f"range {low:.3f} to {high:.3f} around {published.dice} ({published.source})"
        word = "in" if low <= dice <= high else "BELOW" if dice < low else "ABOVE: a leak?"
        found.append((low <= dice <= high, f"{published.prompts}: Dice {dice:.3f}, {word} {place}"))
    return found


def main() -> None:
    """Read a summary and print the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="spleen, flare22, synapse, spacenet, publaynet")
    parser.add_argument("summary", type=Path)
    given = parser.parse_args()
    found = verdicts(given.data, json.loads(given.summary.read_text(encoding="utf-8")))
    print("\n".join(line for _, line in found))
    sys.exit(0 if all(good for good, _ in found) else 1)


if __name__ == "__main__":
    main()
