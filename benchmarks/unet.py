"""A 2-D U-Net of MONAI, trained on a run's cases for a run's time, and scored like a run.

    python benchmarks/unet.py RUN --minutes 10

RUN is the folder of a finished run. The U-Net sees the same slices through the same augmentation at
the same size, on a GPU or one thread, and the same validation cases choose its checkpoint. Minutes
are the processor's, so that other work on the machine does not matter; with a GPU those of the
clock. Writes RUN.unet/summary.json, with Dice on the held-out test cases.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from torch import Tensor

from medsam_tune.bundle import bundle_folder
from medsam_tune.cases.datalist import read_datalist
from medsam_tune.evaluation.metrics import Answer, Score, score_case
from medsam_tune.evaluation.statistics import format_summary, summarise
from medsam_tune.runs import read_record
from medsam_tune.slices.rules import rules_from
from medsam_tune.slices.store import PreparedCase, SliceStore
from medsam_tune.training.samples import SeededSampler

BATCH = 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
seconds = time.monotonic if DEVICE.type == "cuda" else time.process_time
OWN = ("image_size", "in_channels", "epoch_slices", "flip_prob", "turn_prob", "bias_prob")
"""Settings of the run that are the U-Net's as well."""


class Task:
    """The cases, slices and augmentation of a run."""

    def __init__(self, run: Path) -> None:
        record = read_record(run)
        assert record.datalist is not None
        assert record.slices_dir is not None
        self.data = read_datalist(record.datalist)
        self.labels = sorted(self.data.labels)
        self.rules = rules_from(record.rules)
        self.size = int(record.base["image_size"])
        self.store = SliceStore(Path(record.slices_dir), self.rules, self.data.labels_in_files)
        self.seed = record.seed
        parser = ConfigParser()
        parser.read_config(bundle_folder(record.bundle) / "configs" / "train.yaml")
        for key, value in record.recipe.items():
            if key in OWN or key.split("::")[0] == "rules":
                parser[key] = value
        parser["datalist"], parser["slices_dir"] = record.datalist, record.slices_dir
        parser["empty_slices"] = 1.0
        parser["frame::keys"], parser["frame::mode"] = ["image", "label"], ["bilinear", "nearest"]
        augment = copy.deepcopy(parser["transform::transforms"][3])
        assert augment["transform"] == "@augment"
        parser["transform::transforms"] = [
            *("@read", "@shrink", augment, "@frame"),
            {"_target_": "monai.transforms.CopyItemsd", "keys": "label", "names": "labels"},
            {"_target_": "monai.transforms.DeleteItemsd", "keys": ["before", "extents"]},
        ]
        self.dataset: Any = parser.get_parsed_content("train::dataset")
        sampler: Any = parser.get_parsed_content("train::sampler")
        self.slices = sampler.num_samples

    def cases(self, subset: str) -> list[PreparedCase]:
        """The prepared cases of a subset."""
        return self.store.prepare(self.data.subset(subset), progress=False)

    def classes(self, label: Tensor) -> Tensor:
        """Label ids (B, 1 or 2, H, W) -> 0 for the background, 1 for the first label, and so on.

        A second channel, the numbers of objects, is left out. What nobody annotated is background:
        the loss of MONAI cannot leave it out.
        """
        label = label[:, :1].long()
        ids = torch.tensor([0, *self.labels])
        known = torch.isin(label, ids)
        return torch.where(known, torch.searchsorted(ids, label.clamp(max=ids[-1])), 0)

    @torch.inference_mode()
    def scores(self, network: torch.nn.Module, subset: str) -> list[Score]:
        """Dice of each case and label."""
        network.eval()
        found = []
        ids = torch.tensor([0, *self.labels])
        for case in self.cases(subset):
            image = torch.from_numpy(case.image()).float() / 255
            frame = self.rules.frame((image.shape[-2], image.shape[-1]), self.size)
            logits = torch.cat(
                [network(part.to(DEVICE)).cpu() for part in frame.image(image).split(BATCH)]
            )
            predicted = ids[frame.back(logits).argmax(1)]
            truth = torch.from_numpy(case.truth().astype("int64"))
            if self.data.ignore is not None:
                unknown = truth == self.data.ignore
                predicted, truth = (one.masked_fill(unknown, 0) for one in (predicted, truth))
            found += score_case(Answer(case.id, "none", predicted, truth), self.data.labels)
        return found


def train(task: Task, minutes: float) -> torch.nn.Module:
    """Train for so many minutes; the best of the validations after each epoch."""
    torch.manual_seed(task.seed)
    network = BasicUNet(2, task.rules.channels, len(task.labels) + 1).to(DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    loss_function = DiceCELoss(softmax=True, to_onehot_y=True)
    sampler = SeededSampler(len(task.dataset), task.seed, task.slices)
    best, kept = -1.0, copy.deepcopy(network)
    start, epoch = seconds(), 0
    while (spent := (seconds() - start) / 60) < minutes:
        epoch += 1
        sampler.set_epoch(epoch)
        torch.manual_seed(task.seed * 100_003 + epoch)
        network.train()
        loader = torch.utils.data.DataLoader(task.dataset, BATCH, sampler=sampler, drop_last=True)
        for batch in loader:
            spent = (seconds() - start) / 60
            if spent > minutes:
                break
            share = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(spent / minutes, 1.0))))
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * float(share)
            target = task.classes(batch["label"]).to(DEVICE)
            loss = loss_function(network(batch["image"].to(DEVICE)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        dice = summarise(task.scores(network, "validation"))["mean_dice"] or 0.0
        print(f"{spent:.1f} min, epoch {epoch}: validation {dice:.4f}", flush=True)
        if dice > best:
            best, kept = dice, copy.deepcopy(network)
    return kept


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = Task(arguments.run)
    network = train(task, arguments.minutes)
    summary = summarise(task.scores(network, "test"))
    folder = arguments.run.with_name(f"{arguments.run.name}.unet")
    folder.mkdir(exist_ok=True)
    parameters = sum(p.numel() for p in network.parameters())
    content = {**summary, "minutes": arguments.minutes, "parameters": parameters}
    (folder / "summary.json").write_text(json.dumps(content, indent=2))
    print(format_summary({"none": summary}))


if __name__ == "__main__":
    main()
