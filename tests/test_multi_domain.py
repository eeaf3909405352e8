"""`domains`: what it trains and judges, what it does not do again, and whose model predicts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medsam_tune import multi_domain
from medsam_tune.bundle import training_configs
from medsam_tune.cli.domains import domain_runs, one_by_one, read_recipe
from medsam_tune.domain_plan import Domain, Plan
from medsam_tune.errors import DataError
from medsam_tune.failures import REFUSED, USER
from medsam_tune.files import file_hash
from medsam_tune.inference.domain_runs import read_domains
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import load_tuned, read_header, save_tuned
from medsam_tune.multi_domain import tune_domains
from medsam_tune.runs import TUNED, RunRecord, write_record, write_state
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import PromptableSam
from tests.evaluation.test_compare import evaluated

Calls = list[tuple[list[str], dict[str, Any]]]
DICE = {"ct-by-untouched": 0.5, "ct-by-mr": 0.4, "ct-by-full-ct": 0.9, "ct-by-full-ct-mr": 0.6}
SIZE = 64
ROOT = Path(__file__).resolve().parents[1]


def untuned(checkpoint: Path | None) -> PromptableSam:
    return build_sam("nano", checkpoint, SIZE)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The bundle runs, as configs and settings; each leaves what it leaves."""
    seen: Calls = []

    def run(_: str, configs: list[str], given: dict[str, Any]) -> None:
        seen.append((configs, given))
        if "run_dir" in given:
            folder = Path(given.get("output_dir", Path(given["run_dir"]) / "evaluation")).parent
            assert configs == ["evaluate.yaml", *["other_model.yaml"] * ("other" in given)]
            evaluated(folder, DICE.get(unhashed(folder.name), 0.8), "slices")
            return
        folder = Path(given["output_dir"])
        folder.mkdir()
        names = ("full", "adapter")
        method = next((name for name in names if f"method_{name}.yaml" in configs), "lora")
        base = untuned(given.get("checkpoint"))
        if "larger.yaml" in configs:
            base = build_sam("nano", None, 2 * SIZE)
        given_options = {"use_dora": True} if given.get("network_def::use_dora") else {}
        model = apply_method(base, method, **given_options)
        with torch.no_grad():  # each training has its own result
            for parameter in model.parameters():
                parameter.add_(1e-6 * torch.rand(()) * parameter.requires_grad)
        save_tuned(model, folder / TUNED, {1: "liver"})
        checkpoint = given.get("checkpoint")
        said = None if checkpoint is None else str(checkpoint)
        write_record(folder, RunRecord(None, None, said, {}, {}, 0.05, 0, mixture={"box": 1}))
        write_state(folder, "finished", 1, 1, 60.0)

    monkeypatch.setattr(multi_domain, "run_bundle", run)
    return seen


def plan(folder: Path, **changes: Any) -> Plan:
    for name in ("ct", "mr", "xr", "aerial"):
        (folder / f"{name}.json").touch()
    domains = [Domain(name, folder / f"{name}.json", "volume", "lora") for name in ("ct", "mr")]
    given: dict[str, Any] = {"domains": domains, "image_size": SIZE, "class_agnostic": True}
    return Plan(output=folder / "O", **(given | changes))


def cell(given: dict[str, Any]) -> str:
    """Whose cases are judged by which model."""
    return unhashed(Path(given["output_dir"]).parent.name)


def unhashed(name: str) -> str:
    """A name without the start of a tuned file's hash."""
    return re.sub("-[0-9a-f]{8}$", "", name)


