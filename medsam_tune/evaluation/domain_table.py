"""The table of domains and models: each model's Dice on the test cases of each domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medsam_tune.errors import listed
from medsam_tune.evaluation.compare import Method, compare_methods, test_against
from medsam_tune.evaluation.markdown import escaped, table
from medsam_tune.evaluation.statistics import footnote, mean_text

KIND = "slices"
"""Kind of prompts of the table: boxes, as a domain's model does not know the labels of others."""


def dice_by_models(models: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """Name of a model -> its Dice by boxes: `n`, `n_patients`, `mean`, `interval`, `note`."""
    found = compare_methods(models)["methods"]
    keys = ("n", "n_patients", "mean", "interval", "note")
    return {
        name: {key: entry["by_prompts"][KIND]["dice"][key] for key in keys}
        for name, entry in found.items()
    }


def forgotten(old: str, new: str, before: Method, after: Method) -> dict[str, Any]:
    """What full tuning on a new domain took from the old one.

    Args:
        old: domain whose test cases both models saw.
        new: domain that the second model was tuned on, from the first on.
        before: the model of the old domain.
        after: the model of both.

    Returns:
        `old`, `new`; `before` and `after`, see `dice_by_models`; `difference`, and its 95 %
        `interval` over patients, None where it could not be told.
    """
    tests = compare_methods([before, after])["by_prompts"][KIND]["tests"]["dice"]
    test = test_against(tests, after.name, before.name)
    dice = dice_by_models([before, after])
    about = {"old": old, "new": new, "before": dice[before.name], "after": dice[after.name]}
    return {**about, "difference": test.get("difference"), "interval": test.get("interval")}


def domains_text(found: Mapping[str, Any]) -> str:
    """The table as Markdown.

    Args:
        found: `matrix`, domain of the test cases -> `dice_by_models`; `domains`, name ->
            `method`, `parameters` and `bytes`; `base`; `forgetting`, from `forgotten`, or None;
            `combined`, names of the domains whose LoRAs have a mean; `failed`, name of a task ->
            why.
    """
    matrix = found["matrix"]
    models = list(dict.fromkeys(name for row in matrix.values() for name in row))
    rows = []
    for cases, row in matrix.items():
        patients = max(entry["n_patients"] for entry in row.values())
        cells = [_dice(row[name]) if name in row else "-" for name in models]
        rows.append([cases, patients, *cells])
    base = found["base"]
    parts = [
        "# Domains on one base",
        "Dice on held-out test cases by boxes with jitter, on every slice of scans and around each "
        "object of images, with 95 % intervals over patients (of images, over their "
        f"groups). Each domain is tuned on {base['name']}, {base['image_size']} x "
        f"{base['image_size']}, which stays as it is. A model does not know the "
        "labels of another domain: there it has boxes alone.",
        table(["test cases of", "patients or groups", *(f"by {name}" for name in models)], rows),
    ]
    if any(entry["note"] for row in matrix.values() for entry in row.values()):
        parts.append(escaped(footnote()))
    if found["combined"]:
        parts.append(f"Combined is the mean of the LoRAs of {listed(found['combined'])}.")
    sizes = [
        [name, one["method"], f"{one['parameters']:,}", f"{one['bytes']:,}"]
        for name, one in found["domains"].items()
    ]
    parts.append(table(["domain", "method", "tuned parameters", "bytes on disk"], sizes))
    if (lost := found["forgetting"]) is not None:
        before, after = (escaped(_dice(lost[key])) for key in ("before", "after"))
        parts.append(
            f"Forgetting: tuned as a whole on {lost['old']}, the model has {before} "
            f"there; tuned on {lost['new']} from then on, {after}"
            f"{_change(lost)}. A domain's own file changes nothing of another domain."
        )
    parts += [f"failed: {name}: {why}" for name, why in found["failed"].items()]
    return "\n\n".join(parts) + "\n"


def _dice(entry: Mapping[str, Any]) -> str:
    return mean_text(entry["mean"], entry["interval"], entry["n_patients"])


def _change(lost: Mapping[str, Any]) -> str:
    if lost["difference"] is None:
        return ""
    interval = lost["interval"]
    within = "" if interval is None else f" ({interval[0]:+.3f} to {interval[1]:+.3f})"
    return f", a change of {lost['difference']:+.3f}{within}"
