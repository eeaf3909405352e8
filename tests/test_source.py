"""What no line of the package and of the bundles does: run what a file holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "medsam_tune").rglob("*.py")) + sorted((ROOT / "bundles").rglob("*.py"))
CONFIGS = sorted((ROOT / "bundles").rglob("*.yaml")) + sorted((ROOT / "bundles").rglob("*.json"))

# Calls that run what they are given, as the source names them.
RUNS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pandas.read_pickle",
    "torch.jit.load",
    "torch.hub.load",
    "shutil.unpack_archive",
}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "subprocess"}
# The name of torch's own error, which torch.load raises for a file with code in it; and writing.
HARMLESS = {("pickle", "UnpicklingError"), ("marshal", "dumps")}


def faults(source: str) -> list[str]:
    """Lines of Python that run, or could run, what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = [a.name for a in node.names if (node.module, a.name) not in HARMLESS]
            found += [f"from {node.module} import {name}" for name in names]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            settings = {k.arg: ast.unparse(k.value) for k in node.keywords}
            unsafe = (
                name in RUNS
                or name.endswith((".extractall", ".extract"))
                or (name == "torch.load" and settings.get("weights_only") != "True")
                or settings.get("weights_only", "True") != "True"
                or settings.get("allow_pickle", "False") != "False"
                or settings.get("shell", "False") != "False"
            )
            found += [f"{name} in line {node.lineno}"] * unsafe
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_a_file_holds(file: Path) -> None:
    assert not faults(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_config_runs_what_a_file_holds(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    words = r"\bpickle\b|\beval\(|\bexec\(|os\.system|subprocess|yaml\.load\(|extractall|shell=True"
    assert not re.findall(rf"{words}|weights_only|allow_pickle|torch\.(hub|load)", text)
    assert not re.findall(r"\$import (os|sys|shutil|socket|urllib|requests|importlib)\b", text)


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "CheckpointLoader(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "import pickle",
        "from pickle import loads",
        "pickle.loads(content)",
        "yaml.load(text, Loader)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "run(text, shell=True)",
        "archive.extractall(folder)",
    ],
)
def test_such_lines_are_found(line: str) -> None:
    assert faults(line)
