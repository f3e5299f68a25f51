"""Blocks and islands: what is one kernel, what stays together, and that finding out takes linear time."""

from __future__ import annotations

import time

import int8_kit as kit
import numpy as np
import pytest

from joulec.ir.module import Module
from joulec.passes.blocks import Block, survey
from joulec.passes.regions import islands
from joulec.passes.schemes import CPU_SCHEME, TENSORRT_SCHEME


def blocks(module: Module) -> tuple[Block, ...]:
    return survey(module, CPU_SCHEME, "cpu").blocks


def kept(module: Module) -> list[str]:
    return [block.node.op_type for block in islands(blocks(module), CPU_SCHEME).kept]


def image(body: str, **shapes: tuple[int, ...]) -> Module:
    given = {"w": (4, 4, 1, 1), **shapes}
    return kit.build(f"g (float[1,4,6,6] x) => (float[1,4,6,6] y) {{ {body} }}", kit.random(**given))


def test_blocks_of_a_cnn() -> None:
    found = blocks(kit.build(kit.CNN, kit.cnn_weights()))
    assert [(b.node.op_type, b.kind, [t.op_type for t in b.tail], b.within) for b in found] == [
        ("Conv", "compute", ["Relu"], (0.0, float("inf"))),
        ("MaxPool", "movement", [], None),
        ("Conv", "compute", ["Clip"], (0.0, 6.0)),
        ("Conv", "compute", [], None),
        ("Add", "arithmetic", ["Relu"], (0.0, float("inf"))),
        ("GlobalAveragePool", "arithmetic", [], None),
        ("Flatten", "movement", [], None),
        ("Gemm", "compute", [], None),
    ]


def test_a_relu_whose_input_is_read_elsewhere_is_not_swallowed() -> None:
    found = blocks(image("c = Conv(x, w) r = Relu(c) s = Exp(c) y = Add(r, s)"))
    assert [(b.node.op_type, len(b.tail)) for b in found] == [("Conv", 0), ("Relu", 0), ("Add", 0)]


@pytest.mark.parametrize(("low", "swallowed"), [(-1.0, 1), (0.0, 1), (0.5, 0)])
def test_a_clip_is_swallowed_only_around_zero(low: float, swallowed: int) -> None:
    module = kit.build(
        "g (float[1,4,6,6] x) => (float[1,4,6,6] y) { c = Conv(x, w) y = Clip(c, lo) }",
        {**kit.random(w=(4, 4, 1, 1)), "lo": np.float32(low)},
    )
    assert len(blocks(module)[0].tail) == swallowed


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = MaxPool<kernel_shape=[1,1]>(x) y = Add(a, x)", []),
        ("a = Transpose<perm=[0,1,3,2]>(x) b = Conv(a, w) y = Exp(b)", ["Transpose", "Conv"]),
        (
            "a = Transpose<perm=[0,1,3,2]>(x) b = Conv(a, w) c = Add(a, b) y = Conv(c, w)",
            ["Transpose", "Conv", "Add", "Conv"],
        ),
        ("a = Transpose<perm=[0,1,3,2]>(x) b = Exp(a) c = Conv(a, w) y = Add(b, c)", ["Conv"]),
        ("a = Exp(x) b = Conv(x, w) y = Add(a, b)", ["Conv"]),
        ("a = Conv(x, w) b = Exp(x) c = MaxPool<kernel_shape=[1,1]>(b) y = Add(a, c)", ["Conv"]),
        (
            "a = MaxPool<kernel_shape=[1,1]>(x) b = Conv(x, w) c = Add(a, b) y = Conv(c, w)",
            ["Conv", "Conv"],  # integers that no integer kernel made are slow to pool
        ),
        ("a = Conv(x, w) g = GlobalAveragePool(x) e = Exp(g) m = Mul(a, e) y = Conv(m, w)", ["Conv", "Mul", "Conv"]),
        ("a = Conv(x, w) e = Exp(x) m = Mul(a, e) y = Conv(m, w)", ["Conv", "Conv"]),
        ("a = Conv(x, w) b = Conv(x, w) y = Add(a, b)", ["Conv", "Conv", "Add"]),
        ("a = Conv(x, w) b = Add(a, x) c = Transpose<perm=[0,1,3,2]>(b) y = Exp(c)", ["Conv"]),
        ("a = Conv(x, w) b = Add(a, w) y = Conv(b, w)", ["Conv", "Add", "Conv"]),
        ("a = Conv(x, w) b = MaxPool<kernel_shape=[1,1]>(a) y = Exp(b)", ["Conv", "MaxPool"]),
        ("a = Conv(x, w) b = Exp(a) c = Relu(a) y = Exp(c)", ["Conv"]),
    ],
)
def test_islands(body: str, expected: list[str]) -> None:
    assert kept(image(body)) == expected


def test_what_is_dropped_has_a_reason() -> None:
    found = islands(blocks(image("y = Add(x, x)")), CPU_SCHEME)
    assert [(block.node.op_type, reason) for block, reason in found.dropped] == [
        ("Add", "not next to a quantized operator")
    ]


def test_tensorrt_reads_the_skip_input_of_a_residual_add() -> None:
    module = image("a = Conv(x, w) b = Relu(a) c = Conv(b, w) y = Add(b, c)")
    found = islands(survey(module, TENSORRT_SCHEME, "tensorrt").blocks, TENSORRT_SCHEME).kept
    assert [(b.node.op_type, b.operands) for b in found] == [("Conv", (0,)), ("Conv", (0,)), ("Add", (0,))]


def _ladder(rungs: int) -> Module:
    """A hub that every rung reads, and a chain of carriers that all lose their support one after the other."""
    body = "h0 = Exp(x) " + " ".join(f"h{i} = Add(h{i - 1}, x)" for i in range(1, rungs)) + f" y = Exp(h{rungs - 1})"
    return image(body)


def test_time_is_linear() -> None:
    def seconds(rungs: int) -> float:
        found = blocks(_ladder(rungs))
        start = time.perf_counter()
        assert not islands(found, CPU_SCHEME).kept
        return time.perf_counter() - start

    seconds(200)
    once, twice = min(seconds(500) for _ in range(3)), min(seconds(2000) for _ in range(3))
    assert twice < 12 * once, "four times the nodes, and far less than sixteen times the time"
