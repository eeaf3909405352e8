"""Faults of checkpoints, tuned files and slice stores, by accident or on purpose."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medsam_tune.cases.datalist import Case
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import load_tuned, save_tuned
from medsam_tune.sam.build import ARCHITECTURES, EMBEDDED, build_sam, read_checkpoint
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from tests.bad_inputs.calls import predictor
from tests.bad_inputs.table import NO_COUNTERPART, BadInput
from tests.scans import LABELS, small_scan, write_nifti
from tests.slices.test_entries import FORGED, changed

State = dict[str, torch.Tensor]


def checkpoint(path: Path) -> State:
    """`build_sam("nano", checkpoint=path)`, as far as the file goes."""
    return read_checkpoint(path, ARCHITECTURES["nano"])


def stock(path: Path) -> object:
    """segment-anything's way: `torch.load`, then `load_state_dict`."""
    return predictor().model.load_state_dict(torch.load(path, weights_only=True))


def written(content: Callable[[State], object], name: str = "x.pth") -> Callable[[Path], Path]:
    """A checkpoint of nano inside of something else."""

    def make(folder: Path) -> Path:
        torch.save(content(load_file(EMBEDDED)), folder / name)
        return folder / name

    return make


def named(before: str, state: State) -> State:
    return {before + key: value for key, value in state.items()}


def is_nano(found: State) -> None:
    whole = checkpoint(EMBEDDED)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)


def upper_case(folder: Path) -> Path:
    save_file(load_file(EMBEDDED), folder / "x.SAFETENSORS")
    return folder / "x.SAFETENSORS"


@cache
def base() -> PromptableSam:
    return build_sam("nano", image_size=64)


def tuned(*way: str, value: Any) -> Callable[[Path], Path]:
    """A tuned file with one value of its header exchanged."""

    def make(folder: Path) -> Path:
        path = save_tuned(
            apply_method(build_sam("nano", image_size=64), "lora"), folder / "t.safetensors"
        )
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            header = json.loads(file.metadata()["medsam_tune"])
        inner = header
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] = value
        save_file(tensors, path, metadata={"medsam_tune": json.dumps(header)})
        return path

    return make


def load(path: Path) -> PromptableSam:
    return load_tuned(path, base())


def store_in(folder: Path) -> tuple[SliceStore, Any]:
    image, label = small_scan()
    case = Case(
        write_nifti(folder / "a.nii.gz", image), write_nifti(folder / "a_seg.nii.gz", label), "p"
    )
    return SliceStore(folder / "slices", ScanRules(Percentiles()), LABELS), case


def forged(kind: str) -> Callable[[Path], Any]:
    """A slice store in which one description was exchanged by somebody who knows the checksums."""

    def make(folder: Path) -> tuple[SliceStore, Any]:
        store, case = store_in(folder)
        (entry,) = store.prepare([case], progress=False)
        file, *way, value = FORGED[kind]
        changed(entry.path, file, *way, value=value)
        return store, case

    return make


def taken(folder: Path) -> Any:
    """A slices folder with somebody's files."""
    store, case = store_in(folder)
    store.root.mkdir()
    (store.root / "thesis.txt").touch()
    return store, case


def link(folder: Path) -> Any:
    store, case = store_in(folder)
    (entry,) = store.prepare([case], progress=False)
    entry.path.rename(folder / "elsewhere")
    (folder / "elsewhere" / "zarr.json").unlink()
    entry.path.symlink_to(folder / "elsewhere")
    return store, case


def prepare(made: tuple[SliceStore, Any]) -> Any:
    return made[0].prepare([made[1]], progress=False)


