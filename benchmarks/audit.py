"""Known weaknesses and licences of what is installed.

    make audit

Asks pip-audit (in an environment of its own, so that it changes nothing here) for advisories, if
the package index has them, and writes the licences of the pinned set to docs/licences.md.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/ is no part of the package

from medsam_tune.files import written_whole
from tests.licences import licence_of, runtime_packages

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
SECONDS = 120  # for all advisories


def advisories(program: str) -> list[dict[str, Any]] | str:
    """What pip-audit says of each package, or why it could not be asked."""
    place = sysconfig.get_paths()["purelib"]
    command = [program, "--path", place, "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        found = json.loads(done.stdout)["dependencies"]
    except FileNotFoundError:
        return "pip-audit could not be installed"
    except subprocess.TimeoutExpired:
        return f"the package index did not answer within {SECONDS} s"
    except (json.JSONDecodeError, KeyError):
        return f"pip-audit: {done.stderr.strip().splitlines()[-1:]}"
    if not any("vulns" in each for each in found):
        return "this package index serves no advisories"
    return list(found)


def pinned() -> dict[str, str]:
    """Name -> version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if re.match(r"\w", line))


def licences() -> str:
    """The page."""
    runtime = runtime_packages()
    rows = []
    for name, version in pinned().items():
        use = "runtime" if canonicalize_name(name) in runtime else "development"
        try:
            rows.append(f"| {name} | {version} | {licence_of(name)} | {use} |")
        except PackageNotFoundError:
            rows.append(f"| {name} | {version} | not installed here | optional |")
    return f"""# Licences of the pinned set

Made by `make audit` from what the packages of `constraints.txt` declare; not legal advice. torch
brings NVIDIA's CUDA packages, which have NVIDIA's own licence. `tests/test_licences.py` refuses
copyleft licences such as GPL among the packages that are needed at run time.

| package | version | licence | needed for |
|---|---|---|---|
{chr(10).join(rows)}

Carried in the package: `evaluation/niivue/niivue.umd.js.gz`, unchanged from the npm package
`@niivue/niivue` 0.69.0 (BSD-2-Clause), which contains works under MIT, ISC, BSD and Apache-2.0.
Their licences are in `evaluation/niivue/LICENSES.txt`, and in each page of `report --viewer`.
"""


def main() -> int:
    """Write the page, print what is known, and fail if a package has an advisory."""
    text = licences()
    with written_whole(PAGE) as beside:
        beside.write_text(text, encoding="utf-8")
    print(f"audit: licences are in {PAGE.relative_to(ROOT)}")
    found = advisories(sys.argv[1])
    if isinstance(found, str):
        print(f"audit: advisories skipped: {found}")
        return 0
    weak = [
        f"{each['name']} {each['version']}: {known['id']}, fixed in {known['fix_versions']}"
        for each in found
        for known in each.get("vulns", [])
    ]
    skipped = sum("vulns" not in each for each in found)
    print(*weak, sep="\n", end="\n" if weak else "")
    print(f"audit: {len(weak)} advisories for {len(found) - skipped} packages; {skipped} skipped")
    return 1 if weak else 0


if __name__ == "__main__":
    sys.exit(main())
