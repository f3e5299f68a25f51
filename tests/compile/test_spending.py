"""One budget for fewer weights and fewer bits: each way is followed to its end, the best is taken, all are on record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from compile_kit import write

import joulec
from joulec.errors import InputError
from joulec.ir.module import Module
from joulec.payoff import Paired

GRAPH = """g (float[N, 16] x) => (float[N, 5] y) {
    h = Gemm(x, u, b) r = Relu(h) g = Gemm(r, v, c) s = Relu(g) y = MatMul(s, w) }"""


def case(folder: Path, twins: bool = True) -> dict[str, Any]:
    """A model whose layers say everything twice (or nothing twice), and data for it."""
    generator = np.random.default_rng(0)
    half = generator.standard_normal((16, 32)) / 4
    u = np.hstack([half, half]) if twins else generator.standard_normal((16, 64)) / 4
    weights = {"u": u, "b": np.zeros(64), "v": generator.standard_normal((64, 64)) / 8, "c": np.zeros(64)}
    weights["w"] = generator.standard_normal((64, 5)) / 8
    path = write(folder / "model.onnx", GRAPH, {name: np.asarray(a, np.float32) for name, a in weights.items()})
    np.savez(folder / "data.npz", x=generator.standard_normal((160, 16)).astype(np.float32))
    return {"model": path, "data": folder / "data.npz", "search_budget": 0.0}


def priced(monkeypatch: pytest.MonkeyPatch, integer: float) -> None:
    """A model takes a second for each float weight and `integer` seconds for one of 8 bits."""

    def seconds(module: Module) -> float:
        tensors = [one.const_value for one in module.graph.initializers.values()]
        wide = [tensor for tensor in tensors if tensor is not None and len(tensor.shape) == 2]
        return sum(tensor.size * (integer if tensor.dtype.itemsize == 1 else 1.0) for tensor in wide)

    def time_pair(runner: object, base: Module, other: Module, *more: object) -> Paired:
        ratio = seconds(base) / seconds(other)
        return Paired(ratio, ratio * 0.99, ratio * 1.01, 1.0, 1.0 / ratio, 100, 1)

    for place in ("time_pair", "confirm_slower"):
        monkeypatch.setattr(f"joulec.compile.bench.{place}", time_pair)


def spent(result: joulec.Result) -> dict[str, Any]:
    return {
        one.what.removeprefix("budget on "): one
        for one in result.reports["cpu"].decisions
        if one.what.startswith("budget on ")
    }


def made(folder: Path) -> tuple[int, bool]:
    """How wide the first layer is, and whether anything computes in integers."""
    graph = onnx.load(folder / "model.onnx").graph
    width = next(max(one.dims) for one in graph.initializer if sorted(one.dims)[:1] == [16] and len(one.dims) == 2)
    return width, any(node.op_type == "DequantizeLinear" for node in graph.node)


@pytest.mark.parametrize(("integer", "best"), [(0.5, "both"), (1.5, "fewer weights")])
def test_the_best_way_is_taken_and_all_are_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, integer: float, best: str
) -> None:
    priced(monkeypatch, integer)
    result = joulec.optimize(**case(tmp_path), out=tmp_path / "out", max_drop=0.05, prune=True)
    found = spent(result)
    assert set(found) == {"fewer weights", "INT8", "both"}
    assert [what for what, one in found.items() if one.kept] == [best]
    assert found["fewer weights"].ratio > 1.5
    assert found["fewer weights"].drop <= 0.05
    width, integers = made(tmp_path / "out")
    assert (width < 64, integers) == (True, best == "both")
    if best == "both":
        assert found["both"].ratio > max(found["INT8"].ratio, found["fewer weights"].ratio)
        assert "both spent it better" in found["INT8"].reason


def test_where_nothing_can_go_int8_is_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    priced(monkeypatch, 0.5)
    given = case(tmp_path, twins=False)
    result = joulec.optimize(**given, out=tmp_path / "out", max_drop=0.02, prune=True)
    assert made(tmp_path / "out") == (64, True)
    assert next(one for one in result.reports["cpu"].decisions if one.what == "channels").kept is False


def test_int8_that_is_ordered_beside_channels_shares_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Channels alone would take all of the budget; the order stands, and the whole keeps to it."""
    priced(monkeypatch, 1.5)
    orders = {"passes": "prune-channels{multiple=4}", "int8": True, "max_drop": 0.05}
    result = joulec.optimize(**case(tmp_path), out=tmp_path / "out", **orders)
    assert result.reports["cpu"].accuracy.drop <= 0.05
    assert made(tmp_path / "out")[1]
    assert "INT8 was ordered" in spent(result)["fewer weights"].reason


def test_a_rebuild_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    priced(monkeypatch, 0.5)
    given = case(tmp_path) | {"max_drop": 0.05, "prune": True}
    joulec.optimize(**given, out=tmp_path / "one")
    monkeypatch.setattr("joulec.compile.spending.best_of", lambda *arguments: pytest.fail("weighed again"))
    joulec.optimize(**given, out=tmp_path / "two", decisions=tmp_path / "one")
    assert (tmp_path / "one" / "model.onnx").read_bytes() == (tmp_path / "two" / "model.onnx").read_bytes()


def test_prune_and_passes_are_one_order_too_many(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prune-blocks,prune-channels"):
        joulec.optimize(case(tmp_path)["model"], passes="fold-constants", prune=True)


def test_at_the_prompt(tmp_path: Path) -> None:
    """Measured for real: whatever wins, every way is in the report with its time and its drop."""
    given = case(tmp_path)
    command = ["optimize", given["model"], "-o", tmp_path / "out", "--data", given["data"], "--prune", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "joulec", *map(str, command), "--max-drop", "0.05", "--search-budget", "2s"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["targets"]["cpu"]
    assert "--prune" in report["orders"]
    assert report["accuracy"]["drop"] <= 0.05
    assert any(one["what"] in ("channels", "budget on fewer weights") for one in report["decisions"])
