"""simplify-movement: what is merged or dropped, what stays and why, bit for bit under ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from rewrite_kit import apply, ops, reasons

from joulec.ir.module import Module
from joulec.passes.eliminate_dead_code import EliminateDeadCode
from joulec.passes.simplify_movement import SimplifyMovement

Parse = Callable[..., Module]
X = np.array([[-0.0, np.nan, np.inf, 2.0], [1.0, -2.0, 3.5, 0.0], [7.0, 8.0, 9.0, -1.0]], np.float32)
HEAD = (
    "agraph (float[N,4] x) => (float[a] y) <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, "
    "int64[1] four = {4}, int64[1] end = {9223372036854775807}, int64[2] flat = {-1,4}, int64[3] cube = {-1,2,2}, "
    "int64[2] turn = {4,-1}, int64[4] pads = {0,1,0,2}, int64[2] picks = {2,0}, int64[1] first = {-1}, "
    "float[4] ones = {1.0,1.0,1.0,1.0}, float[4] some = {1.0,1.0,1.0,2.0}, float[4] zeros = {0.0,0.0,0.0,0.0}, "
    "float[4] bias = {1.0,2.0,0.0,-1.0}, float pad = {3.0}, int64 at = {1}>"
)


CUT = ["Slice", "Slice", "Concat", "Abs"]


def simplified(body: str, parse: Parse, feed: np.ndarray | None = X, outputs: str = "float[a] y") -> tuple[list[str], set[str]]:
    module = parse(f"{HEAD.replace('float[a] y', outputs)} {{ {body} }}")
    module.graph.outputs[0].shape = None
    result = apply(module, SimplifyMovement(), None if feed is None else {"x": feed})
    apply(module, EliminateDeadCode())
    return ops(module), reasons(result)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Reshape(x, cube) b = Reshape(a, turn) y = Abs(b)", ["Reshape", "Abs"]),
        ("a = Reshape(x, cube) b = Reshape(a, flat) y = Abs(b)", ["Abs"]),
        ("a = Unsqueeze(x, zero) b = Unsqueeze(a, two) y = Abs(b)", ["Unsqueeze", "Abs"]),
        ("a = Unsqueeze(x, one) b = Squeeze(a, one) y = Abs(b)", ["Abs"]),
        ("a = Unsqueeze(x, zero) b = Unsqueeze(a, zero) c = Squeeze(b, one) d = Squeeze(c, zero) y = Abs(d)", ["Abs"]),
        ("s = Shape(x) a = Expand(x, s) y = Abs(a)", ["Abs"]),
        ("a = Slice(x, zero, end, one) y = Abs(a)", ["Abs"]),
        ("a = Slice(x, zero, two, one) b = Slice(a, one, end, zero) y = Abs(b)", ["Slice", "Abs"]),
        ("a = Slice(x, zero, two, one) b = Slice(x, two, end, one) c = Concat<axis=1>(a, b) y = Abs(c)", ["Abs"]),
        ("a, b = Split<axis=1, num_outputs=2>(x) c = Concat<axis=-1>(a, b) y = Abs(c)", ["Abs"]),
        ("a = Concat<axis=0>(x, x) b = Concat<axis=0>(a, x) y = Abs(b)", ["Concat", "Abs"]),
        ("e = Slice(x, zero, zero, one) a = Concat<axis=1>(e, x, x) y = Abs(a)", ["Concat", "Abs"]),
        ("r = Abs(x) a = Concat<axis=1>(x, r) b = Gather<axis=1>(a, picks) y = Neg(b)", ["Gather", "Neg"]),
        ("a = Gather<axis=1>(x, picks) b = Gather<axis=1>(a, at) y = Neg(b)", ["Gather", "Neg"]),
        ("a = Transpose<perm=[1,0]>(x) b = Gather<axis=0>(a, at) y = Neg(b)", ["Gather", "Neg"]),
        ("a = Cast<to=11>(x) b = Cast<to=1>(a) y = Neg(b)", ["Neg"]),
        ("a = Neg(x) b = Neg(a) y = Abs(b)", ["Abs"]),
        ("a = Relu(x) y = Relu(a)", ["Relu"]),
        ("a = Floor(x) b = Ceil(a) y = Abs(b)", ["Floor", "Abs"]),
        ("a = Unsqueeze(x, one) b = ReduceMax(a, one) y = Abs(b)", ["Unsqueeze", "Abs"]),
        ("a = Pad(x, pads, pad) b = Pad(a, pads, pad) y = Abs(b)", ["Pad", "Abs"]),
        ("a = Mul(x, ones) y = Abs(a)", ["Abs"]),
        ("a = Div(x, ones) y = Abs(a)", ["Abs"]),
        ("a = Sub(x, zeros) y = Abs(a)", ["Abs"]),
        ("a = Add(x, zeros) y = Abs(a)", ["Abs"]),
        ("a = Add(zeros, x) b = Relu(a) y = Add(b, bias)", ["Relu", "Add"]),
        ("a = Add(x, zeros) b = Unsqueeze(a, zero) y = Softmax(b)", ["Unsqueeze", "Softmax"]),
        ("s = Shape(x) a = Expand(pad, s) y = Mul(x, a)", ["Mul"]),
        ("s = Shape(x) a = ConstantOfShape<value=float[1] {3.0}>(s) y = Mul(x, a)", ["Mul"]),
        ("a = Unsqueeze(bias, zero) y = Mul(x, a)", ["Mul"]),
        ("s = Shape(x) t = Concat<axis=0>(one, s) a = Reshape<allowzero=1>(x, t) y = Neg(a)", ["Unsqueeze", "Neg"]),
    ],
)
def test_what_goes(body: str, left: list[str], parse: Parse) -> None:
    found, _ = simplified(body, parse)
    assert found == left
    assert simplified(body, parse, X[:1])[0] == simplified(body, parse, X[:0])[0] == left


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Mul(x, some) y = Abs(a)", ["Mul", "Abs"]),
        ("s = Shape(x) t = Concat<axis=0>(two, s) a = Expand(pad, t) y = Mul(x, a)", ["Shape", "Concat", "Expand", "Mul"]),
        ("a = Slice(x, zero, two, one) y = Abs(a)", ["Slice", "Abs"]),
        ("a = Slice(x, first, zero, one, first) y = Abs(a)", ["Slice", "Abs"]),  # backwards
        ("a = Slice(x, zero, two, one) b = Slice(a, zero, one, one) y = Abs(b)", ["Slice", "Slice", "Abs"]),
        ("a = Slice(x, two, end, one) b = Slice(x, zero, two, one) c = Concat<axis=1>(a, b) y = Abs(c)", ["Split", *CUT[2:]]),
        ("a = Slice(x, zero, two, one) b = Slice(x, one, end, one) c = Concat<axis=1>(a, b) y = Abs(c)", CUT),
        ("a, b = Split<axis=1, num_outputs=2>(x) c = Concat<axis=1>(b, a) y = Abs(c)", ["Split", "Concat", "Abs"]),
        ("a, b = Split<axis=1, num_outputs=2>(x) c = Concat<axis=0>(a, b) y = Abs(c)", ["Split", "Concat", "Abs"]),
        ("a = Concat<axis=0>(x, x) b = Concat<axis=1>(a, a) y = Abs(b)", ["Concat", "Concat", "Abs"]),
        ("r = Abs(x) a = Concat<axis=0>(x, r) b = Gather<axis=0>(a, picks) y = Neg(b)", ["Abs", "Concat", "Gather", "Neg"]),
        ("a = Cast<to=10>(x) b = Cast<to=1>(a) y = Neg(b)", ["Cast", "Cast", "Neg"]),  # loses bits
        ("a = Pad(x, pads, pad) b = Pad(a, pads) y = Abs(b)", ["Pad", "Pad", "Abs"]),  # other numbers
        ("a = Pad<mode=\"edge\">(x, pads) b = Pad<mode=\"edge\">(a, pads) y = Abs(b)", ["Pad", "Pad", "Abs"]),
        ("a = ReduceMax(x, one) y = Abs(a)", ["ReduceMax", "Abs"]),
        ("a = Div(ones, x) y = Abs(a)", ["Div", "Abs"]),
        ("a = Reshape(x, flat) b = Reshape(a, turn) c = Reshape(b, flat) y = Sub(c, x)", ["Sub"]),
    ],
)
def test_what_stays(body: str, left: list[str], parse: Parse) -> None:
    assert simplified(body, parse)[0] == left


@pytest.mark.parametrize(
    "body",
    [
        "y = Add(x, zeros)",
        "a = Add(x, zeros) y = Relu(a)",
        "a = Add(x, zeros) y = Div(ones, a)",
        "a = Add(x, zeros) y = Reciprocal(a)",
        "a = Add(x, zeros) b = MatMul(a, w) y = Neg(b) w = Constant<value=float[4,1] {1.0,2.0,3.0,4.0}>()",
        "a = Add(x, zeros) y = Sub(a, zeros)",
        "a = Add(x, zeros) y = If (c) <then_branch = t () => (float[i,j] u) { u = Abs(a) }, "
        "else_branch = e () => (float[i,j] v) { v = Exp(a) }>",
    ],
)
def test_an_added_zero_stays_where_its_sign_shows(body: str, parse: Parse) -> None:
    if "If" in body:
        body = f"s = ReduceSum<keepdims=0>(ones) c = Cast<to=9>(s) {body}"
    if "w = " in body:
        body = "w = " + body.split(" w = ")[1] + " " + body.split(" w = ")[0]
    found, why = simplified(body, parse, None)
    assert "Add" in found
    assert "adding 0 turns -0.0 into 0.0, which an output may show" in why


@pytest.mark.parametrize(("op", "left"), [("Sub", ["Sub", "Neg"]), ("Add", ["Neg"])])
def test_a_negative_zero_is_idle_where_it_is_added_only(op: str, left: list[str], parse: Parse) -> None:
    """-0.0 - -0.0 is 0.0, and -0.0 + -0.0 is -0.0."""
    module = parse(f"agraph (float[N,4] x) => (float[N,4] y) <float[1] zero = {{-0.0}}> {{ a = {op}(x, zero) y = Neg(a) }}")
    assert np.signbit(module.graph.initializers["zero"].const_value.numpy()).all()
    apply(module, SimplifyMovement(), {"x": X})
    assert ops(module) == left


def test_idle_scale_and_shift_of_a_normalization_stay(parse: Parse) -> None:
    body = (
        "m = ReduceMean<keepdims=1>(x, first) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<keepdims=1>(q, first) "
        "r = Sqrt(v) n = Div(d, r) s = Mul(n, ones) t = Add(s, zeros) y = Abs(t)"
    )
    found, why = simplified(body, parse, None)
    assert found.count("Mul") == 2 and "Add" in found
    assert why == {"runtimes fuse it with the normalization before it"}


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(6, 7, 1), (7, 9, 1), (11, 1, 1), (7, 6, 2), (6, 1, 2), (1, 6, 2), (10, 6, 2), (5, 7, 2), (7, 3, 1)],
)
def test_cast_chains(first: int, second: int, kept: int, parse: Parse) -> None:
    """From int32: numpy does what a runtime does, for numbers that fit."""
    module = parse(
        f"agraph (int32[4] x) => (bool[a] y) {{ a = Cast<to={first}>(x) b = Cast<to={second}>(a) y = Cast<to=9>(b) }}"
    )
    module.graph.outputs[0].dtype = ir.DataType.BOOL
    apply(module, SimplifyMovement(), {"x": np.array([-3, 0, 7, 2**31 - 1], np.int32)})
    apply(module, EliminateDeadCode())
    assert len(ops(module)) <= 2 + (kept > 1)


def test_heads_are_split_and_turned_once(parse: Parse) -> None:
    module = parse(
        """agraph (float[S,B,12] x, int64[3] given) => (float[a,b,c,d] y) <int64[1] two = {2}, int64[1] six = {6}> {
            s = Shape<start=0,end=1>(x) b = Shape<start=1,end=2>(x) n = Mul(b, two) t = Concat<axis=0>(s, n, six)
            h = Reshape(x, t) u = Transpose<perm=[1,0,2]>(h) v = Concat<axis=0>(b, two, s, six) y = Reshape(u, v)
        }"""
    )
    for sizes in ((5, 3), (5, 0), (1, 1)):
        one = module.clone()
        feed = {"x": np.arange(np.prod(sizes) * 12, dtype=np.float32).reshape(*sizes, 12), "given": np.zeros(3, np.int64)}
        apply(one, SimplifyMovement(), feed)
        apply(one, EliminateDeadCode())
        assert ops(one) == ["Reshape", "Transpose"]


def test_a_transpose_that_others_use_stays(parse: Parse) -> None:
    body = "a = Transpose<perm=[1,0]>(x) b = Gather<axis=0>(a, at) c = Abs(a) d = ReduceSum<keepdims=0>(c, one) y = Add(b, d)"
    found, _ = simplified(body.replace("one)", "zero)"), parse, None)
    assert "Transpose" in found


def test_long_chains_are_linear() -> None:
    info = onnx.helper.make_tensor_value_info

    def chain(count: int) -> Module:
        nodes = []
        for i in range(count):
            last = f"v{i}" if i else "x"
            nodes.append(onnx.helper.make_node("Concat", [last, "x"], [f"v{i + 1}"], axis=0))
        graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, ["N", 4])], [info(f"v{count}", 1, ["M", 4])])
        return Module(ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])))

    seconds = []
    for count in (400, 1600):
        module = chain(count)
        start = time.perf_counter()
        SimplifyMovement().run(module, None)  # type: ignore[arg-type]
        seconds.append(time.perf_counter() - start)
        assert max(len(node.inputs) for node in module.graph) <= 65
    assert seconds[1] < 16 * seconds[0]
