"""fuse-gemm: MatMul and Add of rank 2 become one Gemm with the same numbers; other ranks stay, with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.passes.fuse_gemm import FuseGemm

W = {"w": numbers(5, 6), "b": numbers(6)}
HEAD = "(float[N,5] x) => (float[N,6] y)"


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 19, 21])
@pytest.mark.parametrize("add", ["Add(m, b)", "Add(b, m)"])
def test_matmul_and_add(add: str, opset: int) -> None:
    module = build(f"{HEAD} {{ m = MatMul(x, w) y = {add} }}", opset, **W)
    result = fuse(module, FuseGemm())
    assert ops(module) == ["Gemm"]
    assert [r.rule for r in result.rewrites] == ["mat-mul-add"]


@pytest.mark.parametrize("shape", [(), (1,), (6,), (1, 6), (1, 1)])
@pytest.mark.parametrize("opset", [9, 19])
def test_biases_that_broadcast_over_rows(shape: tuple[int, ...], opset: int) -> None:
    module = build(f"{HEAD} {{ m = MatMul(x, w) y = Add(m, c) }}", opset, w=W["w"], c=numbers(*shape))
    fuse(module, FuseGemm())
    assert ops(module) == ["Gemm"]


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_float_types(kind: str) -> None:
    arrays = {n: a.astype(kind) for n, a in W.items()}
    module = build(f"({kind}[N,5] x) => ({kind}[N,6] y) {{ m = MatMul(x, w) y = Add(m, b) }}", **arrays)
    fuse(module, FuseGemm())
    assert ops(module) == ["Gemm"]


@pytest.mark.parametrize(("rows", "inner", "columns"), [(0, 5, 6), (3, 0, 6), (3, 5, 0), (1, 1, 1)])
def test_empty_and_single_sizes(rows: int, inner: int, columns: int) -> None:
    module = build(
        f"(float[{rows},{inner}] x) => (float[{rows},{columns}] y) {{ m = MatMul(x, w) y = Add(b, m) }}",
        w=numbers(inner, columns), b=numbers(columns),
    )  # fmt: skip
    fuse(module, FuseGemm())
    assert ops(module) == ["Gemm"]


@pytest.mark.parametrize(
    ("body", "flags"),
    [
        ("t = Transpose(x) y = Gemm(t, w, b)", (1, 0)),
        ("t = Transpose<perm=[1,0]>(x5) y = Gemm<transA=1, transB=1>(t, v, b)", (0, 1)),
        ("t = Transpose(z) y = Gemm(x5, t)", (0, 1)),
        ("t = Transpose(x) u = Transpose<perm=[1,0]>(z) y = Gemm<alpha=0.5>(t, u, b)", (1, 1)),
        ("t = Transpose(x) m = MatMul(t, w) y = Add(m, b)", (1, 0)),
    ],
)
def test_transposes_become_flags(body: str, flags: tuple[int, int]) -> None:
    module = build(f"(float[5,3] x, float[3,5] x5, float[6,5] z) => (float[3,6] y) {{ {body} }}", **W, v=numbers(6, 5))
    fuse(module, FuseGemm())
    (gemm,) = module.graph
    assert tuple(gemm.attributes[n].as_int() if n in gemm.attributes else 0 for n in ("transA", "transB")) == flags


def test_a_pruned_weight_keeps_its_mask() -> None:
    mask = np.abs(W["w"]) > 0.5
    module = build(f"{HEAD} {{ m = MatMul(x, w) y = Add(m, b) }}", w=np.where(mask, W["w"], 0), b=W["b"])
    module.masks["w"] = mask
    fuse(module, FuseGemm())
    (gemm,) = module.graph
    assert gemm.inputs[1].name == "w"


def test_a_shared_weight_and_bias() -> None:
    module = build("(float[N,5] x, float[M,5] z) => (float[N,6] y, float[M,6] v) { m = MatMul(x, w) y = Add(m, b) n = MatMul(z, w) v = Add(b, n) }", **W)
    fuse(module, FuseGemm())
    assert ops(module) == ["Gemm", "Gemm"]
    assert len({id(node.inputs[1]) for node in module.graph}) == 1


def test_in_branches_with_captured_values() -> None:
    module = build(
        "(bool c, float[2,5] x) => (float[2,6] y) { k = MatMul(x, w) y = If (c) <then_branch = tb () => (float[2,6] u) "
        "{ u = Add(k, b) }, else_branch = eb () => (float[2,6] v) { n = MatMul(x, w) v = Add(b, n) }> }", **W,
    )  # fmt: skip
    fuse(module, FuseGemm())
    assert module.node_count() == 3


def test_in_the_body_of_a_loop() -> None:
    module = build(
        "(int64 n, float[2,5] x) => (float[2,5] y) { y = Loop (n, , x) <body = g (int64 i, bool k, float[2,5] a) => "
        "(bool k2, float[2,5] r) { k2 = Identity(k) m = MatMul(a, w) r = Add(m, b) }> }",
        w=numbers(5, 5) / 4, b=numbers(5),
    )  # fmt: skip
    fuse(module, FuseGemm(), {"n": np.array(3), "x": numbers(2, 5)})
    assert module.node_count() == 3


REFUSED = {
    "rank-3": ("(float[N,2,5] x) => (float y)", "m = MatMul(x, w) y = Add(m, b)", "its input has rank 3"),
    "rank-1": ("(float[5] x) => (float y)", "m = MatMul(x, w) y = Add(m, b)", "its input has rank 1"),
    "used": ("(float[N,5] x) => (float y, float z)", "m = MatMul(x, w) y = Add(m, b) z = Relu(m)", "the product is used elsewhere too"),
    "output": ("(float[N,5] x) => (float y, float m)", "m = MatMul(x, w) y = Add(m, b)", "the product is used elsewhere too"),
    "rows": (
        "(float[3,5] x) => (float y)", "m = MatMul(x, w) y = Add(m, rows)",
        "its bias of shape (3, 1) does not broadcast to the rows of the product",
    ),
    "full": (
        "(float[3,5] x) => (float y)", "m = MatMul(x, w) y = Add(m, full)",
        "its bias of shape (3, 6) does not broadcast to the rows of the product",
    ),
    "rank-raised": (
        "(float[3,5] x) => (float y)", "m = MatMul(x, w) y = Add(m, deep)",
        "its bias of shape (1, 1, 6) does not broadcast to the rows of the product",
    ),
    "widened": (
        "(float[3,5] x) => (float y)", "m = MatMul(x, narrow) y = Add(m, b)",
        "its bias of shape (6,) does not broadcast to the rows of the product",
    ),
}  # fmt: skip
ODD = {"rows": numbers(3, 1), "full": numbers(3, 6), "deep": numbers(1, 1, 6), "narrow": numbers(5, 1)}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason(case: str) -> None:
    head, body, reason = REFUSED[case]
    assert unchanged(build(f"{head} {{ {body} }}", **W, **ODD), FuseGemm()) == {reason}


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul(x, v) y = Add(m, b)",
        "m = MatMul(x, w) n = Neg(b) y = Add(m, n)",
        "m = MatMul(x, w) y = Mul(m, b)",
        "m = MatMul(x, w) y = own.Add(m, b)",
        "t = Transpose(x) s = Relu(t) y = Gemm(x, w, b)",
        "t = Transpose(v) y = Gemm(x, w, t)",
    ],
)
def test_what_is_no_such_pair_stays(body: str) -> None:
    assert unchanged(build(f"(float[N,5] x, float[5,6] v) => (float y) {{ {body} }}", **W), FuseGemm()) == set()


def test_a_transpose_that_others_use_stays() -> None:
    module = build("(float[5,N] x) => (float y, float z) { t = Transpose(x) y = Gemm(t, w, b) z = Relu(t) }", **W)
    assert unchanged(module, FuseGemm()) == set()


def test_one_transpose_on_both_sides_stays() -> None:
    module = build("(float[5,5] x) => (float[5,5] y) { t = Transpose(x) y = Gemm(t, t) }")
    assert unchanged(module, FuseGemm()) == set()


def test_integers_stay() -> None:
    module = build("(int32[N,5] x) => (int32 y) { m = MatMul(x, w) y = Add(m, b) }", w=np.ones((5, 6), np.int32), b=np.ones(6, np.int32))
    assert unchanged(module, FuseGemm()) == set()


def test_weights_that_callers_may_feed_stay() -> None:
    module = build("(float[N,5] x, float[5,6] w) => (float[N,6] y) { m = MatMul(x, w) y = Add(m, b) }", **W)
    assert unchanged(module, FuseGemm()) == set()


def test_before_opset_7_operands_broadcast_by_attribute() -> None:
    module = build("(float[3,5] x) => (float[3,6] y) { m = MatMul(x, w) y = Add<broadcast=1, axis=0>(m, b) }", 6, **W)
    assert unchanged(module, FuseGemm()) == set()


def test_the_output_keeps_its_name_and_the_node_its_sources() -> None:
    module = build(f"{HEAD} {{ m = MatMul(x, w) y = Add(m, b) }}", **W)
    for node, name in zip(module.graph, ("dense", "bias"), strict=True):
        node.name = name
    fuse(module, FuseGemm())
    (gemm,) = module.graph
    assert gemm.outputs[0].name == "y"
    assert gemm.metadata_props["joulec.sources"] == '["bias", "dense"]'
