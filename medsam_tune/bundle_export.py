"""A run as a MONAI bundle of its own, for MONAI Label, MONAI Deploy and `monai.bundle run`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from medsam_tune.bundle import bundle_folder
from medsam_tune.errors import DataError
from medsam_tune.files import folder_written_whole, read_json, write_json
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

    `configs/inference.yaml` has the keys that MONAI Label and MONAI Deploy read. The folder needs
    nothing of the run or of this machine; where it is used, medsam_tune is installed. Its masks are
    those of `predict`: without prompts, or where the model needs prompts, by a label map for each
    scan. MONAI Deploy takes that as a second input, `prompts`; MONAI Label has no way for it.

    Args:
        model: tuned model; it is not changed.
        record: record of its training.
        labels: label id -> name.
        folder: folder to write.

    Returns:
        the folder.

    Raises:
        DataError: a label id or a name that a program could not carry, or a weight that is not
            finite.
        FileExistsError: the folder exists already.
    """
    folder = Path(folder)
    _refuse_labels(labels)
    header = parse_header(header_text(model, labels), str(folder))
    trained = {
        "prompted": not model.classes or record.prompted is True,
        "labels": sorted(labels),
        "rules": record.rules,
        "base": header.base.as_dict(),
        "method": header.tuning.method,
        "options": header.tuning.options,
    }
    _refuse_programs(trained | {"mending": record.mending, "names": labels})
    mending = {"_target_": "medsam_tune.formats.mending.Mending", **record.mending}
    data = yaml.safe_dump({"trained": trained | {"mending": mending}}, sort_keys=False)
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    refuse_not_finite(state, str(folder))
    shipped = bundle_folder("volume")
    template = shipped.parent / "exported" / "configs" / "inference.yaml"
    described = read_json(shipped / "configs" / "metadata.json")
    metadata = described | _metadata(described, header, trained, folder.name)
    with folder_written_whole(folder) as beside:
        for name in ("configs", "models", "docs"):
            (beside / name).mkdir()
        torch.save(state, beside / "models" / "model.pt")
        text = template.read_text("utf-8") + data
        (beside / "configs" / "inference.yaml").write_text(text, "utf-8")
        write_json(beside / "configs" / "metadata.json", metadata)
        shutil.copy(shipped / "configs" / "logging.conf", beside / "configs")
        shutil.copy(shipped / "LICENSE", beside)
        (beside / "docs" / "README.md").write_text(_readme(header, trained), encoding="utf-8")
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


def _metadata(
    shipped: Mapping[str, Any], header: TunedHeader, trained: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """What differs from the metadata of the bundle that comes with the package.

    The network takes slices, so the shapes are those of slices. `channel_def` of the output says
    what the ids of a mask mean: that is where MONAI Label takes its labels from.
    """
    base, known = header.base, {str(k): v for k, v in header.labels.items()}
    form = shipped["network_data_format"]
    inputs = {
        "image": form["inputs"]["image"]
        | {
            "modality": trained["rules"].get("modality") or "any",
            "num_channels": base.in_channels,
            "spatial_shape": [base.image_size] * 2,
            "channel_def": {str(k): "slice" for k in range(base.in_channels)},
        }
    }
    if trained["prompted"]:
        inputs["prompts"] = inputs["image"] | {
            "format": "labels",
            "modality": "n/a",
            "num_channels": 1,
            "value_range": [0, HIGHEST_ID],
            "channel_def": {"0": "label map: each label is an object to find"},
        }
    pred = form["outputs"]["pred"] | {
        "num_channels": header.tuning.options.get("num_classes") or 1,
        "channel_def": {"0": "background", **known},
    }
    packages = shipped["required_packages_version"]
    return {
        "version": _FIRST,
        "changelog": {_FIRST: f"exported by medsam_tune {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {one: _version(one) for one in packages},
        "name": name,
        "task": f"Segmentation of {', '.join(known.values())}, {_way(trained)}",
        "description": f"{base.name}, tuned by {header.tuning.method!r} with medsam_tune.",
        "authors": "not given",
        "copyright": "not given",
        "data_source": "not given",
        "data_type": _files(trained)[0],
        "label_classes": "label map, see channel_def of the output",
        "pred_classes": "label map, see channel_def of the output",
        "network_data_format": {"inputs": inputs, "outputs": {"pred": pred}},
    }


def _version(package: str) -> str:
    return __version__ if package == "medsam_tune" else version(package)


def _files(trained: Mapping[str, Any]) -> tuple[str, str]:
    """The formats of what is segmented, and what a folder of it holds, in words."""
    if trained["rules"].get("modality") == "RGB":
        inside = "PNG, JPEG or TIFF images; masks are PNG, and those of GeoTIFF GeoTIFF"
        return "PNG, JPEG, TIFF, GeoTIFF", inside
    inside = "NIfTI, NRRD or MetaImage files, or a folder for each DICOM series"
    return "NIfTI, NRRD, MetaImage or DICOM", inside


def _way(trained: Mapping[str, Any]) -> str:
    return "by a label map as prompts" if trained["prompted"] else "without prompts"


def _readme(header: TunedHeader, trained: Mapping[str, Any]) -> str:
    rules, rows = trained["rules"], [f"| {k} | {name} |" for k, name in header.labels.items()]
    maps = " --prompts_dir MAPS" if trained["prompted"] else ""
    return f"""\
# {header.base.name} for {", ".join(header.labels.values())}

A scan in, a mask in the scan's own grid out, {_way(trained)}. Exported by medsam_tune
{__version__}; the package must be installed where the bundle is used. Research only; not a medical
device.

| id in the mask | label |
|---|---|
{chr(10).join(rows)}

Scans: {rules.get("modality") or "any modality"}, {rules.get("plane")} slices. CT is in Hounsfield
units.

## By MONAI, in this folder

```
python -m monai.bundle run --config_file configs/inference.yaml \\
    --dataset_dir SCANS{maps} --output_dir MASKS
```

SCANS holds {_files(trained)[1]}.
`--displayable_configs::largest_component true` and its neighbours clean the masks.
{_MAPS if trained["prompted"] else _LABEL}
## MONAI Deploy

Give the folder to `MonaiBundleInferenceOperator` as `bundle_path`, with the input `image` from
`DICOMSeriesToVolumeOperator`{_SECOND if trained["prompted"] else ""} and the output `pred`.

## Licence

LICENSE is that of the configs. That of the weights depends on the base model and on the scans;
`authors`, `copyright` and `data_source` in `configs/metadata.json` are yours to fill in.
"""


_MAPS = """\
MAPS holds a label map for each scan, of the same name and on the same grid. Each label in it is an
object to find: a box around it stands for it on every slice. MONAI Label hands no prompts to a
bundle, so this one cannot be used there.
"""
_LABEL = """\

## MONAI Label

Copy the folder to `model/` of the app `monaibundle`, and start the server with `--conf models NAME
--conf zoo_source local`, where NAME is the folder's name. The after-care stands in 3D Slicer's
options.
"""
_SECOND = ", the input `prompts` (a label map, `Image` as well)"
