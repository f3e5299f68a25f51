"""Binding symbolic dimensions, and shape arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from joulec.energy import bind, symbols
from joulec.errors import InputError
from joulec.ir.module import Module
from joulec.ir.shapes import open_negative_dims
from joulec.ir.values import static_shape

Parse = Callable[..., Module]
TWO = "g (float[N,S,4] x, float[N,4,T] z) => (float[N,S,T] y) { y = MatMul(x, z) }"


def shape_of(module: Module, name: str) -> tuple[int, ...] | None:
    values = {value.name: value for node in module.graph for value in node.outputs}
    return static_shape(values[name])


def test_symbols_say_where_they_stand(parse: Parse) -> None:
    assert symbols(parse(TWO)) == {
        "N": "dimension 0 of input 'x'", "S": "dimension 1 of input 'x'", "T": "dimension 2 of input 'z'",
    }  # fmt: skip


def test_by_symbol(parse: Parse) -> None:
    module = parse(TWO)
    bound, assumed = bind(module, {"N": 2, "S": 3})
    assert shape_of(bound, "y") == (2, 3, 1)
    assert assumed == {"T": 1}
    assert static_shape(module.graph.inputs[0]) is None, "the original is left as it is"


def test_by_input_binds_the_symbol_everywhere(parse: Parse) -> None:
    bound, assumed = bind(parse(TWO), {"x": (2, 3, 4)})
    assert static_shape(bound.graph.inputs[1]) == (2, 4, 1)
    assert assumed == {"T": 1}


@pytest.mark.parametrize("spelling", ["?", ""])
def test_unnamed_dimensions_are_each_their_own(parse: Parse, spelling: str) -> None:
    module = parse("g (float[3,3] x) => (float[3,3] y) { y = Exp(x) }")
    module.graph.inputs[0].shape = ir.Shape([spelling or None, spelling or None])
    assert list(symbols(module)) == ["x[0]", "x[1]"]
    bound, assumed = bind(module, {"x[1]": 5})
    assert static_shape(bound.graph.inputs[0]) == (1, 5)
    assert assumed == {"x[0]": 1}


def test_minus_one_means_any_size(parse: Parse) -> None:
    module = parse("g (float[3] x) => (float[M] y) { y = Exp(x) }")
    module.graph.inputs[0].shape = ir.Shape([-1])
    open_negative_dims(module.model)  # as whoever reads a file does
    bound, _ = bind(module, {"x": (4,)})
    assert shape_of(bound, "y") == (4,)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"batch": 2}, r"unknown name 'batch'; the symbols are: N, S, T; the inputs are: x \[N,S,4\]"),
        ({"N": 0}, "'N' must be at least 1"),
        ({"N": -3}, "'N' must be at least 1"),
        ({"x": (2, 3, 5)}, "dimension 2 of input 'x' is fixed at 4, given 5"),
        ({"x": (2, 3)}, "rank 3"),
        ({"x": (2, 3, 4), "z": (5, 4, 1)}, "'N' is given as 2 and as 5"),
        ({"N": 1 << 60}, "at most"),
        ({"x": 3}, "rank 3"),
    ],
)
def test_refusals_say_why(parse: Parse, spec: dict[str, int | tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bind(parse(TWO), spec)


def test_graph_outputs_become_concrete(parse: Parse) -> None:
    bound, _ = bind(parse("g (float[N,4] x) => (float[unk__3,4] y) { y = Exp(x) }"), {"N": 7})
    assert static_shape(bound.graph.outputs[0]) == (7, 4)


def test_shape_arithmetic_is_followed_through_equal_and_where(parse: Parse) -> None:
    module = parse(
        """g (float[N,6] x) => (float[A,B,C] y) {
            s = Shape(x)  zero = Constant<value_ints=[0]>()  n = Gather(s, zero)
            m = Constant<value_ints=[-1, 2, 3]>()  rest = Constant<value_ints=[2, 3]>()
            t = Concat<axis=0>(n, rest)
            minus = Constant<value_ints=[-1]>()  unset = Equal(m, minus)  target = Where(unset, t, m)
            y = Reshape(x, target)
        }"""
    )
    bound, _ = bind(module, {"N": 5})
    assert shape_of(bound, "y") == (5, 2, 3)


def test_shape_arithmetic_through_floats_and_expand(parse: Parse) -> None:
    module = parse(
        """g (float[N,4] x) => (float[P] y) {
            s = Size(x)  f = Cast<to=1>(s)  half = Constant<value_float=0.5>()  h = Mul(f, half)  r = Ceil(h)
            i = Cast<to=7>(r)  axis = Constant<value_ints=[0]>()  shape = Unsqueeze(i, axis)
            one = Constant<value_floats=[1.0]>()  y = Expand(one, shape)
        }"""
    )
    bound, _ = bind(module, {"N": 3})
    assert shape_of(bound, "y") == (6,)


def test_constants_outside_a_branch_are_seen_inside(parse: Parse) -> None:
    module = parse(
        """g (bool c, float[N] x) => (float[P] y) {
            pads = Constant<value_ints=[0, 3]>()
            y = If(c) <then_branch = t () => (float[Q] a) { a = Pad(x, pads) },
                       else_branch = e () => (float[R] b) { b = Pad(x, pads) }>
        }"""
    )
    bound, _ = bind(module, {"N": 5})
    assert shape_of(bound, "y") == (8,)


def test_huge_shape_arithmetic_is_not_evaluated(parse: Parse) -> None:
    module = parse(
        "g (float[N] x) => (float[P] y) { s = Constant<value_ints=[1000000000000]>() y = ConstantOfShape(s) }"
    )
    bind(module, {"N": 3})  # returns at once: nothing of that size is made
