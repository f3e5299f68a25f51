"""fuse-affine: scales and shifts far from any weight become as few as they can be; computed weights stay computed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.ir.compact import compact_constant
from joulec.passes.fuse_affine import FuseAffine

X = "(float[N,6,5,5] x) => (float[N,6,5,5] y)"
C = {"s": numbers(6, 1, 1, seed=1), "t": numbers(6, 1, 1, seed=2), "u": numbers(6, 1, 1, seed=3), "k": np.array(0.5, np.float32)}
BN = {n: numbers(6, seed=i) for i, n in enumerate(("g", "h", "m"), 3)} | {"v": numbers(6, seed=9) ** 2}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = BatchNormalization(x, g, h, m, v) b = Mul(a, s) y = Add(b, t)", ["BatchNormalization"]),
        ("a = BatchNormalization(x, g, h, m, v) b = Div(a, s) c = Sub(t, b) y = Mul(k, c)", ["BatchNormalization"]),
        ("a = BatchNormalization(x, g, h, m, v) y = BatchNormalization(a, m, g, h, v)", ["BatchNormalization"]),
        ("a = Mul(x, s) b = Div(a, t) y = Mul(k, b)", ["Mul"]),
        ("a = Add(x, s) b = Sub(a, t) y = Add(k, b)", ["Add"]),
        ("a = Add(x, s) y = Sub(t, a)", ["Sub"]),
        ("a = Sub(s, x) y = Sub(t, a)", ["Add"]),
        ("a = Mul(x, s) b = Add(a, t) c = Mul(b, u) y = Add(c, k)", ["Mul", "Add"]),
    ],
)
def test_a_chain_becomes_as_short_as_it_can_be(body: str, left: list[str]) -> None:
    module = build(f"{X} {{ {body} }}", **{n: a for n, a in (C | BN).items() if n in body.replace("BatchNormalization", "")})
    fuse(module, FuseAffine())
    assert ops(module) == left


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        ("a = Mul(x, s) b = Mul(a, t) y = Add(a, b)", {"what stands before it is used elsewhere too"}),
        ("a = Mul(x, s) y = Mul(a, row)", {"the constants broadcast against each other; their product would be larger than both"}),
        ("a = Mul(x, tiny) y = Mul(a, tiny)", {"the joined constants would underflow"}),
        ("a = Mul(x, huge) y = Mul(a, huge)", {"the joined constants would not be finite"}),
        ("a = Add(x, magic) y = Sub(a, magic)", {"they cancel: adding and subtracting a large number rounds to whole ones"}),
        ("a = Add(x, s) y = Mul(a, t)", set()),  # nothing near takes the scale
        ("a = Mul(x, s) y = Div(t, a)", set()),
        (
            "a = Add(x, s) e = Erf(a) o = Add(e, k) p = Mul(x, o) q = Mul(p, k) y = Mul(q, t)",
            {"one of them ends a GELU, which runtimes fuse only as a whole"},
        ),
    ],
)
def test_what_must_not_be_merged_stays(body: str, reasons: set[str]) -> None:
    extra = {
        "row": numbers(5), "tiny": np.array(1e-30, np.float32), "huge": np.array(1e30, np.float32),
        "magic": np.array(1.5 * 2**23, np.float32),
    }  # fmt: skip
    module = build(f"{X} {{ {body} }}", **{n: a for n, a in (C | extra).items() if n in body.replace("Mul", "").replace("Sub", "")})
    assert unchanged(module, FuseAffine()) == reasons


def test_integers_are_not_merged() -> None:
    module = build("(int64[N] x) => (int64[N] y) { a = Mul(x, i) y = Mul(a, i) }", i=np.array(3, np.int64))
    assert unchanged(module, FuseAffine()) == set()


def test_a_constant_that_widens_its_input_keeps_its_shape() -> None:
    module = build("(float[N,1] x) => (float[N,4] y) { a = Mul(x, k) b = Add(a, r) y = Mul(b, k) }", k=C["k"], r=numbers(4))
    fuse(module, FuseAffine())
    assert ops(module) == ["Mul", "Add"]


FILL = "f = Constant<value=int64[4] {6,4,3,3}>() w = ConstantOfShape<value=float[1] {0.125}>(f)"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("c = Conv(x, w) d = Mul(c, s) y = Add(d, t)", ["ConstantOfShape", "Expand", "Conv"]),
        ("d = Mul(x, r) y = Conv(d, w)", ["ConstantOfShape", "Expand", "Conv"]),
        ("d = Add(x, r) y = Conv(d, w)", ["ConstantOfShape", "Expand", "Conv"]),
    ],
)
def test_a_computed_weight_stays_computed(body: str, left: list[str]) -> None:
    module = build(
        f"(float[N,4,8,8] x) => (float[N,6,6,6] y) {{ {FILL} {body} }}",
        **{n: a for n, a in (C | {"r": numbers(4, 1, 1)}).items() if f" {n})" in body},
    )
    fuse(module, FuseAffine())
    assert sorted(set(ops(module))) == sorted(left)  # an Expand that the next one replaced is dead code by now
    assert all(v.const_value is None or v.const_value.nbytes <= 4 * 4 * 6 for v in module.graph.initializers.values())


def test_a_computed_weight_that_would_have_to_be_stored_stays_unfused() -> None:
    module = build(
        "(float[N,256,4,4] x) => (float[N,128,4,4] y) { f = Constant<value=int64[4] {128,256,1,1}>() "
        "w = ConstantOfShape<value=float[1] {0.125}>(f) d = Mul(x, r) e = Conv(d, w) y = Mul(e, q) }",
        r=numbers(256, 1, 1), q=numbers(128, 1, 1),
    )  # fmt: skip
    result = fuse(module, FuseAffine())
    assert ops(module).count("Mul") == 1
    assert {r.reason for r in result.refusals} == {"its weight is computed; the fused one would add 262144 bytes to the file"}


def held(body: str, **initializers: np.ndarray) -> object:
    module = build(f"(float[N] x) => (float[N] y) {{ {body} y = Relu(x) }}", **initializers)
    (value,) = (v for node in module.graph for v in node.outputs if v.name == "w")
    return compact_constant(value)


def test_what_is_read_without_being_stored() -> None:
    filled = held(FILL)
    assert filled.numbers.shape == (1, 1, 1, 1) and filled.shape == (6, 4, 3, 3) and not filled.stored  # type: ignore[attr-defined]
    assert filled.dense().sum() == 0.125 * 216 and filled.dtype == ir.DataType.FLOAT  # type: ignore[attr-defined]
    spread = held("w = Expand(a, f)", a=numbers(4, 1), f=np.array([3, 1, 5], np.int64))
    assert spread.shape == (3, 4, 5) and spread.numbers.shape == (1, 4, 1)  # type: ignore[attr-defined]
    assert held("w = Expand(a, f)", a=numbers(4), f=np.array([3], np.int64)) is None
    assert held("w = Expand(x, f)", f=np.array([3], np.int64)) is None
    assert held("w = ConstantOfShape(f)", f=np.array([1 << 62], np.int64)) is None
    assert held("w = ConstantOfShape(f)", f=np.array([-1], np.int64)) is None
    assert held("w = ConstantOfShape(f)", f=np.ones(1024, np.int64)) is None  # more dimensions than numpy has