def test_each_domain_is_judged_by_each_model(calls: Calls, tmp_path: Path) -> None:
    asked = plan(tmp_path, forgetting=("ct", "mr"), settings={"epochs": 3, "tolerance": 1.0})
    text, failed = tune_domains(asked)
    assert not failed
    trained = [(configs, given) for configs, given in calls if configs[0] == "train.yaml"]
    assert [unhashed(Path(given["output_dir"]).name) for _, given in trained] == [
        *("ct", "mr", "full-ct", "full-ct-mr")
    ]
    assert trained[0][0] == ["train.yaml", "method_lora.yaml", "class_agnostic.yaml"]
    assert (trained[0][1]["epochs"], "tolerance" in trained[0][1]) == (3, False)
    # full tuning goes on with the weights that it left
    content = file_hash(asked.output / "full-ct" / TUNED)[:8]
    weights = asked.output / f"full-ct-{content}.pth"
    assert trained[3][1]["checkpoint"] == weights
    assert trained[3][1]["output_dir"] == asked.output / f"full-ct-mr-{content}"
    judged = {cell(given): given for _, given in calls if "other" in given}
    assert [*judged] == [
        *("ct-by-untouched", "ct-by-mr", "ct-by-combined"),
        *("mr-by-untouched", "mr-by-ct", "mr-by-combined"),
        *("ct-by-full-ct", "ct-by-full-ct-mr"),
    ]
    assert judged["ct-by-untouched"]["other"] is None
    assert judged["ct-by-mr"]["other"] == asked.output / "mr" / TUNED
    assert judged["ct-by-mr"]["run_dir"] == asked.output / "ct"
    assert (judged["ct-by-mr"]["tolerance"], "epochs" in judged["ct-by-mr"]) == (1.0, False)
    assert judged["ct-by-full-ct-mr"]["other_checkpoint"] == weights
    found = json.loads((asked.output / "domains.json").read_text())
    means = {name: entry["mean"] for name, entry in found["matrix"]["ct"].items()}
    assert means == pytest.approx({"untouched": 0.465, "ct": 0.765, "mr": 0.365, "combined": 0.765})
    lost = found["forgetting"]
    assert (lost["old"], lost["new"]) == ("ct", "mr")
    assert lost["difference"] == pytest.approx(-0.3)
    assert "| ct | 8 | 0.465 (0.4" in text
    assert "a change of -0.300 (-0.300 to -0.300)" in text
    assert found["domains"]["ct"]["bytes"] == (asked.output / "ct" / TUNED).stat().st_size
    calls.clear()
    assert tune_domains(asked) == (text, {})
    assert not calls
    combined = asked.output / "combined.safetensors"
    assert load_tuned(combined).tuning is not None
    assert read_header(combined).tuning.options["config"]["r"] == 16  # two of rank 8, side by side
    with pytest.raises(DataError, match="holds another set of domains: class_agnostic was True"):
        tune_domains(plan(tmp_path, class_agnostic=False))
    asked.domains[0].datalist.write_text("other")
    with pytest.raises(DataError, match="its domain ct has another datalist now"):
        tune_domains(asked)
    assert not calls


def test_a_further_domain_changes_what_is_combined(calls: Calls, tmp_path: Path) -> None:
    """The mean of three is judged anew; nothing else of the two is."""
    asked = plan(tmp_path)
    tune_domains(asked)
    calls.clear()
    further = Domain("xr", tmp_path / "xr.json", "volume", "lora")
    tune_domains(replace(asked, domains=[*asked.domains, further]))
    assert {cell(given) for _, given in calls if "other" in given} == {
        *("ct-by-combined", "mr-by-combined", "xr-by-combined"),
        *("ct-by-xr", "mr-by-xr", "xr-by-untouched", "xr-by-ct", "xr-by-mr"),
    }
    combined = read_header(asked.output / "combined.safetensors")
    assert combined.tuning.options["config"]["r"] == 24  # three of rank 8


def test_what_is_tuned_again_is_judged_again(calls: Calls, tmp_path: Path) -> None:
    """By its new file, wherever it stands; what goes on from full tuning is trained anew too."""
    asked = plan(tmp_path, forgetting=("ct", "mr"))
    tune_domains(asked)
    for again, trained, judged in (
        ("mr", {"mr"}, {"ct-by-mr", "ct-by-combined", "mr-by-combined"}),
        ("full-ct", {"full-ct", "full-ct-mr"}, {"ct-by-full-ct", "ct-by-full-ct-mr"}),
    ):
        shutil.rmtree(asked.output / again)
        calls.clear()
        tune_domains(asked)
        made = {unhashed(Path(x["output_dir"]).name) for _, x in calls if "run_dir" not in x}
        assert made == trained
        assert {cell(given) for _, given in calls if "other" in given} == judged
        weights = {given["checkpoint"] for _, given in calls if "checkpoint" in given}
        content = file_hash(asked.output / "full-ct" / TUNED)[:8]
        expected = {asked.output / f"full-ct-{content}.pth"}
        assert weights == (expected if again == "full-ct" else set())
        calls.clear()
        tune_domains(asked)
        assert not calls


