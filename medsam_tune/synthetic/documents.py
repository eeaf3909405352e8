"""Made-up document pages with COCO's JSON: text, titles, lists, tables and figures in columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CATEGORIES = {1: "text", 2: "title", 3: "list", 4: "table", 5: "figure"}

_LINE = 9  # pixels from one line of text to the next
_INK = (25, 25, 30)
_SHARES = {1: 0.45, 2: 0.2, 3: 0.12, 4: 0.11, 5: 0.12}  # of the blocks of a page

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, upper bounds exclusive."""


def make_page(
    rng: np.random.Generator, size: tuple[int, int] = (396, 306)
) -> tuple[Image.Image, list[tuple[int, Box]]]:
    """One page.

    Args:
        rng: source of randomness.
        size: (H, W) pixels.

    Returns:
        the page in RGB, and category and box of each block on it.
    """
    height, width = size
    page = Image.new("RGB", (width, height), (255, 255, int(rng.integers(245, 256))))
    draw = ImageDraw.Draw(page)
    columns, margin, gap = int(rng.integers(1, 3)), 24, 14
    wide = (width - 2 * margin - gap * (columns - 1)) // columns
    blocks = []
    for column in range(columns):
        x, y = margin + column * (wide + gap), margin + int(rng.integers(0, 12))
        while True:
            kind = int(rng.choice([*_SHARES], p=[*_SHARES.values()]))
            tall = _LINE * int(rng.integers(*_LINES[kind]))
            if y + tall > height - margin:
                break
            box = _DRAWN[kind](draw, rng, (x, y, x + wide, y + tall))
            blocks.append((kind, box))
            y = box[3] + int(rng.integers(7, 14))
    return page, blocks


def write_documents(folder: Path, count: int = 24, seed: int = 0) -> Path:
    """Write pages and `instances.json`.

    Args:
        folder: folder for `images/` and `instances.json`.
        count: number of pages.
        seed: seed; it fixes the files, byte by byte.

    Returns:
        the folder.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        page, blocks = make_page(np.random.default_rng([seed, number]))
        name = f"page{number:03d}.png"
        page.save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": page.width, "height": page.height})
        annotations += [
            _annotation(len(annotations) + k, number, *block) for k, block in enumerate(blocks, 1)
        ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in CATEGORIES.items()],
    }
    (folder / "instances.json").write_text(json.dumps(content, indent=1))
    return folder


def _annotation(number: int, image: int, category: int, box: Box) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "area": (x1 - x0) * (y1 - y0),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
    }


def _words(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, x0: int, x1: int, y: int, tall: int
) -> int:
    """A line of words from x0 to x1 at the most; returns where it ends."""
    x, end = x0, x0
    while x < x1:
        for _ in range(int(rng.integers(2, 9))):
            if x + 3 > x1:
                return end
            kind = rng.integers(4)  # a stroke, a bowl, a tall or a low letter
            top = y if kind == 2 else y + tall // 3
            if kind == 1:
                draw.ellipse((x, top, x + 2, y + tall - 1), outline=_INK)
            else:
                draw.line((x, top, x, y + tall - 1), fill=_INK)
                draw.point((x + 1, top if kind else y + tall - 1), fill=_INK)
            x += 3
            end = x
        x += 3
    return end


def _text(draw: ImageDraw.ImageDraw, rng: np.random.Generator, box: Box) -> Box:
    x0, y0, x1, y1 = box
    for y in range(y0, y1 - 2, _LINE):
        last = y + _LINE > y1 - 2
        _words(draw, rng, x0, x1 - (int(rng.integers(0, (x1 - x0) // 2)) if last else 0), y, 6)
    return x0, y0, x1, y1 - 3


def _title(draw: ImageDraw.ImageDraw, rng: np.random.Generator, box: Box) -> Box:
    x0, y0, x1, _ = box
    end, seed = x0, int(rng.integers(2**31))
    for shift in (0, 1):  # twice, one pixel apart, is bold
        again = np.random.default_rng(seed)
        end = _words(draw, again, x0 + shift, x0 + (x1 - x0) * 2 // 3 + shift, y0, 8)
    return x0, y0, max(end, x0 + 12), y0 + 8


def _list(draw: ImageDraw.ImageDraw, rng: np.random.Generator, box: Box) -> Box:
    x0, y0, x1, y1 = box
    end = x0
    for y in range(y0, y1 - 2, _LINE):
        draw.ellipse((x0, y + 2, x0 + 3, y + 5), fill=_INK)
        stop = x1 - int(rng.integers(0, (x1 - x0) // 3))
        end = max(end, _words(draw, rng, x0 + 9, stop, y, 6))
    return x0, y0, end, y1 - 3


def _table(draw: ImageDraw.ImageDraw, rng: np.random.Generator, box: Box) -> Box:
    x0, y0, x1, y1 = box
    columns = int(rng.integers(3, 5))
    step = (x1 - x0) // columns
    for line in (y0, y0 + _LINE + 1, y1 - 1):
        draw.line((x0, line, x1 - 1, line), fill=_INK)
    for y in range(y0 + 2, y1 - 7, _LINE):
        for column in range(columns):
            start = x0 + column * step + 2
            _words(draw, rng, start, start + int(rng.integers(10, max(12, step - 6))), y, 6)
    return box


def _figure(draw: ImageDraw.ImageDraw, rng: np.random.Generator, box: Box) -> Box:
    x0, y0, x1, y1 = box
    colour = tuple(rng.integers(40, 220, 3).tolist())
    if rng.random() < 0.5:  # bars
        draw.line((x0, y0, x0, y1 - 1, x1 - 1, y1 - 1), fill=_INK)
        for x in range(x0 + 6, x1 - 12, 14):
            top = int(rng.integers(y0 + 2, y1 - 6))
            draw.rectangle((x, top, x + 8, y1 - 2), fill=colour)
    else:  # a photograph
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)
        for _ in range(9):
            x, y = int(rng.integers(x0, x1 - 8)), int(rng.integers(y0, y1 - 8))
            right, low = min(x1 - 1, x + 30), min(y1 - 1, y + 22)
            draw.ellipse((x, y, right, low), fill=tuple(rng.integers(20, 240, 3).tolist()))
    return box


_LINES = {1: (3, 9), 2: (1, 2), 3: (3, 7), 4: (4, 9), 5: (7, 13)}  # lowest, and one above the most
_DRAWN: dict[int, Callable[[ImageDraw.ImageDraw, np.random.Generator, Box], Box]] = {
    1: _text,
    2: _title,
    3: _list,
    4: _table,
    5: _figure,
}
