"""One page about an evaluation, made from its files alone: report.html and report.md.

The page needs no network, nor a script but to sort its table and for volumes in 3-D, and holds no
name of a file or a patient besides the ids of the cases.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from medsam_tune.evaluation.figures import bland_altman, box_plot, curves, scatter
from medsam_tune.evaluation.markdown import markdown
from medsam_tune.evaluation.pages import render, resource
from medsam_tune.evaluation.results import CONFIDENCE, INDEX, JITTER, Results, read_results
from medsam_tune.evaluation.viewer import LICENCES, SCRIPTS, viewer_of
from medsam_tune.evaluation.words import (
    brackets,
    by,
    facts,
    headed,
    many,
    number,
    people,
    plain,
    rules,
    sized,
    subtitle,
    warnings,
)
from medsam_tune.files import read_json, written_whole

REPORT = "report.html"
_PER_CASE = {
    "case": "case",
    "name": "label",
    "dice": "Dice",
    "iou": "IoU",
    "nsd": "NSD",
    "hd95": "HD95",
    "surface_distance": "mean distance",
    "truth_volume": "true volume",
    "predicted_volume": "predicted volume",
    "precision": "precision",
    "recall": "recall",
    "lesions": "lesions",
    "lesions_found": "found",
    "false_lesions": "false",
    "ellipse_dice": "ellipse Dice",
    "quality": "own estimate of IoU",
}


def write_report(
    folder: str | Path, output: str | Path | None = None, viewer: bool = False
) -> Path:
    """Write the page of an evaluation, and the same as Markdown beside it.

    Args:
        folder: folder of a run or of an evaluation.
        output: .html file; by default report.html in the folder of the evaluation.
        viewer: with the worst scans in 3-D, in some megabytes more.

    Returns:
        path of the page.

    Raises:
        DataError: see `read_results`; and with `viewer`, see `viewer_of`.
    """
    results = read_results(folder)
    output = results.folder / REPORT if output is None else Path(output)
    context = _context(results, viewer)
    html = render("report.html.j2", context, "report.js", *(SCRIPTS if viewer else ()))
    for path, text in ((output, html), (output.with_suffix(".md"), markdown(context))):
        with written_whole(path) as file:
            file.write_text(text, encoding="utf-8")
    return output


def _context(results: Results, viewer: bool) -> dict[str, Any]:
    """What the page shows."""
    summary = results.summary
    data = summary.get("data") or {}
    boxes, volumes = _boxes(results), _volumes(results)
    pictures, picture_note = _pictures(results)
    jitter = _jitter(results)
    confidence = [*_confidence(results)]
    training = _training(summary)
    groups = [*_groups(summary)]
    sections = [("summary", "Summary"), ("labels", "Labels")]
    sections += [("spread", "Spread")] * bool(boxes) + [("pictures", "Pictures")] * bool(pictures)
    sections += [("viewer", "In 3-D")] * viewer
    sections += [("volumes", sized(summary, "Volumes"))] * bool(volumes)
    sections += [("groups", "Groups")] * bool(groups)
    sections += [("jitter", "Box quality")] * (jitter is not None)
    sections += [("confidence", "Confidence")] * bool(confidence)
    sections += [("training", "Training")] * (training is not None)
    behind = [*facts(summary)]
    sections += [("cases", "Cases"), ("rules", "Rules")] + [(f["id"], f["name"]) for f in behind]
    return {
        "title": f"How good is it? {data.get('name', 'Segmentation')}",
        "subtitle": subtitle(summary),
        "sections": sections,
        "plain": [*plain(summary)],
        "warnings": [*warnings(summary)],
        "tiles": _tiles(summary),
        "tables": [
            _label_table(by(kind, summary), each["labels"], summary)
            for kind, each in summary["by_prompts"].items()
        ],
        "footnote": f"{brackets(summary)} n counts cases; empty: neither annotated nor predicted; "
        "missed: annotated, nothing predicted; false: predicted, not annotated."
        + " Objects are counted over all cases."
        * summary.get("flat", False),
        "boxes": boxes,
        "pictures": pictures,
        "picture_note": picture_note,
        "viewer": viewer_of(results) if viewer else None,
        "viewer_by": by(summary["prompts"], summary) if viewer else "",
        "viewer_licences": resource(LICENCES) if viewer else "",
        "volumes": volumes,
        "sizes": sized(summary, "Volumes"),
        "groups": groups,
        "jitter": jitter,
        "confidence": confidence,
        "training": training,
        "cases": _case_table(results),
        "rules": [*rules(summary)],
        "facts": behind,
    }


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    labels = [*summary["labels"].values()]
    patients = max((entry["n_patients"] for entry in labels), default=0)
    units = {entry["unit"] for entry in labels} - {None}
    unit = units.pop() if len(units) == 1 else ""
    found = [(f"{people(summary)}s", str(patients), many(summary.get("cases", 0), "case"))]
    for key, name in (("dice", "Dice"), ("nsd", "NSD"), ("hd95", "HD95")):
        if summary[f"mean_{key}"] is None:
            continue
        interval = summary["intervals"].get(key)
        small = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "mean of the labels"
        value = number(summary[f"mean_{key}"], key)
        found.append((name, f"{value} {unit}" if key == "hd95" else value, small))
    missed = sum(entry["n_missed"] for entry in labels)
    total = sum(entry["n"] for entry in labels)
    return [*found, ("not found at all", str(missed), f"of {total} scored labels")]


def _label_table(
    words: str, labels: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Table of the labels by one kind of prompts, in words."""
    keys = {
        "nsd": "NSD",
        "hd95": "HD95",
        "surface_distance": "mean distance",
        "iou": "IoU",
        "precision": "precision",
        "recall": "recall",
        "volume_difference": sized(summary, "volume difference"),
        "boundary_iou": "border IoU",
        "ellipse_dice": "ellipse Dice",
    }
    entries = [*labels.values()]
    shown = {k: n for k, n in keys.items() if any(e[k]["mean"] is not None for e in entries)}
    unit = next((e["unit"] for e in entries if e["unit"]), "")
    volume = {"mm": "ml", "px": "px"}.get(unit, "")
    lesions = any((e["lesions"] or 0) > e["n"] + e["n_empty"] for e in entries)
    objects = any(e["pq"] is not None for e in entries)
    prompted = summary.get("flat", False) and any(e["objects"] for e in entries)
    head = ["label", "Dice (95 % interval)", *["prompted objects"] * prompted]
    head += ["n", "empty", "missed", "false", f"{people(summary)}s"]
    head += ["median (quartiles)", *(_with_unit(n, k, unit, volume) for k, n in shown.items())]
    head += ["lesions found", "false lesions"] * lesions
    head += ["object precision", "object recall", "PQ"] * objects
    rows = []
    for entry in entries:
        dice = entry["dice"]
        counts = ("n", "n_empty", "n_missed", "n_false", "n_patients")
        row = [entry["name"], _cell_interval(dice), *[str(entry["objects"])] * prompted]
        row += [str(entry[key]) for key in counts]
        quartiles = f" ({number(dice['q1'])} to {number(dice['q3'])})"
        row.append("-" if dice["median"] is None else number(dice["median"]) + quartiles)
        row += [number(entry[key]["mean"], key) for key in shown]
        if lesions:
            row += [f"{entry['lesions_found']} of {entry['lesions']}", str(entry["false_lesions"])]
        if objects:
            row += [number(entry[key]) for key in ("object_precision", "object_recall", "pq")]
        rows.append(row)
    caption = f"Means over cases, {words}"
    return {"words": headed(words), "caption": caption, "head": head, "rows": rows}


