"""Licences of installed packages, from what their authors declare."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("dicom", "geo", "onnx")
"""Extras that users install; the others are tools of development."""

# Those that bind a whole work that contains them. LGPL and MPL bind changes to themselves only.
COPYLEFT = re.compile(
    r"(?<!L)(?<!Lesser )\b(A?GPL|GNU (Affero )?General Public)|SSPL|CC-BY-NC", re.I
)

UNKNOWN = "not declared"
# Declared in the repository's LICENSE only.
DECLARED_ELSEWHERE = {
    "segment-anything": "Apache-2.0",
    "cuda-toolkit": "NVIDIA Proprietary Software",
}


def licence_of(name: str) -> str:
    """The licence that a package declares: its expression, else classifiers, else a short text.

    Raises:
        PackageNotFoundError: the package is not installed.
    """
    declared = metadata(name)
    if declared.get("License-Expression"):
        return str(declared["License-Expression"])
    classifiers = [c for c in declared.get_all("Classifier") or [] if c.startswith("License ::")]
    if classifiers:
        return ", ".join(c.split(" :: ")[-1] for c in classifiers)
    lines = (declared.get("License") or "").strip().splitlines()
    if lines and len(lines) == 1:  # some put the whole text there
        return lines[0]
    return DECLARED_ELSEWHERE.get(canonicalize_name(name), UNKNOWN)


def is_copyleft(licence: str) -> bool:
    """True for licences that would bind a product that ships the package, such as GPL.

    A choice ("MIT OR GPL-3.0") leaves the other, and an exception ("WITH ...") allows linking.
    """
    parts = re.split(r"\s+AND\s+|,\s*", licence)
    return any(
        all(COPYLEFT.search(choice) and " WITH " not in choice for choice in part.split(" OR "))
        for part in parts
    )


def runtime_packages() -> set[str]:
    """Names of all installed packages that this one needs to run, with the extras of users."""
    seen: set[tuple[str, str]] = set()
    waiting = [("medsam_tune", extra) for extra in ("", *EXTRAS)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue  # an extra that is not installed
        seen.add((name, extra))
        for each in map(Requirement, needed):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                found = canonicalize_name(each.name)
                waiting += [(found, more) for more in ("", *each.extras)]
    return {name for name, _ in seen} - {"medsam_tune"}
