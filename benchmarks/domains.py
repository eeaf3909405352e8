"""Five domains on one frozen base: each model on the cases of each, and what full tuning forgets.

    python benchmarks/domains.py DATA --work WORK [--epochs 4] [--patients 12]

DATA holds `hippocampus` (MR), `totalseg` and `dcmqi_ct3slice` (CT, as benchmarks/prompts.py
divides them), `dubai_aerial`, `publaynet` (document pages) and `nuclei`. One command, `medsam-tune
domains`, tunes nano at 128 x 128 by LoRA on each, combines the five, and tunes a whole model on the
hippocampus and then on nuclei. What is finished in WORK is not run again. The table goes to
benchmarks/results/domains.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import yaml
from aerial import TILES, folds
from commands import command
from prompts import organs
from training_step import machine

from medsam_tune.cases.datalist import write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases

RESULTS = Path(__file__).parent / "results" / "domains.md"
SIZE = 128


def datalists(data: Path, work: Path, patients: int) -> dict[str, str]:
    """Domain -> place of its datalist in `work`, each written once."""
    found = {name: f"{name}.json" for name in ("mr", "documents", "nuclei")}
    if not (work / found["mr"]).exists():
        whole = split_cases(find_cases(data / "hippocampus"), (0.7, 0.15, 0.15), seed=0)
        known = (whole.training + whole.validation)[:patients]
        train, few = known[patients // 5 :], known[: patients // 5]
        write_datalist(replace(whole, training=train, validation=few), work / found["mr"])
    if not (work / found["documents"]).exists():
        words = ("--patient-regex", r"PMC\d+", "--out", work / found["documents"])
        command("split", data / "publaynet", *words)
    if not (work / found["nuclei"]).exists():
        classes = work / "nuclei_classes.json"
        named = {"classes": [{"id": 1, "name": "nucleus"}], "instances": True}
        classes.write_text(json.dumps(named))
        command("split", data / "nuclei", "--classes", classes, "--out", work / found["nuclei"])
    found["aerial"] = folds(data / "dubai_aerial", work)[TILES[0]].name
    found["ct"] = organs(data, work / "ct").relative_to(work).as_posix()
    return found


def main() -> None:
    """Write the recipe, run it, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("domains-work"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--epoch-slices", type=int, default=160)
    parser.add_argument("--patients", type=int, default=12)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    lists = datalists(options.data, options.work, options.patients)
    more = {
        "aerial": {"settings": {"turn_prob": 0.75}},
        "documents": {"overlays": ["documents.yaml"]},
        "nuclei": {"overlays": ["microscopy.yaml"]},
    }
    settings = {"epochs": options.epochs, "epoch_slices": options.epoch_slices}
    recipe = {
        **{"method": "lora", "image_size": SIZE, "class_agnostic": True},
        "forgetting": ["mr", "nuclei"],
        "settings": {**settings, "val_interval": options.epochs},
        "domains": {
            name: {"datalist": datalist, **more.get(name, {})} for name, datalist in lists.items()
        },
    }
    text = yaml.safe_dump(recipe, sort_keys=False)
    (options.work / "multi_domain.yaml").write_text(text)
    output = options.work / "domains"
    minutes = command("domains", options.work / "multi_domain.yaml", "--output", output)
    table = (output / "domains.md").read_text().partition("\n\n")[2]
    made_by = "medsam-tune domains multi_domain.yaml --output domains"
    RESULTS.write_text(
        f"# Five domains on one base\n\nBy `{made_by}` on {machine()}; {minutes:.0f} minutes "
        "in its last call. Of aerial images, the nine parts of one tile are one patient; "
        "a page's document is one, and an image of nuclei. CT is 20 slices of one scan to train "
        "on, three of another to choose the checkpoint by, and one scan of a third patient to "
        "test, which says nothing of others; its labels are TotalSegmentator's, not a "
        "person's.\n\n"
        f"```yaml\n{text}```\n\n{table}"
    )
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
