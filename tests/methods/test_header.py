"""Headers of tuned files that a stranger made: refused in one line, before memory is taken."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from medsam_tune.errors import DataError
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import load_tuned, read_header, save_tuned, tuned_tensors
from medsam_tune.sam.model import PromptableSam

Build = Callable[..., PromptableSam]
FUZZ = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return dict(json.loads(file.metadata()["medsam_tune"]))


def forge(path: Path, header: Any) -> Path:
    """Write a tuned file again with another header."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, metadata={"medsam_tune": text})
    return path


def changed(path: Path, *way: str, value: Any) -> Path:
    """Put a value into the header of a tuned file, at the end of a way of keys."""
    header = header_of(path)
    inner = header
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = value
    return forge(path, header)


@pytest.fixture
def tuned(tiny_sam: Build, tmp_path: Path) -> Callable[..., Path]:
    """Writes a tuned file of a method."""

    def make(method: str = "adapter", **options: Any) -> Path:
        sam = apply_method(tiny_sam(), method, **options)
        return save_tuned(sam, tmp_path / "t.safetensors", {1: "liver"})

    return make


FIELDS: list[tuple[tuple[str, ...], Any, str]] = [
    (("labels",), None, "its labels is None; expected at most 65536 label ids"),
    (("labels",), {"0": "background"}, "its labels is {'0': 'background'}; expected"),
    (("labels",), {"1": None}, "its labels is"),
    (("labels",), {"one": "liver"}, "its labels is"),
    (("labels",), {"2147483648": "liver"}, "its labels is"),
    (("labels",), {"1": "x" * 257}, "its labels is"),
    (("labels",), {"1": "\ud800"}, "its labels is"),
    (("base",), "vit_b", "its base is 'vit_b'; expected an object"),
    (("base",), {"name": "tiny"}, r"base holds \['name'\]; expected name, image_size, in_cha"),
    (("base", "name"), "../../x", "its name is '../../x'; expected the name of a model"),
    (("base", "image_size"), 10**9, "its image_size is 1000000000; expected a whole number fr"),
    (("base", "image_size"), 0, "its image_size is 0; expected a whole number from 32 to 4096"),
    (("base", "image_size"), -96, "its image_size is -96; expected"),
    (("base", "image_size"), 100, "its image_size is 100; expected .*, a multiple of 16"),
    (("base", "image_size"), 96.0, r"its image_size is 96\.0; expected"),
    (("base", "image_size"), True, "its image_size is True; expected"),
    (("base", "in_channels"), 10**9, "its in_channels is 1000000000; expected a whole number"),
    (("base", "normalisation"), ["sam"], r"its normalisation is \['sam'\]; expected one of sam"),
    (("base", "sha256"), "", "its sha256 is ''; expected 64 digits"),
    (("method",), "os.system", "its method is 'os.system'; expected one of decoder, full, ada"),
    (("options",), [1], r"its options is \[1\]; expected options without patterns"),
    (
        ("options",),
        {"target_modules": "(a+)+$"},
        "its options is .*; expected options without patterns of layers",
    ),
    (
        ("options",),
        {"config": {"target_modules": "(.*a){30}"}},
        "its options is .*; expected options without patterns",
    ),
    (("version",), {}, "its version is {}; expected a version"),
    (("version",), "1" * 65, "its version is '1111"),
    (("more",), 1, "the header holds .*'more'.*; expected base, method, options, labels, vers"),
]


@pytest.mark.parametrize(("way", "value", "said"), FIELDS)
def test_row_103_every_field_has_a_type_and_a_range(
    tuned: Callable[..., Path], way: tuple[str, ...], value: Any, said: str
) -> None:
    path = changed(tuned(), *way, value=value)
    with pytest.raises(DataError, match=rf"t\.safetensors: {said}"):
        read_header(path)


