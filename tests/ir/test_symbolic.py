"""Symbolic expressions: one normal form for equal polynomials, and only decisions that hold for every size."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from joulec.ir.symbolic import MAX_TERMS, Element, Expr, Symbols

SYMBOLS = Symbols()
NAMES = ("a", "b", "c")
ATOMS = [SYMBOLS.atom(name) for name in NAMES]
SIZES = [dict(zip(NAMES, sizes, strict=True)) for sizes in itertools.product((0, 1, 2, 5), repeat=3)]

Tree = int | str | tuple[str, "Tree", "Tree"]


def trees() -> st.SearchStrategy[Tree]:
    leaf = st.one_of(st.integers(-6, 6), st.sampled_from(NAMES))
    return st.recursive(leaf, lambda inner: st.tuples(st.sampled_from(["add", "sub", "mul"]), inner, inner), max_leaves=6)


def symbolic(tree: Tree) -> Element:
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return ATOMS[NAMES.index(tree)]
    operation = {"add": SYMBOLS.add, "sub": SYMBOLS.subtract, "mul": SYMBOLS.multiply}[tree[0]]
    return operation(symbolic(tree[1]), symbolic(tree[2]))


def concrete(tree: Tree, sizes: dict[str, int]) -> int:
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return sizes[tree]
    one, other = concrete(tree[1], sizes), concrete(tree[2], sizes)
    return {"add": one + other, "sub": one - other, "mul": one * other}[tree[0]]


def value(element: Element, sizes: dict[str, int]) -> int:
    """An expression of plain symbols, evaluated."""
    if isinstance(element, int):
        return element
    total = 0
    for term, factor in element.terms:
        for number in term:
            factor *= sizes[NAMES[[atom.terms[0][0][0] for atom in ATOMS].index(number)]]
        total += factor
    return total


@settings(max_examples=200, deadline=None, derandomize=True)
@given(trees(), trees())
def test_every_answer_holds_for_all_sizes(one: Tree, other: Tree) -> None:
    left, right = symbolic(one), symbolic(other)
    pairs = [(concrete(one, sizes), concrete(other, sizes)) for sizes in SIZES]
    assert [value(left, sizes) for sizes in SIZES] == [pair[0] for pair in pairs]
    equal, less = SYMBOLS.equal(left, right), SYMBOLS.less(left, right)
    assert equal is None or all((a == b) is equal for a, b in pairs)
    assert less is None or all((a < b) is less for a, b in pairs)
    least = SYMBOLS.least(left)
    assert least is None or all(a >= least for a, _ in pairs)
    exact = SYMBOLS.quotient(left, right)
    if exact is not None:
        assert all(b == 0 or value(exact, sizes) * b == a for sizes, (a, b) in zip(SIZES, pairs, strict=True))


def test_equal_polynomials_are_equal() -> None:
    a, b, _ = ATOMS
    square = SYMBOLS.multiply(SYMBOLS.add(a, b), SYMBOLS.add(a, b))
    spelled = SYMBOLS.add(SYMBOLS.multiply(a, a), SYMBOLS.multiply(b, SYMBOLS.add(b, SYMBOLS.multiply(2, a))))
    assert square == spelled
    assert SYMBOLS.subtract(square, spelled) == 0


def test_division() -> None:
    a, b, _ = ATOMS
    whole = SYMBOLS.multiply(SYMBOLS.multiply(a, b), 64)
    assert SYMBOLS.divide(whole, SYMBOLS.multiply(SYMBOLS.multiply(a, b), 4)) == 16
    assert SYMBOLS.divide(whole, a) == SYMBOLS.multiply(b, 64)
    rest = SYMBOLS.divide(a, 4)
    assert isinstance(rest, Expr) and rest == SYMBOLS.divide(a, 4) != SYMBOLS.divide(b, 4)
    assert SYMBOLS.is_size(rest)
    assert SYMBOLS.divide(7, 2) == 3
    assert isinstance(SYMBOLS.divide(-7, 2), Expr) and isinstance(SYMBOLS.divide(7, 0), Expr)


def test_minimum_maximum_modulo() -> None:
    a, b, _ = ATOMS
    assert SYMBOLS.maximum(a, -1) == a and SYMBOLS.minimum(a, -1) == -1
    assert SYMBOLS.maximum(a, b) == SYMBOLS.maximum(b, a)
    assert SYMBOLS.modulo(SYMBOLS.multiply(a, 6), 3) == 0
    assert isinstance(SYMBOLS.modulo(a, 3), Expr)


def test_a_declared_size_is_not_negative() -> None:
    symbols = Symbols()
    room = symbols.subtract(symbols.atom("h"), 2)
    assert not symbols.is_size(room)
    symbols.declare_size(room)
    assert symbols.is_size(room) and symbols.equal(room, -1) is False


def test_long_expressions_become_atoms_and_stay_congruent() -> None:
    symbols = Symbols()
    total: Element = 0
    for index in range(MAX_TERMS + 5):
        total = symbols.add(total, symbols.atom(index))
    assert isinstance(total, Expr) and len(total.terms) <= MAX_TERMS
    assert symbols.least(total) == 0
    wide = symbols.multiply(symbols.atom("x"), 1 << 30)
    assert symbols.multiply(wide, 4) == symbols.multiply(wide, 4) != symbols.multiply(symbols.atom("x"), 1 << 32)
