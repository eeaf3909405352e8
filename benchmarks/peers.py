"""Training loops of other programs beside ours: images/s and memory of a step.

    python benchmarks/peers.py PEERS --output FOLDER            # vit_b at 1024
    python benchmarks/peers.py PEERS --output FOLDER --small    # nano at 128, on a CPU too
    python benchmarks/peers.py PEERS --output FOLDER --imports  # what their imports load, only
    python benchmarks/peers.py PEERS --output FOLDER --page     # FOLDER/peers.md from its lines

PEERS holds checkouts of bowang-lab/MedSAM, mazurowski-lab/finetune-SAM and
computational-cell-analytics/micro-sam, in folders of these last names; a file COMMIT in one says
which. Lines of JSON come to FOLDER/peers.jsonl, the page at the end. Each loop is measured in a
process of its own (on a GPU with its batches one after another, the allocator emptied between, on a
CPU each batch in its own); what is not done when the time is over is noted as such.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gpu_page import Line
from monai.losses import DiceLoss
from pages import table
from stock import mask_loss, stock_sam
from torch import nn
from torchvision.transforms import Resize
from tqdm import tqdm
from training_step import data, machine, random_sam, repeated

from medsam_tune.files import written_whole
from medsam_tune.methods import apply_method
from medsam_tune.sam.build import architecture

OURS = "ours"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RANK = 4
"""Of finetune-SAM's LoRA; its adapters have a quarter of the encoder's width."""

MODULES = {
    "MedSAM": ("segment_anything.modeling",),
    "finetune-SAM": ("models.sam.modeling", "models.sam_LoRa", "cfg"),
    "micro-sam": ("micro_sam.training",),
}
HEAD = """# Loops of other programs

`{command}` on {machine}. {model} at {image_size}, one box for each image; random images and
weights.{commits}

Each peer's own classes, from its checkout, trained by the statements of its own loop, at the
precision that its script has by default, and with its optimizer:

- MedSAM: `MedSAM` of `train_one_gpu.py`. The script reads data while it is imported, so the class
  is compiled from its text, and the statements are those of its `main`, but that Dice gets its
  masks as float32, since MONAI refuses integers now; "-use_amp" is the script's option.
- finetune-SAM: `models.sam` and `LoRA_Sam`, by the statements of `train_model` in
  `SingleGPU_train_finetune_box.py`. Adapters and LoRA are in every block of the encoder and in the
  decoder, as its README advises; without the lines that write to TensorBoard.
- micro-sam: an epoch of one batch by `MedSAMTrainer` itself, with `mixed_precision=True` and
  `box_distortion_factor=0.025` as in `train_sam`; without a logger, and without the decoder of
  instances, which `train_sam` adds by default. It makes boxes of the masks on the CPU in each step.
  Its default `SamTrainer` asks eight times with points and masks, which is other work.

Ours is the same method: `full`, `decoder`, `lora` of rank 4, `adapter` of a quarter of the
encoder's width (one in a block, where finetune-SAM has two, and none in the decoder); by default it
computes in bfloat16 on a GPU. The peers' SAMs are put together as their `build_sam` does. Images
are on the device before a step (micro-sam's are not, its trainer moves them); nobody loads any.
MedSAM and micro-sam take their losses at the size of the image, finetune-SAM and ours at that of
the logits.

"Changed" counts the numbers that a step changed. Seconds are medians with their range, after
{warm} to warm up; memory is the peak in the warm-up beyond weights and data, gradients and the
optimizer's state included. The last columns say how many times as fast ours is, at the same
precision and by default, and what share of the row's memory ours takes by default.
"""


@dataclass(frozen=True)
class Row:
    """A loop to measure.

    Attributes:
        peer: folder of the checkout, or `OURS`.
        loop: how the page names it.
        method: key of our `METHODS`; what it trains.
        precision: key of `DTYPES`.
        model, image_size: architecture, and side of the input in pixels.
        batch: number of images.
        device: "cpu" or "cuda".
        repeats: number of timed steps.
    """

    peer: str
    loop: str
    method: str
    precision: str
    model: str = ""
    image_size: int = 0
    batch: int = 0
    device: str = ""
    repeats: int = 0


class Loop(NamedTuple):
    """A model, its optimizer, and a step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[], object]