def test_another_content_of_an_overlay_is_refused(calls: Calls, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("epochs: 2\n")
    first, second = plan(tmp_path).domains
    asked = plan(tmp_path, domains=[replace(first, overlays=(str(own),)), second])
    tune_domains(asked)
    own.write_text("# as before\nepochs: 2\n")
    tune_domains(asked)
    own.write_text("epochs: 3\n")
    calls.clear()
    with pytest.raises(DataError, match=r"domain ct has another content of own\.yaml now, and not"):
        tune_domains(asked)
    assert not calls


def test_settings_of_a_domains_method_are_not_of_forgetting(calls: Calls, tmp_path: Path) -> None:
    """Options and the learning rate of a LoRA do not reach full tuning; those of full do."""
    first, second = plan(tmp_path).domains
    second = replace(second, method="full", settings={"network_def::multimask": True})
    settings = {"lr": 1e-3, "epochs": 3, "optimizer::eps": 1e-7}
    first = replace(first, settings={"network_def::rank": 4})
    asked = plan(tmp_path, domains=[first, second], settings=settings, forgetting=("ct", "mr"))
    assert not tune_domains(asked)[1]
    made = {unhashed(Path(x["output_dir"]).name): x for _, x in calls if "run_dir" not in x}
    own = {"lr", "network_def::rank", "network_def::multimask"}
    found = {name: own & given.keys() for name, given in made.items()}
    assert found == {
        "ct": {"lr", "network_def::rank"},
        "mr": {"lr", "network_def::multimask"},
        "full-ct": set(),
        "full-ct-mr": {"lr", "network_def::multimask"},
    }
    assert all(given["epochs"] == 3 and "optimizer::eps" in given for given in made.values())


def test_options_that_a_method_does_not_have_are_refused_first(
    calls: Calls, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("network_def::rank: 4\n")
    first, second = plan(tmp_path).domains
    domains = [replace(first, overlays=(str(own),)), second]
    with pytest.raises(ValueError, match=r"ct, tuned by full: .*no option 'rank'.*leaves out netw"):
        tune_domains(plan(tmp_path, domains=domains, forgetting=("ct", "mr")))
    odd = replace(second, method="adapter", settings={"network_def::rank": 4})
    with pytest.raises(ValueError, match="mr, tuned by adapter: method 'adapter' has no option 'r"):
        tune_domains(plan(tmp_path, domains=[first, odd]))
    assert not calls
    assert not (tmp_path / "O").exists()


def test_a_lora_that_has_no_sum_is_said_first_and_left_out(calls: Calls, tmp_path: Path) -> None:
    first, second = plan(tmp_path).domains
    own = tmp_path / "own.yaml"
    own.write_text("network_def::use_dora: true\n")
    dora = Domain("xr", tmp_path / "xr.json", "volume", "lora", (str(own),))
    asked = plan(tmp_path, domains=[first, second, dora])
    with pytest.warns(UserWarning, match="its LoRA has use_dora, .* left out of the mean"):
        asked.refuse_odd()
    assert not calls
    dora = replace(dora, overlays=(), settings={"network_def::use_dora": True})
    with pytest.warns(UserWarning, match="domain xr: its LoRA has use_dora"):
        text, failed = tune_domains(replace(asked, domains=[first, second, dora]))
    assert not failed
    assert "Combined is the mean of the LoRAs of ct, mr." in text
    assert "xr-by-combined" in {cell(given) for _, given in calls if "other" in given}


def test_the_loras_among_the_domains_are_combined(calls: Calls, tmp_path: Path) -> None:
    """An adapter has no part in their mean, which is judged on its cases nevertheless."""
    asked = plan(tmp_path)
    aerial = Domain("aerial", tmp_path / "aerial.json", "image", "adapter")
    text, failed = tune_domains(replace(asked, domains=[aerial, *asked.domains]))
    assert not failed
    assert "Combined is the mean of the LoRAs of ct, mr." in text
    combined = read_header(asked.output / "combined.safetensors")
    assert combined.tuning.options["config"]["r"] == 16
    judged = {cell(given) for _, given in calls if "other" in given}
    assert {"ct-by-combined", "mr-by-combined", "aerial-by-combined"} <= judged
    other = replace(plan(tmp_path), output=tmp_path / "P", domains=[aerial, asked.domains[0]])
    assert "ombined" not in tune_domains(other)[0]
    assert not (tmp_path / "P" / "combined.safetensors").exists()


def test_what_fails_does_not_end_the_others(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A domain of another base is left out, and its data is judged by no other model."""
    overlay = tmp_path / "larger.yaml"
    overlay.write_text("epochs: 2\n")
    monkeypatch.chdir(tmp_path)
    asked = plan(tmp_path)
    odd = Domain("xr", tmp_path / "xr.json", "volume", "lora", ("larger.yaml",))
    text, failed = tune_domains(replace(asked, domains=[*asked.domains, odd]))
    assert [*failed] == ["xr"]
    assert "image_size 128" in failed["xr"]
    assert "domains share one" in failed["xr"]
    assert "by xr" not in text
    assert "failed: xr" in text
    assert [*read_domains(asked.output).runs] == ["ct", "mr"]


def test_an_overlay_that_does_not_fit_is_refused_first(calls: Calls, tmp_path: Path) -> None:
    odd = Domain("aerial", tmp_path / "aerial.json", "image", "lora", ("satellite.yaml",))
    with pytest.raises(ValueError, match=r"domain aerial, tuned by lora: satellite.yaml is of"):
        tune_domains(replace(plan(tmp_path), domains=[*plan(tmp_path).domains, odd]))
    fitting = replace(odd, method="adapter")
    several = [*plan(tmp_path).domains, fitting]
    with pytest.raises(ValueError, match="domain aerial, tuned by full"):
        tune_domains(replace(plan(tmp_path), domains=several, forgetting=("ct", "aerial")))
    assert not calls
    assert not (tmp_path / "O").exists()


RECIPE = {"method": "lora", "domains": {"ct": {"datalist": "d.json"}, "mr": {"datalist": "d.json"}}}


def recipe(folder: Path, **changes: Any) -> Path:
    (folder / "d.json").write_text("{}")
    path = folder / "multi_domain.yaml"
    path.write_text(json.dumps({**RECIPE, **changes}))  # JSON is YAML
    return path


def test_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("{}")
    first = {"datalist": "d.json", "overlays": ["own.yaml", "few_shot.yaml"], "method": "full"}
    domains = {"ct": first, "mr": RECIPE["domains"]["mr"]}  # type: ignore[index]
    found = read_recipe(recipe(tmp_path, domains=domains, image_size=128), tmp_path / "O")
    ct, mr = found.domains
    assert (ct.method, mr.method, found.image_size) == ("full", "lora", 128)
    assert ct.overlays == (str(tmp_path / "own.yaml"), "few_shot.yaml")
    assert (ct.datalist, ct.bundle) == (tmp_path / "d.json", "volume")


def test_the_recipe_that_is_shipped(tmp_path: Path) -> None:
    """It is read, its overlays are there, and docs/models.md shows it."""
    text = (ROOT / "bundles" / "multi_domain.yaml").read_text()
    (tmp_path / "multi_domain.yaml").write_text(text)
    said = [line for line in text.splitlines(keepends=True) if not line.startswith("#")]
    assert f"```yaml\n{''.join(said)}```" in (ROOT / "docs" / "models.md").read_text()
    for name, modality in (("ct", "CT"), ("mr", "MR"), ("aerial", "RGB"), ("pages", "RGB")):
        ending = "png" if modality == "RGB" else "nii.gz"
        case = {"image": f"a.{ending}", "label": f"b.{ending}", "patient": "p"}
        content = {"name": name, "modality": {"0": modality}, "labels": {"0": "none", "1": "it"}}
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, "training": [case]}))
    found = read_recipe(tmp_path / "multi_domain.yaml", tmp_path / "O")
    assert {one.name: (one.bundle, one.method) for one in found.domains} == {
        "ct": ("volume", "lora"),
        "mr": ("volume", "lora"),
        "aerial": ("image", "adapter"),
        "documents": ("image", "lora"),
    }
    for one in found.domains:
        training_configs(one.bundle, one.method, one.overlays)
    assert found.forgetting == ("ct", "mr")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"domains": None}, "says no domains"),
        ({"domains": {"ct": {"datalist": "d.json"}}}, "has 1 domain; expected two or more"),
        ({"domains": {"CT": {}}}, "a domain is named 'CT'"),
        ({"domains": {"../ct": {}}}, r"a domain is named '../ct'"),
        ({"domains": {"combined": {}}}, "a domain is named 'combined'"),
        ({"domains": {"ct": {}}}, "the domain ct has no datalist"),
        ({"domains": {"ct": {"datalist": "no.json"}}}, "no.json: no such datalist"),
        ({"domains": {"ct": {"data": "d.json"}}}, "has 'data'; known: .* Did you mean 'datalist'"),
        ({"domains": {"ct": ["d.json"]}}, r"domains::ct is \['d.json'\]; expected the keys"),
        ({"method": None}, "the domain ct has no method"),
        ({"method": "lore"}, "method 'lore' is unknown; .* Did you mean 'lora'"),
        ({"image_size": "128"}, "image_size: '128'; expected a whole number"),
        ({"class_agnostic": 1}, "class_agnostic: 1; expected true or false"),
        ({"forgetting": ["ct"]}, r"forgetting is \['ct'\]; expected two of the domains ct, mr"),
        ({"forgetting": ["ct", "xr"]}, "expected two of the domains ct, mr"),
        ({"model": "vit_b"}, "vit_b needs --checkpoint"),
        ({"epochs": 3}, "has 'epochs'; known: method"),
        ({"settings": {"run_dir": "x"}}, "settings has 'run_dir', which the command sets"),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, changes: dict[str, Any], error: str) -> None:
    with pytest.raises((DataError, ValueError), match=error):
        read_recipe(recipe(tmp_path, **changes), tmp_path / "O")


def test_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such recipe"):
        read_recipe(tmp_path / "no.yaml", tmp_path / "O")
    (tmp_path / "odd.yaml").write_text("a: [")
    with pytest.raises(DataError, match="is no YAML"):
        read_recipe(tmp_path / "odd.yaml", tmp_path / "O")


def mixed(folder: Path, *domains: str | None) -> Path:
    """A datalist without labels, a scan of each domain."""
    entries = [
        {"image": f"{n}.nii.gz", **({} if name is None else {"domain": name})}
        for n, name in enumerate(domains)
    ]
    (folder / "mixed.json").write_text(json.dumps({"test": entries}))
    return folder / "mixed.json"


def test_each_scan_goes_to_the_run_of_its_domain(tmp_path: Path) -> None:
    (tmp_path / "domains.json").write_text(json.dumps({"format": 1, "domains": {"ct": 0, "mr": 0}}))
    ct, mr = tmp_path / "ct", tmp_path / "mr"
    asked = mixed(tmp_path, "mr", "ct", "mr")
    assert domain_runs(tmp_path, None, asked) == {"mr": [mr], "ct": [ct]}
    assert domain_runs(tmp_path, "ct", tmp_path / "scan.nii") == {None: [ct]}
    for scans, name, error in (
        (asked, "xr", "has no domain 'xr'; it has ct, mr"),
        (mixed(tmp_path, "ct", None), None, "1 of 2 scans have no domain: 1; expected"),
        (tmp_path / "scan.nii", None, "is no datalist that says the domain"),
    ):
        with pytest.raises(DataError, match=error):
            domain_runs(tmp_path, name, scans)
    with pytest.raises(DataError, match="has no domain 'xr'"):
        domain_runs(tmp_path, None, mixed(tmp_path, "xr"))
    for damaged in ('{"format": 1}', '{"format": 1, "domains": {"../ct": {}}}'):
        (tmp_path / "domains.json").write_text(damaged)
        with pytest.raises(DataError, match="is damaged"):
            domain_runs(tmp_path, "ct", asked)
    with pytest.raises(DataError, match=r"no domains.json in it"):
        domain_runs(tmp_path / "other", None, asked)


def ends(code: int | None) -> Callable[[], None]:
    def job() -> None:
        if code is not None:
            raise SystemExit(code)

    return job


def fails() -> None:
    raise DataError("scan.nii: is no scan.")


@pytest.mark.parametrize(
    ("jobs", "code"),
    [
        ([ends(None), ends(REFUSED)], REFUSED),
        ([ends(USER), ends(None)], REFUSED),
        ([fails, ends(None)], REFUSED),
        ([fails, ends(USER)], USER),
        ([ends(143), ends(None)], 143),
    ],
)
def test_exit_code_of_several_domains(jobs: list[Callable[[], None]], code: int) -> None:
    done: list[int] = []
    last = jobs[-1]

    def counted() -> None:
        done.append(1)
        last()

    with pytest.raises(SystemExit) as error:
        one_by_one({"ct": jobs[0], "mr": counted})
    assert error.value.code == code
    assert len(done) == (code != 143)


def test_several_domains_that_are_done() -> None:
    one_by_one({"ct": ends(None), "mr": ends(0)})
