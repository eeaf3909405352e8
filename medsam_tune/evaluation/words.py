"""A summary in words: what was measured, how good it is, and what stands behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medsam_tune.errors import listed
from medsam_tune.evaluation.metrics import EMPTY_RULES
from medsam_tune.evaluation.statistics import FEW, FEWEST
from medsam_tune.files import flat
from medsam_tune.inference.simulated import parse_kind

_OF_SCANS = ("volume", "voxel", "surfaces")
_DIGITS = {"volume_difference": 2, "hd95": 2, "surface_distance": 2}


def who(summary: Mapping[str, Any]) -> str:
    """Who made the masks."""
    base, tuning = summary.get("base"), summary.get("tuning")
    if not base:
        return "these masks"
    return f"{base['name']}, {'untuned' if tuning is None else f'tuned by {tuning}'}"


def subtitle(summary: Mapping[str, Any]) -> str:
    """Model, modality and subset, as far as they are known."""
    data = summary.get("data") or {}
    parts = [who(summary), data.get("modality"), f"subset {summary.get('subset', 'test')}"]
    return ", ".join(str(part) for part in parts if part)


def plain(summary: Mapping[str, Any]) -> Iterable[str]:
    """The result in words."""
    labels, kind = summary["labels"], summary["prompts"]
    patients = max((entry["n_patients"] for entry in labels.values()), default=0)
    count = summary.get("cases", 0)
    held_out = "held-out " if summary.get("subset") == "test" else ""
    if summary["mean_dice"] is None:
        yield "Nothing could be scored."
        return
    flat = summary.get("flat", False)
    grid = "" if flat else ", in each scan's own grid"
    yield (
        f"Measured on {many(count, held_out + 'case')} of {many(patients, people(summary))}{grid}, "
        f"{by(kind, summary)}."
    )
    several = f", the mean of {len(labels)} labels" if len(labels) > 1 else ""
    text = f"The Dice is {_interval(summary['mean_dice'], summary['intervals']['dice'])}{several}"
    if len(labels) > 1:
        scored = {k: e for k, e in labels.items() if e["dice"]["mean"] is not None}
        worst = min(scored.values(), key=lambda entry: entry["dice"]["mean"])
        text += f"; the lowest is that of {worst['name']}, {worst['dice']['mean']:.3f}"
    yield f"{text}."
    if summary["mean_nsd"] is not None:
        yield (
            f"{100 * summary['mean_nsd']:.1f} % of the {'outlines' if flat else 'surfaces'} lie "
            f"within {tolerances(labels.values())} of the annotator's (NSD)."
        )
    others = [
        f"{each['mean_dice']:.3f} {by(other, summary)}"
        for other, each in summary["by_prompts"].items()
        if other != kind and each["mean_dice"] is not None
    ]
    if others:
        yield f"By other prompts the Dice is {'; '.join(others)}."
    if summary["mean_ellipse_dice"] is not None:
        yield (
            f"The ellipses in the same boxes, which need no model, reach "
            f"{summary['mean_ellipse_dice']:.3f}."
        )


def by(kind: str, summary: Mapping[str, Any]) -> str:
    """A kind of prompts in a sentence, such as "by one 3-D box"; `flat` in a summary counts."""
    return parse_kind(kind).words(summary.get("flat", False))


def tolerances(labels: Iterable[Mapping[str, Any]]) -> str:
    """The tolerance of NSD, such as "2 mm", or "1 mm (spleen) or 3 mm (liver)".

    Args:
        labels: `name`, `tolerance` and `unit` of each; those without a tolerance are left out.
    """
    named: dict[tuple[float, str], list[str]] = {}
    for one in labels:
        if one["tolerance"] is not None:
            named.setdefault((one["tolerance"], one["unit"] or ""), []).append(one["name"])
    if not named:
        return "the tolerance"
    names = [listed(each) if len(named) > 1 else "" for each in named.values()]
    found = [
        f"{tolerance:g} {unit}{f' ({each})' if each else ''}"
        for (tolerance, unit), each in zip(named, names, strict=True)
    ]
    return " or ".join(found)


def sized(summary: Mapping[str, Any], text: str) -> str:
    """A text on volumes, of 2-D images on areas."""
    if not summary.get("flat", False):
        return text
    return text.replace("volume", "area").replace("Volume", "Area")


def brackets(summary: Mapping[str, Any]) -> str:
    """What stands under a table of means with their intervals."""
    of = people(summary)
    return (
        f"In brackets: 95 % interval of the mean over {of}s (bootstrap); * of fewer than {FEW} "
        f"{of}s, so it is too narrow; none below {FEWEST}."
    )


def people(summary: Mapping[str, Any]) -> str:
    """What the cases of an evaluation are grouped by: "patient", or "group" of pictures."""
    return "group" if (summary.get("data") or {}).get("modality") == "RGB" else "patient"


def headed(text: str) -> str:
    """A text as a sentence or a heading: its first letter is a capital."""
    return text[:1].upper() + text[1:]


def many(count: int, noun: str) -> str:
    """A number of things, such as "3 cases"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _interval(mean: float, interval: Sequence[float] | None) -> str:
    if interval is None:
        return f"{mean:.3f}"
    return f"{mean:.3f} (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"


