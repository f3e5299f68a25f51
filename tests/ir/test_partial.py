"""Partly known shape tensors: what is known of each element, and what must stay unknown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from joulec.ir.module import Module
from joulec.ir.partial import MAX_ELEMENTS, Known, ShapeFacts, reshape_target
from joulec.ir.runner import LocalRunner
from joulec.ir.shapes import infer_shapes
from joulec.ir.symbolic import Symbols
from joulec.passes.base import Context
from joulec.passes.fold_constants import FoldConstants
from joulec.passes.target import Target

Parse = Callable[..., Module]


def value(module: Module, name: str) -> ir.Value:
    values = [*module.graph.inputs, *(v for node in module.graph for v in node.outputs)]
    return next(v for v in values if v.name == name)


def known(module: Module, name: str) -> Known | None:
    infer_shapes(module)
    return ShapeFacts.of(module).get(value(module, name))


def numbers(module: Module, name: str) -> tuple[int, ...] | None:
    found = known(module, name)
    return None if found is None else found.numbers()


HEAD = "agraph (float[N,3,8,M] x, int64[2] given) => (int64[k] y)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("s = Shape(x) i = Constant<value=int64[2] {1,2}>() y = Gather(s, i)", (3, 8)),
        ("s = Shape(x) i = Constant<value=int64[1] {-2}>() y = Gather(s, i)", (8,)),
        ("y = Shape<start=1,end=3>(x)", (3, 8)),
        ("y = Shape<start=-3,end=-1>(x)", (3, 8)),
        (
            "s = Shape(x) a = Constant<value=int64[1] {1}>() b = Constant<value=int64[1] {-1}>() y = Slice(s, a, b)",
            (3, 8),
        ),
        ("s = Shape<start=1,end=3>(x) c = Constant<value=int64[1] {-1}>() y = Concat<axis=0>(s, c)", (3, 8, -1)),
        ("s = Shape<start=1,end=3>(x) c = Constant<value=int64 {2}>() y = Mul(s, c)", (6, 16)),
        ("s = Shape<start=1,end=3>(x) c = Constant<value=int64 {2}>() y = Div(s, c)", (1, 4)),
        ("s = Shape<start=1,end=3>(x) t = Cast<to=6>(s) y = Cast<to=7>(t)", (3, 8)),
        (
            "s = Shape(x) i = Constant<value=int64 {1}>() d = Gather(s, i) a = Constant<value=int64[1] {0}>() "
            "y = Unsqueeze(d, a)",
            (3,),
        ),
        (
            "s = Shape(x) i = Constant<value=int64 {1}>() d = Gather(s, i) a = Constant<value=int64 {0}>() "
            "y = Unsqueeze(d, a)",  # a scalar for one axis, which runtimes take
            (3,),
        ),
    ],
)
def test_known_elements(body: str, expected: tuple[int, ...], parse: Parse) -> None:
    assert numbers(parse(f"{HEAD} {{ {body} }}"), "y") == expected


@pytest.mark.parametrize(
    "body",
    [
        "y = Shape(x)",  # N and M are no numbers
        "s = Shape<start=1,end=3>(x) y = Add(s, given)",
        "s = Shape<start=1,end=3>(x) c = Constant<value=int64 {-2}>() y = Div(s, c)",  # rounds towards zero
        "s = Shape<start=1,end=3>(x) c = Constant<value=int64 {0}>() y = Div(s, c)",
        "s = Shape<start=1,end=3>(x) c = Constant<value=int64 {1000000000}>() y = Mul(s, c)",  # beyond 2**31
        "s = Shape<start=1,end=3>(x) t = Cast<to=1>(s) y = Cast<to=7>(t)",  # by way of floats
        "s = Shape(x) i = Constant<value=int64[1] {9}>() y = Gather(s, i)",  # out of range: the model's own error
        "s = Shape(x) y = Gather(s, given)",
    ],
)
def test_unknown_elements(body: str, parse: Parse) -> None:
    assert numbers(parse(f"{HEAD} {{ {body} }}"), "y") is None


def test_a_dimension_equals_itself_and_nothing_else(parse: Parse) -> None:
    found = known(parse(f"{HEAD} {{ s = Shape(x) t = Shape(x) y = Concat<axis=0>(s, t) }}"), "y")
    assert found is not None
    assert found.elements[:4] == found.elements[4:]
    assert found.elements[0] != found.elements[3]


@pytest.mark.parametrize(
    ("equation", "equal"),
    [("abc,cde->abde", True), ("acbe,aecd->abcd", False), ("...c,cde->...de", False), ("abc,cde", False)],
)
def test_the_sizes_of_a_product_by_letters(equation: str, equal: bool, parse: Parse) -> None:
    """A result that is written out keeps the sizes of its letters; of anything else nothing is known."""
    module = parse(
        f'agraph (float[N,M,3] x, float[3,M,5] w) => (float[A,B,C,D] y) {{ y = Einsum<equation="{equation}">(x, w) }}'
    )
    facts = ShapeFacts.of(module)
    x, y = (facts.shape(value(module, name)) for name in "xy")
    assert x is not None
    assert (y is not None and y == (x[0], x[1], x[1], 5)) == equal


def test_nameless_dimensions_of_two_values_are_not_equal(parse: Parse) -> None:
    module = parse(
        "agraph (float[N] a, float[N] b) => (int64[2] y) { s = Shape(a) t = Shape(b) y = Concat<axis=0>(s, t) }"
    )
    for name in ("a", "b"):
        value(module, name).shape = ir.Shape(["?"])
    found = known(module, "y")
    assert found is not None and found.elements[0] != found.elements[1]


def test_a_body_has_symbols_of_its_own(parse: Parse) -> None:
    module = parse(
        "agraph (bool c, float[N] x) => (float[k] y) { y = If(c) <"
        "then_branch = g () => (float[N] t) { t = Identity(x) }, else_branch = h () => (float[N] e) { e = Neg(x) }> }"
    )
    infer_shapes(module)
    (branch, *_) = [attribute.as_graph() for attribute in next(iter(module.graph)).attributes.values()]
    inner = branch.outputs[0]
    assert ShapeFacts.of(module).shape(inner) == ShapeFacts.of(module).shape(value(module, "x"))
    branch[0].domain = "mine"
    inner.shape = ir.Shape(["N"])
    facts = ShapeFacts.of(module)
    assert facts.shape(inner) != facts.shape(value(module, "x"))


def test_long_vectors_are_data(parse: Parse) -> None:
    ones = ",".join(["1"] * (MAX_ELEMENTS + 1))
    body = f"c = Constant<value=int64[{MAX_ELEMENTS + 1}] {{{ones}}}>() y = Identity(c)"
    assert known(parse(f"{HEAD} {{ {body} }}"), "y") is None


def test_user_domains_are_not_believed(parse: Parse) -> None:
    module = parse(f"{HEAD} {{ y = Shape(x) }}")
    next(iter(module.graph)).domain = "mine"
    assert ShapeFacts.of(module).get(value(module, "y")) is None


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (("N", 24, "M"), None),  # M stands elsewhere now: two unknown
        (("N", 3, "M"), None),
        (("N", 3, 8, "M"), [0, 3, 8, 0]),
        (("N", -1), [0, -1]),
        (("N", 3, 8, "other"), None),  # a fitted -1 beside a kept 0 could fail for N = 0
        (("other", 3, 8, 4), [-1, 3, 8, 4]),
        ((2, 3, -5), None),
    ],
)
def test_reshape_target(target: tuple[int | str, ...], expected: list[int] | None) -> None:
    symbols = Symbols()
    data = (symbols.atom("N"), 3, 8, symbols.atom("M"))
    elements = tuple(e if isinstance(e, int) else symbols.atom(e) for e in target)
    assert reshape_target(symbols, data, elements, None, allow_zero=False) == expected


def test_a_fitted_dimension_that_is_known_is_written_out() -> None:
    symbols = Symbols()
    n = symbols.atom("N")
    assert reshape_target(symbols, (n, 64), (n, 4, -1), (n, 4, 16), allow_zero=False) == [0, 4, 16]
    assert reshape_target(symbols, (n, 64), (n, 4, -1), None, allow_zero=False) == [0, 4, -1]
    assert reshape_target(symbols, (n, 0), (0, 4), (0, 4), allow_zero=True) is None  # 0 would copy N


def test_reshape_of_a_symbolic_batch_is_resolved_for_every_size(parse: Parse) -> None:
    module = parse(
        "agraph (float[N,3,8] x) => (float[p,q] y) { s = Shape(x) i = Constant<value=int64[1] {0}>() n = Gather(s, i) "
        "m = Constant<value=int64[1] {24}>() t = Concat<axis=0>(n, m) y = Reshape(x, t) }"
    )
    infer_shapes(module)
    before = module.clone()
    FoldConstants().run(module, Context(target=Target("cpu", "CPUExecutionProvider", 19, 9, None, "")))
    target = list(module.graph)[-1].inputs[1]
    assert target is not None and target.is_initializer()
    with LocalRunner() as runner:
        handles = [runner.load(one) for one in (before, module)]
        for batch in (0, 1, 5):
            feed = {"x": np.random.default_rng(0).normal(size=(batch, 3, 8)).astype(np.float32)}
            one, other = (runner.run(handle, feed)["y"] for handle in handles)
            assert one.shape == (batch, 24)
            np.testing.assert_array_equal(one, other)


def resolved(text: str, parse: Parse) -> list[list[int]]:
    """The constant targets of all Reshapes after folding."""
    module = parse(text)
    infer_shapes(module)
    FoldConstants().run(module, Context(target=Target("cpu", "CPUExecutionProvider", 19, 9, None, "")))
    targets = [node.inputs[1] for node in module.graph if node.op_type == "Reshape"]
    return [t.const_value.numpy().tolist() for t in targets if t is not None and t.const_value is not None]


FIRST = (
    "agraph (float[N,M,8] x) => (float[a,b,c,d] y, float[e,f,g] z) <int64[1] rest = {-1}, int64[1] two = {2}> "
    "{ two2 = Constant<value=int64[1] {4}>() n = Shape<start=0,end=1>(x) m = Shape<start=1,end=2>(x) mm = Mul(m, two) fours = Concat<axis=0>(n, mm, two2) "
    "z = Reshape(x, fours) "
)


def test_a_size_is_positive_where_a_reshape_would_fail_otherwise(parse: Parse) -> None:
    target = "t = Concat<axis=0>(n, m, two, rest) y = Reshape(x, t) }"
    assert resolved(FIRST + target, parse) == [[0, -1, 4], [0, 0, 2, 4]]


@pytest.mark.parametrize(
    "target",
    [
        "t = Concat<axis=0>(m, n, two, rest) y = Reshape(x, t) }",  # N = 0 copies M instead
        "t = Concat<axis=0>(n, m, two, rest) y = Reshape<allowzero=1>(x, t) }",
        "t = Concat<axis=0>(n, m, two, two2) y = Reshape(x, t) }",
        "given = Constant<value=int64[4] {0,0,2,4}>() t = Concat<axis=0>(n, m, two, rest) dead = Reshape(x, t) "
        "y = Reshape(x, given) }",
    ],
)
def test_a_size_that_may_be_zero_is_not_fitted_beside(target: str, parse: Parse) -> None:
    assert [0, -1, 4] not in resolved(FIRST + target, parse)


def test_a_copy_has_facts_of_its_own(parse: Parse) -> None:
    module = parse("agraph (float[N,M] x) => (int64[2] y) { y = Shape(x) }")
    assert ShapeFacts.of(module).get(value(module, "y")) is not None
    copy = module.clone()
    assert ShapeFacts.of(copy).get(value(copy, "y")) is not None
