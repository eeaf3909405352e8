"""The demo: its data, its three bundle runs, its table and its pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medsam_tune import demo
from medsam_tune.cases.datalist import read_datalist
from medsam_tune.cli import tuning
from medsam_tune.errors import DataError
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import save_tuned
from medsam_tune.sam.build import build_sam
from medsam_tune.synthetic.aerial import write_aerials
from medsam_tune.synthetic.phantom import write_phantoms

Runs = list[tuple[str, list[str], dict[str, str]]]


def summary(dice: float, ellipse: float | None) -> dict[str, object]:
    scores = {"dice": dice, "iou": dice / 2, "ellipse_dice": ellipse}
    scores["ellipse_iou"] = None if ellipse is None else ellipse / 2
    means = {key: {"mean": value} for key, value in scores.items()}
    liver = {"name": "liver", "n": 4, **means}
    return {"labels": {"1": liver}, **{f"mean_{key}": value for key, value in scores.items()}}


def of_kinds(second: str) -> dict[str, object]:
    kinds = {"slices": summary(0.718, 0.764), second: summary(0.655, 0.611)}
    kinds["none"] = summary(0.5, None)
    flat = second == "points"
    return {**kinds["slices"], "prompts": "slices", "by_prompts": kinds, "flat": flat}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """The bundle runs that demo and command line ask for, written as arguments; results made up."""
    seen: Runs = []

    def record(
        bundle: str, configs: list[str], overrides: dict[str, object], processes: int = 1
    ) -> None:
        assert processes == 1
        seen.append((bundle, list(configs), {k: str(v) for k, v in overrides.items()}))
        if "run_dir" in overrides:
            folder = Path(str(overrides["run_dir"])) / "evaluation"
            folder.mkdir(parents=True, exist_ok=True)
            second = "box3d" if bundle == "volume" else "points"
            (folder / "summary.json").write_text(json.dumps(of_kinds(second)))
        else:
            sam = build_sam("nano", image_size=demo.IMAGE_SIZE)
            sam = apply_method(sam, "decoder", num_classes=5 if bundle == "volume" else 2)
            save_tuned(sam, Path(str(overrides["output_dir"])) / "tuned.safetensors")

    monkeypatch.setattr(demo, "run_bundle", record)
    monkeypatch.setattr(tuning, "run_bundle", record)
    return seen


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same phantoms with few voxels."""

    def write(folder: Path, count: int, seed: int) -> Path:
        return write_phantoms(folder, count, seed, shape=(48, 40, 8), spacing=(7.2, 6.4, 15.0))

    monkeypatch.setattr(demo, "write_phantoms", write)

    def write_small(folder: Path, scenes: int, parts: int, seed: int) -> Path:
        return write_aerials(folder, scenes, 1, seed, (64, 96))

    monkeypatch.setattr(demo, "write_aerials", write_small)


@pytest.mark.usefixtures("small")
def test_the_demo_is_what_the_commands_do(runs: Runs, tmp_path: Path) -> None:
    text = demo.run_demo(tmp_path, "lora")
    of_demo = runs.copy()
    runs.clear()
    data = read_datalist(tmp_path / "datalist.json")
    assert [len(each) for each in (data.training, data.validation, data.test)] == [10, 2, 4]
    pictures = [tmp_path / "pictures" / f"{case.id}.png" for case in data.test[:2]]
    assert all(path.is_file() for path in pictures)
    assert text.splitlines() == [
        "                       by a box on every slice                   tuned",
        "held-out Dice  cases  ellipse  zero-shot   tuned    by one 3-D box   without prompts",
        "liver              4    0.764      0.718   0.718             0.655             0.500",
        "mean                    0.764      0.718   0.718             0.655             0.500",
        "",
        "pictures:",
        *(f"  {path}" for path in pictures),
        f"report: {tmp_path / 'run' / 'evaluation' / 'report.html'}",
    ]
    datalist, zero, run = (tmp_path / name for name in ("datalist.json", "zero_shot", "run"))
    size = demo.IMAGE_SIZE
    shutil.rmtree(zero)  # an evaluation is not written over
    settings = [f"{k}={v}" for k, v in demo.SUBJECTS["volume"].settings.items()]
    tuning.evaluate(zero_shot=True, datalist=datalist, output=zero, image_size=size)
    tuning.train("lora", datalist, run, image_size=size, set_=settings)
    tuning.evaluate(run=run, prompts=["slices,box3d", "none"])
    assert runs == of_demo
    with pytest.raises(DataError, match=r"run: a demo ran here already; delete it or choose"):
        demo.run_demo(tmp_path, "lora")


@pytest.mark.usefixtures("small")
def test_the_demo_of_images_is_what_the_commands_do(runs: Runs, tmp_path: Path) -> None:
    text = demo.run_demo(tmp_path, "decoder", "image")
    of_demo = runs.copy()
    runs.clear()
    data = read_datalist(tmp_path / "datalist.json")
    assert [len(each) for each in (data.training, data.validation, data.test)] == [10, 2, 4]
    assert text.splitlines()[:4] == [
        "                     by a box around each object                      tuned",
        "held-out IoU   cases  ellipse  zero-shot   tuned    by a point in each object   "
        "without prompts",
        "liver              4    0.382      0.359   0.359                        0.328             "
        "0.250",
        "mean                    0.382      0.359   0.359                        0.328             "
        "0.250",
    ]
    report = tmp_path / "run" / "evaluation" / "report.html"
    assert text.splitlines()[-1] == f"report: {report}"
    datalist, zero, run = (tmp_path / name for name in ("datalist.json", "zero_shot", "run"))
    size = demo.IMAGE_SIZE
    shutil.rmtree(zero)
    subject = demo.SUBJECTS["image"]
    settings = [f"{k}={v}" for k, v in subject.settings.items()]
    tuning.evaluate(zero_shot=True, datalist=datalist, output=zero, image_size=size, bundle="image")
    tuning.train("decoder", datalist, run, image_size=size, set_=settings, bundle="image")
    tuning.evaluate(run=run, prompts=["slices,points", "none"], bundle="image")
    assert runs == of_demo


def test_an_unknown_method_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method 'loar' is unknown; known: decoder, full"):
        demo.run_demo(tmp_path, "loar")
    with pytest.raises(ValueError, match="bundle 'images' has no demo; those of volume, image do"):
        demo.run_demo(tmp_path, "lora", "images")
    assert not list(tmp_path.iterdir())
