"""The files that `sam_image` shares with `sam_volume`: `make bundles` writes its copies.

Each bundle zips by itself, so that a shared file stands in both. It is written once, in
`sam_volume`; of the copy, only what `CHANGED` says differs.
"""

from __future__ import annotations

from pathlib import Path

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
SOURCE, COPY = BUNDLES / "sam_volume", BUNDLES / "sam_image"

_CONFIGS = (
    *(
        "train.yaml",
        "prepare.yaml",
        "prepare_embeddings.yaml",
        "evaluate.yaml",
        "zero_shot.yaml",
        "other_model.yaml",
        "inference.yaml",
    ),
    *("method_full.yaml", "method_adapter.yaml", "method_lora.yaml", "method_prompt.yaml"),
    *(
        "no_prompt.yaml",
        "class_agnostic.yaml",
        "few_shot.yaml",
        "multi_gpu.yaml",
        "fsdp.yaml",
        "logging.conf",
    ),
    "mlflow.yaml",
    *("notes_full.yaml", "notes_decoder.yaml", "notes_lora.yaml", "notes_adapter.yaml"),
    "notes_few_shot.yaml",
)
SHARED = (
    *("LICENSE", "large_files.yml", "models/README.md"),
    *(f"configs/{name}" for name in _CONFIGS),
)
"""Files of both bundles."""

CHANGED: dict[str, tuple[tuple[str, str], ...]] = {
    "configs/train.yaml": (
        ("decoder on 3-D scans.", "decoder on 2-D images."),
        (
            "components: null  # pixels of the smallest piece of a label that is an object of its "
            "own; null: a label is one object",
            "components: 64  # pixels of the smallest piece of a label that is an object with its "
            "own box; null: a label is one object\n"
            "  gsd: null  # metres of a pixel after resampling; null keeps each image's own\n"
            "  pixel: null  # metres of a pixel of images that do not say it, such as PNG; what an "
            "image says itself counts\n"
            "  upsampling: 4.0  # largest accepted enlargement of pixels by gsd",
        ),
        (
            "{box: 4, loose: 1, rectangle: 3, interpolated: 3, followed: 4, points: 1, none: 4}",
            "{box: 6, loose: 2, points: 2, none: 4}",
        ),
        (
            "epoch_slices: null  # slices of an epoch, at least: of fewer, each is drawn several "
            "times; null: each once",
            "epoch_slices: 400  # images of an epoch, at least: of fewer, each is drawn several "
            "times, augmented anew",
        ),
        (
            "{True: ['slices', 'box3d'], None: ['slices', 'box3d', 'none'], False: ['none']}",
            "{True: ['slices'], None: ['slices', 'none'], False: ['none']}",
        ),
        (
            "refuse_kinds(@validation_prompts, @record.prompted)",
            "refuse_kinds(@validation_prompts, @record.prompted, flat=True)",
        ),
    ),
    "configs/evaluate.yaml": (
        (
            "a box on every slice and one 3-D box: --prompts \"['middle','interpolated:5']\"",
            "a box around each object: --prompts \"['points']\"",
        ),
        (
            "['none'] if @prompted is False else ['slices', 'box3d']",
            "{True: ['slices'], None: ['slices', 'none'], False: ['none']}[@prompted]",
        ),
        ("refuse_kinds(@prompts, @prompted)", "refuse_kinds(@prompts, @prompted, flat=True)"),
    ),
    "configs/zero_shot.yaml": (("components: null", "components: 64"),),
    "configs/inference.yaml": (
        ("Segment a scan, or many, from", "Segment an image, or many, from"),
        ("masks are in the scans' own grids:", "masks have the images' own size:"),
        (
            "--scans scan.nii.gz --prompts boxes.json --output mask.nii.gz",
            "--scans image.png --prompts boxes.json --output mask.png",
        ),
        (
            "\nscans: scan.nii.gz  # a scan, a folder of scans,",
            "\nscans: image.png  # an image, a folder,",
        ),
        (
            "\noutput: mask.nii.gz  # or .nii, .nrrd, .mha; of a DICOM series .dcm too; or a "
            "folder, where masks are named after the scans",
            "\noutput: mask.png  # or .nii.gz, .nrrd, .mha; of a radiograph in DICOM .dcm too; or "
            "a folder, where masks are named after the images",
        ),
        (
            "ending: null  # of masks in a folder; null: .nii.gz,",
            "ending: null  # of masks in a folder; null: .png,",
        ),
        ("mask_1_liver.nii.gz", "mask_1_road.png"),
    ),
    "configs/few_shot.yaml": (("copies of the scans,", "copies of the images,"),),
    "configs/notes_few_shot.yaml": (
        (
            "factors: 0.3}  # contrast\n",
            "factors: 0.3}  # contrast\n"
            "- {_target_: medsam_tune.transforms.RandSaturationd, keys: [image], prob: 1.0, "
            "factors: 0.3}  # saturation\n",
        ),
    ),
}
"""File -> text that stands in the source once, and what takes its place in the copy."""


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
