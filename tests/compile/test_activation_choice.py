"""Activations are joulec's own choice: kept only where measured to be faster, and cheaper ones within the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compile_kit import PricedRunner, operators, write

from joulec.accuracy import MetricJudge
from joulec.backends import backend
from joulec.compile.activations import ACTIVATIONS
from joulec.compiler import Compiled, Compiler, Inputs, Orders
from joulec.data import load_metric
from joulec.decisions import Decisions, from_file, to_file
from joulec.energy import EnergyModel, load_profile
from joulec.errors import InputError
from joulec.ir.lower import lower
from joulec.ir.module import Module

ENERGY = EnergyModel(load_profile("generic-server-cpu"), "cpu")
EXPANDED = """g (float[N,8] x) => (float[N,4] y) { a = MatMul(x, w)  m = Mish(a)  n = Neg(m)  y = MatMul(n, v) }"""
GATED = """g (float[N,8] x) => (float[N,4] y) {
  a = MatMul(x, w)  s = Sigmoid(a)  t = Neg(s)  u = Sigmoid(t)  n = Neg(u)  y = MatMul(n, v) }"""
GELU = """g (float[N,8] x) => (float[N,4] y) {
  a = MatMul(x, w)  e = Gelu(a)  n = Neg(e)  y = MatMul(n, v) }"""
FEED = {"x": np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)}


def model(path: Path, graph: str, opset: int = 19) -> Module:
    generator = np.random.default_rng(0)
    weights = {"w": generator.normal(size=(8, 6)).astype("f"), "v": generator.normal(size=(6, 4)).astype("f")}
    return lower(write(path / "m.onnx", graph, weights, opset)).module


def compiled(
    found: Module, cheap: str, cost: float = 1.0, price: dict[str, float] | None = None,
    recorded: Decisions | None = None, target: str = "cpu", **orders: Any,
) -> Compiled:  # fmt: skip
    """Compile where an operator `cheap` in the model makes it take `cost` instead of 2, and costs `price` points each.

    Args:
        price: operator -> points that each one in the model costs.
    """
    runner = PricedRunner(lambda module: cost if cheap in operators(module) else 2.0)
    judge = None
    if price is not None:
        judge = _Priced(load_metric(lambda infer: 1.0), runner, found, None, price)
    inputs = Inputs(None, [FEED], {}, judge, None)
    return Compiler(found, backend(target), Orders(**orders), inputs, runner, ENERGY, recorded=recorded).compile()


class _Priced(MetricJudge):
    """Each operator of a kind costs points."""

    def __init__(self, *arguments: Any) -> None:
        *given, self._price = arguments
        super().__init__(*given)

    def score(self, module: Module) -> float:
        lost = sum(
            self._price.get(f"{node.op_type} {node.name}", self._price.get(node.op_type, 0.0)) for node in module.graph
        )
        return 1.0 - lost


def choices(found: Compiled) -> list[bool]:
    return [one.kept for one in found.decisions.decisions if one.what == ACTIVATIONS]


@pytest.mark.parametrize(("cost", "kept"), [(1.0, True), (2.0, False), (3.0, False)])
def test_activations_are_spelled_out_where_that_is_faster(tmp_path: Path, cost: float, kept: bool) -> None:
    found = compiled(model(tmp_path, EXPANDED), "Exp", cost)
    assert choices(found) == [kept]
    assert ("Exp" in operators(found.module)) == kept
    said = next(one.reason for one in found.decisions.decisions if one.what == ACTIVATIONS)
    assert said.startswith("expand-activations,eliminate-common-subexpressions: ") and "the model without" in said


def test_cheaper_ones_need_a_judge_and_its_budget(tmp_path: Path) -> None:
    gelu = model(tmp_path, GELU, 20)
    assert choices(compiled(gelu, "Gelu")) == []
    gated = model(tmp_path, GATED)
    cheap = compiled(gated, "HardSigmoid", price={"HardSigmoid": 0.004})
    assert choices(cheap) == [True] and operators(cheap.module).count("HardSigmoid") == 2
    slow = compiled(gated, "HardSigmoid", 3.0, price={"HardSigmoid": 0.004})
    assert choices(slow) == [False] and "HardSigmoid" not in operators(slow.module)
    same = compiled(gelu, "nothing", price={})  # as fast is not faster
    assert [node.attributes.get_string("approximate", "none") for node in same.module.graph][1] == "none"


def test_as_many_as_the_budget_allows(tmp_path: Path) -> None:
    prices = {
        f"HardSigmoid {name}": cost for name, cost in (("sigmoid1_hardsigmoid", 0.03), ("sigmoid3_hardsigmoid", 0.002))
    }
    found = compiled(model(tmp_path, GATED), "HardSigmoid", price=prices)
    assert choices(found) == [True]
    assert [n.name for n in found.module.graph if n.op_type in ("Sigmoid", "HardSigmoid")] == [
        "sigmoid1",
        "sigmoid3_hardsigmoid",
    ]
    assert found.decisions.activations == ("cheapen-activations{kinds=sigmoid,nodes=sigmoid3}",)
    none = compiled(model(tmp_path, GATED), "HardSigmoid", price={"HardSigmoid": 0.03})
    assert choices(none) == [False]
    assert "sigmoid: it drops 0.0600, the budget is 0.01" in none.decisions.decisions[-1].reason


def test_recorded_choices_are_repeated_without_measuring_and_foreign_ones_refused(tmp_path: Path) -> None:
    gated = model(tmp_path, GATED)
    first = compiled(gated, "HardSigmoid", price={"HardSigmoid": 0.004})
    to_file(first.decisions, tmp_path / "decisions.json")
    again = compiled(gated, "HardSigmoid", 3.0, recorded=from_file(tmp_path / "decisions.json", "cpu"))
    assert operators(again.module) == operators(first.module)
    text = (tmp_path / "decisions.json").read_text().replace("cheapen-activations", "prune-magnitude")
    (tmp_path / "decisions.json").write_text(text)
    with pytest.raises(InputError, match="no pass is called 'prune-magnitude'"):
        from_file(tmp_path / "decisions.json", "cpu")


def test_other_targets_and_orders_are_left_alone(tmp_path: Path) -> None:
    for given in ({"target": "cuda"}, {"passes": ()}):
        assert choices(compiled(model(tmp_path, EXPANDED), "Exp", **given)) == []