def _with_unit(name: str, key: str, unit: str, volume: str) -> str:
    if key in ("hd95", "surface_distance"):
        return f"{name}, {unit}"
    return f"{name}, {volume}" if key == "volume_difference" else name


def _cell_interval(found: Mapping[str, Any]) -> str:
    if found["mean"] is None or not found.get("interval"):
        return number(found["mean"])
    low, high = found["interval"]
    return f"{found['mean']:.3f} ({low:.3f} to {high:.3f}){'*' * bool(found['note'])}"


def _boxes(results: Results) -> list[dict[str, str]]:
    """Box plots of Dice and NSD of each label, by the first kind of prompts."""
    found = []
    for key, name in (("dice", "Dice"), ("nsd", "NSD")):
        groups = {
            entry["name"]: values
            for label, entry in results.labels.items()
            if (values := [float(row[key]) for row in results.rows_of(label) if row.get(key)])
        }
        if groups:
            caption = f"{name} of each case {by(results.summary['prompts'], results.summary)}; the "
            caption += "box holds the middle half of the cases, the thick line is the median."
            found.append({"svg": box_plot(name, groups, name), "caption": caption})
    return found


def _volumes(results: Results) -> list[dict[str, str]]:
    found = []
    for label, entry in results.labels.items():
        pairs = [
            (float(row["truth_volume"]), float(row["predicted_volume"]))
            for row in results.rows_of(label)
            if row.get("truth_volume") and entry["unit"] and row["dice"]
        ]
        if len(pairs) > 1:
            unit = "ml" if entry["unit"] == "mm" else "px"
            title = sized(results.summary, "Volumes") + f" of {entry['name']}"
            size = sized(results.summary, "volume")
            caption = f"{entry['name']}: predicted minus true {size}, {unit}, {len(pairs)} cases, "
            caption += by(results.summary["prompts"], results.summary)
            found.append({"svg": bland_altman(title, pairs, unit), "caption": caption})
    return found


