"""Names of the package are imported when they are first used."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from pydoc import locate

import pytest

import medsam_tune

PACKAGES = [
    "medsam_tune",
    *(
        module.name
        for module in pkgutil.walk_packages(medsam_tune.__path__, "medsam_tune.")
        if module.ispkg
    ),
]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_imports_the_modules_that_a_config_names(name: str) -> None:
    package = importlib.import_module(name)
    for nothing in ("nothing", "_nothing", "__nothing__"):
        with pytest.raises(AttributeError, match=f"module '{name}' has no attribute '{nothing}'"):
            getattr(package, nothing)
    for module in pkgutil.iter_modules(package.__path__):
        assert package.__getattr__(module.name).__name__ == f"{name}.{module.name}"


@pytest.mark.parametrize("name", medsam_tune.__all__)
def test_public_names_are_there_before_their_modules(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(medsam_tune, name, getattr(medsam_tune, name))  # put back at the end
    if name in medsam_tune._HOMES:
        monkeypatch.delattr(medsam_tune, name)
    assert name in dir(medsam_tune)
    found = locate(f"medsam_tune.{name}")  # as MONAI finds a `_target_`
    assert found is not None
    assert getattr(medsam_tune, name) is found


def test_simpleitk_is_imported_where_a_file_needs_it_alone() -> None:
    """It takes long, and prepared slices, NIfTI and photographs do without it."""
    line = "import SimpleITK as sitk\n"
    files = {path: path.read_text() for path in Path(medsam_tune.__path__[0]).rglob("*.py")}
    assert [path for path, text in files.items() if line in text]
    assert not [path for path, text in files.items() if f"\n{line}" in text]