def prepare_quietly(made: tuple[SliceStore, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return prepare(made)


def is_made_again(found: Any) -> None:
    assert found[0].image().shape == (6, 1, 12, 10)
    assert found[0].label().max() == 2


INPUTS: tuple[BadInput, ...] = (
    *(
        BadInput(
            92,
            name,
            f"checkpoint {what}",
            make,
            checkpoint,
            stock,
            handled="unwrapped, said in a log line; all its tensors are still compared",
            check=is_nano,
        )
        for name, what, make in (
            (
                "lightning",
                "of Lightning, names with `model.` in `state_dict`",
                written(lambda s: {"state_dict": named("model.", s), "epoch": 3}),
            ),
            (
                "medsam",
                "of MedSAM's training, in `model` beside the optimizer",
                written(lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 3}),
            ),
            (
                "micro-sam",
                "of micro-sam, names with `sam.` in `model_state`",
                written(lambda s: {"model_state": named("sam.", s)}, "x.pt"),
            ),
            (
                "compiled",
                "of `torch.compile` and several GPUs at once",
                written(lambda s: named("module._orig_mod.", s)),
            ),
        )
    ),
    BadInput(
        92,
        "upper-case",
        "checkpoint `x.SAFETENSORS`",
        upper_case,
        checkpoint,
        NO_COUNTERPART,
        handled="the content tells the format",
        check=is_nano,
    ),
    BadInput(
        92,
        "two-models",
        "checkpoint with two models, `model` and `ema`",
        written(lambda s: {"model": s, "ema": dict(s)}),
        checkpoint,
        stock,
        r"x\.pth: holds 2 state dicts of a SAM, in 'model', 'ema'\. Save the one that is meant",
    ),
    BadInput(
        92,
        "two-students",
        "checkpoint with names of a student and a teacher",
        written(lambda s: {**named("student.", s), **named("teacher.", s)}),
        checkpoint,
        stock,
        r"x\.pth: its names begin in 2 ways, 'student\.', 'teacher\.'; which SAM is meant cannot",
    ),
    *(
        BadInput(
            103,
            name,
            f"tuned file, {what}",
            tuned(*way, value=value),
            load,
            NO_COUNTERPART,
            rf"t\.safetensors: {message}",
        )
        for name, what, way, value, message in (
            ("null-labels", "labels null", ("labels",), None, "its labels is None; expected at mo"),
            (
                "channels",
                "a billion channels",
                ("base", "in_channels"),
                10**9,
                "its in_channels is 1000000000; expected a whole number from 1 to 256",
            ),
            (
                "size",
                "images of 0 pixels",
                ("base", "image_size"),
                0,
                "its image_size is 0; expected a whole number from 32 to 4096",
            ),
            (
                "import",
                "an option that makes peft import a module",
                ("options",),
                {"megatron_core": "antigravity", "megatron_config": {"x": 1}},
                "its options of 'lora' cannot be applied .megatron_core is no field of peft's LOR",
            ),
            (
                "pattern",
                "a regular expression that does not end",
                ("options",),
                {"target_modules": "(.*.*.*a)+$"},
                "its options is .*; expected options without patterns of layers",
            ),
            (
                "rank",
                "a rank that takes all memory",
                ("options",),
                {"rank": 65536},
                r"image_encoder\S+ has shape \(8, 160\), the model needs \(65536, 160\)",
            ),
        )
    ),
    *(
        BadInput(
            104,
            name,
            f"slice store, {what}",
            forged(name),
            prepare,
            NO_COUNTERPART,
            handled="not opened; the entry is made again, with a warning",
            check=is_made_again,
            warns="is damaged and is made again",
        )
        for name, what in (
            ("pickle", "an entry with a pickle codec"),
            ("object", "an entry with Python objects"),
            ("huge", "an entry of 10^14 values"),
            ("v2", "an entry of zarr 2"),
        )
    ),
    BadInput(
        104,
        "taken",
        "slice store in a folder with other files",
        taken,
        prepare,
        NO_COUNTERPART,
        r"slices: holds other files and is no slice store \(no slice_store\.txt in it\)\. Choose a",
    ),
    BadInput(
        104,
        "link",
        "slice store with a link in the place of an entry",
        link,
        prepare_quietly,
        NO_COUNTERPART,
        r"is a link; nothing is written through links\. Delete it, and the slices are made again",
    ),
)
