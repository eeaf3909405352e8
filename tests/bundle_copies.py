"""The configs that `sam_image` shares with `sam_volume`: `python -m tests.bundle_copies` writes them.

Each bundle zips by itself, so that a shared file stands in both. It is written here once, in
`sam_volume`; the other is a copy in which only the lines of `CHANGED` differ.
"""

from __future__ import annotations

from pathlib import Path

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
SOURCE, COPY = BUNDLES / "sam_volume", BUNDLES / "sam_image"

SHARED = (
    "LICENSE",
    "large_files.yml",
    "models/README.md",
    *(
        f"configs/{name}"
        for name in (
            *("train.yaml", "prepare.yaml", "evaluate.yaml", "zero_shot.yaml", "inference.yaml"),
            *("method_full.yaml", "method_adapter.yaml", "method_lora.yaml", "method_prompt.yaml"),
            *("no_prompt.yaml", "class_agnostic.yaml", "few_shot.yaml", "logging.conf"),
        )
    ),
)
"""Files of both bundles."""

CHANGED: dict[str, tuple[tuple[str, str], ...]] = {
    "configs/train.yaml": (
        (
            "# Fine-tune SAM's mask decoder on 3-D scans. The validation Dice chooses the checkpoint.\n",
            "# Fine-tune SAM's mask decoder on 2-D images. The validation Dice chooses the checkpoint.\n",
        ),
        (
            "  components: null  # pixels of the smallest piece of a label that is an object of its own; "
            "null: a label is one object\n",
            "  components: 64  # pixels of the smallest piece of a label that is an object of its own, "
            "with its own box\n",
        ),
        (
            "mixture: {box: 4, loose: 1, rectangle: 3, interpolated: 3, followed: 4, points: 1, none: 4}\n",
            "mixture: {box: 6, loose: 2, points: 2, none: 4}\n",
        ),
        (
            "epoch_slices: null  # slices of an epoch, at least: of fewer, each is drawn several times; "
            "null: each once\n",
            "epoch_slices: 400  # images of an epoch, at least: of fewer, each is drawn several times, "
            "augmented anew\n",
        ),
        (
            "validation_prompts: \"${True: ['slices', 'box3d'], None: ['slices', 'box3d', 'none'], "
            "False: ['none']}[@record.prompted]\"\n",
            "validation_prompts: \"${True: ['slices'], None: ['slices', 'none'], "
            "False: ['none']}[@record.prompted]\"\n",
        ),
    ),
    "configs/evaluate.yaml": (
        (
            "# By other prompts than a box on every slice and one 3-D box: "
            "--prompts \"['middle','interpolated:5']\"\n",
            "# By other prompts than a box around each object: --prompts \"['points']\"\n",
        ),
        (
            "prompts: \"$['none'] if @prompted is False else ['slices', 'box3d']\"\n",
            "prompts: \"$['none'] if @prompted is False else ['slices'] if @prompted else "
            "['slices', 'none']\"\n",
        ),
    ),
    "configs/zero_shot.yaml": (("components: null", "components: 64"),),
    "configs/inference.yaml": (
        (
            "# Segment a scan from prompts of any kind, or from none; the mask is in the scan's own "
            "grid:\n",
            "# Segment an image from prompts of any kind, or from none; the mask has the image's own "
            "size:\n",
        ),
        (
            "--scan scan.nii.gz --prompts boxes.json --output mask.nii.gz\n",
            "--scan image.png --prompts boxes.json --output mask.png\n",
        ),
        ("scan: scan.nii.gz\n", "scan: image.png\n"),
        ("output: mask.nii.gz\n", "output: mask.png\n"),
        ("mask_1_liver.nii.gz", "mask_1_road.png"),
    ),
    "configs/few_shot.yaml": (
        (
            "# Settings for few cases: deformed copies of the scans, mixed images, stronger "
            "deformation.\n",
            "# Settings for few cases: deformed copies of the images, mixed images, stronger "
            "deformation.\n",
        ),
    ),
}
"""File -> what differs in the copy: a text that stands in the source once, and what takes its place."""


def copied(name: str) -> str:
    """The text of a shared file as it stands in the copy.

    Raises:
        ValueError: a text of `CHANGED` does not stand in the source once.
    """
    text = (SOURCE / name).read_text(encoding="utf-8")
    for old, new in CHANGED.get(name, ()):
        if text.count(old) != 1:
            raise ValueError(f"{name}: {old!r} is there {text.count(old)} times; expected once.")
        text = text.replace(old, new)
    return text


def main() -> None:
    """Write all copies."""
    for name in SHARED:
        path = COPY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(copied(name), encoding="utf-8")


if __name__ == "__main__":
    main()
