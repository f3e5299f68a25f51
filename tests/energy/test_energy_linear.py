"""An estimate's work is linear in nodes: Python calls are counted, nothing is timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import onnx
import onnx_ir as ir
import pytest

from joulec.energy import EnergyModel, load_profile
from joulec.ir.module import Module

MODEL = EnergyModel(load_profile())
HEAD = """w = Constant<value=float[2,2] {1,2,3,4}>() s = Constant<value_float=0.1>() z = Constant<value=uint8 {0}>()
    k = Constant<value=float[2,2,1,1] {1,2,3,4}>() """


def before(j: int) -> str:
    """The value that step `j` of a chain reads."""
    return f"i{j}" if j else "x"


CHAINS: dict[str, Callable[[int], str]] = {
    "elementwise": lambda j: f"i{j + 1} = Exp({before(j)})",
    "eliminated, each with a user": lambda j: f"i{j + 1} = Identity({before(j)}) e{j} = Exp(i{j + 1})",
    "transposes": lambda j: f"t{j} = Transpose<perm=[1,0]>({before(j)}) i{j + 1} = Relu(t{j})",
    "q and dq": lambda j: f"q{j} = QuantizeLinear({before(j)}, s, z) i{j + 1} = DequantizeLinear(q{j}, s, z)",
    "quantized adds": lambda j: (
        f"q{j} = QuantizeLinear({before(j)}, s, z) d{j} = DequantizeLinear(q{j}, s, z) i{j + 1} = Add(d{j}, d{j})"
    ),
    "matmul and bias": lambda j: f"m{j} = MatMul({before(j)}, w) i{j + 1} = Add(m{j}, w)",
    "computed shapes": lambda j: f"s{j} = Shape({before(j)}) i{j + 1} = Reshape({before(j)}, s{j})",
    "users of one value": lambda j: f"e{j} = MatMul(x, w)",
    "branches": lambda j: (
        f"e{j} = If(c) <then_branch = t{j} () => (float[N,2] a{j}) {{ a{j} = Relu(x) }}, "
        f"else_branch = f{j} () => (float[N,2] b{j}) {{ b{j} = Exp(x) }}>"
    ),
}
MOST_CALLS_PER_STEP = 3500
"""A step has one to five nodes and takes 600 to 2,800 calls, copies and serialization included."""


def calls(kind: str, count: int) -> int:
    """Python calls of one estimate of a model with `count` steps."""
    body = " ".join(CHAINS[kind](j) for j in range(count))
    text = f'<ir_version: 9, opset_import: ["": 17]> g (float[N,2] x, bool c) => (float[N,2] y) {{ {HEAD} {body} y = Exp(x) }}'
    module = Module(ir.from_proto(onnx.parser.parse_model(text)))
    seen = 0

    def hook(frame: FrameType, event: str, argument: object) -> None:
        nonlocal seen
        seen += event == "call"

    sys.setprofile(hook)
    try:
        MODEL.estimate(module, {"N": 2})
    finally:
        sys.setprofile(None)
    return seen


@pytest.mark.parametrize("kind", list(CHAINS))
def test_calls_are_linear_in_nodes(kind: str) -> None:
    calls(kind, 1)  # what is imported and cached on first use is no part of it
    one, two, three = (calls(kind, 60 * n) for n in (1, 2, 3))
    assert two - one <= MOST_CALLS_PER_STEP * 60
    assert three - two <= 1.05 * (two - one)
