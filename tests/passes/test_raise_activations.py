"""raise-patterns: clamps, activations and softmaxes, in every spelling, and the near misses."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, run, unchanged

from joulec.ir.module import Module
from joulec.passes.raise_patterns import RaisePatterns

X = "(float[N,4,5] x) => (float[N,4,5] y)"
N = {
    "zero": 0.0, "one": 1.0, "two": 2.0, "three": 3.0, "six": 6.0, "half": 0.5, "sixth": 1 / 6, "fifth": 0.2, "minus": -1.0,
    "root": 1.41421356, "over": 0.70710678, "k": 0.79788456, "c": 0.044715, "kc": 0.79788456 * 0.044715, "nan": np.nan,
}  # fmt: skip
F = {
    **{name: np.array(number, np.float32) for name, number in N.items()},
    "wide": np.full((1, 1, 1, 1), 2, np.float32), "five": np.full(5, 6, np.float32), "last": np.array([-1]),
    "middle": np.array([1]), "both": np.array([1, 2]), "itwo": np.array(2),
}  # fmt: skip


def module(body: str, opset: int = 18, head: str = X) -> Module:
    used = set(re.findall(r"\w+", body))
    return build(f"{head} {{ {body} }}", opset, **{name: array for name, array in F.items() if name in used})


def raised(body: str, opset: int = 18, head: str = X) -> list[str]:
    made = module(body, opset, head)
    fuse(made, RaisePatterns())
    return ops(made)


LINE = "m = Mul(x, fifth) a = Add(m, half) "
CURVE = "p = Pow(x, three) q = Mul(p, c) r = Add(x, q) s = Mul(r, k) t = Tanh(s) u = Add(t, one) "
SHIFTED = "m = ReduceMax(x, last) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, last) "
OLD = SHIFTED.replace("ReduceMax(x, last)", "ReduceMax<axes = [-1]>(x)").replace("ReduceSum(e, last)", "ReduceSum<axes = [2]>(e)")


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (LINE + "l = Max(a, zero) y = Min(l, one)", ["HardSigmoid"]),
        (LINE + "l = Min(a, one) y = Max(zero, l)", ["HardSigmoid"]),
        (LINE + "l = Relu(a) y = Min(l, one)", ["HardSigmoid"]),
        (LINE + "l = Min(one, a) y = Relu(l)", ["HardSigmoid"]),
        (LINE + "y = Clip(a, zero, one)", ["HardSigmoid"]),
        ("d = Div(x, six) a = Sub(d, minus) y = Clip(a, zero, one)", ["HardSigmoid"]),
        ("a = Add(x, three) r = Relu(a) c6 = Min(r, six) m = Mul(c6, sixth) y = Mul(x, m)", ["HardSwish"]),
        ("a = Add(x, three) l = Max(a, zero) c6 = Min(l, six) p = Mul(x, c6) y = Div(p, six)", ["HardSwish"]),
        ("r = Relu(x) y = Min(r, six)", ["Clip"]),
        ("l = Min(x, six) y = Relu(l)", ["Clip"]),
        ("l = Max(x, one) y = Min(six, l)", ["Clip"]),
        ("l = Max(x, zero) m = Min(l, six) y = Sigmoid(m)", ["Clip", "Sigmoid"]),
        ("r = Relu(x) y = Clip(r, minus, six)", ["Clip"]),
        ("a = Clip(x, minus, three) y = Clip(a, one, six)", ["Clip"]),
        ("a = Clip(x, minus, three) y = Relu(a)", ["Clip"]),
        ("b = Clip(x, three, six) y = Clip(b, zero, one)", ["Clip"]),
        ("h = Neg(x) e = Exp(h) a = Add(e, one) y = Div(one, a)", ["Sigmoid"]),
        ("h = Mul(x, minus) e = Exp(h) a = Add(one, e) y = Reciprocal(a)", ["Sigmoid"]),
        ("b = Abs(x) a = Add(b, one) y = Div(x, a)", ["Softsign"]),
        ("s = Softplus(x) t = Tanh(s) y = Mul(t, x)", ["Mish"]),
        ("y = Pow(x, two)", ["Mul"]),
        ("y = Pow(x, itwo)", ["Mul"]),
        ("s = Sigmoid(x) r = Reciprocal(s) y = Mul(x, r)", ["Sigmoid", "Div"]),
        (SHIFTED + "y = Div(e, s)", ["Softmax"]),
        (SHIFTED + "l = Log(s) y = Sub(d, l)", ["LogSoftmax"]),
    ],
)
def test_raised(body: str, left: list[str]) -> None:
    assert raised(body) == left


@pytest.mark.parametrize("opset", [8, 9, 10, 11, 13])
def test_clip_is_spelled_as_the_opset_has_it(opset: int) -> None:
    assert raised("r = Relu(x) y = Min(r, six)", opset) == ["Clip"]


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_softmax_over_the_last_axis_before_opset_13(opset: int) -> None:
    assert raised(OLD + "y = Div(e, s)", opset) == ["Softmax"]


@pytest.mark.parametrize(
    "body",
    [
        CURVE + "v = Mul(x, u) y = Mul(v, half)",
        CURVE + "v = Mul(half, x) y = Mul(u, v)",
        CURVE.replace("Pow(x, three)", "Mul(x2, x)").replace("p =", "x2 = Mul(x, x) p =") + "v = Mul(x, u) y = Mul(v, half)",
        "xk = Mul(x, k) cx = Mul(x, c) x2 = Mul(cx, x) q = Add(x2, one) s = Mul(xk, q) t = Tanh(s) u = Add(one, t) v = Mul(u, half) y = Mul(x, v)",
        "x2 = Pow(x, two) q = Mul(x2, kc) r = Add(q, k) s = Mul(x, r) t = Tanh(s) u = Add(one, t) v = Mul(u, x) y = Mul(half, v)",
    ],
)
def test_gelus_by_tanh(body: str) -> None:
    assert raised(body, 20) == ["Gelu"]


def test_gelu_by_the_complement() -> None:
    body = "h = Mul(half, x) n = Neg(x) u = Mul(n, over) e = Erf(u) f = Sub(one, e) y = Mul(h, f)"
    assert raised(body, 20) == ["Gelu"]


@pytest.mark.parametrize(
    "body",
    [
        "h = Mul(half, x) n = Neg(x) u = Mul(n, over) e = Erf(u) f = Sub(one, e) y = Mul(h, f)",
        "u = Mul(x, over) e = Erf(u) f = Add(e, one) h = Mul(x, f) y = Mul(h, half)",
        "u = Div(x, root) e = Erf(u) f = Add(e, one) h = Mul(f, half) y = Mul(h, x)",
    ],
)
def test_before_its_opset_gelu_is_spelled_as_runtimes_fuse_it(body: str) -> None:
    made = module(body)
    fuse(made, RaisePatterns())
    assert ops(made) == ["Div", "Erf", "Add", "Mul", "Mul"]
    assert unchanged(made, RaisePatterns()) == {"Gelu needs opset 20, the model has 18"}


@pytest.mark.parametrize(
    ("body", "opset", "reasons"),
    [
        (LINE + "l = Max(a, half) y = Min(l, one)", 18, None),
        ("l = Max(x, zero) y = Min(l, six)", 18, {"somebody may see that Clip keeps -0.0"}),
        ("l = Max(x, six) y = Min(l, one)", 18, set()),
        ("l = Max(x, nan) y = Min(l, one)", 18, set()),
        ("l = Relu(x) m = Min(l, five) y = Neg(m)", 18, set()),
        ("l = Relu(x) m = Min(l, six) y = Add(m, l)", 18, set()),
        ("a = Clip(x, minus) y = Clip(a, zero, six)", 18, set()),
        ("a = Clip(x, six, one) y = Clip(a, zero, six)", 18, set()),
        ("a = Clip(x, minus, one) b = Relu(a) y = Add(a, b)", 18, set()),
        ("h = Neg(x) e = Exp(h) a = Add(e, two) y = Div(one, a)", 18, set()),
        ("h = Neg(x) e = Exp(h) a = Add(e, one) y = Div(two, a)", 18, set()),
        ("h = Neg(x) e = Exp(h) a = Add(e, one) d = Div(one, a) y = Add(d, e)", 18, set()),
        ("e = Exp(x) a = Add(e, one) y = Log(a)", 18, set()),
        ("b = Abs(x) a = Add(b, one) y = Div(a, x)", 18, set()),
        ("s = Softplus(x) t = Tanh(s) y = Mul(t, s)", 18, set()),
        ("s = Softplus(x) t = Tanh(s) y = Mul(t, x)", 17, {"Mish needs opset 18, the model has 17"}),
        ("s = Sigmoid(x) y = Mul(x, s)", 24, set()),
        ("y = Pow(x, three)", 18, set()),
        ("r = Reciprocal(x) a = Mul(x, r) y = Add(a, r)", 18, set()),
        (CURVE + "v = Mul(x, u) y = Mul(v, half)", 19, {"Gelu needs opset 20, the model has 19"}),
        (CURVE.replace("Mul(r, k)", "Mul(r, half)") + "v = Mul(x, u) y = Mul(v, half)", 20, set()),
        (CURVE.replace("Add(x, q)", "Sub(x, q)") + "v = Mul(x, u) y = Mul(v, half)", 20, set()),
        ("e = Exp(x) s = ReduceSum(e, last) y = Div(e, s)", 18, {"without the maximum taken away large numbers overflow, and the operator's do not"}),
        (SHIFTED.replace("e, last", "e, both") + "y = Div(e, s)", 18, {"it is not over the last axis, where alone runtimes are faster"}),
        (SHIFTED.replace("last", "middle") + "y = Div(e, s)", 18, {"it is not over the last axis, where alone runtimes are faster"}),
        (SHIFTED.replace("Sub(x, m)", "Sub(m, x)") + "y = Div(e, s)", 18, {"without the maximum taken away large numbers overflow, and the operator's do not"}),
        ("s = Softmax<axis = -1>(x) y = Log(s)", 18, set()),
    ],
)
def test_near_misses_stay(body: str, opset: int, reasons: set[str] | None) -> None:
    if reasons is None:
        assert raised(body, opset) == ["Mul", "Add", "Clip"]
        return
    assert unchanged(module(body, opset), RaisePatterns()) == reasons


def test_a_constant_that_raises_the_rank_stays() -> None:
    head = "(float[4,5] x) => (float[1,1,4,5] y)"
    assert unchanged(module("l = Relu(x) m = Min(l, wide) y = Neg(m)", head=head), RaisePatterns()) == set()
    assert unchanged(module("y = Pow(x, wide)", head=head), RaisePatterns()) == set()


def test_special_numbers_come_out_the_same() -> None:
    x = np.array([np.nan, -0.0, 0.0, np.inf, -np.inf, -7, 7, 1e-40, -1e-40] * 5, np.float32).reshape(1, 1, 45)
    head = "(float[1,1,45] x) => (float[1,1,45] y)"
    for body in ("r = Relu(x) y = Min(r, six)", "l = Min(x, six) y = Relu(l)", "l = Max(x, one) y = Min(six, l)", "r = Relu(x) y = Clip(r, zero, six)"):
        made = module(body, head=head)
        before = _bits(made, x)
        assert RaisePatterns().run(made, None).changed  # type: ignore[arg-type]
        assert _bits(made, x) == before


def _bits(made: Module, x: np.ndarray) -> bytes:
    return run(made, {"x": x})["y"].tobytes()


def test_other_types_stay() -> None:
    head = "(double[3,4] x) => (double[3,4] y)"
    arrays = {"one": np.array(1.0)}
    body = "h = Neg(x) e = Exp(h) a = Add(e, one) y = Div(one, a)"
    assert unchanged(build(f"{head} {{ {body} }}", 18, **arrays), RaisePatterns()) == {"it is not known to be float32"}


def test_patterns_in_functions_stay() -> None:
    function = '<domain: "own", opset_import: ["" : 18]> f (a) => (b) { s = Softplus(a) t = Tanh(s) b = Mul(a, t) }'
    made = build("(float[3] x) => (float[3] y) { y = own.f(x) }", 18, function)
    made.model.opset_imports["own"] = 1
    assert unchanged(made, RaisePatterns()) == {"it is not known to be float32"}


def test_softmax_of_infinities() -> None:
    x = numbers(4, 1, 5)
    x[0, 0, 1], x[1, 0], x[2, 0, 3] = -np.inf, -np.inf, np.inf
    made = module(SHIFTED + "y = Div(e, s)", head="(float[4,1,5] x) => (float[4,1,5] y)")
    before = run(made, {"x": x})["y"]
    assert RaisePatterns().run(made, None).changed  # type: ignore[arg-type]
    np.testing.assert_allclose(run(made, {"x": x})["y"], before, rtol=1e-6)
