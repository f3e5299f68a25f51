"""align-channels: channels between convolutions fill whole blocks; what looks at them otherwise keeps them as they are."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.ir.module import Module
from joulec.passes.align_channels import AlignChannels

ALIGN = AlignChannels(block=8)
HEAD = "(float[N,3,6,6] x) => (float[N,4,A,B] y)"
WEIGHTS = {"w": numbers(6, 3, 3, 3), "v": numbers(4, 6, 1, 1)}


def widths(module: Module) -> list[tuple[int, ...]]:
    """The shape of every Conv's weight, in order."""
    convs = [node for node in module.graph if node.op_type == "Conv"]
    return [tuple(int(d) for d in node.inputs[1].const_value.shape.numpy()) for node in convs]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "between",
    [
        "m = Relu(c)",
        "m = HardSigmoid(c)",
        "m = MaxPool<kernel_shape=[2,2]>(c)",
        "g = HardSwish(c) m = Mul(c, g)",
        "m = Sum(c, c)",
    ],
)
def test_channels_between_convolutions_fill_their_blocks(between: str) -> None:
    module = build(f"{HEAD} {{ c = Conv(x, w) {between} y = Conv(m, v) }}", **WEIGHTS)
    fuse(module, ALIGN)
    assert widths(module) == [(8, 3, 3, 3), (4, 8, 1, 1)]


def test_biases_depthwise_convolutions_and_gates_too() -> None:
    body = """
        c = Conv(x, w, b) r = Relu(c) d = Conv<group=6, pads=[1,1,1,1]>(r, k, e) s = HardSwish(d)
        g = GlobalAveragePool(s) p = Conv(g, f) q = Relu(p) h = Conv(q, i) a = HardSigmoid(h) m = Mul(s, a) y = Conv(m, v)
    """
    extra = {
        "b": numbers(6, seed=1), "k": numbers(6, 1, 3, 3), "e": numbers(6, seed=2), "f": numbers(6, 6, 1, 1, seed=3),
        "i": numbers(6, 6, 1, 1, seed=4),
    }  # fmt: skip
    module = build(f"{HEAD} {{ {body} }}", **WEIGHTS, **extra)
    fuse(module, ALIGN)
    assert widths(module) == [(8, 3, 3, 3), (8, 1, 3, 3), (8, 8, 1, 1), (8, 8, 1, 1), (4, 8, 1, 1)]


@pytest.mark.parametrize(
    ("tail", "constants"),
    [
        ("f = Flatten(g) y = Gemm(f, h)", {"h": numbers(6, 2)}),
        ("f = Flatten(g) y = Gemm<transB=1>(f, h)", {"h": numbers(2, 6)}),
        ("f = Reshape(g, t) y = MatMul(f, h)", {"h": numbers(6, 2), "t": np.array([-1, 6])}),
        ("f = Reshape(g, t) y = MatMul(f, h)", {"h": numbers(6, 2), "t": np.array([0, 6])}),
    ],
)
def test_a_classifier_at_the_end_is_widened(tail: str, constants: dict[str, np.ndarray]) -> None:
    graph = "(float[N,3,6,6] x) => (float[N,2] y)"
    module = build(f"{graph} {{ c = Conv(x, w) g = GlobalAveragePool(c) {tail} }}", w=WEIGHTS["w"], **constants)
    fuse(module, ALIGN)
    assert widths(module) == [(8, 3, 3, 3)]


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, w) m = Div(c, c) y = Conv(m, v)",  # 0 / 0
        "c = Conv(x, w) m = Exp(c) n = Softmax<axis=1>(m) y = Conv(n, v)",
        "c = Conv(x, w) m = Reciprocal(c) y = Conv(m, v)",
        "c = Conv(x, w) m = Concat<axis=1>(c) y = Conv(m, v)",
        "c = Conv(x, w) s = ReduceMean<axes=[1]>(c) m = Mul(c, s) y = Conv(m, v)",  # looks across channels
        "c = Conv(x, w) s = Shape(c) m = Expand(c, s) y = Conv(m, v)",
    ],
)
def test_what_looks_at_channels_otherwise_keeps_them(body: str) -> None:
    assert unchanged(build(f"{HEAD} {{ {body} }}", opset=17, **WEIGHTS), ALIGN) == set()


def test_outputs_masks_shared_weights_and_other_types_stay() -> None:
    both = "(float[N,3,6,6] x) => (float[N,4,A,B] y, float[N,6,A,B] c) { c = Conv(x, w) y = Conv(c, v) }"
    assert unchanged(build(both, **WEIGHTS), ALIGN) == set()
    masked = build(f"{HEAD} {{ c = Conv(x, w) y = Conv(c, v) }}", **WEIGHTS)
    masked.masks["v"] = np.ones((4, 6, 1, 1), bool)
    assert unchanged(masked, ALIGN) == set()
    shared = "(float[N,6,6,6] x) => (float[N,6,A,B] y) { c = Conv(x, w) y = Conv(c, w) }"
    assert unchanged(build(shared, w=numbers(6, 6, 1, 1)), ALIGN) == set()
    double = {name: array.astype(np.float64) for name, array in WEIGHTS.items()}
    assert (
        unchanged(build(f"{HEAD.replace('float', 'double')} {{ c = Conv(x, w) y = Conv(c, v) }}", **double), ALIGN)
        == set()
    )


def test_channels_that_would_grow_by_much_and_those_that_fit_stay() -> None:
    graph = f"{HEAD} {{ c = Conv(x, w) y = Conv(c, v) }}"
    assert unchanged(build(graph, **WEIGHTS), AlignChannels(block=8, most=0.3)) == set()
    assert unchanged(build(graph, **WEIGHTS), AlignChannels(block=3)) == set()


def test_the_operators_stay_the_same() -> None:
    module = build(f"{HEAD} {{ c = Conv(x, w) r = Relu(c) y = Conv(r, v) }}", **WEIGHTS)
    fuse(module, ALIGN)
    assert ops(module) == ["Conv", "Relu", "Conv"]
