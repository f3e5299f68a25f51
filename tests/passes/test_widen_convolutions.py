"""widen-convolutions: regions of rank 3 around convolutions that gain become images; everything else stays."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.ir.module import Module
from joulec.passes.widen_convolutions import WidenConvolutions

W = {
    "w": numbers(32, 16, 3) / 7, "v": numbers(16, 32, 1) / 6, "depth": numbers(16, 1, 5), "odd": numbers(16, 24, 3),
    "b": numbers(32), "gain": numbers(16, seed=2), "shift": numbers(16, seed=3), "mean": numbers(16, seed=4),
    "var": np.abs(numbers(16, seed=5)) + 1, "full": numbers(1, 16, 8, seed=6), "plane": numbers(16, 8, seed=7),
    "row": numbers(8, seed=8), "one": np.array(0.5, np.float32),
    "i0": np.array([0]), "i1": np.array([1]), "i2": np.array([2]), "i02": np.array([0, 2]), "halves": np.array([8, 8]),
    "rows": np.array([0, 16, -1]), "flat": np.array([0, -1]), "turned": np.array([1, -1, 32]), "copied": np.array([0, 16, 0]),
}  # fmt: skip
HEAD = "(float[N,128] x) => (float[A,B] y)"
IN, OUT = "u = Reshape(x, rows) ", " y = Flatten(z)"


def module(body: str, head: str = HEAD, opset: int = 17) -> Module:
    used = set(re.findall(r"\w+", body))
    return build(f"{head} {{ {body} }}", opset, **{name: array for name, array in W.items() if name in used})


def ranks(made: Module) -> list[int]:
    """How many dimensions the weights have."""
    return [len(node.inputs[1].shape or ()) for node in made.graph if node.op_type == "Conv" and node.inputs[1]]


@pytest.mark.parametrize(
    "middle",
    [
        "z = Conv<pads=[1,1]>(u, w, b)",
        "c = Conv<strides=[2], pads=[2,0], dilations=[2]>(u, w) r = Relu(c) z = Conv(r, v)",
        'c = Conv<auto_pad="SAME_UPPER", kernel_shape=[3]>(u, w) z = Tanh(c)',
        "z = Conv<group=16, pads=[2,2]>(u, depth)",
        "a = Add(u, full) m = Mul(plane, a) r = Sub(m, row) s = Add(r, one) z = Conv(s, w)",
        "n = BatchNormalization(u, gain, shift, mean, var) z = Conv(n, w)",
        "n = InstanceNormalization(u, gain, shift) z = Conv(n, w)",
        "p = MaxPool<kernel_shape=[3], strides=[2], pads=[1,0]>(u) z = Conv<pads=[1,1]>(p, w)",
        "p = AveragePool<kernel_shape=[2], count_include_pad=1, pads=[1,1]>(u) z = Conv(p, w)",
        "g = GlobalAveragePool(u) z = Conv<pads=[1,1]>(g, w)",
        "m = ReduceMean<axes=[-1]>(u) a = Mul(m, u) z = Conv(a, w)",
        "a, c = Split<axis=1>(u, halves) n = Neg(c) j = Concat<axis=-2>(n, a) z = Conv(j, w)",
        "a = Neg(u) j = Concat<axis=2>(a, u) z = Conv(j, w)",
        "a = Greater(u, one) s = Where(a, u, one) z = Conv(s, w)",
    ],
)
def test_regions_between_relayouts_become_images(middle: str) -> None:
    made = module(IN + middle + OUT)
    before = ops(made)
    fuse(made, WidenConvolutions())
    assert ops(made) == before
    assert set(ranks(made)) == {4}
    assert all(len(node.outputs[0].shape or ()) == 4 for node in list(made.graph)[:-1])


@pytest.mark.parametrize(
    ("head", "first", "last"),
    [
        ("(float[16,T] x) => (float[A,B,C] y)", "u = Unsqueeze(x, i0) ", " y = Reshape(z, turned)"),
        ("(float[N,128] x) => (float[A,B] y)", IN, " y = Flatten<axis=2>(z)"),
        ("(float[N,128] x) => (float[A,B] y)", IN, " y = Flatten<axis=-1>(z)"),
        ("(float[N,128] x) => (float[A,B] y)", IN, " y = Flatten<axis=3>(z)"),
        ("(float[N,128] x) => (float[A,B] y)", IN, " y = Reshape(z, flat)"),
        ("(float[N,128] x) => (float[A,B] y)", IN, " y = ReduceMax<axes=[2], keepdims=0>(z)"),
        ("(float[N,128] x) => (float[A] y)", IN, " y = ReduceSum<keepdims=0>(z, i02)"),
        ("(float[16,T] x) => (float[A,B] y)", "u = Unsqueeze(x, i0) ", " y = Squeeze(z, i0)"),
        ("(float[16,T] x) => (float[A,B] y)", "u = Unsqueeze(x, i0) ", " y = Squeeze(z)"),
    ],
)
def test_borders_take_the_dimension_in(head: str, first: str, last: str) -> None:
    made = module(f"{first}z = Conv<pads=[1,1]>(u, w){last}", head)
    fuse(made, WidenConvolutions())
    assert len(ops(made)) == 3
    assert ranks(made) == [4]


PLAIN = "(float[N,16,T] x) => (float[A,B,C] y)"


@pytest.mark.parametrize(
    ("body", "head", "reason"),
    [
        ("y = Conv(x, w)", PLAIN, "2 Unsqueezes and Squeezes would come to it"),
        (f"{IN}y = Conv(u, w)", "(float[N,128] x) => (float[A,B,C] y)", "1 Unsqueezes and Squeezes would come to it"),
        ("u = Reshape(x, copied) z = Conv(u, w) y = Flatten(z)", "(float[N,16,T] x) => (float[A,B] y)", "1 Unsqueezes and Squeezes would come to it"),
        (f"{IN}z = Conv(u, w) t = Transpose<perm=[2,0,1]>(z) y = Flatten(t)", HEAD, "1 Unsqueezes and Squeezes would come to it"),
    ],
)
def test_what_would_cost_nodes_stays(body: str, head: str, reason: str) -> None:
    assert unchanged(module(body, head), WidenConvolutions()) == {reason}


@pytest.mark.parametrize(
    "body",
    [
        "u = Reshape(x, rows24) c = Conv(u, odd) y = Flatten(c)",  # channels that fill no block
        f"{IN}h = Cast<to=11>(u) w64 = Cast<to=11>(w) c = Conv(h, w64) y = Flatten(c)",
        f"{IN}r = Relu(u) y = Flatten(r)",
    ],
)
def test_what_gains_nothing_stays(body: str) -> None:
    head = "(float[N,144] x) => (double[A,B] y)" if "double" in body or "w64" in body else "(float[N,144] x) => (float[A,B] y)"
    made = module(body.replace("rows24", "rows_24"), head) if "rows24" not in body else build(
        f"{head} {{ {body} }}", 17, odd=W["odd"], rows24=np.array([0, 24, -1])
    )  # fmt: skip
    assert unchanged(made, WidenConvolutions()) == set()


def test_added_nodes_where_as_many_convolutions_gain() -> None:
    two = module("c = Conv(x, w) y = Conv(c, v)", PLAIN)
    fuse(two, WidenConvolutions(added=2), {"x": numbers(2, 16, 9)})
    assert ops(two) == ["Unsqueeze", "Conv", "Conv", "Squeeze"]
    assert [value.name for value in two.graph.outputs] == ["y"]
    one = module("y = Conv(x, w)", PLAIN)
    assert unchanged(one, WidenConvolutions(added=2)) == {"2 Unsqueezes and Squeezes would come to it"}


def test_readers_inside_and_outside_of_one_value() -> None:
    body = f"{IN}c = Conv<pads=[1,1]>(u, w) r = Relu(c) d = Conv(r, v) t = Transpose<perm=[0,2,1]>(r) e = Flatten(d) f = Flatten(t) y = Concat<axis=1>(e, f)"
    made = module(body)
    fuse(made, WidenConvolutions(added=1))
    assert ops(made) == ["Reshape", "Conv", "Relu", "Squeeze", "Conv", "Transpose", "Flatten", "Flatten", "Concat"]


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
def test_every_form_of_axes(opset: int) -> None:
    axes = "Unsqueeze<axes=[0]>(x)" if opset < 13 else "Unsqueeze(x, i0)"
    made = module(f"u = {axes} z = Conv(u, w) y = Conv(z, v)", "(float[16,T] x) => (float[A,B,C] y)", opset)
    fuse(made, WidenConvolutions(added=1), {"x": numbers(16, 9)})
    assert ops(made) == ["Unsqueeze", "Conv", "Conv", "Squeeze"]


def test_branches_and_masks() -> None:
    body = "y = If(c) <then_branch = t () => (float[A,B] p) { u = Reshape(x, rows) k = Conv(u, w) p = Flatten(k) }, else_branch = e () => (float[A,B] q) { q = Neg(x) }>"
    made = module(body, "(bool c, float[N,128] x) => (float[A,B] y)")
    made.masks["w"] = W["w"] != 0
    fuse(made, WidenConvolutions())
    (mask,) = [one for name, one in made.masks.items() if name != "w"]
    assert mask.shape == (32, 16, 1, 3)


def test_a_computed_weight_and_a_function_stay() -> None:
    text = f"{IN}k = Mul(w, scale) z = Conv(u, k){OUT}"
    made = build(f"(float[N,128] x, float[1] scale) => (float[A,B] y) {{ {text} }}", 17, rows=W["rows"], w=W["w"])
    assert unchanged(made, WidenConvolutions()) == set()
