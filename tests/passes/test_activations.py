"""expand-activations and cheapen-activations: which nodes they take, and how far the numbers move."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, ops, run, unchanged

from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.base import Context, Pass
from joulec.passes.cheapen_activations import CheapenActivations
from joulec.passes.expand_activations import ExpandActivations
from joulec.passes.target import Target

CONTEXT = Context(target=Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu"))
HEAD = "(float[N,4] x) => (float[N,4] y)"
EXPAND = ExpandActivations()
SLOPES = {
    "gentle": np.array([0.25, 0.5, 1.0, 1e-3], "f"), "steep": np.array([2.0, 0.0, -1.0, 0.5], "f"),
    "single": np.array([[0.3]], "f"),
}  # fmt: skip


def wide() -> np.ndarray:
    """Every magnitude that float32 has, of both signs, with zeros and infinities; and the bulk in small steps."""
    magnitudes = np.concatenate([np.logspace(-44, 38, 500), np.linspace(0, 30, 3501)]).astype("f")
    numbers = np.concatenate([-magnitudes, magnitudes, [0.0, -0.0, np.inf, -np.inf, np.nan]]).astype("f")
    return np.resize(numbers, (-(-numbers.size // 4), 4))


def moved(module: Module, one: Pass, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The output before and after `one`, under ONNX Runtime without its optimizer."""
    infer_shapes(module)
    before, verifier = run(module, {"x": x})["y"], Verifier(module)
    assert one.run(module, CONTEXT).changed
    verifier.verify(module)
    return before, run(module, {"x": x})["y"]


@pytest.mark.parametrize(
    "node",
    [
        "Elu(x)", "Elu<alpha: float = 0.5>(x)", "Celu<alpha: float = 3.0>(x)", "Celu(x)", "Selu(x)", "Softplus(x)",
        "Mish(x)", "PRelu(x, gentle)", "PRelu(x, steep)", "PRelu(x, single)",
    ],
)  # fmt: skip
def test_what_is_spelled_out_computes_the_same(node: str) -> None:
    module = build(f"{HEAD} {{ y = {node} }}", **{name: array for name, array in SLOPES.items() if name in node})
    before, after = moved(module, EXPAND, wide())
    assert not {"Elu", "Celu", "Selu", "Softplus", "Mish", "PRelu"} & set(ops(module))
    finite = np.isfinite(before)
    np.testing.assert_array_equal(after[~finite], before[~finite])
    np.testing.assert_allclose(after[finite], before[finite], rtol=2e-6, atol=5e-7)
    if node.startswith("PRelu"):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("node", "kind", "most", "op"),
    [
        ("Gelu(x)", "gelu", 4.8e-4, "Gelu"), ("Mul(x, s)", "swish", 0.1423, "HardSwish"),
        ("Mul(s, x)", "swish", 0.1423, "HardSwish"), ("Neg(s)", "sigmoid", 0.0692, "HardSigmoid"),
        ("Clip(x, zero, six)", "relu6", np.inf, "Relu"),
    ],
)  # fmt: skip
def test_cheaper_ones_stay_as_close_as_the_docstring_says(node: str, kind: str, most: float, op: str) -> None:
    numbers = {"zero": np.array(0, "f"), "six": np.array(6, "f")} if kind == "relu6" else {}
    sigmoid = "s = Sigmoid(x)" if "s" in node.split("(")[1] and kind != "relu6" else ""
    module = build(f"{HEAD} {{ {sigmoid} y = {node} }}", opset=20, **numbers)
    x = np.linspace(-20, 20, 400_000, dtype="f").reshape(-1, 4)
    before, after = moved(module, CheapenActivations(kinds=(kind,)), x)
    deviation = float(np.abs(after - before).max())
    assert deviation <= most
    assert deviation > 0.98 * most or kind == "relu6"  # the bound is tight
    assert op in ops(module) and "Sigmoid" not in ops(module)
    if kind == "relu6":
        np.testing.assert_array_equal(after[x <= 6], before[x <= 6])


@pytest.mark.parametrize(
    ("graph", "one", "said"),
    [
        ("y = Elu<alpha: float = 2.0>(x)", EXPAND, "with alpha 2 the branches do not meet in a maximum"),
        ("s = Neg(x) y = PRelu(x, s)", EXPAND, "its slopes are not constants"),
        ("y = Sigmoid(x)", CheapenActivations(), "it is an output of the model, whose callers want a probability"),
        ("s = Sigmoid(x) y = Mul(s, x)", CheapenActivations(kinds=("sigmoid",)), "it is part of a Swish, which runtimes fuse as a whole"),
        ("e = Erf(x) y = Neg(e)", CheapenActivations(), "a Gelu that is spelled out: order upgrade-opset{to=20},raise-patterns before"),
    ],
)  # fmt: skip
def test_refusals(graph: str, one: Pass, said: str) -> None:
    assert unchanged(build(f"{HEAD} {{ {graph} }}"), one) == {said}


def test_between_integers_and_in_other_types_it_stays() -> None:
    numbers = {"s": np.array(0.1, "f"), "z": np.array(3, "u1")}
    body = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) m = Mish(d) y = Neg(m)"
    assert unchanged(build(f"{HEAD} {{ {body} }}", **numbers), EXPAND) == {
        "it stands between integers, where it is a table of 256 numbers"
    }
    double = build("(double[N,4] x) => (double[N,4] y) { y = Elu(x) }")
    assert unchanged(double, EXPAND) == {"it is not known to be float32"}


def test_a_sigmoid_that_is_used_elsewhere_too_stays_beside_the_hardswish() -> None:
    module = build("(float[N,4] x) => (float[N,4] y, float[N,4] t) { s = Sigmoid(x) y = Mul(x, s) t = Neg(s) }")
    infer_shapes(module)
    CheapenActivations(kinds=("swish",)).run(module, CONTEXT)
    assert ops(module) == ["Sigmoid", "HardSwish", "Neg"]


def test_only_the_nodes_that_were_named() -> None:
    module = build(f"{HEAD} {{ a = Gelu(x) b = Gelu(a) y = Neg(b) }}", opset=20)
    for at, node in enumerate(module.graph):
        node.name = f"gelu{at}"
    infer_shapes(module)
    CheapenActivations(nodes=("gelu1",)).run(module, CONTEXT)
    assert [node.attributes.get_string("approximate", "none") for node in module.graph][:2] == ["none", "tanh"]


def test_branches_and_functions_are_reached() -> None:
    functions = '<domain: "local", opset_import: ["" : 19]> F (a) => (b) { b = Mish(a) }'
    body = """c = ReduceSum<keepdims: int = 0>(x) k = Cast<to: int = 9>(c)
      y = If (k) <then_branch = t () => (float[N,4] u) { u = Softplus(x) }, else_branch = e () => (float[N,4] v) { v = Elu(x) }>"""
    module = build(f"{HEAD} {{ {body} }}", functions=functions)
    infer_shapes(module)
    assert len(EXPAND.run(module, CONTEXT).rewrites) == 2


def test_kinds_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="kinds must be among gelu, sigmoid, swish, relu6, not tanh"):
        CheapenActivations(kinds=("tanh",))
