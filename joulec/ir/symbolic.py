"""Integer expressions over unknown sizes: polynomials in normal form, so that equal ones compare equal.

An `Expr` is a sum of products of *atoms*. An atom is a symbol of the graph, a dimension that nobody knows, or what an
operation that has no normal form (a division that leaves a rest, a maximum) makes of its operands; the same operation
on the same operands is the same atom. Integers that fit are plain `int`.

Sums and products are compared as polynomials, which holds in wrapping arithmetic too. Division assumes that products
of sizes do not wrap, and that a divisor is not zero: a runtime stops there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

MAX_TERMS = 12
MAX_DEGREE = 8
"""Longer expressions become one atom each, so that every operation is O(1)."""

MAX_NUMBER = 1 << 31
"""Numbers from here on are no sizes, and become atoms where they are computed: 32-bit ones would wrap."""

MAX_SUPPORT = 16
EVERYTHING = frozenset({-1})
"""The atoms of what depends on more than `MAX_SUPPORT` of them."""

Term = tuple[int, ...]
"""The numbers of the atoms of a product, ascending, repeated for powers; () is 1."""


@dataclass(frozen=True)
class Expr:
    """A polynomial that is not just a number: (product, coefficient) pairs, ascending, no coefficient 0."""

    terms: tuple[tuple[Term, int], ...]


Element = int | Expr


class Symbols:
    """The atoms of one analysis: numbered in the order of their making, each with a lower bound if it has one."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._least: list[int | None] = []
        self._sizes: set[Expr] = set()
        self._support: list[frozenset[int]] = []

    def declare_size(self, element: Element) -> None:
        """Say that `element` is the size of something that exists, and so not negative."""
        if isinstance(element, Expr):
            self._sizes.add(element)

    def assume_positive(self, element: Element) -> bool:
        """Take every factor of a product to be 1 at least; whether that is news. For what fails where it is not so."""
        if isinstance(element, int) or len(element.terms) != 1:
            return False
        new = [number for number in element.terms[0][0] if self._least[number] == 0]
        for number in new:
            self._least[number] = 1
        return bool(new)

    def atom(self, key: Hashable, least: int | None = 0) -> Expr:
        """The atom called `key`; `least` is a lower bound, None where it could be any number."""
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._least)
            self._least.append(least)
            self._support.append(self._support_of(number, key))
        return Expr((((number,), 1),))

    def _support_of(self, number: int, key: Hashable) -> frozenset[int]:
        parts = [part for part in key if isinstance(part, Expr)] if isinstance(key, tuple) else []
        found = frozenset({number}).union(*(self.support(part) for part in parts))
        return found if len(found) <= MAX_SUPPORT else EVERYTHING

    def support(self, element: Element) -> frozenset[int]:
        """The atoms that `element` is made of, those inside of opaque ones included; may hold `EVERYTHING`."""
        if isinstance(element, int):
            return frozenset()
        return frozenset[int]().union(*(self._support[number] for term, _ in element.terms for number in term))

    def least(self, element: Element) -> int | None:
        """A lower bound of `element`, None where there is none."""
        if isinstance(element, int):
            return element
        bound = self._sum_of_bounds(element)
        return max(bound or 0, 0) if element in self._sizes else bound

    def _sum_of_bounds(self, element: Expr) -> int | None:
        total = 0
        for term, factor in element.terms:
            bounds = [self._least[number] for number in term]
            if (term and factor < 0) or any(bound is None or bound < 0 for bound in bounds):
                return None
            for bound in bounds:
                factor *= bound or 0
            total += factor
        return total

    def is_size(self, element: Element) -> bool:
        """Whether `element` is certainly not negative."""
        least = self.least(element)
        return least is not None and least >= 0

    # -- arithmetic -----------------------------------------------------------------------------------------

    def add(self, one: Element, other: Element) -> Element:
        """one + other."""
        found = _normal([*_terms(one), *_terms(other)])
        return self._opaque("add", one, other) if found is None else found

    def subtract(self, one: Element, other: Element) -> Element:
        """one - other."""
        found = _normal([*_terms(one), *((term, -factor) for term, factor in _terms(other))])
        return self._opaque("sub", one, other) if found is None else found

    def multiply(self, one: Element, other: Element) -> Element:
        """one * other."""
        left, right = _terms(one), _terms(other)
        products = [(tuple(sorted(a + b)), m * n) for a, m in left for b, n in right]
        found = _normal(products)
        return self._opaque("mul", one, other) if found is None else found

    def product(self, elements: Iterable[Element]) -> Element:
        """The product of all elements; 1 for none."""
        total: Element = 1
        for element in elements:
            total = self.multiply(total, element)
        return total

    def divide(self, one: Element, other: Element) -> Element:
        """one / other, truncated; numbers only where neither is negative, because runtimes differ there."""
        if isinstance(one, int) and isinstance(other, int):
            return one // other if one >= 0 and other > 0 else self._opaque("div", one, other)
        exact = self.quotient(one, other)
        return self._opaque("div", one, other) if exact is None else exact

    def quotient(self, one: Element, other: Element) -> Element | None:
        """one / other where it leaves no rest whatever the sizes, else None."""
        if one == other and other != 0:
            return 1
        divisor = _terms(other)
        if len(divisor) != 1:
            return None
        parts = [_divided(term, factor, *divisor[0]) for term, factor in _terms(one)]
        return None if None in parts else _normal([part for part in parts if part is not None])

    def modulo(self, one: Element, other: Element) -> Element:
        """one % other for sizes."""
        if isinstance(one, int) and isinstance(other, int) and one >= 0 and other > 0:
            return one % other
        exact = None if isinstance(one, int) else self.quotient(one, other)
        return self._opaque("mod", one, other) if exact is None else 0

    def maximum(self, one: Element, other: Element) -> Element:
        """The larger of the two."""
        less = self.less(one, other)
        if less is not None:
            return other if less else one
        return self._opaque("max", *_ordered(one, other))

    def minimum(self, one: Element, other: Element) -> Element:
        """The smaller of the two."""
        less = self.less(one, other)
        if less is not None:
            return one if less else other
        return self._opaque("min", *_ordered(one, other))

    def _opaque(self, operation: str, one: Element, other: Element) -> Expr:
        positive = operation != "sub" and self.is_size(one) and self.is_size(other)
        return self.atom((operation, one, other), 0 if positive else None)

    # -- decisions ------------------------------------------------------------------------------------------

    def less(self, one: Element, other: Element) -> bool | None:
        """Whether one < other, None where it depends on the sizes."""
        if self._exceeds(other, one, 1):
            return True
        return False if self._exceeds(one, other, 0) else None

    def equal(self, one: Element, other: Element) -> bool | None:
        """Whether one == other, None where it depends on the sizes."""
        if one == other:
            return True
        return False if self._exceeds(one, other, 1) or self._exceeds(other, one, 1) else None

    def _exceeds(self, one: Element, other: Element, by: int) -> bool:
        """Whether one - other is `by` at least, whatever the sizes."""
        bounds = [self.least(self.subtract(one, other))]
        least = self.least(one) if isinstance(other, int) else None
        if least is not None and isinstance(other, int):
            bounds.append(least - other)
        return any(bound is not None and bound >= by for bound in bounds)


