"""eliminate-identity: removed only where the output is the input, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from rewrite_kit import apply, ops, reasons

from joulec.ir.module import Module
from joulec.passes.eliminate_identity import EliminateIdentity

Parse = Callable[..., Module]
X = np.array([[-0.0, np.nan, np.inf], [1.0, -2.0, 3.5]], np.float32)
HEAD = "agraph (float[2,3] x) => (float[2,3] y) <float one = {1.0}, float zero = {0.0}, float[1,1,1] wide = {1.0}>"


@pytest.mark.parametrize(
    "op",
    [
        "Identity(a)",
        "Dropout(a)",
        "Cast<to=1>(a)",
        "Mul(a, one)",
        "Mul(one, a)",
        "Div(a, one)",
        "Sub(a, zero)",
        "Max(a)",
        "Sum(a)",
        "Concat<axis=0>(a)",
        "Transpose<perm=[0,1]>(a)",
        "Flatten(a)",
    ],
)
def test_unchanged_input_is_used_instead(op: str, parse: Parse) -> None:
    module = parse(f"{HEAD} {{ a = Neg(x) b = {op} y = Abs(b) }}")
    assert len(apply(module, EliminateIdentity(), {"x": X}).rewrites) == 1
    assert ops(module) == ["Neg", "Abs"]


@pytest.mark.parametrize("op", ["Add(a, zero)", "Sub(zero, a)", "Div(one, a)", "Transpose(a)", "Cast<to=11>(a)"])
def test_what_changes_something_stays(op: str, parse: Parse) -> None:
    module = parse(f"{HEAD} {{ a = Neg(x) b = {op} c = Cast<to=1>(b) y = Reshape(c, s) }}".replace(
        "wide = {1.0}>", "wide = {1.0}, int64[2] s = {2,3}>"))  # fmt: skip
    apply(module, EliminateIdentity(), {"x": X})
    assert op.split("(")[0].split("<")[0] in ops(module)


def test_multiplying_by_one_of_higher_rank_stays(parse: Parse) -> None:
    module = parse("agraph (float[2,3] x) => (float[1,2,3] y) <float[1,1,1] wide = {1.0}> { y = Mul(x, wide) }")
    apply(module, EliminateIdentity(), {"x": X})
    assert ops(module) == ["Mul"]


def test_output_that_is_an_input_keeps_its_identity(parse: Parse) -> None:
    module = parse("agraph (float[2,3] x) => (float[2,3] y) { y = Identity(x) }")
    assert reasons(apply(module, EliminateIdentity(), {"x": X})) == {"it gives a graph output its name"}
    assert ops(module) == ["Identity"]


def test_attribute_of_a_function_is_left_alone(parse: Parse) -> None:
    module = parse(
        "agraph (float[2,3] x) => (float[a,b] y) { y = own.f<k=1>(x) }", 19,
        '<domain: "own", opset_import: ["" : 19]> f <k> (p) => (q) { q = Cast<to: int = @k>(p) }',
    )  # fmt: skip
    module.model.opset_imports["own"] = 1
    assert not apply(module, EliminateIdentity()).changed


def test_an_output_of_four_bits_keeps_what_gives_it_its_name(parse: Parse) -> None:
    module = parse(
        "agraph (float[2,3] x) => (int4[2,3] q, int4[2,3] y) <float s = {0.5}>"
        "{ q = QuantizeLinear<output_dtype=22>(x, s) y = Transpose<perm=[0,1]>(q) }", 21
    )  # fmt: skip
    (reason,) = reasons(apply(module, EliminateIdentity()))
    assert reason.startswith("it gives a graph output its name, and there is no cpu kernel for Identity"), (
        "ONNX Runtime moves 4-bit numbers in Transpose, and has no Identity for them"
    )
    assert ops(module) == ["QuantizeLinear", "Transpose"]
