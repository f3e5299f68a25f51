"""The notebook runs from top to bottom, and shows what it says."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "notebook" / "energy.ipynb"

PLAY = '''
import ast, json, sys
notebook, names = json.load(open(sys.argv[1], encoding="utf-8")), {}
for cell in notebook["cells"]:
    if cell["cell_type"] != "code":
        continue
    tree = ast.parse("".join(cell["source"]))
    shown = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if shown is not None:
        value = eval(compile(ast.Expression(shown.value), "cell", "eval"), names)
        print("SHOWN", value._repr_html_()[:60] if hasattr(value, "_repr_html_") else value)
'''
"""What a kernel does, without one: the value of a cell's last line is shown."""


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return found


def test_it_is_a_notebook_without_outputs_of_somebodys_machine():
    notebook = load()
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            ast.parse("".join(cell["source"]))


def test_it_runs_from_top_to_bottom_and_shows_pages():
    command = [sys.executable, "-W", "error", "-c", PLAY, str(NOTEBOOK)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SHOWN <iframe srcdoc=") == 2
    for said in ("µJ per inference", "estimated", "Germany, 2024, average:", "France, 2024, average:", " INT8 - "):
        assert said in done.stdout
