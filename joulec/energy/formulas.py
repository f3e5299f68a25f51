"""Work as a formula in a model's symbols: `4096*batch*seq + 64*batch`.

Operations and bytes are polynomials in the dimensions wherever no size is divided or compared. The coefficients follow
exactly from the work at a few sizes; a further size, at which the formula must hold, tells whether it is one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

Work = Mapping[str, int]

MOST_SYMBOLS = 2
"""Each symbol more makes three times as many sizes to look at."""

_SIZES, _PROOF = (1, 2, 3), (7, 5)
_INVERSE = (
    (Fraction(3), Fraction(-3), Fraction(1)), (Fraction(-5, 2), Fraction(4), Fraction(-3, 2)),
    (Fraction(1, 2), Fraction(-1), Fraction(1, 2)),
)  # fmt: skip
"""Values of a quadratic at 1, 2 and 3 -> its coefficients (the inverse of their Vandermonde matrix)."""

Powers = tuple[int, ...]


def formulas(symbols: Sequence[str], work_at: Callable[[Mapping[str, int]], Work]) -> dict[str, str]:
    """What `work_at` counts, as polynomials of degree two at most in each symbol.

    Args:
        symbols: names of the open dimensions.
        work_at: sizes of all of them -> name -> count.

    Returns:
        Name -> formula; what is no such polynomial is left out, and everything where there are too many symbols.
    """
    if not 1 <= len(symbols) <= MOST_SYMBOLS:
        return {}
    grid = {sizes: work_at(dict(zip(symbols, sizes, strict=True))) for sizes in _grid(len(symbols), _SIZES)}
    proof = dict(zip(symbols, _PROOF, strict=False))
    expected, found = work_at(proof), {}
    for name in expected:
        terms = _coefficients({sizes: Fraction(work[name]) for sizes, work in grid.items()}, len(symbols))
        if _value(terms, tuple(proof.values())) == expected[name]:
            found[name] = _text(terms, symbols)
    return found


def _grid(count: int, values: Sequence[int]) -> list[Powers]:
    return list(itertools.product(values, repeat=count))


def _coefficients(values: Mapping[Powers, Fraction], count: int) -> dict[Powers, Fraction]:
    """Powers of the symbols -> coefficient, from values at all combinations of 1, 2 and 3."""
    return {
        powers: sum(
            (_weight(powers, sizes) * value for sizes, value in values.items()), start=Fraction(0)
        )
        for powers in _grid(count, (0, 1, 2))
    }  # fmt: skip


def _weight(powers: Powers, sizes: Powers) -> Fraction:
    weight = Fraction(1)
    for power, size in zip(powers, sizes, strict=True):
        weight *= _INVERSE[power][size - 1]
    return weight


def _value(terms: Mapping[Powers, Fraction], sizes: Powers) -> Fraction:
    total = Fraction(0)
    for powers, coefficient in terms.items():
        for size, power in zip(sizes, powers, strict=True):
            coefficient *= size**power
        total += coefficient
    return total


def _text(terms: Mapping[Powers, Fraction], symbols: Sequence[str]) -> str:
    """The terms, those of the highest degree first."""
    told = sorted((one for one in terms.items() if one[1]), key=lambda one: (-sum(one[0]), tuple(-p for p in one[0])))
    return " + ".join(_term(powers, coefficient, symbols) for powers, coefficient in told).replace("+ -", "- ") or "0"


def _term(powers: Powers, coefficient: Fraction, symbols: Sequence[str]) -> str:
    names = [f"{symbol}^2" if power == 2 else symbol for symbol, power in zip(symbols, powers, strict=True) if power]
    return "*".join(names if coefficient == 1 and names else [str(coefficient), *names])