def vanishes_with(one: Element, other: Element) -> bool:
    """Whether `one` is certainly 0 wherever `other` is: equal, or every product in it has all atoms of `other`."""
    if one == other or one == 0:
        return True
    if isinstance(one, int) or isinstance(other, int) or len(other.terms) != 1:
        return False
    needed = set(other.terms[0][0])
    return all(needed <= set(term) for term, _ in one.terms)


def _terms(element: Element) -> tuple[tuple[Term, int], ...]:
    return (((), element),) if isinstance(element, int) else element.terms


def _normal(terms: Iterable[tuple[Term, int]]) -> Element | None:
    """The sum of products as an element; None where it is too long or its numbers too large."""
    sums: dict[Term, int] = {}
    for term, factor in terms:
        sums[term] = sums.get(term, 0) + factor
    kept = tuple(sorted((term, factor) for term, factor in sums.items() if factor))
    if len(kept) > MAX_TERMS or any(abs(factor) >= MAX_NUMBER or len(term) > MAX_DEGREE for term, factor in kept):
        return None
    if not kept:
        return 0
    return kept[0][1] if len(kept) == 1 and not kept[0][0] else Expr(kept)


def _divided(term: Term, factor: int, by: Term, number: int) -> tuple[Term, int] | None:
    if number == 0 or factor % number:
        return None
    rest = list(term)
    for atom in by:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest), factor // number


def _ordered(one: Element, other: Element) -> tuple[Element, Element]:
    return (one, other) if _terms(one) <= _terms(other) else (other, one)
