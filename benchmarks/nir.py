"""Near infrared: what a fourth band is worth where it alone shows a class.

    python benchmarks/nir.py --work WORK [--epochs 20]

Makes scenes of 4 bands of 11 bits, whose vegetation is seen in near infrared and nowhere else, and
trains nano by adapters without prompts: on red, green and blue, and on all four. Held-out scenes
are scored. Each step is a `medsam-tune` command. Writes benchmarks/results/nir.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import rasterio
from commands import command
from scipy import ndimage
from training_step import machine

from medsam_tune.files import written_whole

RESULTS = Path(__file__).parent / "results" / "nir.md"
SCENES, SIDE, PIXEL = 40, 200, 0.3
SIZE = 128  # of the model's input
IMAGES = 112  # of an epoch: each scene of training four times
WAYS = {"red, green, blue": ["in_channels=3", "bands=[1, 2, 3]"], "and near infrared": []}


def write(path: Path, bands: np.ndarray, corner: float) -> None:
    """A GeoTIFF of bands (C, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(bands),
        height=SIDE,
        width=SIDE,
        dtype=bands.dtype,
        crs="EPSG:32616",
        transform=rasterio.Affine(PIXEL, 0, 730000 + corner, 0, -PIXEL, 3730000),
        photometric="minisblack",
    ) as file:
        file.write(bands)


def made(folder: Path) -> Path:
    """Scenes whose labels show in the fourth band alone."""
    for n in range(SCENES):
        rng = np.random.default_rng(n)
        rough = ndimage.gaussian_filter(rng.normal(size=(4, SIDE, SIDE)), (0, 3, 3))
        fields = ndimage.gaussian_filter(rng.normal(size=(2, SIDE, SIDE)), (0, 14, 14))
        fields /= fields.std((1, 2), keepdims=True)
        ids = (fields[0] > 0.9).astype(np.uint8)
        bands = 700 + 900 * rough / rough.std() * 0.2
        bands += 300 * (fields[1] > 0.5)  # another ground, in all bands
        bands[3] += 500.0 * ids
        bands += rng.normal(0, 30, bands.shape)
        name = f"scene_{n:02}.tif"
        write(folder / "images" / name, bands.clip(1, 2047).astype(np.uint16), 100.0 * n)
        write(folder / "masks" / name, ids[None], 100.0 * n)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    work, epochs = arguments.work, arguments.epochs
    if not (work / "d.json").exists():
        made(work / "data")
        command("split", work / "data", "--out", work / "d.json", "--labels", "1=vegetation")
    rows = []
    for name, settings in WAYS.items():
        run = work / f"run_{len(settings)}"
        if not (run / "evaluation" / "summary.json").exists():
            typed = [
                f"epochs={epochs}",
                f"val_interval={epochs}",
                f"epoch_slices={IMAGES}",
                *settings,
            ]
            command(
                *("train", "adapter", "--no-prompt", "--datalist", work / "d.json"),
                *(
                    "--output",
                    run,
                    "--image-size",
                    SIZE,
                    "--bundle",
                    "image",
                    "--overlay",
                    "satellite_nir.yaml",
                ),
                *(word for one in typed for word in ("--set", one)),
            )
            command("evaluate", "--run", run, "--bundle", "image")
        summary = json.loads((run / "evaluation" / "summary.json").read_text())
        label = summary["labels"]["1"]
        low, high = label["dice"]["interval"] or (float("nan"),) * 2
        rows.append(
            f"| {name} | {label['n']} | {label['dice']['mean']:.3f} ({low:.3f} to {high:.3f}) | "
            f"{label['iou']['mean']:.3f} |"
        )
    text = HEAD.format(
        machine=machine("cpu"), scenes=SCENES, side=SIDE, size=SIZE, epochs=epochs, images=IMAGES
    )
    text += "\n".join([*rows, ""])
    with written_whole(RESULTS) as beside:
        beside.write_text(text)
    print(text)


HEAD = """# A class that near infrared alone shows

`python benchmarks/nir.py --work WORK` on {machine}. {scenes} made-up scenes of {side} x {side}
pixels; nano at {size} x {size} by adapters without prompts, {epochs} epochs of {images} images;
held-out scenes, 95 % interval of the mean.

| bands | scenes | Dice | IoU |
|---|---|---|---|
"""

if __name__ == "__main__":
    main()