PEFT = {"peft_type": "LORA", "r": 8}
OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("adapter", {"bottleneck": 10**9}, "bottleneck is 1000000000; expected a whole number from 1"),
    ("adapter", {"bottleneck": 65536}, r"bias has shape \(64,\), the model needs \(65536,\)"),
    ("adapter", {"bottleneck": "64"}, "bottleneck is '64'; expected a whole number"),
    ("adapter", {"bottleneck": True}, "bottleneck is True; expected a whole number"),
    ("adapter", {"mask_decoder": "yes"}, "mask_decoder is 'yes'; expected true or false"),
    ("adapter", {"num_classes": 10**9}, "num_classes is 1000000000; expected a whole number"),
    ("adapter", {"num_classes": 60000}, "4 tensors do not match the method, e.g. learned"),
    ("adapter", {"sam": 1}, "cannot be applied"),
    ("adapter", {"placement": {}}, "placement is {}; expected text"),
    ("lora", {"rank": 10**9}, "rank is 1000000000; expected a whole number"),
    ("lora", {"rank": 65536}, "the model needs"),
    ("lora", {"alpha": 1e300}, r"alpha is 1e\+300; expected a finite number"),
    ("lora", {"megatron_core": "antigravity"}, "megatron_core is no field of peft's LORA that"),
    ("lora", {"megatron_config": {"a": 1}}, "megatron_config is no field of peft's LORA"),
    ("lora", {"eva_config": {"rho": 2}}, "eva_config is no field of peft's LORA"),
    ("lora", {"layer_replication": [[0, 10**6]]}, "layer_replication is no field"),
    ("lora", {"layers_pattern": "(a+)+$"}, "layers_pattern is no field of peft's LORA"),
    ("lora", {"exclude_modules": "(a+)+$"}, r"exclude_modules is '\(a\+\)\+\$'; expected a list"),
    ("lora", {"modules_to_save": ["(a+)+$"]}, "modules_to_save is .*; expected a list of at"),
    ("lora", {"rank_pattern": {"(a+)+$": 2}}, "rank_pattern is .*; expected names of layers"),
    ("lora", {"rank_pattern": {"q_proj": 10**9}}, "rank_pattern is .*; expected names of layer"),
    ("lora", {"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'; expected one of"),
    ("lora", {"r": 4}, "lora has no option 'r'; set rank, alpha or config"),
    ("lora", {"peft_type": "IA3"}, "lora has no option 'peft_type'"),
    ("lora", {"config": {**PEFT, "peft_type": "XLORA"}}, "peft_type is 'XLORA'; expected one of"),
    ("lora", {"config": {**PEFT, "peft_type": ["LORA"]}}, "peft_type is .*; expected one of"),
    ("lora", {"config": {"r": 8}}, "peft_type is 'None'; expected one of HRA, IA3, LOHA"),
    ("lora", {"config": 7}, "cannot be applied"),
]


@pytest.mark.parametrize(("method", "options", "said"), OPTIONS)
def test_row_103_options_are_bounded_before_memory_is_taken(
    tuned: Callable[..., Path], tiny_sam: Build, method: str, options: dict[str, Any], said: str
) -> None:
    path = changed(tuned(method), "options", value=options)
    base, modules = tiny_sam(), set(sys.modules)
    with pytest.raises(DataError, match=said) as refused:
        load_tuned(path, base)
    assert str(refused.value).startswith(f"{path}: ")
    assert set(sys.modules) == modules
    assert base.tuning is None, "the base is as it was"


def test_row_103_what_a_config_names_is_not_looked_up(
    tuned: Callable[..., Path], tiny_sam: Build
) -> None:
    elsewhere = {
        "auto_mapping": {"base_model_class": "X", "parent_library": "antigravity"},
        "base_model_name_or_path": "somebody/model",
        "revision": "main",
        "task_type": "CAUSAL_LM",
    }
    path = changed(
        tuned("lora"), "options", value={"config": {**PEFT, "lora_alpha": 8, **elsewhere}}
    )
    sam = load_tuned(path, tiny_sam())
    assert "antigravity" not in sys.modules
    config = sam.peft_config["default"]
    assert (config.auto_mapping, config.base_model_name_or_path, config.revision) == (None,) * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"base": 1, "base": 2}',
            "is not JSON .the keys 'base' are there twice in one object",
        ),
        ('{"labels": {"1": "a", "1": "b"}}', "the keys '1' are there twice in one object"),
        ("[" * 100_000, "its header: its objects and lists are nested too deeply"),
        ('{"base": NaN}', "its header: is not JSON .the number NaN is not finite"),
        ('{"base": ' + "9" * 5000 + "}", "its header: is not JSON"),
        ("", "its header: is not JSON"),
        ("null", "its header: holds a JSON NoneType; expected an object"),
        ("[]", "its header: holds a JSON list; expected an object"),
    ],
)
def test_row_103_text_that_is_no_header(tuned: Callable[..., Path], text: str, said: str) -> None:
    path = forge(tuned(), text)
    with pytest.raises(DataError, match=rf"t\.safetensors: .*{said}"):
        read_header(path)


