"""Kernels of a profile are found by the blocks they come from, whatever ONNX Runtime appended to their names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from joulec.backends import backend
from joulec.compile.kernels import Kernels
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.passes.blocks import survey

Parse = Callable[..., Module]

GRAPH = """agraph (float[1,4,8,8] x) => (float[1,4,8,8] y)
    <float[4,4,1,1] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}> {
    a = Conv(x, w)
    b = Relu(a)
    c = Conv(b, w)
    y = Add(c, b)
}"""


@pytest.mark.parametrize(
    ("profile", "seconds"),
    [
        ({"Conv0_token_3": 1.0, "Conv2_token_4": 2.0, "Add3": 0.5}, [1.0, 2.0, 0.5]),
        ({"b_nchwc": 1.0, "y_nchwc_nchwc": 3.0, "ReorderInput_token_1": 9.0}, [1.0, 3.0, 0.0]),  # the Add is in Conv2
        ({}, [0.0, 0.0, 0.0]),
    ],
)
def test_blocks_find_their_kernels(parse: Parse, profile: dict[str, float], seconds: list[float]) -> None:
    module = parse(GRAPH)
    for index, node in enumerate(module.graph):
        node.name = f"{node.op_type}{index}"
    infer_shapes(module)
    target = backend("cpu").target
    assert target.quantization is not None
    blocks = survey(module, target.quantization, "cpu").blocks
    assert [block.node.op_type for block in blocks] == ["Conv", "Conv", "Add"]
    assert Kernels(profile).of_blocks(blocks) == seconds


def test_a_border_is_found_by_its_own_name() -> None:
    assert Kernels({"x_quantize_token_7": 0.25}).seconds("x_quantize") == 0.25
    assert Kernels({}).seconds("x_quantize", None) is None
