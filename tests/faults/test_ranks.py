"""Two processes on the CPU train, evaluate and predict as one does, and end together."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsam_tune.cases.datalist import write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.failures import MEMORY, USER
from medsam_tune.files import hold_folder
from medsam_tune.synthetic.phantom import write_phantoms
from tests.images import image_folder

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "sam_volume" / "configs"
TRAIN = {"datalist": "d.json", "image_size": 64, "epochs": 2, "epoch_slices": 24, "warmup_steps": 2}
# AdamW makes of a rounding of a gradient near zero a share of the rate, whatever the gradient is.
TRAIN |= {"lr": 1e-3, "token_lr": 1e-3}
PLAIN = {"optimizer::_target_": "torch.optim.SGD", "lr": 0.05, "token_lr": 0.05}
LAUNCH = ["-c", "import sys; from medsam_tune.ranks import launch; launch(2, sys.argv[1:])"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def started(
    folder: Path,
    processes: int,
    *configs: str,
    several: str = "multi_gpu.yaml",
    by: Sequence[str] = LAUNCH,
    **settings: Any,
) -> subprocess.Popen[str]:
    """A run of configs by one or two processes, which `by` starts."""
    names = [*configs, *([several] if processes == 2 else [])]
    files = ",".join(f"'{CONFIGS / name}'" for name in names)
    words = [sys.executable, *(by if processes == 2 else [])]
    words += ["-m", "monai.bundle", "run"]
    words += ["--config_file", f"[{files}]", "--bundle_root", str(CONFIGS.parent)]
    words += [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def done(process: subprocess.Popen[str], code: int = 0) -> str:
    """What a run said, which ended with a code."""
    text, _ = process.communicate(timeout=300)
    assert process.returncode == code, text[-3000:]
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms, their datalist, and a run `one`."""
    folder = tmp_path_factory.mktemp("ranks")
    write_phantoms(folder / "data", 6, shape=(48, 40, 8), spacing=(7.2, 6.4, 15.0))
    words = ["split", "data", "--out", "d.json", "--fractions", "0.34", "0.34", "0.32"]
    code = "from medsam_tune.cli import app; app()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, *words], cwd=folder, env=environment, check=True)
    done(started(folder, 1, "train.yaml", output_dir="one", batch_size=4, **TRAIN))
    return folder


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so, at most 200 seconds."""
    until = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.02)


def kill_one(words: str) -> None:
    """Kill the last of the processes with some words in their command lines."""
    listing = subprocess.run(
        ["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True
    )
    ranks = [
        int(line.split()[0])
        for line in listing.stdout.splitlines()
        if words in line and "launch(2" not in line
    ]
    os.kill(max(ranks), signal.SIGKILL)


def voxels(mask: Path) -> np.ndarray:
    return np.asarray(nib.load(mask).dataobj)


def losses(run: Path, of: str = "mean_dice") -> list[float]:
    """The validation Dice of each epoch, or the loss of each step, which the first rank wrote."""
    events = EventAccumulator(str(run / "logs")).Reload()
    tag = next(name for name in events.Tags()["scalars"] if name.endswith(of))
    return [event.value for event in events.Scalars(tag)]


def test_two_processes_of_torchrun_train_and_evaluate_as_one(folder: Path) -> None:
    alone, together = TRAIN | PLAIN | {"batch_size": 4}, TRAIN | PLAIN | {"batch_size": 2}
    done(started(folder, 1, "train.yaml", output_dir="plain", **alone))
    done(started(folder, 2, "train.yaml", by=TORCHRUN, output_dir="two", **together))
    names = ("plain", "two")
    one, two = (torch.load(folder / name / "last.pt", weights_only=True) for name in names)
    assert one["trainer"]["iteration"] == two["trainer"]["iteration"] == 12
    for name, tensor in one["tuned"].items():
        torch.testing.assert_close(two["tuned"][name], tensor, atol=1e-5, rtol=0, msg=name)
    assert two["best"]["best"] == pytest.approx(one["best"]["best"], abs=1e-4)
    assert losses(folder / "two") == pytest.approx(losses(folder / "plain"), abs=1e-4)
    steps = {name: losses(folder / name, "loss") for name in names}
    assert steps["two"] == pytest.approx(steps["plain"], abs=1e-5)

    found = json.loads((folder / "d.json").read_text())
    (folder / "few.json").write_text(json.dumps(found | {"test": found["test"][:1]}))
    for count, datalist in ((2, "d.json"), (1, "few.json")):
        settings = {"run_dir": "two", "datalist": datalist}
        alone, together = folder / f"alone{count}", folder / f"together{count}"
        done(started(folder, 1, "evaluate.yaml", output_dir=alone.name, **settings))
        settings |= {"output_dir": together.name}
        done(started(folder, 2, "evaluate.yaml", by=TORCHRUN, **settings))
        for name in ("metrics.csv", "box3d/metrics.csv"):
            assert (together / name).read_text() == (alone / name).read_text()
        one, two = (json.loads((it / "summary.json").read_text()) for it in (alone, together))
        assert two | {"seconds": 0} == one | {"seconds": 0}
        with (together / "metrics.csv").open() as file:
            assert len({row["case"] for row in csv.DictReader(file)}) == count
        one, two = ({p.name for p in (it / "overlays").rglob("*")} for it in (alone, together))
        assert two == one


def test_commands_on_images_start_two_processes(tmp_path: Path) -> None:
    """As on a machine with two GPUs; each process sees none, and takes the CPU."""
    cases = find_cases(image_folder(tmp_path / "data", groups=4))
    write_datalist(split_cases(cases, (0.25, 0.25, 0.5)), tmp_path / "d.json")
    code = "import torch; torch.cuda.device_count = lambda: 2; from medsam_tune.cli import app; "
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", f"{code}app()", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    words = ["train", "decoder", "--datalist", "d.json", "--output", "run", "--gpus", "2"]
    for name in ("epochs=1", "epoch_slices=4", "batch_size=1", "rules::components=4"):
        words += ["--set", name]
    said = command(*words, "--image-size", "64")
    assert "torchrun --standalone --nproc-per-node=2 -m monai.bundle run" in said
    assert "sam_image/configs/multi_gpu.yaml" in said
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["trainer"]["iteration"] == 2
    command("evaluate", "--run", "run", "--gpus", "2")
    command("evaluate", "--run", "run", "--set", "output_dir=alone")
    together, alone = (
        (tmp_path / place / "metrics.csv").read_text() for place in ("run/evaluation", "alone")
    )
    assert together == alone


def test_the_code_is_of_who_failed_and_a_line_of_all_is_said_once() -> None:
    """A process that fails ends before Python takes itself down, in which torch may abort it."""
    program = (
        "import atexit, os\n"
        "from medsam_tune.failures import report_in_one_line\n"
        "from medsam_tune.ranks import join, rank, wait\n"
        "atexit.register(os.abort)\nreport_in_one_line()\njoin()\n"
    )
    one = "if rank() == 1: raise MemoryError\nwait()"
    for failure, code in (("raise MemoryError", MEMORY), (one, MEMORY), ("raise ValueError", USER)):
        words = [sys.executable, *LAUNCH, "-c", program + failure]
        ended = subprocess.run(
            words,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            text=True,
            capture_output=True,
            check=False,
        )
        assert ended.returncode == code, ended.stderr
        assert ended.stderr.count("medsam-tune: ") == 1, ended.stderr


def test_the_signal_counts_where_torch_finds_a_broken_connection() -> None:
    """As in a backward pass, whose gradients torch itself sends to the others."""
    program = (
        "import os, signal, torch\n"
        "import torch.distributed as dist\n"
        "from medsam_tune.failures import report_in_one_line\n"
        "from medsam_tune.ranks import join, rank\n"
        "report_in_one_line()\njoin()\n"
        "if rank() == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "dist.all_reduce(torch.ones(1))"
    )
    ended = subprocess.run(
        [sys.executable, *LAUNCH, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 128 + signal.SIGKILL, ended.stderr
    assert "process 2 of 2 was ended by SIGKILL" in ended.stderr
    assert "another process of this run has ended" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_sharded_weights_train_as_whole_ones(folder: Path) -> None:
    """FSDP2 gives the files of DDP, also with recomputed blocks; and goes on where it stopped."""
    full, shared = ("train.yaml", "method_full.yaml"), {"several": "fsdp.yaml"}
    done(started(folder, 1, *full, output_dir="full", batch_size=4, **TRAIN))
    done(started(folder, 2, *full, output_dir="ddp", batch_size=2, **TRAIN))
    settings = TRAIN | {"batch_size": 2, "gradient_checkpointing": "True"} | shared
    done(started(folder, 2, *full, output_dir="sharded", **settings))
    process = started(folder, 2, *full, output_dir="stopped", **settings)
    wait_for((folder / "stopped" / "last.pt").exists)
    process.send_signal(signal.SIGTERM)
    text = done(process, code=128 + signal.SIGTERM)
    assert "stopped at step" in text
    text = done(started(folder, 2, *full, output_dir="stopped", resume="True", **settings))
    assert "resumed from" in text

    tuned = load_file(folder / "ddp" / "tuned.safetensors")
    last = torch.load(folder / "ddp" / "last.pt", weights_only=True)
    for name in ("sharded", "stopped"):
        found = load_file(folder / name / "tuned.safetensors")
        torch.testing.assert_close(found, tuned, atol=1e-6, rtol=0)
        found = torch.load(folder / name / "last.pt", weights_only=True)
        for part in ("tuned", "optimizer"):
            torch.testing.assert_close(found[part], last[part], atol=1e-6, rtol=0)
        assert losses(folder / name) == pytest.approx(losses(folder / "ddp"), abs=1e-6)
    assert losses(folder / "sharded", "loss") == pytest.approx(
        losses(folder / "ddp", "loss"), abs=1e-6
    )
    assert losses(folder / "sharded") == pytest.approx(losses(folder / "full"), abs=2e-3)
    alone = load_file(folder / "full" / "tuned.safetensors")
    torch.testing.assert_close(found["tuned"], alone, atol=2e-3, rtol=0)


def test_a_killed_process_ends_both_and_the_run_goes_on(folder: Path) -> None:
    settings, both = TRAIN | {"epochs": 400}, ("train.yaml", "multi_gpu.yaml")
    process = started(folder, 2, "train.yaml", output_dir="killed", batch_size=2, **settings)
    file = folder / "killed" / "state.json"
    wait_for(lambda: file.exists() and json.loads(file.read_text())["epoch"] >= 1)
    kill_one("output_dir killed")
    text = done(process, code=128 + signal.SIGKILL)
    assert "was ended by SIGKILL" in text
    settings = TRAIN | {"epochs": 3, "resume": "True"}
    alone = started(folder, 1, *both, output_dir="killed", batch_size=2, **settings)
    assert "was trained by 2 processes, one for each GPU, and this is 1" in done(alone, code=1)
    text = done(started(folder, 2, "train.yaml", output_dir="killed", batch_size=2, **settings))
    assert "resumed from" in text
    state = json.loads(file.read_text())
    assert (state["state"], state["epoch"]) == ("finished", 3)


def test_a_stopped_run_goes_on_with_the_dropout_of_each_process(folder: Path) -> None:
    configs = ("train.yaml", "method_lora.yaml")
    settings = TRAIN | {"batch_size": 2, "network_def::lora_dropout": 0.3}
    done(started(folder, 2, *configs, output_dir="dropped", **settings))
    process = started(folder, 2, *configs, output_dir="left", **settings)
    wait_for((folder / "left" / "last.pt").exists)
    process.send_signal(signal.SIGTERM)
    assert "stopped at step" in done(process, code=128 + signal.SIGTERM)
    states = torch.load(folder / "left" / "last.pt", weights_only=True)["random"]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    done(started(folder, 2, *configs, output_dir="left", resume="True", **settings))
    whole, parts = (load_file(folder / name / "tuned.safetensors") for name in ("dropped", "left"))
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)


def test_a_folder_that_is_taken_is_refused_by_both(folder: Path) -> None:
    text = done(started(folder, 2, "train.yaml", output_dir="one", batch_size=2, **TRAIN), code=1)
    assert text.count("holds a run already") == 1
    assert "Traceback" not in text


def test_two_processes_predict_a_folder_as_one(folder: Path) -> None:
    """Each does its part; what is refused is said where it happens, and once at the end."""
    scans, prompts = folder / "scans", folder / "prompts"
    shutil.copytree(folder / "data" / "imagesTr", scans)
    shutil.copytree(folder / "data" / "labelsTr", prompts)
    shutil.copy(prompts / "phantom_000.nii.gz", prompts / "phantom_000b.nii.gz")
    (scans / "phantom_000b.nii.gz").write_bytes(b"no NIfTI")  # the second process has it
    (scans / "phantom_009.nii.gz").write_bytes(b"no prompts")
    settings = {"run_dir": "one", "scans": "scans", "prompts": "prompts"}
    done(started(folder, 1, "inference.yaml", output="masks1", **settings), code=3)
    text = done(started(folder, 2, "inference.yaml", output="masks2", **settings), code=3)
    assert text.count("6 masks, 2 refused:") == 1
    for case in ("phantom_000b", "phantom_009"):
        assert text.count(f"refused: case {case}: ") == 1
        assert text.count(f"\ncase {case}: ") == 1
    one, two = ({path.name for path in (folder / f"masks{n}").iterdir()} for n in (1, 2))
    assert two == one
    for name in one:
        alone, together = (folder / f"masks{n}" / name for n in (1, 2))
        if name.endswith(".nii.gz"):
            assert voxels(alone).any()
            assert np.array_equal(voxels(together), voxels(alone))
        elif name.endswith(".json"):
            said = [json.loads(path.read_text()) for path in (together, alone)]
            assert said[0] | {"seconds": 0} == said[1] | {"seconds": 0}

    (folder / "masks2" / "phantom_003.nii.gz").unlink()
    again = settings | {"output": "masks2", "resume": "True"}
    text = done(started(folder, 2, "inference.yaml", **again), code=3)
    assert text.count("6 masks (5 were there), 2 refused:") == 1
    assert (folder / "masks2" / "phantom_003.nii.gz").exists()
    with hold_folder(folder / "masks2", "predicts"):
        text = done(started(folder, 2, "inference.yaml", **again), code=1)
    assert text.count("another process predicts into it") == 1

    single = {"scans": "scans/phantom_003.nii.gz", "prompts": "prompts/phantom_003.nii.gz"}
    done(started(folder, 2, "inference.yaml", run_dir="one", output="mask.nii.gz", **single))
    alone = voxels(folder / "masks1" / "phantom_003.nii.gz")
    assert np.array_equal(voxels(folder / "mask.nii.gz"), alone)


def test_a_killed_prediction_goes_on(folder: Path) -> None:
    scans = folder / "many"
    scans.mkdir()
    for number in range(60):
        source = folder / "data" / "imagesTr" / "phantom_000.nii.gz"
        shutil.copy(source, scans / f"s{number:02d}.nii.gz")
    settings = {"run_dir": "one", "scans": "many", "output": "cut"}
    process = started(folder, 2, "inference.yaml", **settings)
    wait_for(lambda: any((folder / "cut").glob("*.nii.gz")))
    kill_one("output cut")
    text = done(process, code=128 + signal.SIGKILL)
    assert "was ended by SIGKILL, and the others with it" in text
    assert len([*(folder / "cut").glob("*.nii.gz")]) < 60
    text = done(started(folder, 2, "inference.yaml", **settings, resume="True"))
    assert text.count("60 masks (") == 1
    assert len([*(folder / "cut").glob("*.nii.gz")]) == 60
