"""The energy model as callers see it: JSON, unknowns, assumptions, control flow, intervals, comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulec.energy import EnergyModel, Estimate, bind, compare, load_profile
from joulec.energy.table import formula_of
from joulec.energy.view import Sizes, View
from joulec.ir.module import Module

Parse = Callable[..., Module]
MODEL = EnergyModel(load_profile())
LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))
MLP = "g (float[batch,64] x, float[64,32] w) => (float[batch,32] y) { h = MatMul(x, w) y = Relu(h) }"


def text_module(text: str) -> Module:
    return Module(ir.from_onnx_text(text))


def entry(estimate: Estimate, op: str) -> list[float | None]:
    return [node.energy.joules for node in estimate.nodes if node.op == op]


def test_json_has_the_promised_form(parse: Parse) -> None:
    told = json.loads(json.dumps(MODEL.estimate(parse(MLP), {"batch": 8}).to_json(), allow_nan=False))
    assert {"total_joules", "low", "high", "tier", "device", "nodes", "unknown", "assumed"} <= set(told)
    assert {"name", "op", "joules", "low", "high", "tier", "flops", "bytes"} <= set(told["nodes"][0])
    assert told["tier"] == "estimated" and told["device"] == "generic-server-cpu"
    assert told["total_joules"] == pytest.approx(sum(node["joules"] for node in told["nodes"]))
    assert told["low"] == pytest.approx(told["total_joules"] / 3)
    assert told["high"] == pytest.approx(told["total_joules"] * 3)
    assert told["nodes"][0]["flops"] == 2 * 8 * 64 * 32
    assert told["samples"] == 8
    assert told["joules_per_sample"] == pytest.approx(told["total_joules"] / 8)
    assert (told["unknown"], told["assumed"], told["static_included"]) == ([], [], True)


def test_unbound_dimensions_count_as_one_and_are_named(parse: Parse) -> None:
    assumed = MODEL.estimate(parse(MLP))
    assert assumed.assumed == ("batch",)
    assert assumed.total_joules == MODEL.estimate(parse(MLP), {"batch": 1}).total_joules


def test_unknown_operators_are_null_and_named() -> None:
    estimate = MODEL.estimate(
        text_module(
            '<ir_version: 9, opset_import: ["": 19, "acme": 1]> g (float[4] x) => (float[4] y) '
            "{ h = acme.Mystery(x) y = Exp(h) }"
        )
    )
    assert estimate.unknown == ("Mystery",)
    assert entry(estimate, "Mystery") == [None]
    assert entry(estimate, "Exp")[0] is not None
    assert estimate.to_json()["nodes"][0]["joules"] is None
    assert estimate.total_joules == entry(estimate, "Exp")[0]


def test_if_counts_the_costlier_branch(parse: Parse) -> None:
    text = """g (bool c, float[64,64] x) => (float[64,64] y) {{
        y = If(c) <then_branch = t () => (float[64,64] a) {{ a = {first} }},
                   else_branch = e () => (float[64,64] b) {{ b = {second} }}>
    }}"""
    one = MODEL.estimate(parse(text.format(first="MatMul(x, x)", second="Relu(x)")))
    other = MODEL.estimate(parse(text.format(first="Relu(x)", second="MatMul(x, x)")))
    assert [node.op for node in one.nodes] == [node.op for node in other.nodes] == ["If", "MatMul"]
    assert one.total_joules == other.total_joules
    assert "then_branch" in one.notes[0] and "else_branch" in other.notes[0]


LOOP = """g (int64 n, bool go, float[8] x) => (float[8] y) {{
    m = {count}
    y = Loop(m, go, x) <body = b (int64 i, bool c, float[8] v) => (bool d, float[8] w) {{ d = Identity(c) w = Exp(v) }}>
}}"""


def test_loops_multiply_by_constant_trips(parse: Parse) -> None:
    five = MODEL.estimate(parse(LOOP.format(count="Constant<value_int=5>()")))
    one = MODEL.estimate(parse(LOOP.format(count="Constant<value_int=1>()")))
    assert entry(five, "Exp")[0] == pytest.approx(5 * (entry(one, "Exp")[0] or 0))
    assert not five.assumed


def test_loops_of_unknown_length_count_once_and_say_so(parse: Parse) -> None:
    assert any("trip count" in name for name in MODEL.estimate(parse(LOOP.format(count="Identity(n)"))).assumed)


def test_functions_are_priced_by_their_bodies() -> None:
    text = """<ir_version: 9, opset_import: ["": 19, "local": 1]>
        g (float[16] x) => (float[16] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["": 19]> twice (a) => (b) { t = Exp(a) b = Exp(t) }"""
    estimate = MODEL.estimate(text_module(text))
    assert [node.op for node in estimate.nodes] == ["Exp", "Exp"]
    assert estimate.nodes[0].flops == 16 * 16


def test_functions_that_call_themselves_are_unknown_not_endless() -> None:
    module = text_module(
        """<ir_version: 9, opset_import: ["": 19, "local": 1]>
        g (float[16] x) => (float[16] y) { y = local.f(x) }
        <domain: "local", opset_import: ["": 19, "local": 1]> f (a) => (b) { b = local.f(a) }"""
    )
    assert MODEL.estimate(module).unknown == ("f",)


def test_measured_times_make_calibrated_nodes(parse: Parse) -> None:
    module = parse(MLP)
    module.graph[0].name, module.graph[1].name = "product", "act"
    estimate = MODEL.estimate(module, {"batch": 8}, {"product": 1e-3, "act": 1e-3})
    assert estimate.tier == "calibrated"
    assert estimate.high == pytest.approx(1.5 * estimate.total_joules)
    static = MODEL.profile.power["static"].value * 2e-3
    assert static < estimate.total_joules < 1.2 * static
    partly = MODEL.estimate(module, {"batch": 8}, {"product": 1e-3})
    assert partly.tier == "estimated", "the weakest tier names the total"


def test_no_operator_exceeds_the_power_cap(parse: Parse) -> None:
    module = parse(MLP)
    for node in module.graph:
        node.name = node.op_type
    estimate = MODEL.estimate(module, {"batch": 4096}, {"MatMul": 1e-9, "Relu": 1e-9})
    assert estimate.total_joules == pytest.approx(2e-9 * MODEL.profile.power["cap"].value)


def test_the_module_is_left_as_it_is(parse: Parse) -> None:
    module = parse(MLP)
    before = module.to_proto().SerializeToString(deterministic=True)
    MODEL.estimate(module, {"batch": 3})
    assert module.to_proto().SerializeToString(deterministic=True) == before


def test_estimates_are_deterministic(parse: Parse) -> None:
    assert MODEL.estimate(parse(MLP), {"batch": 3}).to_json() == MODEL.estimate(parse(MLP), {"batch": 3}).to_json()


# -- comparing ----------------------------------------------------------------------------------------------


def test_no_change_is_exactly_nothing(parse: Parse) -> None:
    same = MODEL.estimate(parse(MLP), {"batch": 3})
    change = compare(same, same)
    assert (change.joules, change.low, change.high, change.detectable) == (0, 0, 0, False)


def test_fewer_operations_are_a_detectable_saving(parse: Parse) -> None:
    before, after = (MODEL.estimate(parse(MLP), {"batch": size}) for size in (64, 16))
    change = compare(before, after)
    assert change.detectable and 0 < change.low < change.joules < change.high
    assert before.low < after.high, "unpaired intervals overlap: only pairing detects it"
    back = compare(after, before)
    assert back.joules == pytest.approx(-change.joules) and back.low == pytest.approx(-change.high)


def test_what_the_runtime_does_anyway_saves_nothing(parse: Parse) -> None:
    before = MODEL.estimate(parse("g (float[64] x) => (float[64] y) { h = Identity(x) y = Exp(h) }"))
    after = MODEL.estimate(parse("g (float[64] x) => (float[64] y) { y = Exp(x) }"))
    assert not compare(before, after).detectable


def test_hiding_work_in_an_unknown_operator_is_no_saving(parse: Parse) -> None:
    before = MODEL.estimate(parse("g (float[64] x) => (float[64] y) { y = Exp(x) }"))
    after = MODEL.estimate(
        text_module('<ir_version: 9, opset_import: ["acme": 1]> g (float[64] x) => (float[64] y) { y = acme.Exp2(x) }')
    )
    assert compare(before, after).joules > 0 and not compare(before, after).detectable


def conv_module(quantized: bool) -> Module:
    weight = np.ones((64, 64, 3, 3), np.int8 if quantized else np.float32)
    body = "y = Conv<pads=[1,1,1,1]>(x, w)"
    if quantized:
        body = (
            "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, s, wz) "
            "c = Conv<pads=[1,1,1,1]>(d, v) o = QuantizeLinear(c, s, z) y = DequantizeLinear(o, s, z)"
        )
    head = "g (float[1,64,56,56] x) => (float[1,64,56,56] y)"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {head} {{ {body} }}')
    constants = {"w": weight, "s": np.float32(0.1), "z": np.uint8(0), "wz": np.int8(0)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return Module(ir.from_proto(model))


def test_a_quantized_convolution_costs_less_and_its_bytes_shrink() -> None:
    plain, integer = (MODEL.estimate(conv_module(q)) for q in (False, True))
    change = compare(plain, integer)
    assert change.detectable and change.joules > 0
    (conv,) = [node for node in integer.nodes if node.op == "Conv"]
    (original,) = [node for node in plain.nodes if node.op == "Conv"]
    assert conv.kernel == "QLinearConv"
    assert conv.bytes is not None and original.bytes is not None and conv.bytes <= original.bytes // 4 + 16
    free = [node for node in integer.nodes if node.energy.joules == 0]
    assert [node.op for node in free] == ["DequantizeLinear", "DequantizeLinear", "QuantizeLinear"]


def test_without_vnni_int8_saves_less() -> None:
    slow = EnergyModel(load_profile().with_features())
    fast, plain = (compare(m.estimate(conv_module(False)), m.estimate(conv_module(True))).joules for m in (MODEL, slow))
    assert fast > plain


def test_on_cuda_q_dq_only_adds_cost() -> None:
    cuda = EnergyModel(load_profile("a100"), "cuda")
    assert compare(cuda.estimate(conv_module(False)), cuda.estimate(conv_module(True))).joules < 0


def test_zeros_in_weights_earn_nothing() -> None:
    ones, zeros = conv_module(False), conv_module(False)
    (value,) = [v for v in zeros.graph.initializers.values() if v.name == "w"]
    value.const_value = ir.tensor(np.zeros((64, 64, 3, 3), np.float32), name="w")
    assert MODEL.estimate(ones).total_joules == MODEL.estimate(zeros).total_joules


# -- invariants ---------------------------------------------------------------------------------------------

SMALL_NET = """g (float[n,3,h,16] x, float[8,3,3,3] w, float[8,8] k) => (float[n,8] y) {
    c = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(c)  g = GlobalAveragePool(r)  f = Flatten(g)  m = MatMul(f, k)
    y = Softmax(m)
}"""


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 4096), more=st.integers(0, 4096), h=st.integers(1, 512), taller=st.integers(0, 512))
def test_larger_inputs_never_cost_less(n: int, more: int, h: int, taller: int) -> None:
    module = Module(ir.from_proto(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {SMALL_NET}')))
    small = MODEL.estimate(module, {"n": n, "h": h})
    large = MODEL.estimate(module, {"n": n + more, "h": h + taller})
    assert large.total_joules >= small.total_joules * (1 - 1e-12)
    assert small.low <= small.total_joules <= small.high


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_every_operator_of_the_light_models_is_known(path: Path) -> None:
    estimate = MODEL.estimate(Module(ir.load(path)))
    assert (estimate.unknown, estimate.assumed) == ((), ())
    assert estimate.total_joules > 0 and estimate.samples == 1


ONNX_TOOL = {
    "bvlc_alexnet": (596_538_880, 58_631_144), "densenet121": (2_834_162_664, 0),
    "inception_v1": (1_433_545_984, 1_025_000), "inception_v2": (2_017_827_840, 1_025_000),
    "resnet50": (4_087_136_256, 2_049_000), "shufflenet": (124_421_584, 545_000), "squeezenet": (351_741_288, 0),
    "vgg19": (19_523_280_896, 123_642_856), "zfnet512": (1_402_532_992, 80_721_896),
}  # fmt: skip
"""(Conv, Gemm) multiply-adds that onnx-tool 1.0.1 counts, each bias addition as one more."""


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_multiply_adds_equal_those_of_onnx_tool(path: Path) -> None:
    module, _ = bind(Module(ir.load(path)), {})
    found = {"Conv": 0, "Gemm": 0}
    for node in module.graph:
        if node.op_type in found and (formula := formula_of(node)) is not None:
            view = View(node, Sizes())
            bias = view.m() * view.has(2)
            found[node.op_type] += (sum(formula(view).flops.values()) - bias) // 2 + bias
    assert tuple(found.values()) == ONNX_TOOL[path.stem.removeprefix("light_")]
