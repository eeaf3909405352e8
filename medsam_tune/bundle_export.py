"""A run as a MONAI bundle of its own, for MONAI Label, MONAI Deploy and `monai.bundle run`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medsam_tune.bundle import bundle_folder
from medsam_tune.errors import DataError
from medsam_tune.files import folder_written_whole, read_json, write_json
from medsam_tune.inference.aftercare import Aftercare
from medsam_tune.methods.header import TunedHeader, header_text, parse_header
from medsam_tune.methods.tuned import refuse_not_finite
from medsam_tune.runs import RunRecord
from medsam_tune.sam.model import PromptableSam
from medsam_tune.version import __version__

HIGHEST_ID = 255
"""Highest label id of a bundle: MONAI Deploy makes 8 bits of every mask, whatever it holds."""

_PROGRAM = re.compile(r"^[$@%]|[@%](#|::)|^_\w+_$")  # what MONAI's config parser acts on
_FIRST = "1.0.0"  # version of the bundle


def export_bundle(
    model: PromptableSam, record: RunRecord, labels: Mapping[int, str], folder: str | Path
) -> Path:
    """Write a tuned model as a self-contained MONAI bundle, whole or not at all.

    `configs/inference.json` has the keys that MONAI Label and MONAI Deploy read. The folder needs
    nothing of the run or of this machine; where it is used, medsam_tune is installed. The masks
    are those of `predict` without prompts.

    Args:
        model: tuned model that finds its labels without prompts; it is not changed.
        record: record of its training.
        labels: label id -> name.
        folder: folder to write.

    Returns:
        the folder.

    Raises:
        ValueError: a model that needs prompts, which no program hands to a bundle.
        DataError: a label id or a name that a program could not carry, or a weight that is not
            finite.
        FileExistsError: the folder exists already.
    """
    folder = Path(folder)
    if not model.classes or record.prompted:
        raise ValueError(
            "the model needs prompts, and MONAI Label and MONAI Deploy hand none to a bundle. "
            "Export a run that was trained with labels (without --class-agnostic), or use "
            "medsam_tune.Segmenter."
        )
    _refuse_labels(labels)
    header = parse_header(header_text(model, labels), str(folder))
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    refuse_not_finite(state, str(folder))
    inference = _inference(header, record)
    _refuse_programs({"rules": record.rules, "mending": record.mending, "labels": labels})
    _refuse_programs({"options": header.tuning.options})
    shipped = bundle_folder("volume")
    with folder_written_whole(folder) as beside:
        for name in ("configs", "models", "docs"):
            (beside / name).mkdir()
        torch.save(state, beside / "models" / "model.pt")
        write_json(beside / "configs" / "inference.json", inference)
        described = read_json(shipped / "configs" / "metadata.json")
        metadata = described | _metadata(described, header, record, folder.name)
        write_json(beside / "configs" / "metadata.json", metadata)
        shutil.copy(shipped / "configs" / "logging.conf", beside / "configs")
        shutil.copy(shipped / "LICENSE", beside)
        (beside / "docs" / "README.md").write_text(_readme(header, record), encoding="utf-8")
    return folder


def _refuse_labels(labels: Mapping[int, str]) -> None:
    """Refuse what a program would lose of the labels."""
    if odd := [label for label in labels if label > HIGHEST_ID]:
        raise DataError(
            f"label {odd[0]} ({labels[odd[0]]}): expected ids up to {HIGHEST_ID}, as MONAI Deploy "
            "makes 8 bits of every mask. Renumber the labels and tune again."
        )
    seen = {"background": 0}
    for label, name in labels.items():
        other = seen.setdefault(name.lower(), label)
        if other != label:
            raise DataError(
                f"label {label} ({name!r}) has the name of label {other} in lower case, in which "
                "MONAI Label takes them. Rename it and tune again."
            )


def _refuse_programs(content: Mapping[str, Any]) -> None:
    """Refuse text that MONAI's config parser would run, or replace, where it is data."""
    for place, text in _texts(content):
        if _PROGRAM.search(text):
            raise DataError(
                f"{place} {text!r} would be a program, a reference or a key to MONAI's config "
                "parser. Rename it and tune again."
            )


