"""Running a bundle: its folder, its command line, and the settings that are typed for it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from fire.parser import DefaultParseValue

from medsam_tune import bundle
from medsam_tune.bundle import (
    Typed,
    bundle_folder,
    component_from,
    read_settings,
    refuse_unknown_overrides,
    run_bundle,
    training_configs,
)
from medsam_tune.errors import DataError
from medsam_tune.methods import METHODS

Command = Callable[..., list[str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The arguments that `run_bundle` gives to MONAI; they must be those that it prints."""

    def run(*arguments: object) -> list[str]:
        monkeypatch.setattr("sys.argv", [])
        monkeypatch.setattr(bundle, "runpy", SimpleNamespace(run_module=lambda *_, **__: None))
        run_bundle(*arguments)  # type: ignore[arg-type]
        argv = bundle.sys.argv
        printed = shlex.split(capsys.readouterr().err)
        assert printed == ["$", "python", "-m", *argv]
        return argv[1:]

    return run


def test_the_shipped_bundle_and_folders_are_found(tmp_path: Path) -> None:
    shipped = bundle_folder("volume")
    assert shipped.name == "sam_volume"
    (tmp_path / "configs").mkdir()
    assert bundle_folder(str(tmp_path)) == tmp_path
    with pytest.raises(DataError, match=r"bundle 'x' is neither a folder with configs/ nor .*vol"):
        bundle_folder("x")


@pytest.mark.parametrize("method", METHODS)
def test_every_training_config_is_in_the_bundle(method: str) -> None:
    names = training_configs(method, no_prompt=True)
    assert names[0] == "train.yaml"
    assert names[-1] == "no_prompt.yaml"
    assert training_configs(method) == names[:-1]
    assert all((bundle_folder("volume") / "configs" / name).is_file() for name in names)


def test_the_command_has_configs_and_overrides(command: Command, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    for name in ("configs/a.yaml", "mine.yaml"):
        (tmp_path / name).write_text("lr: 1\n")
    mine = tmp_path / "mine.yaml"
    first, root = str(tmp_path / "configs" / "a.yaml"), ("--bundle_root", str(tmp_path))
    overrides = {"lr": 0.1, "output_dir": Path("2024"), "squash": Typed("true")}
    assert command(str(tmp_path), ["a.yaml"], overrides) == [
        *("run", "--config_file", first, *root),
        *("--lr", "0.1", "--output_dir", "'2024'", "--squash", "True"),
    ]
    files = f"['{first}','{mine}']"
    expected = ["run", "--config_file", files, *root]
    assert command(str(tmp_path), ["a.yaml", str(mine)], {}) == expected
    with pytest.raises(DataError, match=r"b.yaml: no such config here, nor in .* has a.yaml\."):
        command(str(tmp_path), ["b.yaml"], {})


@pytest.mark.parametrize("text", ["2024", "1e5", "[1]", "runs/a", "None", "a b"])
def test_paths_stay_text(text: str) -> None:
    assert DefaultParseValue(bundle._argument(Path(text))) == text


@pytest.mark.parametrize(
    ("text", "argument", "value"),
    [
        ("true", "True", True),
        ("False", "False", False),
        ("null", "$None", None),
        ("None", "$None", None),
        ("1e-3", "1e-3", 0.001),
        ("-5", "-5", -5),
        ("[0,6,0]", "[0,6,0]", [0, 6, 0]),
        ("coronal", "coronal", "coronal"),
        ("a=b", "a=b", "a=b"),
        ("", "", ""),
    ],
)
def test_settings_are_read_once_for_both_uses(text: str, argument: str, value: object) -> None:
    settings = read_settings([f"net::x={text}"])
    assert list(settings) == ["net::x"]
    assert str(settings["net::x"]) == argument
    assert settings["net::x"].value == value


def test_settings_of_another_form_are_refused() -> None:
    assert read_settings(None) == {}
    for pair in ("epochs", "=3", ""):
        with pytest.raises(ValueError, match=rf"--set '{pair}': expected key=value"):
            read_settings([pair])


@dataclass
class Cut:
    """A component with two arguments."""

    plane: str = "axial"
    spacing: tuple[float, ...] = ()


def test_a_component_takes_its_own_settings_alone() -> None:
    assert component_from("cut", Cut, {}) == Cut()
    settings = read_settings(["cut::plane=coronal", "cut::spacing=(1,2)"])
    assert component_from("cut", Cut, settings) == Cut("coronal", (1, 2))
    for key in ("plane", "cut::plan", "lr", "cutplane"):
        message = f"--set {key}=1: expected cut::key=value, the key one of plane, spacing"
        with pytest.raises(ValueError, match=message):
            component_from("cut", Cut, read_settings([f"{key}=1"]))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config with three settings, one of them a group."""
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 1\nlr: 0.1\ntrain: {trainer: {max_epochs: 3}}\n")
    return path


@pytest.mark.parametrize(
    "options",
    [
        ["--epochs", "2"],
        ["--lr=0.2", "--epochs", "2"],
        ["--train::trainer::max_epochs", "9"],
        ["--train#trainer#max_epochs", "9"],
        [],
    ],
)
def test_known_overrides_pass(config: Path, options: list[str]) -> None:
    refuse_unknown_overrides(["run", "--config_file", str(config), *options])


def test_keys_of_all_config_files_are_known(config: Path) -> None:
    other = config.with_name("b.yaml")
    other.write_text("rank: 4\n")
    files = f"['{config}','{other}']"
    refuse_unknown_overrides(["run", "--config_file", files, "--rank", "8", "--epochs=2"])
    with pytest.raises(ValueError, match="--rank is no setting of this config"):
        refuse_unknown_overrides(["run", "--config_file", str(config), "--rank", "8"])


def test_unknown_overrides_are_named_with_the_nearest(config: Path) -> None:
    with pytest.raises(ValueError, match="--epoch is no setting of this config; did you mean: ep"):
        refuse_unknown_overrides(["run", "--config_file", str(config), "--epoch", "2"])
    with pytest.raises(ValueError, match="did you mean: epochs, lr, train"):
        refuse_unknown_overrides(["run", "--config_file", str(config), "--zzz=2"])


def test_unknown_arguments_of_a_component_are_named(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(
        "rules: {_target_: medsam_tune.slices.rules.ScanRules, plane: axial}\n"
        "net: {_target_: medsam_tune.apply_method, sam: 1, method: lora}\n"
        "mending::strict: true\n"
    )
    run = ["run", "--config_file", str(config)]
    refuse_unknown_overrides([*run, "--rules::neighbours", "True", "--net::rank", "4"])
    with pytest.raises(ValueError, match=r"rules::plan is no setting of rules; .*: plane"):
        refuse_unknown_overrides([*run, "--rules::plan", "coronal"])


def test_other_programs_are_let_alone() -> None:
    refuse_unknown_overrides(["tests", "--maxfail", "2"])
