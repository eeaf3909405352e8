"""The package's rooms: imports go down, and no file is two."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "medsam_tune"
# From the ground up; rooms in one line do not import each other.
STOREYS = [
    ["version", "lazy", "ranks"],
    ["errors", "console"],
    ["files", "settings", "failures"],
    ["formats"],
    ["cases"],
    ["slices"],
    ["prompts", "engines"],
    ["sam"],
    ["methods"],
    ["runs"],
    ["seen"],
    ["training", "inference"],
    ["evaluation", "transforms"],
    ["synthetic"],
    ["bundle", "downloads"],
    ["tasks"],
    ["domain_plan"],
    ["demo", "comparison", "multi_domain", "bundle_export"],
    ["cli"],
]
HEIGHT = {room: storey for storey, rooms in enumerate(STOREYS) for room in rooms}


def imports(file: Path) -> set[str]:
    """The package's own modules that a file imports, but for type checking."""
    found = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medsam_tune"):
            if node.module == "medsam_tune":
                found |= {f"medsam_tune.{name.name}" for name in node.names}
            else:
                found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("medsam_tune")}
    return found


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "cli"


def test_every_room_has_its_storey() -> None:
    rooms = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    rooms |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(HEIGHT)


def test_imports_go_down() -> None:
    upward = [
        f"{file.relative_to(PACKAGE)} imports {module}"
        for file in PACKAGE.rglob("*.py")
        if file != PACKAGE / "__init__.py"
        for module in imports(file)
        if (room := file.relative_to(PACKAGE).parts[0].removesuffix(".py")) != room_of(module)
        and HEIGHT[room_of(module)] >= HEIGHT[room]
    ]
    assert not upward


def test_no_modules_import_each_other() -> None:
    """Not within a room either."""
    modules = {
        ".".join(["medsam_tune", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(
            ".__init__"
        ): imports(path)
        for path in PACKAGE.rglob("*.py")
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done and name != "medsam_tune":
            for other in modules.get(name, ()):
                visit(other, (*above, name))
            done.add(name)

    for name in modules:
        visit(name, ())


def test_no_file_is_two() -> None:
    long = {
        str(path.relative_to(PACKAGE)): count
        for path in PACKAGE.rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long
