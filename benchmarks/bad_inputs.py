"""What the plain stack and this package do with faulty and odd inputs, beside each other.

    python benchmarks/bad_inputs.py

Makes the inputs of tests/bad_inputs/, gives each to both, and writes the table to
bundles/sam_volume/docs/bad_inputs.md.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/ is no part of the package

from medsam_tune.files import written_whole
from tests.bad_inputs import INPUTS, BadInput, Outcome, run, shortened

PAGE = Path(__file__).parents[1] / "bundles" / "sam_volume" / "docs" / "bad_inputs.md"
LENGTH = 150  # characters of a message that are shown
SILENT, NOISY, RIGHT, NONE = "silent", "noisy", "right", "none"


def shown(text: str, folder: Path) -> str:
    """A message for a cell."""
    line = shortened(text, folder).replace("|", "\\|")
    return line if len(line) <= LENGTH else f"{line[:LENGTH].rstrip()} ..."


def size_of(result: Any) -> str:
    """What a call gave, in a few words."""
    if isinstance(result, np.ndarray):
        return f"a mask of {int(result.sum())} of {result.size} pixels"
    if isinstance(result, str):
        return result
    if isinstance(result, list):
        return f"{len(result)} cases"
    image = result[0]
    shape = " x ".join(str(n) for n in image.shape)
    spacing = " x ".join(f"{mm:.3g}" for mm in torch.linalg.norm(image.affine[:3, :3], dim=0))
    return f"{shape}, {spacing} mm"


def plain(bad: BadInput, made: Any, folder: Path) -> tuple[str, str]:
    """What the plain stack does, and which kind of answer that is."""
    if isinstance(bad.plain, str):
        return bad.plain, NONE
    found = run(bad.plain, made)
    if found.error is not None:
        error = found.error.__cause__ or found.error  # MONAI names the transform that it was in
        text = f"{type(error).__name__}: {error}"
        names = Path(made.image).name if hasattr(made, "image") else "\0"
        named = names in text or re.search(r"\.(nii|dcm|json)\b", text)
        how = "error" if named else "error without the file's name"
        return f"{how}: {shown(text, folder)}", NOISY
    said = [text for text in found.warnings if "NvImgCodec" not in text]  # of the installation
    if said:
        return f"{size_of(found.result)}; warns: {shown(said[0], folder)}", NOISY
    if right(bad, found):
        return f"right: {size_of(found.result)}", RIGHT
    return f"**no word**: {size_of(found.result)}", SILENT


def right(bad: BadInput, found: Outcome) -> bool:
    """Whether the plain stack's result passes the check that ours does."""
    if bad.check is None or bad.warns:
        return False
    try:
        bad.check(found.result)
    except Exception:
        return False
    return True


def ours(bad: BadInput, made: Any, folder: Path) -> tuple[str, bool]:
    """What this package does, and whether that is what the table asks for."""
    if bad.todo:
        return f"not built: {bad.todo}", False
    found = run(bad.ours, made)
    if bad.refused:
        good = found.error is not None and re.search(bad.refused, str(found.error)) is not None
        return f"refused: {shown(str(found.error), folder)}", good
    if found.error is not None or bad.check is None:
        return f"FAILS: {found.error}", False
    bad.check(found.result)
    return f"handled: {bad.handled}", True


def page() -> str:
    """All rows, and their counts."""
    rows, kinds, good = [], [], 0
    for bad in INPUTS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            made = bad.make(folder)
            theirs, kind = plain(bad, made, folder)
            text, well = ours(bad, made, folder)
        kinds.append(kind)
        good += well
        rows.append(f"| {bad.row} | {bad.what} | {theirs} | {text} |")
        print(rows[-1], flush=True)
    tried = len(kinds) - kinds.count(NONE)
    return f"""# What becomes of faulty and odd inputs

Made by `python benchmarks/bad_inputs.py`; every row is also a test (`tests/test_bad_inputs.py`).
The plain stack is MONAI {version("monai")} (`LoadImaged` and `EnsureChannelFirstd` with their
default readers), for prompts segment-anything's `SamPredictor` with a tiny random model, for 2-D
images Pillow with numpy, and for TIFF of bands and polygons rasterio with geopandas.
**No word**: the input is taken without an error and without a warning, and what comes of it is not
checked, or wrong. Numbers repeat where several inputs belong to one fault. Paths are shortened to
the files' names.

| | input | plain stack | medsam_tune |
|---|---|---|---|
{chr(10).join(rows)}

medsam_tune refuses well or handles {good} of {len(rows)} inputs; {len(rows) - good} are not built.
The plain stack takes {kinds.count(SILENT)} of the {tried} that it was given without a word, answers
{kinds.count(NOISY)} with an error or a warning, and handles {kinds.count(RIGHT)}.
"""


def main() -> None:
    """Write the page."""
    logging.disable(logging.ERROR)
    text = page()
    with written_whole(PAGE) as beside:
        beside.write_text(text, encoding="utf-8")
    print(f"written to {PAGE.name}")


if __name__ == "__main__":
    main()