def loops(device: str) -> list[Row]:
    """All rows, each peer's followed by ours of the same method."""
    amp, default = ("fp16", "bf16") if device == "cuda" else ("bf16", "fp32")
    full = [
        Row("MedSAM", "MedSAM", "full", "fp32"),
        *(Row(OURS, OURS, "full", x) for x in dict.fromkeys(("fp32", default))),
        *([Row("MedSAM", "MedSAM -use_amp", "full", "fp16")] if device == "cuda" else []),
        Row("micro-sam", "micro-sam, MedSAMTrainer", "full", amp),
        Row(OURS, OURS, "full", amp),
        Row("finetune-SAM", "finetune-SAM vanilla", "full", "fp32"),
    ]
    others = [
        Row(*who, method, precision)
        for method, name in (("decoder", "vanilla"), ("adapter", "adapter"), ("lora", "lora"))
        for who, precision in (
            (("finetune-SAM", f"finetune-SAM {name}"), "fp32"),
            *(((OURS, OURS), x) for x in dict.fromkeys(("fp32", default))),
        )
    ]
    return [*full, *others]


def brought(peer: str, peers: Path) -> tuple[ModuleType, ...]:
    """The peer's modules, from its checkout; this process can hold those of one peer only.

    Raises:
        ImportError: a package that they need is missing, or another one came in their place.
    """
    folder = peers.resolve() / peer
    if not folder.is_dir():
        raise ImportError(f"{peer} is not in PEERS")
    sys.path.insert(0, str(folder))
    roots = {name.partition(".")[0] for name in MODULES[peer]}
    for name in [x for x in sys.modules if x.partition(".")[0] in roots]:
        del sys.modules[name]  # MedSAM has a segment_anything of its own
    found = tuple(importlib.import_module(name) for name in MODULES[peer])
    for module in found:
        if not Path(module.__file__ or "").is_relative_to(folder):
            raise ImportError(f"{module.__name__} is {module.__file__}, not the peer's own")
    return found


def medsam(row: Row, peers: Path) -> Loop:
    """`main` of MedSAM's train_one_gpu.py."""
    (modeling,) = brought(row.peer, peers)
    sam = stock_sam(row.model, row.image_size, row.device, modeling)
    script = peers / row.peer / "train_one_gpu.py"
    found: list[ast.stmt] = [
        x
        for x in ast.parse(script.read_text()).body
        if isinstance(x, ast.ClassDef) and x.name == "MedSAM"
    ]
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
    exec(compile(ast.Module(found, []), str(script), "exec"), names)
    model = names["MedSAM"](
        image_encoder=sam.image_encoder,
        mask_decoder=sam.mask_decoder,
        prompt_encoder=sam.prompt_encoder,
    ).to(row.device)
    model.train()
    trained = [*model.image_encoder.parameters(), *model.mask_decoder.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=0.0001, weight_decay=0.01)
    seg_loss = DiceLoss(sigmoid=True, squared_pred=True, reduction="mean")
    ce_loss = nn.BCEWithLogitsLoss(reduction="mean")
    image, boxes, masks = data(row.batch, 1, row.image_size, row.device)
    boxes, gt = boxes[:, 0], masks.long()
    gt_float = gt.float()  # which MONAI's Dice asks for now
    scaler = torch.amp.GradScaler(row.device) if row.precision == "fp16" else None

    def step() -> None:
        optimizer.zero_grad()
        boxes_np = boxes.detach().cpu().numpy()
        if scaler is not None:
            with torch.autocast(device_type=row.device, dtype=torch.float16):
                predicted = model(image, boxes_np)
                loss = seg_loss(predicted, gt_float) + ce_loss(predicted, gt.float())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            predicted = model(image, boxes_np)
            loss = seg_loss(predicted, gt_float) + ce_loss(predicted, gt.float())
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return Loop(model, optimizer, step)


