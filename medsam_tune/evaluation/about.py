"""What stands behind the numbers of an evaluation: data, split, configuration, machine."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from medsam_tune.cases.datalist import SUBSETS, Datalist
from medsam_tune.files import file_hash, read_json
from medsam_tune.runs import RECORD, SPLIT, read_record, read_state
from medsam_tune.slices.store import PreparedCase
from medsam_tune.version import __version__

_PACKAGES = ("torch", "monai", "segment-anything", "peft", "scipy", "numpy", "SimpleITK", "nibabel")
_OF_RECORD = ("rules", "mending", "jitter", "seed", "mixture", "coding", "recipe", "version")


def about_data(
    datalist: str | Path, data: Datalist, subset: str, prepared: Sequence[PreparedCase] = ()
) -> dict[str, Any]:
    """What a datalist holds, as counts and hashes; no name of a file or a patient.

    Args:
        datalist: path of the datalist.
        data: its content.
        subset: name of the subset that is scored.
        prepared: its cases; those without a label map are not scored.
    """
    return {
        "name": data.name,
        "modality": data.modality,
        "subset": subset,
        "sha256": file_hash(Path(datalist)),
        "subsets": {
            name: {
                "cases": len(getattr(data, name)),
                "patients": len({case.patient for case in getattr(data, name)}),
            }
            for name in SUBSETS
        },
        "patients_guessed": any(case.guessed for case in data.cases),
        "without_label": sum(not case.has_label for case in prepared),
        "content": contents_hash([case.content for case in prepared]) if prepared else None,
    }


def contents_hash(contents: Sequence[str]) -> str:
    """One hash of the voxels of several cases, whatever their order and names."""
    return hashlib.sha256("\n".join(sorted(contents)).encode()).hexdigest()[:16]


def about_run(run: str | Path) -> dict[str, Any] | None:
    """Split, configuration and validations of a training; None where there was none.

    Args:
        run: folder of the run.
    """
    run = Path(run)
    if not (run / RECORD).is_file():
        return None
    record = asdict(read_record(run))
    split: Mapping[str, Any] = read_json(run / SPLIT) if (run / SPLIT).is_file() else {}
    return {
        "split": {
            name: {
                "cases": len(members),
                "patients": len({one["patient"] for one in members}),
                "content": contents_hash([one["content"] for one in members]),
            }
            for name, members in split.items()
        },
        "configuration": {name: record[name] for name in _OF_RECORD},
        "validations": read_state(run).get("validations", []),
    }


def about_machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Versions of the packages, and the hardware.

    Args:
        device: device of the model.
    """
    device = torch.device(device)
    memory = psutil.virtual_memory().total / 1e9
    return {
        "versions": {
            "medsam_tune": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gb": round(memory, 1),
            "system": f"{platform.system()} {platform.machine()}",
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Name of the processor, as Linux has it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
