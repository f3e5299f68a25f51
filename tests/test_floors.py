"""The house has floors, and imports lead only downwards; no file outgrows a reader."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "joulec"

FLOORS = {
    "errors": 0,
    "ir": 1,
    "shapespec": 1,
    "config": 1,
    "key": 2,
    "energy": 2,
    "data": 2,
    "passes": 3,
    "report": 4,
    "backends": 4,
    "api": 5,
    "cli": 6,
}
"""Room -> floor. A room may import rooms on lower floors, never a neighbour on its own."""

API = {
    "accuracy", "api", "bisecting", "bisection", "build", "compile", "compiler", "decisions", "describe",
    "explaining", "fidelity", "footprint", "gating", "linting", "measuring", "pages", "payoff", "placing", "reduction",
    "training",
}  # fmt: skip
"""Modules that together make up the room `api`."""

LIMIT = 500


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """`joulec.ir.walk` -> `ir`."""
    name = module.split(".")[1]
    if name.startswith("cli"):
        return "cli"
    return "api" if name in API else name


def imported(path: Path) -> Iterator[str]:
    """The joulec modules that a file imports, at the top or inside functions. The root package has no room: it holds
    the version, and imports the public names only when they are used."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import in line {node.lineno}"
            names = [node.module or ""]
            if node.module == "joulec":
                names = [f"joulec.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("joulec.") and name != "joulec.__version__")


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_lead_downwards(path):
    name = module_name(path)
    if name in ("joulec", "joulec.__main__"):
        return
    own = room(name)
    assert own in FLOORS, f"{name}: give the room '{own}' a floor in this test"
    for other in imported(path):
        assert room(other) == own or FLOORS[room(other)] < FLOORS[own], f"{name} (floor {FLOORS[own]}) imports {other}"


def test_the_test_sees_imports_at_the_top_and_inside_functions(tmp_path):
    path = tmp_path / "x.py"
    top = "import joulec.api\nfrom joulec import ir, __version__"
    path.write_text(f"{top}\ndef f():\n    from joulec.cli import main\n")
    assert list(imported(path)) == ["joulec.api", "joulec.ir", "joulec.cli"]
    assert [room(name) for name in imported(path)] == ["api", "ir", "cli"]


def test_every_room_has_a_test_of_its_floor():
    rooms = {room(module_name(path)) for path in sources() if module_name(path) not in ("joulec", "joulec.__main__")}
    assert rooms <= set(FLOORS)


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_no_file_outgrows_a_reader(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LIMIT