@pytest.mark.parametrize("length", [2**60, 2**63 - 1, 5 * 2**20, 10_000])
def test_row_103_a_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 100)
    with pytest.raises(DataError, match=r"t\.safetensors: 110 bytes, truncated or no safetensors"):
        read_header(path)


def test_row_103_tensors_are_those_of_the_method(
    tuned: Callable[..., Path], tiny_sam: Build
) -> None:
    path = tuned("prompt")
    text = json.dumps(header_of(path))
    save_file({"mask_decoder.x": torch.ones(1)}, path, metadata={"medsam_tune": text})
    with pytest.raises(
        DataError, match=r"3 tensors do not match the method, e\.g\. learned\.gates\. "
    ):
        load_tuned(path, tiny_sam())
    gates = torch.ones(2, 2, 8)
    whole = {"learned.gates": gates, "learned.tokens": torch.ones(1, 10, 16, dtype=torch.int64)}
    save_file(whole, path, metadata={"medsam_tune": text})
    with pytest.raises(DataError, match=r"learned\.tokens is I64; expected one of F16, BF16, F32"):
        load_tuned(path, tiny_sam())


def test_a_base_that_is_not_known_is_asked_for(tuned: Callable[..., Path]) -> None:
    path = changed(tuned(), "base", "name", value="somebodys")
    with pytest.raises(DataError, match=r"was tuned on 'somebodys'; known: nano, .* Give its base"):
        load_tuned(path)


def test_a_pattern_of_layers_is_kept_as_their_names(tiny_sam: Build, tmp_path: Path) -> None:
    for options in (
        {"target_modules": r".*mlp\.lin[12]"},
        {"config": peft.LoHaConfig(r=2, target_modules=r".*mlp\.lin[12]")},
    ):
        sam = apply_method(tiny_sam(), "lora", **options)
        path = save_tuned(sam, tmp_path / "t.safetensors")
        found = header_of(path)["options"]
        names = found.get("config", found)["target_modules"]
        assert len(names) == 10, names
        again = load_tuned(path, tiny_sam())
        assert tuned_tensors(again).keys() == tuned_tensors(sam).keys()


def test_what_cannot_be_read_again_is_not_written(tiny_sam: Build, tmp_path: Path) -> None:
    sam = apply_method(tiny_sam(), "prompt")
    with pytest.raises(DataError, match=r"its labels is {'0': 'background'}; expected at most"):
        save_tuned(sam, tmp_path / "t.safetensors", {0: "background"})
    assert not list(tmp_path.iterdir())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["r", "peft_type", "config", "1"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = ["rank", "alpha", "where", "config", "target_modules", "lora_dropout", "bias", "use_dora"]


def loaded() -> set[str]:
    """Modules in memory, but for those that hypothesis itself loads when it is needed."""
    return {name for name in sys.modules if not name.startswith("hypothesis")}


def _sound_or_refused(path: Path, base: PromptableSam) -> None:
    try:
        model = load_tuned(path, base)
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert all(torch.isfinite(value).all() for value in tuned_tensors(model).values())


def test_row_103_any_json_gives_a_model_or_one_line(
    tuned: Callable[..., Path], tiny_sam: Build
) -> None:
    path = tuned("lora")
    whole = header_of(path)
    load_tuned(path, tiny_sam())
    modules = loaded()

    @FUZZ
    @given(st.data())
    def check(data: st.DataObject) -> None:
        header = json.loads(json.dumps(whole))
        way = data.draw(st.sampled_from(["header", "base", "options", "options", "options"]))
        inner = header if way == "header" else header[way]
        keys = KEYS if way == "options" else sorted(inner)
        inner[data.draw(st.sampled_from(keys))] = data.draw(VALUES)
        _sound_or_refused(forge(path, header), tiny_sam())

    check()
    assert loaded() == modules


def test_row_103_any_bytes_give_a_model_or_one_line(
    tuned: Callable[..., Path], tiny_sam: Build
) -> None:
    path = tuned("prompt")
    whole = path.read_bytes()
    load_tuned(path, tiny_sam())
    modules = loaded()
    changes = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=4)

    @FUZZ
    @given(changes, st.integers(0, len(whole)) | st.just(len(whole)), st.binary(max_size=20))
    def check(changes: list[tuple[int, int]], length: int, more: bytes) -> None:
        content = bytearray(whole)
        for where, value in changes:
            content[where] = value
        path.write_bytes(content[:length] + more)
        _sound_or_refused(path, tiny_sam())

    check()
    assert loaded() == modules
