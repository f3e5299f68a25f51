"""raise-patterns: every spelling that exporters use, and the near misses with their reasons."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.ir.module import Module
from joulec.passes.raise_patterns import RaisePatterns

X = "(float[N,4,5] x) => (float[N,4,5] y)"
F = {
    "three": np.array(3.0, np.float32), "six": np.array([6.0], np.float32), "zero": np.array(0.0, np.float32),
    "sixth": np.array(1 / 6, np.float32), "one": np.array(1.0, np.float32), "half": np.array(0.5, np.float32),
    "two": np.array(2.0, np.float32), "root": np.array(1.41421, np.float32), "over": np.array(0.7071068, np.float32),
    "five": np.array(5.0, np.float32), "tiny": np.array(1e-5, np.float32), "g": numbers(5), "b": numbers(5, seed=1),
    "wide": numbers(1, 1, 1, 1), "g45": numbers(4, 5), "last": np.array([-1], np.int64), "lasts": np.array([1, 2], np.int64),
    "six1": np.array(6.0, np.float32), "firsts": np.array([1], np.int64),
}  # fmt: skip


def module(body: str, opset: int = 20, head: str = X) -> Module:
    used = set(re.findall(r"\w+", body))
    return build(f"{head} {{ {body} }}", opset, **{name: array for name, array in F.items() if name in used})


# -- HardSigmoid ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Add(x, three) c = Clip(a, zero, six1) p = Mul(x, c) y = Div(p, six)", ["HardSwish"]),
        ("a = Add(three, x) c = Clip(a, zero, six1) p = Mul(c, x) y = Mul(p, sixth)", ["HardSwish"]),
        ("a = Add(x, three) c = Clip(a, zero, six1) d = Div(c, six) y = Mul(x, d)", ["HardSwish"]),
        ("a = Add(x, three) c = Clip(a, zero, six1) y = Mul(sixth, c)", ["HardSigmoid"]),
        ("a = Add(x, half) c = Clip(a, zero, one) r = Relu(x) p = Mul(r, c) y = Mul(p, one)", ["Relu", "HardSigmoid", "Mul", "Mul"]),
    ],
)
def test_hard_sigmoids(body: str, left: list[str]) -> None:
    made = module(body)
    fuse(made, RaisePatterns())
    assert sorted(ops(made)) == sorted(left)


def test_hard_sigmoid_of_clip_with_attributes() -> None:
    made = module("a = Add(x, three) c = Clip<min = 0.0, max = 6.0>(a) p = Mul(x, c) y = Div(p, six)", 9)
    fuse(made, RaisePatterns())
    assert ops(made) == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        ("a = Add(x, three) c = Clip(a, zero, six1) p = Mul(x, c) y = Div(p, five)", {"the factor 0.2 does not undo the upper bound 6"}),
        ("a = Add(x, three) c = Clip(a, zero, six1) p = Mul(x, c) q = Div(p, six) y = Add(q, a)", {"what is clipped is used elsewhere too"}),
        ("a = Add(x, three) c = Clip(a, zero, six1) p = Mul(a, c) y = Div(p, six)", {"what is clipped is used elsewhere too"}),
        ("a = Add(x, three) c = Clip(a, half, six1) p = Mul(x, c) y = Div(p, six)", set()),
        ("a = Add(x, three) c = Clip(a, zero) p = Mul(x, c) y = Div(p, six)", set()),
        ("a = Add(x, g) c = Clip(a, zero, six1) p = Mul(x, c) y = Div(p, six)", set()),
        ("a = Add(x, three) c = Clip(a, zero, six1) p = Mul(c, c) y = Div(p, six)", set()),
    ],
)
def test_what_is_no_hard_sigmoid_stays(body: str, reasons: set[str]) -> None:
    assert unchanged(module(body), RaisePatterns()) == reasons


def test_a_constant_that_raises_the_rank_stays() -> None:
    body = "a = Add(x, wide) c = Clip(a, zero, six1) y = Mul(c, sixth)"
    assert unchanged(module(body, head="(float[4,5] x) => (float[1,1,4,5] y)"), RaisePatterns()) == set()


def test_types_without_a_kernel_stay() -> None:
    arrays = {"three": np.array(3.0), "zero": np.array(0.0), "six": np.array(6.0)}
    made = build("(double[3] x) => (double[3] y) { a = Add(x, three) c = Clip(a, zero, six) p = Mul(x, c) y = Div(p, six) }", **arrays)
    assert unchanged(made, RaisePatterns()) == {"runtimes have HardSigmoid for float32 only, and this is not known to be"}


# -- LayerNormalization -----------------------------------------------------------------------------------------------

CENTRE = "m = ReduceMean(x, last) d = Sub(x, m) "
NORM = CENTRE + "s = Pow(d, two) v = ReduceMean(s, last) e = Add(v, tiny) r = Sqrt(e) "


@pytest.mark.parametrize(
    "body",
    [
        NORM + "y = Div(d, r)",
        NORM + "n = Div(d, r) y = Mul(n, g)",
        NORM + "n = Div(d, r) k = Mul(g, n) y = Add(b, k)",
        CENTRE + "s = Mul(d, d) v = ReduceMean(s, last) e = Add(tiny, v) r = Sqrt(e) n = Div(d, r) k = Mul(n, g) y = Add(k, b)",
        NORM.replace("last", "lasts") + "n = Div(d, r) y = Mul(n, g45)",
    ],
)
def test_layer_normalizations(body: str) -> None:
    made = module(body)
    fuse(made, RaisePatterns())
    assert ops(made) == ["LayerNormalization"]


def test_layer_normalization_with_axes_in_attributes() -> None:
    made = module(NORM.replace("ReduceMean(x, last)", "ReduceMean<axes = [-1]>(x)").replace("ReduceMean(s, last)", "ReduceMean<axes = [2]>(s)") + "n = Div(d, r) y = Mul(n, g)", 17)
    fuse(made, RaisePatterns())
    assert ops(made) == ["LayerNormalization"]


def test_a_scale_of_another_shape_stays_behind_it() -> None:
    made = module(NORM + "n = Div(d, r) y = Mul(n, half)")
    fuse(made, RaisePatterns())
    assert ops(made) == ["LayerNormalization", "Mul"]


@pytest.mark.parametrize(
    ("body", "opset", "reasons"),
    [
        (NORM + "y = Div(d, r)", 16, None),
        (NORM + "n = Div(d, r) y = Add(n, d)", 20, {"Sub inside it is used elsewhere too"}),
        (NORM.replace("Pow(d, two)", "Pow(d, three)") + "y = Div(d, r)", 20, set()),
        (NORM.replace("ReduceMean(s, last)", "ReduceMean(s, lasts)") + "y = Div(d, r)", 20, {"the two means are not known to be over the same axes"}),
        (NORM.replace("last)", "firsts)") + "y = Div(d, r)", 20, {"it normalizes over axes that are not the last ones"}),
        (NORM.replace("Sub(x, m)", "Sub(m, x)") + "y = Div(d, r)", 20, {"RMSNormalization needs opset 23, the model has 20"}),
    ],
)
def test_what_is_no_layer_normalization_stays(body: str, opset: int, reasons: set[str] | None) -> None:
    if reasons is None:
        body = body.replace("ReduceMean(x, last)", "ReduceMean<axes = [-1]>(x)").replace("ReduceMean(s, last)", "ReduceMean<axes = [2]>(s)")
        reasons = {"LayerNormalization needs opset 17, the model has 16"}
    assert unchanged(module(body, opset), RaisePatterns()) == reasons


def test_sizes_that_are_not_known_stay() -> None:
    assert unchanged(module(NORM + "y = Div(d, r)", head="(float[N,M] x) => (float[N,M] y)"), RaisePatterns()) == {"the sizes that it normalizes over are not known"}


# -- Gelu -------------------------------------------------------------------------------------------------------------

ERF = "u = Div(x, root) e = Erf(u) a = Add(e, one) "


@pytest.mark.parametrize(
    "body",
    [
        ERF + "p = Mul(x, a) y = Mul(p, half)",
        ERF + "h = Mul(half, x) y = Mul(h, a)",
        ERF + "h = Mul(a, half) y = Mul(h, x)",
        ERF.replace("Div(x, root)", "Mul(over, x)").replace("Add(e, one)", "Add(one, e)") + "p = Mul(a, x) y = Mul(half, p)",
    ],
)
def test_gelus(body: str) -> None:
    made = module(body)
    fuse(made, RaisePatterns())
    assert ops(made) == ["Gelu"]


@pytest.mark.parametrize(
    ("body", "opset", "reasons"),
    [
        (ERF + "p = Mul(x, a) y = Mul(p, half)", 19, {"Gelu needs opset 20, the model has 19"}),
        (ERF + "p = Mul(x, a) y = Mul(p, two)", 20, set()),
        (ERF + "p = Mul(x, a) q = Mul(p, half) y = Add(q, a)", 20, set()),
        (ERF.replace("root", "two") + "p = Mul(x, a) y = Mul(p, half)", 20, set()),
        (ERF + "z = Relu(x) p = Mul(z, a) y = Mul(p, half)", 20, set()),
    ],
)
def test_what_is_no_gelu_stays(body: str, opset: int, reasons: set[str]) -> None:
    assert unchanged(module(body, opset), RaisePatterns()) == reasons


def test_a_pattern_in_a_branch_is_raised() -> None:
    inner = ERF + "p = Mul(x, a) t = Mul(p, half)"
    made = module(f"y = If(on) <then_branch = g () => (float[N,4,5] t) {{ {inner} }}, else_branch = h () => (float[N,4,5] f) {{ f = Neg(x) }}>", head="(float[N,4,5] x, bool on) => (float[N,4,5] y)")
    result = fuse(made, RaisePatterns())
    assert [rewrite.rule for rewrite in result.rewrites] == ["raise-gelu"]