def _texts(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """All texts in nested data, keys too, and where they are."""
    if isinstance(content, str):
        yield place, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield place, str(key)
            yield from _texts(value, f"{place}::{key}" if place else str(key))
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _texts(value, place)


def _inference(header: TunedHeader, record: RunRecord) -> dict[str, Any]:
    """`configs/inference.json`; MONAI Label and Deploy read no expression but `device`."""
    room = "medsam_tune.inference"
    aftercare = {name: value for name, value in vars(Aftercare()).items()}
    return {
        "imports": ["$import pathlib", "$import medsam_tune"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/masks'",
        "scans": "$medsam_tune.formats.listing.entries_of(pathlib.Path(@dataset_dir))",
        "slice_batch": 8,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "displayable_configs": aftercare,
        "rules": {
            "_target_": "medsam_tune.slices.rules.rules_from",
            "description": record.rules,
        },
        "mending": {"_target_": "medsam_tune.formats.mending.Mending", **record.mending},
        "network_def": {
            "_target_": "medsam_tune.methods.tuned.tuned_structure",
            "base": header.base.as_dict(),
            "method": header.tuning.method,
            "options": header.tuning.options,
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "medsam_tune.formats.reader.scan_loader",
                    "keys": "image",
                    "mending": "@mending",
                },
                {
                    "_target_": f"{room}.transforms.ScanRulesd",
                    "keys": "image",
                    "rules": "@rules",
                    "mending": "@mending",
                },
            ],
        },
        "inferer": {
            "_target_": f"{room}.inferers.BatchInferer",
            "inferer": {
                "_target_": f"{room}.inferers.VolumeInferer",
                "labels": sorted(header.labels),
                "rules": "@rules",
                "slice_batch": "@slice_batch",
            },
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                },
                {
                    "_target_": f"{room}.transforms.Aftercared",
                    "keys": "pred",
                    "rules": "@rules",
                    "aftercare": {
                        "_target_": f"{room}.aftercare.Aftercare",
                        **{name: f"@displayable_configs::{name}" for name in aftercare},
                    },
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "mask",
                    "output_dtype": "$np.uint8",
                    "separate_folder": False,
                    "resample": False,
                },
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': str(scan)} for scan in @scans]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "initialize": ["$medsam_tune.bundle.start()"],
        "run": ["$@evaluator.run()"],
    }


def _metadata(
    shipped: Mapping[str, Any], header: TunedHeader, record: RunRecord, name: str
) -> dict[str, Any]:
    """What differs from the metadata of the bundle that comes with the package.

    The network takes slices, so the shapes are those of slices. `channel_def` of the output says
    what the ids of a mask mean: that is where MONAI Label takes its labels from.
    """
    base, names = header.base, ", ".join(header.labels.values())
    form = shipped["network_data_format"]
    modality = record.rules.get("modality") or "any"
    channels = {str(k): "slice" for k in range(base.in_channels)}
    image = form["inputs"]["image"] | {
        "modality": modality,
        "num_channels": base.in_channels,
        "spatial_shape": [base.image_size] * 2,
        "channel_def": channels,
    }
    pred = form["outputs"]["pred"] | {
        "num_channels": len(header.labels),
        "channel_def": {"0": "background", **{str(k): v for k, v in header.labels.items()}},
    }
    packages = ("medsam_tune", *(one for one in shipped["required_packages_version"]))
    return {
        "version": _FIRST,
        "changelog": {_FIRST: f"exported by medsam_tune {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {one: _version(one) for one in packages},
        "name": name,
        "task": f"Segmentation of {names} without prompts",
        "description": f"{base.name}, tuned by {header.tuning.method!r} with medsam_tune.",
        "authors": "not given",
        "copyright": "not given",
        "data_source": "not given",
        "data_type": "NIfTI, NRRD, MetaImage or DICOM",
        "label_classes": "label map, see channel_def of the output",
        "pred_classes": "label map, see channel_def of the output",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def _version(package: str) -> str:
    return __version__ if package == "medsam_tune" else version(package)


def _readme(header: TunedHeader, record: RunRecord) -> str:
    rows = [f"| {label} | {name} |" for label, name in header.labels.items()]
    rules = record.rules
    return "\n".join(
        [
            f"# {header.base.name} for {', '.join(header.labels.values())}",
            "",
            "A scan in, a mask in the scan's own grid out, without prompts. Exported by",
            f"medsam_tune {__version__}; the package must be installed where the bundle is used.",
            "Research only; not a medical device.",
            "",
            "| id in the mask | label |",
            "|---|---|",
            *rows,
            "",
            f"Scans: {rules.get('modality') or 'any modality'}, {rules.get('plane')} slices. CT is",
            "in Hounsfield units.",
            "",
            "## By MONAI, in this folder",
            "",
            "```",
            "python -m monai.bundle run --config_file configs/inference.json \\",
            "    --dataset_dir SCANS --output_dir MASKS",
            "```",
            "",
            "SCANS holds NIfTI, NRRD or MetaImage files, or a folder for each DICOM series.",
            "`--displayable_configs::largest_component true` and its neighbours clean the masks.",
            "",
            "## MONAI Label",
            "",
            "Copy the folder to `model/` of the app `monaibundle` and start it with `--conf models",
            "NAME --conf zoo_source ngc`: the name of the folder, taken from there.",
            "",
            "## MONAI Deploy",
            "",
            "Give the folder to `MonaiBundleInferenceOperator` as `bundle_path`, with the input",
            "`image` from `DICOMSeriesToVolumeOperator` and the output `pred`.",
            "",
            "## Licence",
            "",
            "LICENSE is that of the configs. That of the weights depends on the base model and on",
            "the scans; `authors`, `copyright` and `data_source` in `configs/metadata.json` are",
            "yours to fill in.",
            "",
        ]
    )
