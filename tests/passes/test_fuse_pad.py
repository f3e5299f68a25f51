"""fuse-pad: zeros around an image become pads of the convolution; anything else around it stays, with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.ir.module import Module
from joulec.passes.fuse_pad import FusePad

W = {"w": numbers(6, 4, 3, 3), "wide": numbers(6, 4, 5, 2)}
P = {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0]), "zero": np.array(0.0, np.float32)}
HEAD = "(float[N,4,8,8] x) => (float[N,6,p1,q1] y)"


@pytest.mark.parametrize("conv", ["Conv", "Conv<pads=[1,0,2,1]>", "Conv<auto_pad=\"VALID\">", "Conv<strides=[2,3], dilations=[2,1]>"])
@pytest.mark.parametrize("pad", ["Pad(x, p)", "Pad(x, p, zero)", "Pad<mode=\"constant\">(x, p, zero)", "Pad(x, short, , axes)"])
def test_zeros_move_into_the_convolution(conv: str, pad: str) -> None:
    module = build(f"{HEAD} {{ t = {pad} y = {conv}(t, w) }}", **W, **P, short=np.array([1, 2, 3, 0]), axes=np.array([-2, 3]))
    fuse(module, FusePad())
    assert ops(module) == ["Conv"]


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 18, 19, 21])
def test_pads_of_every_opset(opset: int) -> None:
    pad = "Pad<pads=[0,0,1,2,0,0,3,0], value=0.0>(x)" if opset < 11 else "Pad(x, p)"
    module = build(f"{HEAD} {{ t = {pad} y = Conv(t, w) }}", opset, **W, **P)
    fuse(module, FusePad())
    (conv,) = module.graph
    assert list(conv.attributes["pads"].as_ints()) == [1, 2, 3, 0]


def test_each_of_several_convolutions_gets_the_pads() -> None:
    module = build(f"{HEAD[:-1]}, float[N,6,r,s] z) {{ t = Pad(x, p) y = Conv(t, w) z = Conv<pads=[1,1,1,1]>(t, wide) }}", **W, **P)
    fuse(module, FusePad())
    assert [list(node.attributes["pads"].as_ints()) for node in module.graph] == [[1, 2, 3, 0], [2, 3, 4, 1]]


def test_two_pads_in_a_row() -> None:
    module = build(f"{HEAD} {{ s = Pad(x, p) t = Pad(s, p) y = Conv(t, w) }}", **W, **P)
    fuse(module, FusePad())
    assert ops(module) == ["Conv"]


def test_pads_wider_than_the_kernel() -> None:
    module = build(f"{HEAD} {{ t = Pad(x, many) y = Conv(t, w) }}", **W, many=np.array([0, 0, 7, 4, 0, 0, 5, 6]))
    fuse(module, FusePad())
    assert ops(module) == ["Conv"]


@pytest.mark.parametrize(("dims", "pads"), [("5", [0, 0, 2, 0, 0, 1]), ("3,4,5", [0, 0, 1, 0, 2, 0, 0, 0, 3, 1])])
def test_one_and_three_spatial_dimensions(dims: str, pads: list[int]) -> None:
    kernel = numbers(2, 3, *[2] * (dims.count(",") + 1))
    out = ",".join("ijk"[: dims.count(",") + 1])
    module = build(f"(float[2,3,{dims}] x) => (float[2,2,{out}] y) {{ t = Pad(x, p) y = Conv(t, w) }}", w=kernel, p=np.array(pads))
    fuse(module, FusePad())
    assert ops(module) == ["Conv"]


def test_half_precision_and_groups() -> None:
    module = build(
        "(float16[2,4,6,6] x) => (float16[2,4,a,b] y) { t = Pad(x, p) y = Conv<group=4>(t, w) }",
        w=numbers(4, 1, 3, 3, dtype="float16"), p=P["p"],
    )  # fmt: skip
    fuse(module, FusePad())
    assert ops(module) == ["Conv"]


def test_a_convolution_in_a_branch() -> None:
    module = build(
        "(bool c, float[2,4,8,8] x) => (float[2,6,a,b] y) { t = Pad(x, p) y = If (c) <then_branch = tb () => "
        "(float[2,6,d,e] u) { u = Conv(t, w) }, else_branch = eb () => (float[2,6,f,g] v) { v = Conv(t, wide) }> }", **W, **P,
    )  # fmt: skip
    fuse(module, FusePad())
    assert ops(module) == ["If"]


REFUSED = {
    "reflect": ("t = Pad<mode=\"reflect\">(x, p) y = Conv(t, w)", "it pads in mode 'reflect'"),
    "edge": ("t = Pad<mode=\"edge\">(x, p) y = Conv(t, w)", "it pads in mode 'edge'"),
    "wrap": ("t = Pad<mode=\"wrap\">(x, p) y = Conv(t, w)", "it pads in mode 'wrap'"),
    "value": ("t = Pad(x, p, half) y = Conv(t, w)", "it pads with another value than zero"),
    "nan": ("t = Pad(x, p, nan) y = Conv(t, w)", "it pads with another value than zero"),
    "computed-value": ("n = Neg(zero) t = Pad(x, p, n) y = Conv(t, w)", "it pads with another value than zero"),
    "crop": ("t = Pad(x, crop) y = Conv(t, w)", "it crops"),
    "channels": ("t = Pad(x3, channels) y = Conv(t, w)", "it pads the batch or the channels"),
    "batch": ("t = Pad(x, batch) y = Conv(t, w)", "it pads the batch or the channels"),
    "computed": ("n = Neg(p) m = Neg(n) t = Pad(x, m) y = Conv(t, w)", "its pads or its input's rank are not known"),
    "same": ("t = Pad(x, p) y = Conv<auto_pad=\"SAME_UPPER\">(t, w)", "the Conv pads by itself (auto_pad SAME_UPPER)"),
    "other-user": ("t = Pad(x, p) y = Conv(t, w) z = Relu(t)", "the padded tensor is used by other operators too"),
    "as-weight": ("t = Pad(x, p) y = Conv(t, w) z = Conv(x, t)", "the padded tensor is used by other operators too"),
    "length": ("t = Pad(x, short) y = Conv(t, w)", "its pads or its input's rank are not known"),
}  # fmt: skip
ODD = {
    "half": np.array(0.5, np.float32), "nan": np.array(np.nan, np.float32), "crop": np.array([0, 0, -1, 0, 0, 0, 2, 0]),
    "channels": np.array([0, 1, 0, 0, 0, 0, 0, 0]), "batch": np.array([0, 0, 0, 0, 1, 0, 0, 0]), "short": np.array([1, 1]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason(case: str) -> None:
    body, reason = REFUSED[case]
    module = build(f"(float[N,4,8,8] x, float[N,3,8,8] x3) => (float y) {{ {body} }}", **W, **P, **ODD)
    assert unchanged(module, FusePad()) == {reason}


def test_a_padded_tensor_that_is_an_output_stays() -> None:
    module = build("(float[N,4,8,8] x) => (float y, float t) { t = Pad(x, p) y = Conv(t, w) }", **W, **P)
    assert unchanged(module, FusePad()) == {"the padded tensor is used by other operators too"}


def test_pads_that_a_caller_may_feed_stay() -> None:
    module = build("(float[N,4,8,8] x, int64[8] p) => (float y) { t = Pad(x, p) y = Conv(t, w) }", **W, **P)
    assert unchanged(module, FusePad()) == {"its pads or its input's rank are not known"}


@pytest.mark.parametrize("body", ["t = Pad(x, p) y = Relu(t)", "t = Pad(x, p) y = ConvTranspose(t, wt)", "t = Pad(x, p) y = own.Conv(t, w)"])
def test_other_operators_are_no_concern(body: str) -> None:
    module = build(f"(float[N,4,8,8] x) => (float y) {{ {body} }}", **W, **P, wt=numbers(4, 2, 3, 3))
    assert unchanged(module, FusePad()) == set()


def test_attributes_of_a_function_refuse_one_node_and_not_the_pass() -> None:
    module = build(
        f"{HEAD} {{ s = own.f<q=[0,0,0,0]>(x, w) t = Pad(x, p) y = Conv(t, w) }}",
        functions='<domain: "own", opset_import: ["" : 19]> f <q> (a, w) => (b) { '
        "p = Constant<value=int64[8] {0,0,1,1,0,0,1,1}>() t = Pad(a, p) b = Conv<pads: ints = @q>(t, w) }", **W, **P,
    )  # fmt: skip
    module.model.opset_imports["own"] = 1
    result = fuse(module, FusePad())
    assert ops(module) == ["f", "Conv"]
    assert {r.reason for r in result.refusals} == {"attribute 'pads' of Conv refers to a function attribute"}


POOL = "(float[N,4,8,8] x) => (float[N,6,p1,q1] y)"
ROUND = np.array([0, 0, 1, 1, 0, 0, 1, 1])


def pooled(first: str, pool: str, pads: np.ndarray = ROUND, tail: str = "c = Conv(m, w) y = Softmax<axis=1>(c)") -> Module:
    return build(f"{POOL} {{ r = {first} t = Pad(r, p) m = {pool}(t) {tail} }}", w=numbers(6, 4, 1, 1), p=pads)


@pytest.mark.parametrize("first", ["Relu(x)", "Sigmoid(x)", "Abs(x)", "Clip(x, low, high)"])
@pytest.mark.parametrize("pool", ["kernel_shape=[3,3], strides=[2,2]", "kernel_shape=[2,3]", "kernel_shape=[4,4], pads=[1,0,2,1]"])
def test_zeros_around_no_negatives_move_into_a_pooling(first: str, pool: str) -> None:
    limits = {"low": np.float32(0), "high": np.float32(6)} if "Clip" in first else {}
    text = f"{POOL} {{ r = {first} t = Pad(r, p) m = MaxPool<{pool}>(t) c = Conv(m, w) y = Sigmoid(c) }}"
    module = build(text, w=numbers(6, 4, 1, 1), p=ROUND, **limits)
    fuse(module, FusePad())
    assert ops(module) == [first.split("(")[0], "MaxPool", "Conv", "Sigmoid"]


@pytest.mark.parametrize(
    ("first", "pool", "pads", "reason"),
    [
        ("Elu(x)", "MaxPool<kernel_shape=[3,3]>", ROUND, "MaxPool reads numbers that may be below the zeros around them"),
        ("Relu(x)", "MaxPool<kernel_shape=[2,2]>", 2 * ROUND, "a window could hold nothing but padding"),
        ("Relu(x)", "MaxPool<kernel_shape=[2,2], pads=[1,1,1,1]>", ROUND, "a window could hold nothing but padding"),
        ("Relu(x)", "MaxPool<kernel_shape=[3,3], ceil_mode=1>", ROUND, "the MaxPool has indices, dilations or rounds its size up"),
        ("Relu(x)", "MaxPool<kernel_shape=[3,3], dilations=[2,2]>", ROUND, "the MaxPool has indices, dilations or rounds its size up"),
        ("Relu(x)", "MaxPool<kernel_shape=[3,3], auto_pad=\"SAME_UPPER\">", ROUND, "the MaxPool pads by itself (auto_pad SAME_UPPER)"),
    ],
)
def test_a_pooling_that_could_see_the_zeros_keeps_them(first: str, pool: str, pads: np.ndarray, reason: str) -> None:
    assert reason in unchanged(pooled(first, pool, pads), FusePad())


def test_a_zero_whose_sign_shows_stays() -> None:
    """1 / m tells -0.0 from 0.0."""
    module = build(
        "(float[N,4,8,8] x) => (float[N,4,p1,q1] y) { r = Relu(x) t = Pad(r, p) m = MaxPool<kernel_shape=[3,3]>(t) y = Reciprocal(m) }",
        p=ROUND,
    )
    assert unchanged(module, FusePad()) == {"somebody may see the sign of a zero"}
