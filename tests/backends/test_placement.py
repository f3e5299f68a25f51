"""The forecast of placement: which nodes stay on the CPU, and which values cross."""

from __future__ import annotations

import onnx_ir as ir
from onnx import parser

from joulec.backends.placement import COPY_SECONDS, copy_joules, forecast
from joulec.energy import load_profile
from joulec.ir.kernel_table import kernel_table
from joulec.ir.module import Module


def placed(text: str, opset: int = 19):
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> {text}')
    return forecast(Module(ir.from_proto(model)), kernel_table("cuda"))


def test_a_network_stays_on_the_device():
    found = placed("g (float[1,3,8,8] x) => (float[1,3,8,8] y) { a = Relu(x) y = Sigmoid(a) }")
    assert (found.nodes, found.fallbacks, found.copies) == (2, (), ())
    assert found.said() == "all 2 nodes have a cuda kernel, no copies between host and device"


def test_a_node_without_a_kernel_costs_two_copies():
    found = placed("g (float[256] x) => (float[256] y) { a = Relu(x) b = Det2(a) y = Relu(b) }".replace("Det2", "Tan"))
    assert [(one.op_type, one.reason) for one in found.fallbacks] == [("Tan", "no cuda kernel for Tan")]
    assert [(one.value, one.to_device, one.size) for one in found.copies] == [("a", False, 1024), ("b", True, 1024)]


def test_arithmetic_on_sizes_stays_on_the_host_without_copies():
    found = placed(
        """g (float[N,4] x) => (float[M] y) <int64 i = {0}, int64[1] m = {-1}> {
            s = Shape(x) n = Gather(s, i) k = Unsqueeze(n, j) y = Reshape(x, m) }""".replace(
            "int64 i = {0}", "int64 i = {0}, int64[1] j = {0}"
        )
    )
    assert [one.op_type for one in found.fallbacks] == ["Gather", "Unsqueeze"]
    assert found.copies == ()


def test_sizes_that_become_numbers_are_copied_once():
    found = placed("g (float[N,4] x) => (int64[2] y, int64[2] z) { s = Shape(x) y = Abs(s) z = Neg(s) }")
    assert [one.op_type for one in found.fallbacks] == ["Abs", "Neg"]
    assert found.copies == ()


def test_a_copy_costs_its_bytes_and_the_wait():
    h100 = load_profile("h100")
    waiting = copy_joules(0, h100)
    assert waiting == COPY_SECONDS * h100.power["static"].value
    assert copy_joules(1 << 20, h100) > waiting
