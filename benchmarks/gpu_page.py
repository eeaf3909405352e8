"""The page of `benchmarks/gpu.sh` from its lines of JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pages import table
from training_step import METHODS, Job, share_of_peak

from medsam_tune.files import written_whole

CARDS = (8, 12, 24)
CONTEXT = 0.6
"""GB that CUDA itself takes, and what its allocator loses."""

Line = Mapping[str, Any]


def page(folder: Path) -> str:
    """Write FOLDER/gpu.md; its text."""
    lines: list[Line] = [json.loads(x) for x in (folder / "gpu.jsonl").read_text().splitlines()]
    about = next((x for x in lines if "machine" in x), {})
    peak = about.get("peak")
    text = ["# On a GPU\n", f"`bash benchmarks/gpu.sh OUT` on {about.get('machine', 'unknown')}."]
    if peak:
        text.append(
            f"A product of two 8192 x 8192 matrices of bfloat16 random numbers: {peak / 1e12:.0f} "
            "TFLOP/s. Shares of the peak count stock SAM's operations, as torch counts them, "
            "without padded windows, whoever does the work: the forward pass and the gradients "
            "that the method needs."
        )
    text.append(
        "Models have random weights. Seconds are medians with their range, after two runs to warm "
        "up; memory is the peak beyond weights and data, gradients and AdamW's state included. "
        '"Stock" is segment_anything, its decoder one image at a time, as it must.'
    )
    steps = [x for x in lines if "model" in x and "row" in x]
    for title, part in (
        ("Exactness", exactness(lines)),
        ("Image encoder", step_table(_of(steps, "encoder", "compiled", encoder=True), peak)),
        (
            "Training steps",
            step_table(_of(steps, "steps", "large", "compiled", "compiled_large"), peak),
        ),
        ("What fits a card", fits(_of(steps, "steps", "large"))),
        ("Steps of nano at 256", step_table(_of(steps, "small"), None)),
        ("Steps from embeddings", step_table(_of(steps, "cached"), peak)),
        ("nano with its loader", loading(lines, steps)),
        ("Attention, one layer", kernels(lines)),
    ):
        if part:
            text += [f"\n## {title}\n", *part]
    missing = [x for x in lines if "failed" in x and x["failed"] != "out of memory"]
    if missing:
        text.append("\n## What failed\n")
        keys = ("part", "model", "layer", "mode", "row", "kernel")
        text += [f"- {' '.join(x[k] for k in keys if x.get(k))}: {x['failed']}" for x in missing]
    done = ", ".join(f"{x['part']} {x['finished']:.0f}" for x in lines if "finished" in x)
    text.append(f"\nSeconds of each part that came to its end: {done}.\n")
    ended = {x["part"] for x in lines if "finished" in x}
    if cut := [*dict.fromkeys(x["part"] for x in lines if x.get("part", "") not in {*ended, ""})]:
        text.append(f"Cut by the limit of their time, with fewer rows: {', '.join(cut)}.\n")
    found = "\n".join(text)
    with written_whole(folder / "gpu.md") as beside:
        beside.write_text(found)
    return found


def _of(steps: Iterable[Line], *parts: str, encoder: bool = False) -> list[Line]:
    """The steps of some parts, either those of encoders or the others."""
    return [x for x in steps if x["part"] in parts and ("encoder" in x["row"]) == encoder]


def precision(line: Line) -> str:
    """What it computed in."""
    return "bf16" if line["amp"] else "fp32"


def middle(line: Line) -> float | None:
    """Median seconds; None of what failed."""
    return statistics.median(line["seconds"]) if "seconds" in line else None


def step_table(steps: list[Line], peak: float | None) -> list[str]:
    """Rates and memory, and how much faster than stock of the same model and kind."""
    head = ["", "model", "batch", "", "seconds (range)", "images/s", "MiB"]
    head += ["of stock fp32, as fast", "of stock bf16, as fast", "of stock fp32's memory"]
    head += ["of peak"] if peak else []
    rows = []
    for one in sorted(steps, key=lambda x: (x["model"], x["batch"])):
        cells = [one["row"], one["model"], str(one["batch"]), precision(one)]
        seconds = middle(one)
        if seconds is None:
            rows.append([*cells, one["failed"][:60], *[""] * (len(head) - 5)])
            continue
        spread = f"{min(one['seconds']):.4g} to {max(one['seconds']):.4g}"
        rate = one["batch"] / seconds
        cells += [f"{seconds:.4g} ({spread})", f"{rate:.4g}", f"{one['mebibytes']:,.0f}"]
        for amp in (False, True):
            other = stock_of(one, steps, amp)
            faster = (
                "" if other is None else f"{rate / other['batch'] * (middle(other) or 0):.2f} x"
            )
            if other is not None and other["batch"] != one["batch"]:
                faster += f" (its batch {other['batch']})"
            cells.append(faster)
        other = stock_of(one, steps, False)
        same = other is not None and other["batch"] == one["batch"]
        cells.append(f"{one['mebibytes'] / other['mebibytes']:.2f} x" if same and other else "")
        if peak:
            job = Job(**{x.name: one[x.name] for x in fields(Job)})
            share = share_of_peak(job, seconds, peak)
            cells.append(f"{share:.0%}" if share else "")
        rows.append(cells)
    return table(head, rows)


def stock_of(one: Line, steps: list[Line], amp: bool) -> Line | None:
    """Stock's line for the same work: of the same batch, or the largest below it that it could."""
    if one["row"].startswith("stock"):
        return None
    what = one["row"].split(", ")[0]
    loop = "stock loop, decoder" if what in ("decoder", "prompt") else "stock loop, full"
    wanted = loop if what in METHODS else "stock encoder"
    found = [
        x
        for x in steps
        if x["row"] == wanted
        and (x["model"], x["amp"]) == (one["model"], amp)
        and x["batch"] <= one["batch"]
        and "seconds" in x
    ]
    return max(found, key=lambda x: x["batch"], default=None)


