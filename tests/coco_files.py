"""Made COCO files: one image of 9 x 6 pixels, and what is changed of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 9, 6
RINGS = [[1, 1, 5, 1, 5, 4, 1, 4]]  # columns 1 to 4, rows 1 to 3
PIXELS = np.zeros((HEIGHT, WIDTH), bool)
PIXELS[1:4, 1:5] = True
COUNTS = [7, 3, 3, 3, 3, 3, 3, 3, 26]  # of the same pixels, column by column


def annotation(number: int = 1, category: int = 1, **changes: Any) -> dict[str, Any]:
    """An object; None takes a key out."""
    given = {
        "id": number,
        "image_id": 7,
        "category_id": category,
        "iscrowd": 0,
        "segmentation": RINGS,
        **changes,
    }
    return {key: value for key, value in given.items() if value is not None}


def content(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The content of a file."""
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [*annotations],
        "categories": [{"id": 1, "name": "text"}, {"id": 4, "name": "table"}],
        **changes,
    }


def write(path: Path, *annotations: dict[str, Any], **changes: Any) -> Path:
    """Write a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content(*annotations, **changes)))
    return path


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Write an image in colours, W x H."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path
