"""The whole job on made-up scans or images: write, split, tune, evaluate, draw; no download."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from medsam_tune.evaluation.report import REPORT
from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.simulated import parse_kind
from medsam_tune.methods import METHODS
from medsam_tune.methods.tuned import load_tuned
from medsam_tune.sam.build import build_sam
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from medsam_tune.synthetic.aerial import write_aerials
from medsam_tune.synthetic.phantom import write_phantoms

IMAGE_SIZE = 128
JITTER = 0.05


@dataclass(frozen=True)
class Subject:
    """What a demo is about.

    Attributes:
        data: name of the folder of the data.
        write: writes the data into a folder, from a seed.
        settings: settings of the training.
        kinds: kinds of prompts; the base is compared by the first alone.
        components: see `ScanRules`.
        score: "dice" or "iou".
    """

    data: str
    write: Callable[[Path, int], Path]
    settings: Mapping[str, Any]
    kinds: tuple[str, ...]
    components: int | None
    score: str


SUBJECTS = {
    "volume": Subject(  # 16 patients; less than five minutes on two cores
        data="phantoms",
        write=lambda folder, seed: write_phantoms(folder, count=16, seed=seed),
        settings={"epochs": 12, "val_interval": 6, "jitter": JITTER},
        kinds=("slices", "box3d", "none"),
        components=None,
        score="dice",
    ),
    "image": Subject(  # 16 scenes of 3 images; less than four minutes on two cores
        data="aerial",
        write=lambda folder, seed: write_aerials(folder, scenes=16, parts=3, seed=seed),
        settings={
            **{"epochs": 10, "val_interval": 5, "jitter": JITTER},
            **{"epoch_slices": 200, "turn_prob": 0.75},  # nothing is up
        },
        kinds=("slices", "points", "none"),
        components=64,
        score="iou",
    ),
}
"""Bundle -> what its demo is about."""


def prepare_demo(folder: Path, subject: Subject, seed: int = 0) -> Path:
    """Write the data and its datalist, unless the datalist exists.

    Args:
        folder: folder for the data and the datalist.
        subject: what to write.
        seed: seed of the data and of the split.

    Returns:
        path of the datalist: 10 training, 2 validation and 4 test patients or scenes.
    """
    datalist = folder / "datalist.json"
    if not datalist.is_file():
        subject.write(folder / subject.data, seed)
        split = split_cases(find_cases(folder / subject.data), (0.625, 0.125, 0.25), seed)
        write_datalist(split, datalist)
    return datalist


def compare_table(
    zero_shot: Mapping[str, Any], tuned: Mapping[str, Any], score: str = "dice"
) -> str:
    """Table of scores per label: ellipse, zero-shot and tuned by one kind of prompts, then others.

    Args:
        zero_shot: content of `summary.json` of the untuned model.
        tuned: content of `summary.json` of the tuned model.
        score: "dice" or "iou".
    """
    word = {"dice": "held-out Dice", "iou": "held-out IoU"}[score]
    flat = tuned.get("flat", False)
    first, *others = (parse_kind(kind).words(flat) for kind in tuned["by_prompts"])
    wide = [3 + len(words) for words in others]
    base = zero_shot["by_prompts"][tuned["prompts"]]
    rest = [*tuned["by_prompts"].values()][1:]
    lines = [
        f"{'':<20} {first:^27}  {'tuned':^{sum(wide)}}".rstrip(),
        f"{word:<14} {'cases':>5} {'ellipse':>8} {'zero-shot':>10} {'tuned':>7} "
        + "".join(f"   {words}" for words in others),
    ]
    for key, entry in tuned["labels"].items():
        lines.append(
            f"{entry['name']:<14} {entry['n']:>5} {entry[f'ellipse_{score}']['mean']:>8.3f} "
            f"{base['labels'][key][score]['mean']:>10.3f} {entry[score]['mean']:>7.3f} "
            + _row([each["labels"][key][score]["mean"] for each in rest], wide)
        )
    lines.append(
        f"{'mean':<14} {'':>5} {tuned[f'mean_ellipse_{score}']:>8.3f} "
        f"{base[f'mean_{score}']:>10.3f} {tuned[f'mean_{score}']:>7.3f} "
        + _row([each[f"mean_{score}"] for each in rest], wide)
    )
    return "\n".join(lines)


def _row(values: Sequence[float], widths: Sequence[int]) -> str:
    return "".join(f"{value:>{width}.3f}" for value, width in zip(values, widths, strict=True))


@torch.inference_mode()
def draw_demo(folder: Path, tuned_run: Path, subject: Subject, count: int = 2) -> list[Path]:
    """Draw held-out cases: annotator, zero-shot by the first kind of prompts, tuned by each.

    Args:
        folder: folder of the demo.
        tuned_run: folder of the training run.
        subject: what the demo is about.
        count: number of cases to draw.

    Returns:
        paths of the pictures, one per case.
    """
    kinds = subject.kinds
    data = read_datalist(folder / "datalist.json")
    store = SliceStore(
        folder / "datalist.slices",
        ScanRules(
            for_modality(data.modality), modality=data.modality, components=subject.components
        ),
        data.labels,
    )
    cases = store.prepare(data.subset("test")[:count], progress=False)
    models = {
        "zero-shot": (build_sam("nano", image_size=IMAGE_SIZE), kinds[:1]),
        "tuned": (load_tuned(tuned_run / "tuned.safetensors"), kinds),
    }
    inferer = VolumeInferer(data.labels)
    pictures = []
    dataset = CaseDataset(cases, data.labels, jitter=JITTER, kinds=kinds)
    for item in (dataset[index] for index in range(len(dataset))):
        columns, prompts = {"annotator": item["label"]}, {}
        for name, (model, asked) in models.items():
            wanted = {kind: item["prompts"][kind] for kind in asked}
            found = cast(dict[str, Tensor], inferer(item["image"], model, wanted))
            for kind in asked:
                title = f"{name}, {parse_kind(kind).words(len(item['image']) == 1)}"
                columns[title], prompts[title] = found[kind], wanted[kind]
        path = folder / "pictures" / f"{item['case']}.png"
        pictures.append(draw_overlays(path, item["image"], columns, data.labels, prompts))
    return pictures


def run_demo(folder: Path, method: str, bundle: str = "volume") -> str:
    """Evaluate the untuned model, tune it, evaluate it again, draw pictures.

    Args:
        folder: folder for all files of the demo.
        method: key of `METHODS`.
        bundle: key of `SUBJECTS`.

    Returns:
        the table and the paths of the pictures and of the report, as text.

    Raises:
        DataError: the folder holds an earlier demo.
        ValueError: an unknown method or bundle.
    """
    run, zero_shot = folder / "run", folder / "zero_shot"
    if run.exists():
        raise DataError(f"{run}: a demo ran here already; delete it or choose another --output.")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; known: {', '.join(METHODS)}.")
    if bundle not in SUBJECTS:
        raise ValueError(f"bundle {bundle!r} has no demo; those of {', '.join(SUBJECTS)} do.")
    subject = SUBJECTS[bundle]
    datalist = prepare_demo(folder, subject)
    base = {"model": "nano", "image_size": IMAGE_SIZE}
    evaluation = {"datalist": datalist, "run_dir": zero_shot, **base}
    training = {"datalist": datalist, "output_dir": run, **base, **subject.settings}
    run_bundle(bundle, ["evaluate.yaml", "zero_shot.yaml"], evaluation)
    run_bundle(bundle, training_configs(bundle, method), training)
    run_bundle(bundle, ["evaluate.yaml"], {"run_dir": run, "prompts": [*subject.kinds]})
    before, after = (
        json.loads((place / "evaluation" / "summary.json").read_text())
        for place in (zero_shot, run)
    )
    shown = "\n".join(f"  {path}" for path in draw_demo(folder, run, subject))
    report = run / "evaluation" / REPORT
    table = compare_table(before, after, subject.score)
    return f"{table}\n\npictures:\n{shown}\nreport: {report}"
