"""fuse-affine: scales and shifts move into weights, whatever the order, groups, rank and type; or a reason says why not."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, run, unchanged

from joulec.passes._linear import MAX_FUSIONS
from joulec.passes.fuse_affine import FuseAffine

C = {"s": numbers(6, 1, 1, seed=1), "t": numbers(6, 1, 1, seed=2), "w": numbers(6, 4, 3, 3), "b": numbers(6)}
X = "(float[N,4,8,8] x) => (float[N,6,p,q] y)"


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, w) y = Mul(c, s)",
        "c = Conv(x, w) y = Mul(s, c)",
        "c = Conv(x, w, b) y = Add(c, t)",
        "c = Conv(x, w, b) y = Add(t, c)",
        "c = Conv(x, w) y = Sub(c, t)",
        "c = Conv(x, w, b) y = Sub(t, c)",
        "c = Conv(x, w, b) y = Div(c, s)",
        "c = Conv<pads=[1,1,1,1], strides=[2,1], dilations=[1,2]>(x, w, b) d = Mul(c, s) e = Add(t, d) y = Div(e, s)",
        "c = Conv<auto_pad=\"SAME_UPPER\">(x, w) d = Add(c, t) y = Mul(s, d)",
    ],
)
def test_behind_a_convolution(body: str) -> None:
    module = build(f"{X} {{ {body} }}", **C)
    fuse(module, FuseAffine())
    assert ops(module) == ["Conv"]


BN = {n: numbers(6, seed=i) for i, n in enumerate(("gamma", "beta", "mean"), 3)} | {"var": numbers(6, seed=9) ** 2}


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 14, 15, 19, 21])
def test_batch_normalization_of_every_opset(opset: int) -> None:
    module = build(f"{X} {{ c = Conv(x, w, b) y = BatchNormalization<epsilon=0.01>(c, gamma, beta, mean, var) }}", opset, **C, **BN)
    result = fuse(module, FuseAffine())
    assert ops(module) == ["Conv"]
    assert [r.rule for r in result.rewrites] == ["affine-behind"]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_groups_and_depthwise(kind: str, groups: int) -> None:
    shape = (8, 4 // groups, 3, 3) if kind == "Conv" else (4, 8 // groups, 3, 3)
    parameters = {n: numbers(8, seed=i) for i, n in enumerate(("gamma", "beta", "mean"))} | {"var": numbers(8, seed=9) ** 2}
    module = build(
        f"(float[2,4,5,5] x) => (float[2,8,p,q] y) {{ c = {kind}<group={groups}>(x, w) "
        "d = BatchNormalization(c, gamma, beta, mean, var) y = Mul(d, s) }",
        w=numbers(*shape), s=numbers(8, 1, 1), **parameters,
    )  # fmt: skip
    fuse(module, FuseAffine())
    assert ops(module) == [kind]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("body", ["m = Mul(x, s) a = Add(m, t) y = {}(a, w)", "a = Sub(t, x) y = {}(a, w, b)"])
def test_before_a_convolution_that_pads_nothing(groups: int, body: str) -> None:
    module = build(
        f"(float[2,4,5,5] x) => (float[2,8,p,q] y) {{ {body.format(f'Conv<group={groups}>')} }}",
        w=numbers(8, 4 // groups, 3, 3), b=numbers(8), s=numbers(4, 1, 1), t=numbers(1, 4, 1, 1),
    )  # fmt: skip
    fuse(module, FuseAffine())
    assert ops(module) == ["Conv"]


def test_a_scale_before_a_padded_convolution() -> None:
    module = build(f"{X} {{ m = Mul(s4, x) y = Conv<pads=[1,1,1,1]>(m, w) }}", **C, s4=numbers(4, 1, 1))
    fuse(module, FuseAffine())
    assert ops(module) == ["Conv"]


@pytest.mark.parametrize("attributes", ["", "<transB=1>", "<alpha=0.5, beta=3.0>", "<transA=1, alpha=2.0>", "<beta=0.25>"])
@pytest.mark.parametrize("bias", ["", ", b", ", scalar", ", row", ", one"])
def test_behind_a_gemm(attributes: str, bias: str) -> None:
    shape = (6, 5) if "transB" in attributes else (5, 6)
    module = build(
        f"(float[5,5] x) => (float[5,6] y) {{ g = Gemm{attributes}(x, w{bias}) m = Mul(g, s) a = Add(t, m) y = Div(a, two) }}",
        w=numbers(*shape), b=numbers(6), scalar=numbers(), row=numbers(1, 6), one=numbers(1), s=numbers(6), t=numbers(1, 6),
        two=np.array(2.0, np.float32),
    )  # fmt: skip
    fuse(module, FuseAffine())
    assert ops(module) == ["Gemm"]


@pytest.mark.parametrize("attributes", ["", "<transB=1>", "<alpha=0.5, beta=3.0>"])
def test_before_a_gemm(attributes: str) -> None:
    shape = (6, 5) if "transB" in attributes else (5, 6)
    module = build(
        f"(float[5,5] x) => (float[5,6] y) {{ m = Mul(x, s) a = Add(t, m) y = Gemm{attributes}(a, w, b) }}",
        w=numbers(*shape), b=numbers(6), s=numbers(5), t=numbers(1, 5),
    )  # fmt: skip
    fuse(module, FuseAffine())
    assert ops(module) == ["Gemm"]


@pytest.mark.parametrize("head", ["(float[N,5] x) => (float[N,6] y)", "(float[2,N,5] x) => (float[2,N,6] y)"])
def test_scales_on_both_sides_of_a_matmul(head: str) -> None:
    module = build(f"{head} {{ m = Mul(x, s) p = MatMul(m, w) y = Div(p, u) }}", w=numbers(5, 6), s=numbers(5), u=numbers(6))
    fuse(module, FuseAffine())
    assert ops(module) == ["MatMul"]


@pytest.mark.parametrize(("kind", "name"), [("float16", "float16"), ("double", "float64")])
def test_other_float_types(kind: str, name: str) -> None:
    arrays = {n: a.astype(name) for n, a in {"w": numbers(5, 6), "b": numbers(6), "s": numbers(6), "t": numbers(6)}.items()}
    module = build(f"({kind}[2,5] x) => ({kind}[2,6] y) {{ c = Gemm(x, w, b) d = Mul(c, s) y = Add(d, t) }}", **arrays)
    fuse(module, FuseAffine())
    assert ops(module) == ["Gemm"]
    assert {v.const_value.dtype.numpy() for v in module.graph.initializers.values()} == {np.dtype(name)}


def test_mixed_types_of_batch_normalization_keep_the_weight_type() -> None:
    half = {n: C[n].astype("float16") for n in ("w", "b")}
    module = build(
        "(float16[2,4,8,8] x) => (float16[2,6,p,q] y) { c = Conv(x, w, b) y = BatchNormalization(c, gamma, beta, mean, var) }",
        **half, **{n: a.astype("float16") if n in ("gamma", "beta") else a for n, a in BN.items()},
    )  # fmt: skip
    fuse(module, FuseAffine())
    assert ops(module) == ["Conv"]


def test_a_mask_stays_with_its_pruned_weight() -> None:
    weight = numbers(6, 4, 3, 3)
    mask = np.abs(weight) > 0.5
    module = build(f"{X} {{ c = Conv(x, w) y = Mul(c, s) }}", w=np.where(mask, weight, 0), s=C["s"])
    module.masks["w"] = mask
    fuse(module, FuseAffine())  # verifies masks
    (conv,) = module.graph
    np.testing.assert_array_equal(module.masks[conv.inputs[1].name], mask)


def test_a_shared_weight_is_split_not_spoilt() -> None:
    module = build("(float[N,4,8,8] x) => (float[N,6,p,q] y, float[N,6,p,q] z) { c = Conv(x, w) y = Mul(c, s) z = Conv(x, w) }", **C)
    fuse(module, FuseAffine())
    one, other = module.graph
    assert one.inputs[1] is not other.inputs[1]
    assert other.inputs[1].name == "w"


def test_a_weight_that_is_a_graph_output_keeps_its_numbers() -> None:
    module = build("(float[N,4,8,8] x) => (float[N,6,p,q] y, float[6,4,3,3] w) { c = Conv(x, w) y = Mul(c, s) }", **C)
    fuse(module, FuseAffine())
    assert ops(module) == ["Conv"]


IF = "(bool c, float[2,4,8,8] x) => (float[2,6,6,6] y) {{ {outer} y = If (c) <then_branch = tb () => (float[2,6,6,6] u) {{ {then} }}, else_branch = eb () => (float[2,6,6,6] v) {{ v = Conv(x, w2) }}> }}"


def test_inside_a_branch_with_captured_weights() -> None:
    module = build(IF.format(outer="", then="k = Conv(x, w, b) u = Mul(k, s)"), **C, w2=C["w"])
    fuse(module, FuseAffine())
    assert module.node_count() == 3


def test_a_convolution_outside_whose_scale_stands_in_a_branch() -> None:
    module = build(IF.format(outer="k = Conv(x, w, b)", then="m = Mul(k, s) u = Relu(m)"), **C, w2=C["w"])
    fuse(module, FuseAffine())
    assert module.node_count() == 4


def test_a_branch_output_is_not_given_an_outer_value() -> None:
    module = build(IF.format(outer="k = Conv(x, w, b)", then="u = Mul(k, s)"), **C, w2=C["w"])
    assert unchanged(module, FuseAffine()) == {"'u' is a graph output and 'k' cannot take its place"}


def test_a_scale_outside_of_a_convolution_in_a_branch() -> None:
    module = build(IF.format(outer="m = Mul(x, s4)", then="u = Conv(m, w, b)"), **C, w2=C["w"], s4=numbers(4, 1, 1))
    fuse(module, FuseAffine())
    assert module.node_count() == 3


def test_inside_a_function() -> None:
    module = build(
        "(float[2,5] x) => (float[2,6] y) { y = own.f(x) }",
        functions='<domain: "own", opset_import: ["" : 19]> f (p) => (q) { w = Constant<value=float[1,2] {3.0,-4.0}>() '
        "s = Constant<value=float[2] {0.5,2.0}>() r = Constant<value=float[5,1] {1.0,2.0,3.0,4.0,5.0}>() "
        "a = MatMul(p, r) m = MatMul(a, w) n = Mul(m, s) k = Constant<value_ints=[1,3]>() q = Tile(n, k) }",
    )  # fmt: skip
    module.model.opset_imports["own"] = 1
    fuse(module, FuseAffine())
    (function,) = module.model.functions.values()
    assert [n.op_type for n in function if n.op_type != "Constant"] == ["MatMul", "MatMul", "Tile"]


REFUSED = {
    "used-elsewhere": ("c = Conv(x, w) y = Mul(c, s) z = Relu(c)", "the linear operator's output is used elsewhere too"),
    "not-per-channel": ("c = Conv(x, w) y = Mul(c, row)", "its constant of shape [6] is not per channel"),
    "rank": ("c = Conv(x, w) y = Mul(c, five)", "its constant raises the rank"),
    "scalar-rank": ("c = Conv(x, w) y = Mul(c, five1)", "a constant of rank 5 raises the rank"),
    "grows": ("c = Conv(x, narrow) y = Mul(c, s)", "it has 6 channels, the linear operator 1"),
    "overflow": ("c = Conv(x, w) y = Mul(c, huge)", "the fused weights would not be finite"),
    "nan": ("c = Conv(x, w) y = BatchNormalization(c, gamma, beta, mean, negative)", "the fused weights would not be finite"),
    "computed-bias": ("n = Neg(b) c = Conv(x, w, n) y = Mul(c, s)", "its bias is not a constant"),
    "shift-before": ("a = Add(x, t4) y = Conv<pads=[0,0,0,1]>(a, w)", "a shift before a padded Conv changes its border"),
    "shift-before-auto": (
        "a = Add(x, t4) y = Conv<auto_pad=\"SAME_LOWER\">(a, w)", "a shift before a padded Conv changes its border",
    ),
    "before-elsewhere": ("a = Mul(x, t4) y = Conv(a, w) z = Neg(a)", "Mul before it is used elsewhere too"),
    "training": (
        "c = Conv(x, w) y, m1, v1 = BatchNormalization<training_mode=1>(c, gamma, beta, mean, var)",
        "BatchNormalization is in training mode",
    ),
    "computed-mean": (
        "c = Conv(x, w) n = Neg(mean) y = BatchNormalization(c, gamma, beta, n, var)",
        "BatchNormalization's parameters are not constants",
    ),
}  # fmt: skip
ODD = {
    "row": numbers(6), "five": numbers(2, 1, 6, 1, 1), "five1": numbers(1, 1, 1, 1, 1), "narrow": numbers(1, 4, 3, 3),
    "huge": np.full((1,), 3e38, np.float32), "negative": -np.ones(6, np.float32), "t4": numbers(4, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason(case: str) -> None:
    body, reason = REFUSED[case]
    module = build(f"(float[N,4,8,8] x) => (float y) {{ {body} }}", **C, **BN, **ODD)
    assert reason in unchanged(module, FuseAffine())


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, w) y = Div(s, c)",
        "c = Conv(x, w) y = Mul(c, c)",
        "c = Conv(x, w) d = Conv(x, w) y = Add(c, d)",
        "c = Conv(x, w) d = Relu(c) y = Mul(d, s)",
        "c = Conv(x, w) y = Div(c, zeros)",
        "c = Conv(x, w) y = own.Mul(c, s)",
    ],
)
def test_what_is_no_affine_map_stays(body: str) -> None:
    module = build(f"(float[N,4,8,8] x) => (float[N,6,6,6] y) {{ {body} }}", **C, zeros=np.zeros((6, 1, 1), np.float32))
    assert unchanged(module, FuseAffine()) == set()


@pytest.mark.parametrize("tail", ["m = Mul(n, g)", "k = Mul(n, g) m = Add(k, h)"])
def test_the_scale_and_shift_of_a_layer_normalization_stay(tail: str) -> None:
    """Runtimes fuse the whole of it, and only the whole: without them it would run as seven operators."""
    module = build(
        "(float[N,5,4] x) => (float[N,5,6] y) { a = ReduceMean<axes = [-1]>(x) d = Sub(x, a) q = Mul(d, d) "
        f"v = ReduceMean<axes = [-1]>(q) e = Add(v, tiny) r = Sqrt(e) n = Div(d, r) {tail} y = MatMul(m, w) }}", 16,
        w=numbers(4, 6), g=numbers(4), tiny=np.array(1e-5, np.float32), **({"h": numbers(4, seed=1)} if "Add" in tail else {}),
    )  # fmt: skip
    assert {reason.split("' ")[-1] for reason in unchanged(module, FuseAffine())} <= {
        "Mul ends a layer normalization, which runtimes fuse only as a whole",
        "Add ends a layer normalization, which runtimes fuse only as a whole",
    }


def test_a_weight_that_callers_may_feed_stays() -> None:
    module = build("(float[N,4,8,8] x, float[6,4,3,3] w) => (float[N,6,6,6] y) { c = Conv(x, w) y = Mul(c, s) }", **C)
    assert unchanged(module, FuseAffine()) == {"weight 'w' is a graph input that callers may feed"}


def test_a_constant_that_broadcasts_its_input_wider_stays() -> None:
    module = build("(float[N,1,8,8] x) => (float[N,6,6,6] y) { m = Mul(x, s4) y = Conv(m, w) }", **C, s4=numbers(4, 1, 1))
    assert unchanged(module, FuseAffine()) == {"its constant of 4 channels widens an input of 1"}


def test_a_constant_on_channels_of_unknown_number_stays() -> None:
    module = build("(float[N,M,8,8] x) => (float[N,6,6,6] y) { m = Mul(x, s4) y = Conv(m, w) }", **C, s4=numbers(4, 1, 1))
    assert unchanged(module, FuseAffine()) == {"its constant of 4 channels may widen an input of unknown channels"}


def test_batch_normalization_cannot_widen_channels_of_unknown_number() -> None:
    four = {n: numbers(4, seed=i) ** 2 for i, n in enumerate(("g", "h", "i", "j"))}
    module = build("(float[N,M,8,8] x) => (float[N,6,6,6] y) { m = BatchNormalization(x, g, h, i, j) y = Conv(m, w) }", **C, **four)
    fuse(module, FuseAffine(), {"x": numbers(2, 4, 8, 8)})
    assert ops(module) == ["Conv"]


def test_a_long_chain_of_scales_costs_bounded_work_and_names() -> None:
    chain = "".join(f"c{i + 1} = Mul(c{i}, one) " for i in range(MAX_FUSIONS + 40))
    module = build(f"{X} {{ c0 = Conv(x, w) {chain} y = Relu(c{MAX_FUSIONS + 40}) }}", **C, one=np.array(-1.0, np.float32))
    result = fuse(module, FuseAffine())
    assert ops(module) == ["Conv", "Mul", "Relu"]  # what the weight no longer takes in becomes one Mul
    assert f"its weight was rescaled {MAX_FUSIONS} times already" in {refusal.reason for refusal in result.refusals}
    assert max(len(name) for name in module.graph.initializers) < 20


def test_matmul_keeps_a_shift_that_it_has_no_bias_for() -> None:
    module = build("(float[N,5] x) => (float[N,6] y) { m = MatMul(x, w) y = Add(m, t) }", w=numbers(5, 6), t=numbers(6))
    assert unchanged(module, FuseAffine()) == {"MatMul has no bias; fuse-gemm takes this shift where ranks allow"}


def test_a_gemm_of_beta_zero_keeps_its_shift() -> None:
    module = build("(float[N,5] x) => (float[N,6] y) { m = Gemm<beta=0.0>(x, w, t) y = Add(m, t) }", w=numbers(5, 6), t=numbers(6))
    assert unchanged(module, FuseAffine()) == {"Gemm has beta = 0"}


def test_a_gemm_bias_per_row_stays() -> None:
    module = build("(float[5,5] x) => (float[5,6] y) { m = Gemm(x, w, c) y = Mul(m, t) }", w=numbers(5, 6), t=numbers(6), c=numbers(5, 1))
    assert unchanged(module, FuseAffine()) == {"its bias has rank 2"}


def test_batch_normalization_per_activation_stays() -> None:
    wide = {n: numbers(6, 1, 1, seed=i) ** 2 for i, n in enumerate(("g", "h", "i", "j"))}
    module = build("(float[2,4,3,3] x) => (float[2,6,1,1] y) { c = Conv(x, w) y = BatchNormalization<spatial=0>(c, g, h, i, j) }", 7, **C, **wide)
    assert unchanged(module, FuseAffine()) == {"BatchNormalization normalizes each activation by itself"}


def test_half_precision_weights_are_not_fused_into_nothing() -> None:
    arrays = {"w": np.full((6, 4, 3, 3), 1e-3, np.float16), "s": np.full((6, 1, 1), 1e-5, np.float16)}
    module = build("(float16[2,4,8,8] x) => (float16[2,6,6,6] y) { c = Conv(x, w) y = Mul(c, s) }", **arrays)
    assert unchanged(module, FuseAffine()) == {"the fused weights would underflow"}


def test_a_bias_that_does_not_fit_half_precision_changes_nothing() -> None:
    arrays = {n: C[n].astype(np.float16) for n in ("w", "b")} | {"t": np.full((6, 1, 1), 6e4, np.float16)}
    module = build("(float16[2,4,8,8] x) => (float16[2,6,6,6] y) { c = Conv(x, w, b) d = Add(c, t) y = Add(d, t) }", **arrays)
    fuse(module, FuseAffine(), {"x": numbers(2, 4, 8, 8, dtype="float16") - 40})
    assert ops(module) == ["Conv", "Add"]


def test_before_opset_7_operands_broadcast_by_attribute() -> None:
    module = build("(float[2,4,8,8] x) => (float[2,6,6,6] y) { c = Conv(x, w) y = Mul<broadcast=1, axis=1>(c, b) }", 6, **C)
    assert unchanged(module, FuseAffine()) == set()


def test_a_function_attribute_refuses_one_node_and_not_the_pass() -> None:
    module = build(
        "(float[2,4,8,8] x) => (float[2,6,p,q] z) { c = Conv(x, w) y = Mul(c, s) z = own.f<e=0.5>(y, w, b) }",
        functions='<domain: "own", opset_import: ["" : 19]> f <e> (p, w, b) => (q) { '
        "k = Constant<value=float[1] {2.0}>() q = LeakyRelu<alpha: float = @e>(p) }", **C,
    )  # fmt: skip
    module.model.opset_imports["own"] = 1
    fuse(module, FuseAffine())
    assert ops(module) == ["Conv", "f"]


def test_outputs_that_nobody_uses_put_batch_normalization_in_training_mode() -> None:
    body = "c = Conv(x, w) y, a1, a2, a3, a4 = BatchNormalization(c, gamma, beta, mean, var)"
    assert unchanged(build(f"{X} {{ {body} }}", 9, **C, **BN), FuseAffine()) == {"BatchNormalization is in training mode"}


def test_a_nan_in_the_weight_is_left_where_it_is() -> None:
    weight = C["w"].copy()
    weight[0, 0, 0, 0] = np.nan
    module = build(f"{X} {{ c = Conv(x, w) y = Mul(c, s) }}", w=weight, s=C["s"])
    assert unchanged(module, FuseAffine()) == {"the fused weights would not be finite"}


def test_the_fused_node_names_what_it_came_from() -> None:
    module = build(f"{X} {{ c = Conv(x, w) y = Mul(c, s) }}", **C)
    for node, name in zip(module.graph, ("conv", "scale"), strict=True):
        node.name = name
    fuse(module, FuseAffine())
    (conv,) = module.graph
    assert conv.name == "conv"
    assert conv.metadata_props["joulec.pass"] == "fuse-affine"
    assert "scale" in conv.metadata_props["joulec.sources"]
    assert conv.outputs[0].name == "y"
    assert run(module, {"x": numbers(1, 4, 8, 8)})["y"].shape == (1, 6, 6, 6)
