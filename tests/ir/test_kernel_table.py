"""The kernel table: what is in it, and how a node is looked up."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from joulec.ir import walk
from joulec.ir.kernel_table import kernel_table, opset_of
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes


def module(text: str, opset: int = 19, *more: str) -> Module:
    imports = ", ".join([f'"" : {opset}', *more])
    model = parser.parse_model(f"<ir_version: 9, opset_import: [{imports}]> {text}")
    found = Module(ir.from_proto(model))
    infer_shapes(found)
    return found


def refusals(found: Module, provider: str, retyped: dict[str, str] | None = None) -> list[str]:
    table = kernel_table(provider)
    reasons = (table.refusal(node, found.model.opset_imports, retyped) for node in walk.nodes(found.model))
    return [reason for reason in reasons if reason is not None]


def test_every_provider_has_a_table_that_names_its_source():
    assert kernel_table("cuda").source.startswith("onnxruntime-gpu ")
    assert kernel_table("tensorrt").source.startswith("tensorrt-rtx")
    assert len(kernel_table("cpu").operators()) > 150
    assert len(kernel_table("cuda").operators()) > 130
    assert "SkipLayerNormalization" in kernel_table("cuda").operators("com.microsoft")


@pytest.mark.parametrize("op", ["QLinearConv", "ConvInteger", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeLinear"])
def test_tensorrt_imports_no_integer_operators(op):
    assert op not in kernel_table("tensorrt").operators()


def test_cuda_has_no_qlinear_kernels():
    assert {"QLinearConv", "QLinearMatMul", "ConvInteger"}.isdisjoint(kernel_table("cuda").operators())


def test_types_decide():
    clip = module("g (float16[4] x) => (float16[4] y) { y = Clip(x) }", 11)
    assert refusals(clip, "cuda") == ["no cuda kernel for Clip of opset 11 with float16"]
    newer = module("g (float16[4] x) => (float16[4] y) { y = Clip(x) }", 13)
    assert refusals(newer, "cuda") == []


def test_a_type_may_be_supposed():
    clip = module("g (float[4] x) => (float[4] y) { y = Clip(x) }", 11)
    assert refusals(clip, "cuda") == []
    assert refusals(clip, "cuda", {"float": "float16"}) == ["no cuda kernel for Clip of opset 11 with float16"]


def test_unsigned_zero_points_are_not_tensorrts():
    text = "g (float[4] x) => (uint8[4] y) <float s = {0.1}, uint8 z = {3}> { y = QuantizeLinear(x, s, z) }"
    assert refusals(module(text), "tensorrt") == ["no tensorrt kernel for QuantizeLinear of opset 19 with float, uint8"]
    assert refusals(module(text), "cuda") == []


def test_subgraphs_are_read_under_the_imports_of_the_model():
    text = """g (bool c, float16[4] x) => (float16[4] y) {
        y = If(c) <then_branch = t () => (float16[4] a) { a = Clip(x) }, else_branch = e () => (float16[4] b) { b = Neg(x) }>
    }"""
    assert refusals(module(text, 11), "cuda") == ["no cuda kernel for Clip of opset 11 with float16"]
    assert refusals(module(text, 13), "cuda") == []


def test_unknown_domains_have_no_kernel():
    found = module("g (float[4] x) => (float[4] y) { y = my.own.Thing(x) }", 19, '"my.own" : 1')
    assert refusals(found, "cuda") == ["no cuda kernel for my.own:Thing"]


def test_cpu_computes_float16_in_float():
    assert refusals(module("g (float16[1,1,4,4] x) => (float16[1,1,4,4] y) { y = Relu(x) }"), "cpu") == []


def test_operators_that_onnx_defines_by_others_are_accepted():
    assert refusals(module("g (float[4] x) => (float[4] y) { y = Celu(x) }"), "cuda") == []


def test_opset_of_reads_the_nodes_own_graph():
    found = module("g (float[4] x) => (float[4] y) { y = Relu(x) }", 15)
    assert opset_of(next(iter(found.graph))) == 15


def test_backends_read_the_table():
    from joulec.backends import BACKENDS

    found = module("g (float[4] x) => (uint8[4] y, float s, uint8 z) { y, s, z = DynamicQuantizeLinear(x) }")
    node = next(iter(found.graph))
    assert BACKENDS["cpu"].accepts(node) is None
    assert BACKENDS["tensorrt"].accepts(node) == "no tensorrt kernel for DynamicQuantizeLinear"


def test_every_row_is_readable():
    for provider in ("cpu", "cuda", "tensorrt"):
        for (domain, _), kernels in kernel_table(provider).kernels.items():
            assert domain in ("onnx", "com.microsoft", "ai.onnx.ml")
            assert all(kernel.until is None or kernel.since <= kernel.until for kernel in kernels)
    assert onnx.defs.has("Conv")
