"""The parity gate, on models made by hand: what it lets pass, and on which feeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest

from joulec.errors import CheckError, InputError
from joulec.ir.lower import parity
from joulec.ir.lower.parity import check
from joulec.ir.module import Module
from joulec.ir.values import Array

Parse = Callable[..., Module]

STEEP = """g (float[batch, 64] x) => (float[batch, 64] y) {
    c = Constant<value = float[1] {10000.0}>()
    z = Mul(x, c)
    y = Sin(z)
}"""
"""One rounding step of x moves y by a thousandth: so does the rounding of the product."""


def steep(function: Callable[[Array], Array]) -> Callable[[dict[str, Array]], Mapping[str, Array]]:
    """The same with a product that is not rounded."""
    return lambda feed: {"y": function(feed["x"].astype(np.float64) * 10000.0).astype(np.float32)}


def test_what_rounding_inside_the_source_explains_passes(parse: Parse) -> None:
    found = check(parse(STEEP), steep(np.sin))
    assert found.feeds == 2 and parity.TOLERANCE["float32"] < found.outputs["y"] < parity.MOST


def test_what_rounding_does_not_explain_fails_however_sensitive_the_source_is(parse: Parse) -> None:
    with pytest.raises(CheckError, match=r"output 'y' differs .* a rounding step of the inputs moves it by 0\.00"):
        check(parse(STEEP), steep(np.cos))
    with pytest.raises(CheckError, match="output 'y' differs"):
        check(parse(STEEP), steep(lambda z: np.sin(z) * 1.02))


def test_a_source_that_is_not_sensitive_excuses_nothing(parse: Parse) -> None:
    module = parse("g (float[batch, 8] x) => (float[batch, 8] y) { y = Relu(x) }")
    with pytest.raises(CheckError, match="output 'y' differs"):
        check(module, lambda feed: {"y": np.maximum(feed["x"], 0) * np.float32(1.001)})


def test_sizes_grow_until_the_model_takes_them(parse: Parse) -> None:
    weight = "s = Constant<value = int64[3] {1, 1, 400}>() w = ConstantOfShape<value = float[1] {0.1}>(s)"
    module = parse(f"g (float[batch, 1, samples] x) => (float[batch, 1, n] y) {{ {weight} y = Conv(x, w) }}")
    session = onnxruntime.InferenceSession(module.to_proto().SerializeToString())
    sizes: list[int] = []

    def source(feed: dict[str, Array]) -> Mapping[str, Any]:
        sizes.append(feed["x"].shape[2])
        return {"y": session.run(None, dict(feed))[0]}

    assert check(module, source).feeds == 2
    assert sizes == [4096, 4096], "neither 16 nor 256 samples hold a window, and the source never saw them"


def test_a_model_that_takes_no_size_says_what_it_said_first(parse: Parse) -> None:
    shape = "s = Constant<value = int64[2] {7, 5}>()"
    module = parse(f"g (float[batch, n] x) => (float[a, 5] y) {{ {shape} y = Reshape(x, s) }}")
    with pytest.raises(InputError, match="Reshape"):
        check(module, lambda feed: {"y": feed["x"]})
