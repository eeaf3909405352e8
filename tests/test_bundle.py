"""Running a bundle: its folder, its command line, and the settings that are typed for it."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fire.parser import DefaultParseValue

from medsam_tune import bundle
from medsam_tune.bundle import (
    bundle_folder,
    recipe,
    run_bundle,
    start,
    training_configs,
)
from medsam_tune.errors import DataError
from medsam_tune.methods import METHODS
from medsam_tune.settings import Typed, word

Command = Callable[..., list[str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The arguments that `run_bundle` gives to MONAI; they must be those that it prints."""

    def run(*arguments: object) -> list[str]:
        monkeypatch.setattr("sys.argv", [])
        monkeypatch.setattr(bundle, "runpy", SimpleNamespace(run_module=lambda *_, **__: None))
        run_bundle(*arguments)  # type: ignore[arg-type]
        argv = bundle.sys.argv
        printed = shlex.split(capsys.readouterr().err.replace("\\\n", ""))
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
    names = training_configs("volume", method, no_prompt=True)
    assert names[0] == "train.yaml"
    assert names[-1] == "no_prompt.yaml"
    assert training_configs("volume", method) == names[:-1]
    names += training_configs("volume", method, class_agnostic=True)
    assert names[-1] == "class_agnostic.yaml"
    assert all((bundle_folder("volume") / "configs" / name).is_file() for name in names)
    with pytest.raises(ValueError, match="--no-prompt and --class-agnostic exclude each other"):
        training_configs("volume", method, no_prompt=True, class_agnostic=True)


