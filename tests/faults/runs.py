"""Trainings on small phantoms, and what must be equal between two of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import zarr
from safetensors.torch import load_file

from medsam_tune.synthetic.phantom import write_phantoms
from tests.server import Outcome, Server

METHODS = ("decoder", "full", "adapter", "lora", "prompt")
SETTINGS = {"epochs": 3, "batch_size": 4, "warmup_steps": 2, "checkpoint_minutes": 0.005}


class Yard:
    """A folder with phantoms, their datalist and slices, and undisturbed runs to compare with.

    Args:
        folder: the folder; what is in it already is used again.
        server: server whose working directory it is.
    """

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.server = server
        self._steps = 0

    def prepare(self) -> None:
        """Write phantoms, datalist and slices."""
        if not (self.folder / "data").exists():
            write_phantoms(self.folder / "data", 6, shape=(48, 40, 8), spacing=(7.2, 6.4, 15.0))
        if not (self.folder / "d.json").exists():
            words = ("split", "data", "--out", "d.json", "--fractions", "0.34", "0.17", "0.49")
            self.done(self.server.one(*words))
            self.done(self.server.one("prepare", "d.json"))

    @staticmethod
    def done(outcome: Outcome) -> None:
        """Refuse a command that failed where nothing went wrong."""
        if outcome.code:
            raise RuntimeError(f"exit {outcome.code}: {outcome.text[-2000:]}")

    def train(self, method: str, run: str, resume: bool = False, **settings: Any) -> list[str]:
        """Words of a training into a run folder."""
        words = ["train", method, "--datalist", "d.json", "--output", run, "--image-size", "64"]
        for key, value in (SETTINGS | settings).items():
            words += ["--set", f"{key}={value}"]
        return [*words, *(["--resume"] if resume else [])]

    def whole(self, method: str) -> Path:
        """The run of a method that nothing disturbed; made at the first call."""
        run = self.folder / f"whole_{method}"
        if not (run / "events").exists():
            options = {"folder": str(run), "result": str(self.folder / "events")}
            words = self.train(method, run.name)
            outcome = self.server.one(*words, mishap="counted", options=options)
            self.done(outcome)
            (run / "seconds").write_text(f"{outcome.seconds}")
            (self.folder / "events").rename(run / "events")
        return run

    def seconds(self, method: str) -> float:
        """How long an undisturbed run takes."""
        return float((self.whole(method) / "seconds").read_text())

    def events(self, method: str) -> int:
        """How often an undisturbed run opens, makes, renames or removes a file of its folder."""
        return int((self.whole(method) / "events").read_text())

    def finish(self, method: str, run: str, **settings: Any) -> Outcome:
        """Resume a run until its end, or start it without a record; a finished one is left."""
        state = self.folder / run / "state.json"
        if state.is_file() and json.loads(state.read_text())["state"] == "finished":
            return Outcome(0, "", 0, False)
        there = (self.folder / run / "run.json").is_file()
        return self.server.one(*self.train(method, run, resume=there, **settings))

    def predict(self, out: str, resume: bool = False) -> list[str]:
        """Words of a prediction of all phantoms into a folder."""
        run = self.whole("decoder").name
        words = ["predict", "data/imagesTr", "--run", run, "--output", out]
        return [*words, *(["--resume"] if resume else [])]

    def predicted(self) -> Path:
        """The masks that nothing disturbed; made at the first call."""
        out = self.folder / "predicted"
        if not (self.folder / "predicted_events").exists():
            result = self.folder / "predicted_events"
            options = {"folder": str(out), "result": str(result)}
            self.done(self.server.one(*self.predict(out.name), mishap="counted", options=options))
        return out

    def wrong(self, method: str, run: str) -> str:
        """What differs between a run and the undisturbed one; empty if nothing does."""
        whole, other = self.whole(method), self.folder / run
        state, noted = (json.loads((one / "state.json").read_text()) for one in (other, whole))
        if [state[key] for key in ("state", "epoch", "epochs")] != ["finished", 3, 3]:
            return f"state {state}"
        pairs = [
            (load_file(whole / "tuned.safetensors"), load_file(other / "tuned.safetensors")),
            (checkpoint(whole)["tuned"], checkpoint(other)["tuned"]),
        ]
        for expected, found in pairs:
            if expected.keys() != found.keys():
                return "other tensors"
            for name, tensor in expected.items():
                if not torch.equal(tensor, found[name]):
                    return f"{name} differs by {(tensor - found[name]).abs().max():.3g}"
        if checkpoint(whole)["best"] != checkpoint(other)["best"]:
            return "the best value differs"
        # A kill between the checkpoint and the state loses the note of one validation.
        if not validations(state) <= validations(noted):
            return f"validations {state['validations']}"
        return leftovers(other)


def validations(state: dict[str, Any]) -> set[tuple[int, float]]:
    """Epoch and Dice of the validations that a state notes."""
    return {(one["epoch"], one["dice"]) for one in state["validations"]}


def checkpoint(run: Path) -> dict[str, Any]:
    """The content of a run's last checkpoint."""
    content: dict[str, Any] = torch.load(run / "last.pt", weights_only=True)
    return content


def leftovers(folder: Path) -> str:
    """Temporary files in a run folder or a store, as text; empty if there are none.

    A kill after a training's last word, "finished", may leave the empty folder that it was written
    in: nothing is left to resume that would remove it.
    """
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob(".*")
        if path.name not in (".lock", ".making")
        and not (path.name.startswith(".state.json.") and not any(path.iterdir()))
    ]
    making = folder / ".making"
    names += [path.name for path in making.glob("*") if path.is_dir()] if making.is_dir() else []
    return f"left: {', '.join(names)}" if names else ""


def masks_differ(expected: Path, found: Path) -> str:
    """What differs between two folders of masks of the same scans; empty if nothing does."""
    names, others = (sorted(path.name for path in each.glob("*.*")) for each in (expected, found))
    if names != others:
        return f"files {others}"
    return damaged_mask(found, expected) or leftovers(found)


def damaged_mask(folder: Path, expected: Path) -> str:
    """A mask or record that is half written, or another than it should be; empty if none is."""
    for path in folder.glob("[!.]*"):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
                continue
            array = np.asarray(nib.load(path).dataobj)
        except Exception as error:
            return f"{path.name}: {error}"
        if not np.array_equal(array, np.asarray(nib.load(expected / path.name).dataobj)):
            return f"{path.name} is another mask"
    return ""


def store_differs(expected: Path, found: Path) -> str:
    """What differs between two slice stores of the same scans; empty if nothing does."""
    entries, others = (
        sorted(path.parent.name for path in store.glob("*/files.json"))
        for store in (expected, found)
    )
    if entries != others:
        return f"entries {others}"
    for entry in entries:
        for array in ("image", "label"):
            first = zarr.open_array(expected / entry / array, mode="r")[:]
            second = zarr.open_array(found / entry / array, mode="r")[:]
            if not np.array_equal(np.asarray(first), np.asarray(second)):
                return f"{entry}/{array}"
    return leftovers(found)