def _pictures(results: Results) -> tuple[list[dict[str, Any]], str]:
    """Pictures as data, with what they show in words; and the window that they are seen in."""
    folder = results.folder / "overlays"
    if not (folder / INDEX).is_file():
        return [], ""
    found, window = [], ""
    words = by(results.summary["prompts"], results.summary)
    for one in read_json(folder / INDEX)["pictures"]:
        path = folder / f"{one['case']}.png"
        if not path.is_file():
            continue
        with Image.open(path) as picture:
            width, height = picture.size
        scores = {
            row["name"]: f"{float(row['dice']):.3f}"
            for row in results.first
            if row["case"] == one["case"] and row["dice"]
        }
        said = ", ".join(f"{name} {dice}" for name, dice in scores.items())
        role = {"worst": "one of the worst", "median": "in the middle", "best": "one of the best"}
        caption = f"{one['case']}, {role[one['role']]}. Dice {words}: "
        slices = ", ".join(map(str, one["slices"]))
        where = f"slices {slices}" if one["axes"] else "the image"
        window = one["window"]
        found.append(
            {
                "data": base64.b64encode(path.read_bytes()).decode(),
                "width": 7 * width // 10,
                "height": 7 * height // 10,
                "caption": f"{caption}{said}.",
                "alt": f"Case {one['case']}, {where}: outlines of the annotator and of the "
                f"prediction. Dice {said}.",
            }
        )
    note = f"Brightness: {window}. " if window else ""
    if found and any(one["axes"] for one in read_json(folder / INDEX)["pictures"]):
        note += "R, L, A, P, S, I: right, left, anterior, posterior, superior, inferior."
    return found, note


def _groups(summary: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for column, values in (summary.get("groups") or {}).items():
        rows = [
            [
                *(value or "(none)", entry["name"]),
                *(str(entry[key]) for key in ("n", "n_empty", "n_missed", "n_patients")),
                *(_cell_interval(entry["dice"]), _cell_interval(entry["nsd"])),
            ]
            for value, labels in values.items()
            for entry in labels.values()
        ]
        head = [column, "label", "n", "empty", "missed", f"{people(summary)}s"]
        head += ["Dice (95 % interval)", "NSD (95 % interval)"]
        caption = f"Scores by {column}, {by(summary['prompts'], summary)}"
        yield {"caption": caption, "head": head, "rows": rows}


def _jitter(results: Results) -> dict[str, Any] | None:
    """Curve of Dice over the noise of boxes, if it was measured."""
    if not (results.folder / JITTER).is_file():
        return None
    points = read_json(results.folder / JITTER)["points"]
    kinds = [*points[0]["dice"]] if points else []
    lines = {
        by(kind, results.summary): [(p["jitter"], p["dice"][kind]["mean"] or 0.0) for p in points]
        for kind in kinds
    }
    rows = [[f"{p['jitter']:g}", *(_cell_interval(p["dice"][k]) for k in kinds)] for p in points]
    axis = "deviation of each side, as a share of the box"
    return {
        "svg": curves("Dice over the noise of the boxes", lines, axis),
        "caption": "Mean Dice of all labels when each side of a box is off by a random share"
        + ", and a point by that share of the object's box" * ("points" in kinds)
        + ".",
        "table": {
            "caption": "Mean Dice by noise of the boxes",
            "head": ["noise", *lines],
            "rows": rows,
        },
    }


def _confidence(results: Results) -> Iterable[dict[str, str]]:
    """How well the model knows its own masks, for each kind of prompts, if it was measured."""
    if not (results.folder / CONFIDENCE).is_file():
        return
    for kind, found in read_json(results.folder / CONFIDENCE).items():
        words = by(kind, results.summary)
        pairs = [(one["expected"], one["true"], one["flagged"]) for one in found["masks"]]
        caption = (
            f"{headed(words)}: the expected Dice is off by "
            f"{found['error']:.3f} on average ({found['bias']:+.3f} with its sign), over "
            f"{many(found['n'], 'mask')}. {found['flagged']} are flagged for review; among them "
            f"are {found['caught']} of the {found['worst']} worst. Calibrated on "
            f"{many(found['calibrated_on'], 'mask')} of validation cases."
        )
        axes = ("expected Dice", "Dice")
        yield {
            "svg": scatter(f"True over expected Dice {words}", pairs, axes),
            "caption": caption,
        }


def _training(summary: Mapping[str, Any]) -> dict[str, str] | None:
    """Curve of the validations of the training, if there were several."""
    found = (summary.get("run") or {}).get("validations") or []
    if len(found) < 2:
        return None
    best = max(found, key=lambda one: one["dice"])
    caption = "Mean Dice of the validation cases during the training, which chooses the weights: "
    caption += f"it was best after epoch {best['epoch']}, {best['dice']:.3f}."
    lines = {"validation": [(one["epoch"], one["dice"]) for one in found]}
    return {"svg": curves("Dice over the epochs", lines, "epoch"), "caption": caption}


def _case_table(results: Results) -> dict[str, Any]:
    rows = results.first
    columns = {k: n for k, n in _PER_CASE.items() if any(row.get(k) for row in rows)}
    words = f", {by(results.summary['prompts'], results.summary)}" if rows else ""
    flat = results.summary.get("flat", False)
    return {
        "caption": f"Scores of each case and label{words}",
        "head": [sized(results.summary, name) for name in columns.values()],
        "rows": [[_shown(row.get(key, ""), key, flat) for key in columns] for row in rows],
    }


def _shown(text: str, key: str, flat: bool) -> str:
    if key in ("case", "name"):
        return text
    if text == "":
        return "-"
    if flat and key.endswith("_volume"):  # pixels
        return f"{float(text):.0f}"
    return number(float(text), key) if re.search(r"[.e]", text) else text