def test_what_the_command_asks_for_is_laid_over_overlays(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: nano\nlabel_tokens: true\nlr: 0.1\n")
    configs = ("image", "lora", ["documents", str(mine)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = training_configs(*configs, model="nano")
    assert names == ["train.yaml", "method_lora.yaml", "documents", str(mine)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        names += training_configs(*configs, no_prompt=True)[-3:]
        names += training_configs(*configs, class_agnostic=True)[-1:]
    assert names[4:] == ["documents", str(mine), "no_prompt.yaml", "class_agnostic.yaml"]
    assert [str(one.message) for one in said] == [
        "documents.yaml: its mixture is left out, as --no-prompt sets it.",
        "documents.yaml: its mixture is left out, as --class-agnostic sets it.",
        "mine.yaml: its label_tokens is left out, as --class-agnostic sets it.",
    ]
    with pytest.raises(ValueError, match=r"mine.yaml is of the model nano, .*; say `--model"):
        training_configs(*configs, model="vit_b")


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
    start(["run", "--config_file", str(config), *options])


def test_keys_of_all_config_files_are_known(config: Path) -> None:
    other = config.with_name("b.yaml")
    other.write_text("rank: 4\nlr: $@rank / 10\n")
    files = f"['{config}','{other}']"
    start(["run", "--config_file", files, "--rank", "8", "--epochs=2"])
    with pytest.raises(ValueError, match="--rank is no setting of this config"):
        start(["run", "--config_file", str(config), "--rank", "8"])


def test_unknown_overrides_are_named_with_the_nearest(config: Path) -> None:
    with pytest.raises(ValueError, match="--epoch is no setting of this config; did you mean: ep"):
        start(["run", "--config_file", str(config), "--epoch", "2"])
    with pytest.raises(ValueError, match="did you mean: epochs, lr, train"):
        start(["run", "--config_file", str(config), "--zzz=2"])
    with pytest.raises(ValueError, match="max_epochs is no setting of train; did you mean: trai"):
        start(["run", "--config_file", str(config), "--train::trainr::max_epochs", "2"])
    with pytest.raises(
        ValueError, match=r"--lr::rate is no setting: lr is 0.1, which has no parts"
    ):
        start(["run", "--config_file", str(config), "--lr::rate", "2"])


def test_unknown_arguments_of_a_component_are_named(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(
        "rules: {_target_: medsam_tune.slices.rules.ScanRules, plane: axial}\n"
        "net: {_target_: medsam_tune.apply_method, sam: 1, method: lora}\n"
        "mending::strict: true\n"
    )
    run = ["run", "--config_file", str(config)]
    start([*run, "--rules::neighbours", "True", "--net::rank", "4"])
    with pytest.raises(ValueError, match=r"rules::plan is no setting of rules; .*: plane"):
        start([*run, "--rules::plan", "coronal"])


def test_other_programs_are_let_alone() -> None:
    start(["tests", "--maxfail", "2"])


def test_keys_of_an_overlay_are_known_or_used(config: Path) -> None:
    """A new key is a typing error unless something refers to it."""
    overlay = config.with_name("mine.yaml")
    run = ["run", "--config_file", f"['{config}','{overlay}']"]
    for text in ("epochs: 3\n", "half: 0.5\nlr: $@half / 10\n", "train::trainer::max_epochs: 4\n"):
        overlay.write_text(text)
        start(run)
    for text, message in (
        ("epoch: 3\n", "epoch is no setting of this config; did you mean: epochs"),
        ("train::trainer::epochs: 3\n", "epochs is no setting of train::trainer; .*: max_epochs"),
    ):
        overlay.write_text(text)
        with pytest.raises(ValueError, match=message):
            start(run)


def test_unknown_arguments_are_named_wherever_they_stand(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(
        "augment: {_target_: monai.transforms.Compose, transforms: ["
        "{_target_: monai.transforms.RandFlipd, keys: image, prob: 0.5}]}\n"
    )
    run = ["run", "--config_file", str(config)]
    start([*run, "--augment::transforms::0::prob", "0"])
    with pytest.raises(
        ValueError, match=r"probb is no setting of augment::transforms::0; .*: prob"
    ):
        start([*run, "--augment::transforms::0::probb", "0"])
    with pytest.raises(ValueError, match=r"augment::transforms has the places 0 to 0"):
        start([*run, "--augment::transforms::1::prob", "0"])
    config.write_text("flip: [{_target_: monai.transforms.RandFlipd, keys: image, prb: 0.5}]\n")
    with pytest.raises(ValueError, match=r"flip::0::prb is no setting of flip::0; .*: prob"):
        start(run)


def test_arguments_of_a_file_are_checked_too(config: Path) -> None:
    arguments = config.with_name("args.yaml")
    arguments.write_text(f"config_file: {config}\nepoch: 2\n")
    with pytest.raises(ValueError, match="--epoch is no setting"):
        start(["run", "--args_file", str(arguments)])


@pytest.mark.parametrize("text", ["$__import__('os')", "%other.yaml::x", "a#b.nii", "@lr", "$lr"])
def test_a_path_is_never_a_program(tmp_path: Path, text: str) -> None:
    """For those who run the bundle themselves; the message has the spelling that is data."""
    config = tmp_path / "a.yaml"
    config.write_text("scans: scan.nii.gz\noutput: mask.nii.gz\n")
    run = ["run", "--config_file", str(config), "--output", "$None", "--scans"]
    with pytest.raises(ValueError, match="--scans is") as refused:
        start([*run, text])
    assert repr(word(text)) in str(refused.value)
    start([*run, word(text)])


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2; expected one process"):
        start([])


def test_a_recipe_is_all_that_makes_a_training(tmp_path: Path) -> None:
    config, overlay = tmp_path / "a.yaml", tmp_path / "b.yaml"
    config.write_text("lr: 0.1\nepochs: 3\nobjects: 4\naugment: [{prob: 0.5}, {prob: 1}]\n")
    overlay.write_text("augment::0::prob: 0.25\n")
    assert recipe([]) == {}
    run = ["run", "--config_file", f"['{config}','{overlay}']", "--objects", "2", "--epochs", "9"]
    assert recipe(run) == {"objects": 2, "augment::0::prob": 0.25, "augment::1::prob": 1}


def test_names_of_configs_with_commas_are_theirs(command: Command, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    for name in ("configs/a.yaml", "my, o.yaml", "my,o.yaml"):
        (tmp_path / name).write_text("lr: 1\n")
    argv = command(str(tmp_path), ["a.yaml", str(tmp_path / "my, o.yaml")], {})
    assert DefaultParseValue(argv[2])[1] == str(tmp_path / "my, o.yaml")


def test_a_config_here_and_in_the_bundle(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "a.yaml").write_text("lr: 1\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("lr: 2\n")
    with pytest.raises(DataError, match=r"a.yaml: is here and in the bundle, and they differ; say"):
        command(str(tmp_path), ["a.yaml"], {})
    assert command(str(tmp_path), ["./a.yaml"], {})[2] == "a.yaml"


@pytest.mark.parametrize("name", ["a#b.yaml", "$x.yaml", "a@b.yaml", "a,b.yaml", "'q'.yaml"])
def test_names_of_a_single_config_are_theirs(command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / name).write_text("lr: 1\n")
    argv = command(str(tmp_path), [name], {})
    assert DefaultParseValue(argv[2]) == str(tmp_path / "configs" / name)