def exactness(lines: list[Line]) -> list[str]:
    """Our numbers beside stock's."""
    found = [x for x in lines if "precision" in x]
    head = ["in", "what", "largest", "largest difference", "relative difference", "same pixels"]
    rows = [
        [
            *(x["precision"], x["what"], f"{x['largest']:.3g}", f"{x['gap']:.1e}"),
            f"{x['relative']:.1e}",
            f"{x['same_pixels']:.4%}" if "same_pixels" in x else "",
        ]
        for x in found
        if "gap" in x
    ]
    other = ", ".join(
        f"{x['whose']} in {x['precision']} {x['relative']:.1e}" for x in found if "whose" in x
    )
    said = [f"\nEmbedding against stock's in float64, relative: {other}."] if other else []
    return [*table(head, rows), *said]


def fits(steps: list[Line]) -> list[str]:
    """The largest measured batch that a card of some GB holds."""
    found: dict[tuple[str, str, str], dict[int, float | None]] = {}
    for x in steps:
        need = (x["mebibytes"] + x["weights"]) / 953.67 + CONTEXT if "seconds" in x else None
        found.setdefault((x["model"], x["row"], precision(x)), {})[x["batch"]] = need
    rows = []
    for (model, row, computed), needs in found.items():
        cells = [row, model, computed]
        cells.append(", ".join(f"{b}: {n:.1f}" for b, n in sorted(needs.items()) if n))
        for card in CARDS:
            held = [b for b, need in needs.items() if need and need <= card]
            cells.append(str(max(held)) if held else "none")
        rows.append(cells)
    head = ["", "model", "", "GB by batch", *(f"{card} GB holds" for card in CARDS)]
    notes = (
        f"Weights, peak and {CONTEXT} GB for CUDA itself; the largest batch that was measured.\n"
    )
    return [notes, *table(head, rows)] if rows else []


def loading(lines: list[Line], steps: list[Line]) -> list[str]:
    """Rates with the loader."""
    head = ["", "workers", "batch", "images/s", "training alone", "loading alone", "waiting for it"]
    rows = [
        [
            *(x["row"], str(x["workers"]), str(x["batch"]), f"{x['images_per_second']:.0f}"),
            *(f"{x['training_alone']:.0f}", f"{x['loading_alone']:.0f}", f"{x['waiting']:.0%}"),
        ]
        for x in lines
        if "images_per_second" in x
    ]
    rates = [
        f"\nThe encoder alone, batch {x['batch']}: {x['batch'] / seconds:.0f} images/s."
        for x in steps
        if x["part"] == "loader" and (seconds := middle(x))
    ]
    return [*table(head, rows), *rates]


def kernels(lines: list[Line]) -> list[str]:
    """Attention by variant and kernel."""
    head = ["layer", "", "variant", "kernel", "ms", "MiB", "of stock, as fast"]
    rows = []
    found = [x for x in lines if x["part"] == "attention" and "seconds" in x]
    for x in found:
        stock = next((y for y in found if y["row"] == "stock" and _place(y) == _place(x)), None)
        seconds = middle(x) or 0.0
        faster = f"{(middle(stock) or 0) / seconds:.2f} x" if stock else ""
        cells = [x["layer"], x["mode"], x["row"], x["kernel"] or "torch's choice"]
        rows.append([*cells, f"{1000 * seconds:.3g}", f"{x['mebibytes']:,.0f}", faster])
    return table(head, rows)


def _place(line: Line) -> tuple[str, str]:
    return line["layer"], line["mode"]
