"""Faults of prompt files: contradictions, keys that are none, and files of any size and content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.inference.scans import LoadPromptedScan
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.bad_inputs.table import NO_COUNTERPART, BadInput
from tests.scans import LABELS, SHAPE

GRID = ScanGrid(np.diag([-2.0, -3.0, 4.0, 1.0]), SHAPE)  # type: ignore[arg-type]
BOX = [1, 2, 3, 5, 8, 5]


def read(path: Path) -> Any:
    """Ours, on an axial scan of the shape (10, 12, 6)."""
    return read_prompts(path, GRID, LABELS)


def written(content: object) -> Callable[[Path], Path]:
    """A prompt file: bytes as they are, anything else as JSON."""

    def make(folder: Path) -> Path:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (path := folder / "boxes.json").write_bytes(raw)
        return path

    return make


def of(**item: Any) -> dict[str, Any]:
    """A file's content with one object."""
    return {"objects": [{"label": 1, "box3d": BOX, **item}]}


def given(prompts: Path | None, prompted: bool) -> Any:
    """Ours: prompts, or none, for a model that needs them, or takes none; no scan is read."""
    load = LoadPromptedScan(ScanRules(Window(40, 400)), LABELS, prompted=prompted)
    return load({"scan": "no_such_scan.nii.gz", "prompts": prompts})


def has_many(found: Any) -> None:
    assert len(found) == 20_000


def has_one(found: Any) -> None:
    assert found.boxes[0].tolist() == [1, 2, 5, 8]


def refused(row: int, name: str, what: str, content: object, message: str) -> BadInput:
    """A file that is refused, with its name first."""
    return BadInput(
        row, name, what, written(content), read, NO_COUNTERPART, rf"boxes\.json: {message}"
    )


INPUTS: tuple[BadInput, ...] = (
    refused(
        99,
        "name",
        "prompt file whose name is that of another label",
        of(name="spleen"),
        r"object 0: label 1 is 'liver', but its name is 'spleen'; known: 1 \(liver\), 2 \(spleen\)",
    ),
    refused(
        99,
        "names-of-another-model",
        "prompt file with the labels of another model",
        {"labels": {"1": "spleen"}, **of()},
        r"labels has '1': 'spleen'; known: 1 \(liver\), .* made for another model",
    ),
    refused(
        99,
        "outside-in-mm",
        "box in millimetres wholly outside the scan",
        {"space": "world", **of(box3d=[900, 900, 900, 950, 950, 950])},
        r"object 0: box .* lies outside the scan of shape \(10, 12, 6\)",
    ),
    refused(
        99,
        "another-scan",
        "boxes in voxels of a scan of another size",
        {"scan": {"size": [512, 512, 80]}, **of()},
        r"its prompts are voxels of a scan with size \[512, 512, 80\], this one has \[10, 12, 6\]",
    ),
    refused(
        99,
        "another-orientation",
        "boxes in voxels of a scan in another orientation",
        {"scan": {"size": list(SHAPE), "orientation": "RAS"}, **of()},
        r"its prompts are voxels of a scan with orientation 'RAS', this one has LPS",
    ),
    BadInput(
        99,
        "not-prompted",
        "prompts for a model without prompts",
        written(of()),
        lambda path: given(path, prompted=False),
        NO_COUNTERPART,
        r"boxes\.json: the model was trained without prompts .*; leave --prompts out\.",
    ),
    BadInput(
        99,
        "prompted",
        "no prompts for a model that needs them",
        lambda folder: None,
        lambda path: given(path, prompted=True),
        NO_COUNTERPART,
        r"^the model segments what is prompted; give it a prompt file \(--prompts\)",
    ),
    refused(
        99,
        "key",
        "prompt file with a mistyped key",
        {"spaces": "world", **of()},
        "unknown key 'spaces'; known: format, space, objects, .* Did you mean 'space'",
    ),
    refused(
        99,
        "key-of-object",
        "object of a prompt file with a mistyped key",
        {"objects": [{"label": 1, "box3": BOX}]},
        "object 0: unknown key 'box3'; .* Did you mean 'box3d'",
    ),
    refused(
        99,
        "not-filled-in",
        "prompt file whose boxes are not filled in",
        of(box3d=["i0", "j0", "k0", "i1", "j1", "k1"]),
        "object 0: box3d is not filled in",
    ),
    BadInput(
        108,
        "many",
        "20,000 boxes in a prompt file",
        written({"objects": of(box3d=[1, 2, 3, 5, 8, 4])["objects"] * 20_000}),
        read,
        NO_COUNTERPART,
        handled="read in less than a second",
        check=has_many,
    ),
    refused(
        108,
        "too-many",
        "more boxes than a person or a viewer gives",
        {"objects": of()["objects"] * 100_001},
        "more than 100,000 boxes and points; give fewer",
    ),
    refused(
        108,
        "number-as-text",
        "numbers as text in a prompt file",
        of(box3d=["1", "2", "3", "5", "8", "5"]),
        "object 0: box3d is .*; expected 6 finite numbers",
    ),
    refused(
        108,
        "boolean",
        "booleans as numbers in a prompt file",
        of(box3d=[True, 2, 3, 5, 8, 5]),
        "object 0: box3d is .True, .*; expected 6 finite numbers",
    ),
    refused(
        108,
        "nan",
        "NaN in a prompt file",
        b'{"objects": [{"label": 1, "box3d": [NaN, 2, 3, 5, 8, 5]}]}',
        "(is not JSON|object 0: box3d is .nan, .*; expected 6 finite numbers)",
    ),
    refused(
        108,
        "huge-number",
        "a number of 400 digits in a prompt file",
        of(box3d=[*BOX[:5], 10**400]),
        "object 0: box3d is .{,90}; expected 6 finite numbers",
    ),
    refused(
        108,
        "index-of-many-digits",
        "a slice's index of 5,000 digits",
        {"objects": [{"label": 1, "slices": {"1" * 5000: {"box": [1, 2, 5, 8]}}}]},
        "object 0: slice '1.{,90} is no index",
    ),
    refused(
        108,
        "deep-prompts",
        "prompt file of lists in lists, 100,000 deep",
        b"[" * 100_000 + b"]" * 100_000,
        "(is not JSON|its objects and lists are nested too deeply)",
    ),
    refused(
        108,
        "key-twice",
        "a key twice in a prompt file",
        b'{"objects": [{"label": 1, "label": 2, "box3d": [1, 2, 3, 5, 8, 5]}]}',
        "is not JSON .*the keys 'label' are there twice",
    ),
    BadInput(
        108,
        "bom-prompts",
        "prompt file with a byte order mark",
        written(b"\xef\xbb\xbf" + json.dumps(of()).encode()),
        read,
        NO_COUNTERPART,
        handled="read as any other",
        check=has_one,
    ),
)