def finetune_sam(row: Row, peers: Path) -> Loop:
    """`train_model` of finetune-SAM's SingleGPU_train_finetune_box.py."""
    modeling, adapted, cfg = brought(row.peer, peers)
    sys.argv = [sys.argv[0]]  # which its cfg would read
    args = cfg.parse_args()
    args.devices = [row.device, row.device]
    args.finetune_type = row.method if row.method in ("adapter", "lora") else "vanilla"
    args.if_update_encoder = row.method != "decoder"
    args.if_encoder_adapter = args.if_mask_decoder_adapter = row.method == "adapter"
    args.encoder_adapter_depths = range(architecture(row.model).depth)
    args.if_encoder_lora_layer = args.if_decoder_lora_layer = row.method == "lora"
    args.encoder_lora_layer = []
    args.out_size = 4 * row.image_size // architecture(row.model).stride  # 256 of vit_b at 1024
    sam: Any = stock_sam(
        row.model, row.image_size, row.device, modeling, masks=args.num_cls, args=args
    )
    if args.finetune_type == "adapter":
        for key, parameter in sam.named_parameters():
            if "Adapter" not in key:
                parameter.requires_grad = False
    elif args.finetune_type == "vanilla" and not args.if_update_encoder:
        for parameter in sam.image_encoder.parameters():
            parameter.requires_grad = False
    elif args.finetune_type == "lora":
        sam = adapted.LoRA_Sam(args, sam, r=RANK).sam
    sam.to(row.device)
    optimizer = torch.optim.AdamW(
        sam.parameters(), lr=args.lr, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.1, amsgrad=False
    )
    criterion1 = DiceLoss(sigmoid=True, squared_pred=True, to_onehot_y=True, reduction="mean")
    criterion2 = nn.CrossEntropyLoss()
    imgs, boxes, masks = data(row.batch, 1, row.image_size, row.device)
    boxes, whole = boxes[:, 0], masks.float()
    sam.train()

    def step() -> None:
        msks = Resize((args.out_size, args.out_size))(whole)
        with torch.set_grad_enabled(args.if_update_encoder):
            img_emb = sam.image_encoder(imgs)
        sparse_emb, dense_emb = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
        pred, _ = sam.mask_decoder(
            image_embeddings=img_emb,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse_emb,
            dense_prompt_embeddings=dense_emb,
            multimask_output=True,
        )
        loss = criterion1(pred, msks.float()) + criterion2(pred, torch.squeeze(msks.long(), 1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return Loop(sam, optimizer, step)


def micro_sam(row: Row, peers: Path) -> Loop:
    """micro-sam's own trainer, an epoch of one batch."""
    (training,) = brought(row.peer, peers)
    sam = stock_sam(row.model, row.image_size, row.device)
    model = importlib.import_module("micro_sam.training.trainable_sam").TrainableSAM(sam)
    image, _, masks = data(row.batch, 1, row.image_size, "cpu")
    trainer = training.MedSAMTrainer(
        name="peers",
        train_loader=[(image * 255, masks.float())],
        val_loader=[],
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-5),
        device=row.device,
        logger=None,
        mixed_precision=True,
        convert_inputs=training.ConvertToSamInputs(model.transform, box_distortion_factor=0.025),
        n_objects_per_batch=25,
        compile_model=False,
    )
    if trainer.mixed_precision_dtype != str(DTYPES[row.precision]).removeprefix("torch."):
        raise RuntimeError(f"micro-sam computes in {trainer.mixed_precision_dtype}")
    trainer.logger, trainer.max_iteration = None, np.inf  # as `fit` sets them
    return Loop(
        model, trainer.optimizer, lambda: trainer._train_epoch_mixed(tqdm(disable=True, total=1))
    )


def ours(row: Row, peers: Path) -> Loop:
    """The same method of this package."""
    sam = deepcopy(random_sam(row.model, row.image_size, row.device)).train()
    sizes: dict[str, dict[str, Any]] = {
        "lora": {"rank": RANK},
        "adapter": {"bottleneck": architecture(row.model).width // 4},
    }
    model = apply_method(sam, row.method, **sizes.get(row.method, {})).to(row.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    cuda = row.device == "cuda"
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True if cuda else None)
    image, boxes, masks = data(row.batch, 1, row.image_size, row.device)
    amp = torch.autocast(row.device, DTYPES[row.precision], enabled=row.precision != "fp32")
    scaler = torch.amp.GradScaler(row.device, enabled=row.precision == "fp16")

    def step() -> None:
        with amp:
            loss = mask_loss(model(image, boxes), masks)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        loss.item()

    return Loop(model, optimizer, step)


MAKERS = {"MedSAM": medsam, "finetune-SAM": finetune_sam, "micro-sam": micro_sam, OURS: ours}


def measure(row: Row, peers: Path) -> dict[str, Any]:
    """Seconds and memory of a row; an error's name and text if it fails."""
    try:
        torch.manual_seed(0)
        loop = MAKERS[row.peer](row, peers)
        seconds, peak = repeated(loop.step, row.device, row.repeats)
        changed = sum(p.numel() for p in loop.optimizer.state)
        if not changed:
            raise RuntimeError("no step changed anything, as gradients were not finite")
        weights = sum(p.nbytes for p in loop.model.parameters()) / 2**20
        return {"seconds": seconds, "mebibytes": peak, "changed": changed, "weights": weights}
    except torch.cuda.OutOfMemoryError:
        return {"failed": "out of memory"}
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"[:300]}


def batches(rows: Iterable[Row], peers: Path) -> Iterator[dict[str, Any]]:
    """Lines of one loop; the caches are empty before each."""
    for row in rows:
        yield {**asdict(row), **measure(row, peers)}
        random_sam.cache_clear()
        gc.collect()
        if row.device == "cuda":
            torch.cuda.empty_cache()


COMMON = ("torch", "torchvision", "segment_anything", "peft", "scipy", "matplotlib.pyplot")
"""What is there without the peers. MONAI would load whatever else it finds."""

LOADED = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
failed = ""
try:
    for name in sys.argv[2:]:
        importlib.import_module(name)
except Exception as error:
    failed = f"{type(error).__name__}: {error}"
print(json.dumps([failed, sorted({x.partition(".")[0] for x in sys.modules})]))
"""


def imports(peer: str, peers: Path) -> dict[str, Any]:
    """Packages that a peer's modules load beyond `COMMON`: name, version and kind."""

    def loaded(*names: str) -> tuple[str, set[str]]:
        command = [sys.executable, "-W", "ignore", "-c", LOADED, str(peers / peer), *names]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        failed, found = json.loads(done.stdout.splitlines()[-1])
        return failed, set(found)

    failed, found = loaded(*MODULES[peer])
    owners = metadata.packages_distributions()
    more = found - loaded(*COMMON)[1] - set(sys.stdlib_module_names) - {"nvidia"}
    packages = [metadata.distribution(x) for x in {y for x in more for y in owners.get(x, ())}]
    return {
        "imports_of": peer,
        "packages": [
            f"{x.name} {x.version}" + ("" if pure(x) else " (compiled)")
            for x in sorted(packages, key=lambda x: x.name.lower())
        ],
        **({"failed": failed[:300]} if failed else {}),
    }


def pure(package: metadata.Distribution) -> bool:
    """Whether its wheel has Python alone."""
    return "Root-Is-Purelib: true" in (package.read_text("WHEEL") or "")


def where() -> Iterator[dict[str, Any]]:
    """The device, which this process may not touch before it forks."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    yield {"device": device, "machine": machine(device)}


def apart(
    lines: Callable[..., Iterator[dict[str, Any]]], *given: Any, until: float
) -> Iterator[dict[str, Any]]:
    """What a generator makes in a process of its own, which is ended at a `time.monotonic()`."""
    context = multiprocessing.get_context("fork")  # with all imports done; CUDA is not started
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, lines, *given))
    process.start()
    there.close()
    try:
        while here.poll(max(until - time.monotonic(), 0)):
            yield here.recv()
        yield {"cut": True}
    except EOFError:
        process.join()
        if process.exitcode:
            yield {"ended": process.exitcode}
    finally:
        process.kill()  # nothing, if it has come to its end
        process.join()


def _send(there: Connection, lines: Callable[..., Iterator[dict[str, Any]]], *given: Any) -> None:
    warnings.simplefilter("ignore")  # that weights are random, and of old imports
    for line in lines(*given):
        there.send(line)


def page(folder: Path) -> str:
    """Write FOLDER/peers.md from FOLDER/peers.jsonl; its text."""
    lines: list[Line] = [json.loads(x) for x in (folder / "peers.jsonl").read_text().splitlines()]
    about = next((x for x in lines if "machine" in x), {})
    rows = [x for x in lines if "loop" in x]
    first = rows[0] if rows else {"model": "", "image_size": "", "device": ""}
    commits = ", ".join(
        f"{name} {commit[:10]}" for name, commit in about.get("commits", {}).items()
    )
    text = [
        HEAD.format(
            command=about.get("command", "python benchmarks/peers.py PEERS --output FOLDER"),
            machine=about.get("machine", "unknown"),
            model=first["model"],
            image_size=first["image_size"],
            commits=f"\nCommits: {commits}." if commits else "",
            warm="two steps" if first["device"] == "cuda" else "one step",
        )
    ]
    for batch in sorted({x["batch"] for x in rows}):
        text.append(f"\n## Batch {batch}\n")
        text += batch_table([x for x in rows if x["batch"] == batch])
    failed = [x for x in lines if "failed" in x]
    if failed:
        text.append("\n## What failed\n")
        text += dict.fromkeys(
            f"- {x.get('loop') or x['imports_of']}{_size(x)}: failed: {x['failed']}" for x in failed
        )
    loaded = [x for x in lines if "packages" in x]
    if loaded:
        text.append("\n## What their imports load\n")
        text.append(f"Beyond {', '.join(COMMON)} and what these load.\n")
        text += [f"- {x['imports_of']}: {', '.join(x['packages']) or 'nothing'}" for x in loaded]
    found = "\n".join([*text, ""])
    with written_whole(folder / "peers.md") as beside:
        beside.write_text(found)
    return found


def _size(line: Line) -> str:
    return (
        f", {line['method']}, {line['precision']}, batch {line['batch']}" if "loop" in line else ""
    )


def batch_table(rows: Sequence[Line]) -> list[str]:
    """A row for each loop that was measured, methods together, peers before ours."""
    head = ["", "trained", "changed", "", "seconds a step (range)", "images/s", "MiB"]
    head += ["ours as fast, same precision", "ours as fast, by default", "ours' memory, by default"]
    methods = [*dict.fromkeys(x["method"] for x in rows)]
    done = [x for x in rows if "seconds" in x]
    cells = []
    for one in sorted(done, key=lambda x: (methods.index(x["method"]), x["peer"] == OURS)):
        middle = statistics.median(one["seconds"])
        spread = f"{min(one['seconds']):.4g} to {max(one['seconds']):.4g}"
        default = "bf16" if one["device"] == "cuda" else "fp32"
        same, usual = (of_ours(done, one, x) for x in (one["precision"], default))
        cells.append(
            [
                *(one["loop"], one["method"], f"{one['changed']:,}", one["precision"]),
                *(f"{middle:.4g} ({spread})", f"{one['batch'] / middle:.4g}"),
                f"{one['mebibytes']:,.0f}",
                *(
                    "" if x is None else f"{middle / statistics.median(x['seconds']):.2f} x"
                    for x in (same, usual)
                ),
                "" if usual is None else f"{usual['mebibytes'] / max(one['mebibytes'], 1):.2f} x",
            ]
        )
    return table(head, cells)


def of_ours(rows: Sequence[Line], peer: Line, precision: str) -> Mapping[str, Any] | None:
    """Our row for the same work as a peer's."""
    if peer["peer"] == OURS:
        return None
    wanted = (OURS, peer["method"], precision)
    return next((x for x in rows if (x["peer"], x["method"], x["precision"]) == wanted), None)


def main() -> None:
    """Measure all loops, or one of the other things."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("peers", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--batch", type=int, nargs="+", help="1 and 4; with --small 1 and 2")
    parser.add_argument("--seconds", type=float, default=100.0, help="for all rows")
    parser.add_argument("--imports", action="store_true")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    if options.page:
        print(page(options.output))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + options.seconds

    def note(line: Mapping[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        with (options.output / "peers.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    if options.imports:
        for peer in MODULES:
            note(imports(peer, options.peers))
        return
    about = next(apart(where, until=until))
    commits = {x: options.peers / x / "COMMIT" for x in MODULES}
    about["commits"] = {
        x: path.read_text().strip() for x, path in commits.items() if path.is_file()
    }
    small = " --small" if options.small else ""
    note({**about, "command": f"python benchmarks/peers.py PEERS --output FOLDER{small}"})
    model, size, repeats = ("nano", 128, 3) if options.small else ("vit_b", 1024, 5)
    sizes = options.batch or ([1, 2] if options.small else [1, 4])
    for loop in loops(about["device"]):
        kind = replace(loop, model=model, image_size=size, device=about["device"], repeats=repeats)
        rows = [replace(kind, batch=x) for x in sizes]
        for group in [rows] if kind.device == "cuda" else [[x] for x in rows]:
            for line in apart(batches, group, options.peers, until=until):
                if "loop" in line:
                    group.pop(0)
                    note(line)
                    continue
                why = "no time left" if "cut" in line else f"its process ended: {line['ended']}"
                for row in group:
                    note({**asdict(row), "failed": why})
    print(page(options.output))


if __name__ == "__main__":
    main()
