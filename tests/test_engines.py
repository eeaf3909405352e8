"""`amp` is bfloat16 on any device, in training, evaluation and prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from medsam_tune import engines
from medsam_tune.engines import (
    SupervisedEvaluator,
    SupervisedTrainer,
    autocast,
    check_amp,
    check_compile,
    has_bfloat16,
)

CPU = torch.device("cpu")
DATA = [
    {"image": torch.linspace(-1, 1, 32).view(2, 16) + 0.1 * k, "label": torch.ones(2, 4)}
    for k in range(6)
]


@pytest.fixture(autouse=True)
def any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with bfloat16; others compute the same, only slower."""
    monkeypatch.setattr(engines, "has_bfloat16", lambda: True)


class Net(nn.Module):
    """Two layers that note what the first one gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 4)
        self.seen: set[torch.dtype] = set()
        self.modes: set[bool] = set()
        self.first.register_forward_hook(self._note)

    def _note(self, _: nn.Module, __: Any, made: Tensor) -> None:
        self.seen.add(made.dtype)
        self.modes.add(self.training)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.first(image))


def trained(amp: bool) -> tuple[Net, list[float], set[torch.dtype]]:
    """A network after six steps, their losses, and the types of a product within the loss."""
    net, losses, products = Net(), [], set()

    def loss(found: Tensor, label: Tensor) -> Tensor:
        products.add((found @ found.T).dtype)
        return (found.float() - label).square().mean()

    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=DATA,
        network=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        loss_function=loss,
        decollate=False,
        amp=amp,
        amp_kwargs={"dtype": torch.bfloat16},
    )
    trainer.add_event_handler(
        "ITERATION_COMPLETED", lambda e: losses.append(float(e.state.output["loss"].detach()))
    )
    trainer.run()
    return net, losses, products


@pytest.mark.filterwarnings("error")
def test_a_training_is_in_bfloat16_and_learns_alike() -> None:
    single, expected, products = trained(amp=False)
    assert (single.seen, products) == ({torch.float32}, {torch.float32})
    half, found, products = trained(amp=True)
    assert (half.seen, products) == ({torch.bfloat16}, {torch.bfloat16})
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in half.parameters())
    assert found != expected
    assert found == pytest.approx(expected, rel=0.02)
    assert found[-1] < found[0]
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("amp", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_an_evaluation_is_in_bfloat16_but_its_handlers_are_not(amp: bool, dtype: Any) -> None:
    net, within = Net(), []
    evaluator = SupervisedEvaluator(
        device=CPU,
        val_data_loader=DATA,
        network=net,
        decollate=False,
        amp=amp,
        amp_kwargs={"dtype": torch.bfloat16},
    )

    def note(_: Any) -> None:
        within.append(torch.is_autocast_enabled("cpu"))

    for event in (IterationEvents.FORWARD_COMPLETED, IterationEvents.MODEL_COMPLETED):
        evaluator.add_event_handler(event, note)
    evaluator.run()
    assert net.seen == {dtype}
    assert within == [False] * 12
    assert evaluator.half is amp
    assert net.modes == {False}


def test_a_gpu_is_left_to_monai() -> None:
    options = {"device": "cuda", "val_data_loader": DATA, "network": Net()}
    evaluator = SupervisedEvaluator(amp=True, **options)
    assert evaluator.amp
    assert evaluator.half


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_by_default_bfloat16_is_for_a_gpu() -> None:
    for amp, on in ((None, False), (False, False), (True, True)):
        with autocast("cpu", amp):
            assert torch.is_autocast_enabled("cpu") is on
    assert autocast("cuda").device == "cuda"


def test_a_processor_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "has_bfloat16", lambda: False)
    check_amp("cpu", False)
    check_amp("cuda", True)
    refused = r"^amp is true, but this processor has no bfloat16 .*; leave amp out, or set it to f"
    with pytest.raises(ValueError, match=refused):
        check_amp("cpu", True)
    with pytest.raises(ValueError, match=refused):
        autocast(CPU, True)
    with pytest.raises(ValueError, match=refused):
        trained(amp=True)
    with pytest.raises(ValueError, match=r"^amp is 'yes'; expected true or false\.$"):
        check_amp("cpu", "yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "variable", "usual"),
    [("cpu", "CXX", r"(g|clang)\+\+"), ("cuda", "CC", "gcc or clang")],
)
def test_compiling_without_a_compiler_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, variable: str, usual: str
) -> None:
    own = tmp_path / "own"
    own.touch(mode=0o755)
    monkeypatch.setenv(variable, f"{own} -m64")
    check_compile(device)
    own.unlink()
    line = (
        r"^compile is true, but there is no compiler here \({}\); install one, or name yours by the"
    )
    with pytest.raises(ValueError, match=line.format(own)):
        check_compile(device)
    monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=f"{line.format(usual)} variable {variable}, or leave com"):
        check_compile(device)


@pytest.mark.parametrize(
    ("x86", "known", "has"),
    [(True, {}, True), (False, {"bf16": True}, True), (False, {"avx2": True}, False)],
)
def test_which_processors_have_it(
    monkeypatch: pytest.MonkeyPatch, x86: bool, known: dict[str, bool], has: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: x86)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert has_bfloat16() is has


BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


@pytest.mark.parametrize("config", sorted(BUNDLES.glob("sam_*/configs/*.yaml")), ids=str)
def test_every_recipe_with_amp_takes_these_engines(config: Path) -> None:
    """MONAI's own would say `amp: true` on a CPU without effect."""
    text = config.read_text()
    if "\namp: " in text:
        assert text.count("medsam_tune.engines.Supervised") == text.count("amp_kwargs:") > 0
        assert "$medsam_tune.engines.check_amp(@device, @amp)" in text
        assert "monai.engines" not in text
        assert ConfigParser.load_config_file(config)["amp"]


@pytest.mark.parametrize("config", sorted(BUNDLES.glob("sam_*/configs/*.yaml")), ids=str)
def test_every_recipe_that_compiles_looks_for_a_compiler(config: Path) -> None:
    """Before it writes anything."""
    text = config.read_text()
    if ".compile() if @compile" in text:
        check = "$medsam_tune.engines.check_compile(@device) if @compile else None"
        assert 0 < text.find(check) < text.find("$@run_folder.open()")
