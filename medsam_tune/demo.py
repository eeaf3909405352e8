"""The whole job on synthetic scans: write, split, tune, evaluate, draw; no data, no download."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from medsam_tune.bundle import run_bundle, training_configs
from medsam_tune.cases.datalist import read_datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.errors import DataError
from medsam_tune.evaluation.cases import CaseDataset
from medsam_tune.evaluation.pictures import draw_overlays
from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.simulated import parse_kind
from medsam_tune.methods.tuned import load_tuned
from medsam_tune.sam.build import build_sam
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from medsam_tune.synthetic.phantom import write_phantoms

IMAGE_SIZE = 128
JITTER = 0.05
KINDS = ("slices", "box3d", "none")  # of prompts; the base is compared by the first alone
# Enough for the phantoms, in less than five minutes on two cores.
SETTINGS: dict[str, Any] = {"epochs": 12, "warmup_steps": 20, "val_interval": 6, "jitter": JITTER}
# nano is small and takes higher rates than SAM, for which the recipes are.
LEARNING_RATES = {"decoder": 1e-3, "full": 1e-3, "adapter": 2e-3, "lora": 4e-3, "prompt": 2e-2}


def prepare_demo(folder: Path, seed: int = 0) -> Path:
    """Write 16 phantoms and their datalist, unless the datalist exists.

    Args:
        folder: folder for the phantoms and the datalist.
        seed: seed of the phantoms and of the split.

    Returns:
        path of the datalist: 10 training, 2 validation and 4 test phantoms.
    """
    datalist = folder / "datalist.json"
    if not datalist.is_file():
        write_phantoms(folder / "phantoms", count=16, seed=seed)
        split = split_cases(find_cases(folder / "phantoms"), (0.625, 0.125, 0.25), seed)
        write_datalist(split, datalist)
    return datalist


def compare_table(zero_shot: Mapping[str, Any], tuned: Mapping[str, Any]) -> str:
    """Table of Dice per label: ellipse, zero-shot and tuned by one kind of prompts, then others.

    Args:
        zero_shot: content of `summary.json` of the untuned model.
        tuned: content of `summary.json` of the tuned model.
    """
    first, *others = (parse_kind(kind).words for kind in tuned["by_prompts"])
    base = zero_shot["by_prompts"][tuned["prompts"]]
    rest = [*tuned["by_prompts"].values()][1:]
    lines = [
        f"{'':<20} {first:^27}  {'tuned, by':^{14 * len(rest)}}".rstrip(),
        f"{'held-out Dice':<14} {'cases':>5} {'ellipse':>8} {'zero-shot':>10} {'tuned':>7} "
        + "".join(f"{words:>14}" for words in others),
    ]
    for key, entry in tuned["labels"].items():
        lines.append(
            f"{entry['name']:<14} {entry['cases']:>5} {entry['ellipse_dice']:>8.3f} "
            f"{base['labels'][key]['dice']:>10.3f} {entry['dice']:>7.3f} "
            + "".join(f"{each['labels'][key]['dice']:>14.3f}" for each in rest)
        )
    lines.append(
        f"{'mean':<14} {'':>5} {tuned['mean_ellipse_dice']:>8.3f} "
        f"{base['mean_dice']:>10.3f} {tuned['mean_dice']:>7.3f} "
        + "".join(f"{each['mean_dice']:>14.3f}" for each in rest)
    )
    return "\n".join(lines)


@torch.inference_mode()
def draw_demo(folder: Path, tuned_run: Path, count: int = 2) -> list[Path]:
    """Draw held-out phantoms: annotator, zero-shot by the first of `KINDS`, tuned by each of them.

    Args:
        folder: folder of the demo.
        tuned_run: folder of the training run.
        count: number of phantoms to draw.

    Returns:
        paths of the pictures, one per phantom.
    """
    data = read_datalist(folder / "datalist.json")
    store = SliceStore(
        folder / "datalist.slices",
        ScanRules(for_modality(data.modality), modality=data.modality),
        data.labels,
    )
    cases = store.prepare(data.subset("test")[:count], progress=False)
    models = {
        "zero-shot": (build_sam("nano", image_size=IMAGE_SIZE), KINDS[:1]),
        "tuned": (load_tuned(tuned_run / "tuned.safetensors"), KINDS),
    }
    inferer = VolumeInferer(data.labels)
    pictures = []
    dataset = CaseDataset(cases, data.labels, jitter=JITTER, kinds=KINDS)
    for item in (dataset[index] for index in range(len(dataset))):
        columns, prompts = {"annotator": item["label"]}, {}
        for name, (model, kinds) in models.items():
            wanted = {kind: item["prompts"][kind] for kind in kinds}
            found = cast(dict[str, Tensor], inferer(item["image"], model, wanted))
            for kind in kinds:
                title = f"{name}, {parse_kind(kind).words}"
                columns[title], prompts[title] = found[kind], wanted[kind]
        path = folder / "pictures" / f"{item['case']}.png"
        pictures.append(draw_overlays(path, item["image"], columns, data.labels, prompts))
    return pictures


def run_demo(folder: Path, method: str) -> str:
    """Evaluate the untuned model, tune it, evaluate it again, draw pictures.

    Args:
        folder: folder for all files of the demo.
        method: key of `METHODS`.

    Returns:
        the table and the paths of the pictures, as text.

    Raises:
        DataError: the folder holds an earlier demo.
        ValueError: an unknown method.
    """
    run, zero_shot = folder / "run", folder / "zero_shot"
    if run.exists():
        raise DataError(f"{run}: a demo ran here already; delete it or choose another --output.")
    if method not in LEARNING_RATES:
        raise ValueError(f"method {method!r} is unknown; known: {', '.join(LEARNING_RATES)}.")
    datalist = prepare_demo(folder)
    base = {"model": "nano", "image_size": IMAGE_SIZE}
    settings = SETTINGS | {"lr": LEARNING_RATES[method]}
    evaluation = {"datalist": datalist, "run_dir": zero_shot, **base}
    training = {"datalist": datalist, "output_dir": run, **base, **settings}
    run_bundle("volume", ["evaluate.yaml", "zero_shot.yaml"], evaluation)
    run_bundle("volume", training_configs(method), training)
    run_bundle("volume", ["evaluate.yaml"], {"run_dir": run, "prompts": [*KINDS]})
    before, after = (
        json.loads((place / "evaluation" / "summary.json").read_text())
        for place in (zero_shot, run)
    )
    shown = "\n".join(f"  {path}" for path in draw_demo(folder, run))
    return f"{compare_table(before, after)}\n\npictures:\n{shown}"