def warnings(summary: Mapping[str, Any]) -> Iterable[str]:
    """What a reader must beware of."""
    labels = summary["labels"].values()
    patients = max((entry["n_patients"] for entry in labels), default=0)
    unit = people(summary)
    if patients < FEWEST:
        yield f"Fewer than {FEWEST} {unit}s: the numbers say little of others; no interval."
    elif patients < FEW:
        yield f"Fewer than {FEW} {unit}s: the intervals are unsure, and rather too narrow."
    for entry in labels:
        counts = {"n_missed": "was not found at all", "n_false": "was found where it is not"}
        for key, words in counts.items():
            if entry[key]:
                yield f"{entry['name']} {words} in {entry[key]} of {entry['n']} cases."
    data = summary.get("data") or {}
    if data.get("without_label"):
        yield f"{many(data['without_label'], 'case')} without an annotation could not be scored."
    if data.get("patients_guessed"):
        yield f"Which cases are of one {unit} is guessed from their names."
    if summary.get("missing"):
        yield f"{many(len(summary['missing']), 'case')} had no mask, and counts as empty."
    if summary.get("stopped_by"):
        yield f"The evaluation was stopped by an error: {summary['stopped_by']}"


def number(value: float | None, key: str = "") -> str:
    """A measure for a table; "-" for none."""
    return "-" if value is None else f"{value:.{_DIGITS.get(key, 3)}f}"


def rules(summary: Mapping[str, Any]) -> Iterable[str]:
    """How the scores are defined."""
    flat = summary.get("flat", False)
    whole, voxel, surfaces = ("image", "pixel", "outlines") if flat else _OF_SCANS
    rule = summary.get("empty_rule") or {"name": "exclude", "both_empty": EMPTY_RULES["exclude"]}
    yield f"Neither annotated nor predicted: {rule['both_empty']}."
    one = "Dice, IoU and NSD are 0"
    if rule["name"] != "nnunet":
        one += f", and distances the diagonal of the whole {whole}"
    yield f"Only one of both: {one}."
    yield f"No other case is left out; {voxel}s that nobody annotated do not count."
    yield (
        f"NSD is the share of both {surfaces} that lies within "
        f"{tolerances(summary['labels'].values())} of the other one; HD95 the 95th percentile of "
        f"the distances between {surfaces}, the larger of both directions; the mean distance that "
        f"of all of both {surfaces}."
    )
    yield f"Lesions are connected pieces; one is found where the prediction has a {voxel} of it."
    yield f"Intervals: 95 %, bootstrap of the mean, {people(summary)}s drawn with all their cases."
    if summary.get("measured_by"):
        yield f"Computed by {summary['measured_by']}. Other tools may differ."


def facts(summary: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Tables of what stands behind the numbers."""
    data, run, machine = (summary.get(key) or {} for key in ("data", "run", "machine"))
    rows = [(key, data[key]) for key in ("name", "modality", "subset") if key in data]
    for name, count in (data.get("subsets") or {}).items():
        said = f"{many(count['cases'], 'case')}, {many(count['patients'], people(summary))}"
        rows.append((f"datalist, {name}", said))
    if data.get("sha256"):
        rows.append(("sha256 of the datalist", data["sha256"]))
    if data.get("content"):
        rows.append(("hash of the scored voxels", data["content"]))
    if summary.get("masks"):
        rows.append(("hash of the masks", summary["masks"]))
    for name, split in (run.get("split") or {}).items():
        said = f"{many(split['cases'], 'case')}, {many(split['patients'], people(summary))}, hash "
        rows.append((f"the model's {name}", f"{said}{split['content']}"))
    base = summary.get("base") or {}
    rows += [(f"base model, {key}", value) for key, value in base.items()]
    rows += [(key, summary[key]) for key in ("tuning", "jitter", "seed") if key in summary]
    yield {
        "id": "data",
        "name": "Data and model",
        "caption": f"Counts and hashes; no name of a file or {people(summary)}",
        "rows": rows,
        "fold": False,
    }
    versions = [(f"version of {k}", v) for k, v in (machine.get("versions") or {}).items() if v]
    hardware = [(k.replace("_", " "), v) for k, v in (machine.get("hardware") or {}).items()]
    if "seconds" in summary:
        hardware.append(("seconds of the evaluation", f"{summary['seconds']:.1f}"))
    yield {
        "id": "machine",
        "name": "Versions and hardware",
        "caption": "Of the evaluation",
        "rows": [*versions, *hardware],
        "fold": False,
    }
    settings = flat(run.get("configuration") or {})
    if settings:
        yield {
            "id": "configuration",
            "name": "Configuration of the training",
            "caption": "Every setting but places of files",
            "rows": [*settings.items()],
            "fold": True,
        }
