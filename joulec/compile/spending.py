"""What the accuracy budget is spent on: fewer weights, fewer bits, or both; on what is measured to save most.

There is one budget. Each way of spending it is followed to its end as if there were no other: weights removed as far as
it allows, INT8 as far as it allows, and INT8 on a model with fewer weights. What each came to is on record, so that the
report says which spent it better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from joulec.compile.bench import Bench, Book
from joulec.compile.int8 import quantized
from joulec.compile.removal import Removals, undecided
from joulec.compile.rivals import best_of
from joulec.compile.worth import Worth
from joulec.ir.module import Module
from joulec.passes.base import Pass

FEWER, BITS, BOTH = "fewer weights", "INT8", "both"
"""The ways, as the report calls them."""

SHARES = (1.0, 0.5, 0.25)
"""Shares of the budget for removing weights where INT8 comes on top; the first that leaves INT8 enough is taken."""


@dataclass(frozen=True)
class Way:
    """One way of spending the budget.

    Attributes:
        what: its name.
        module: what it came to.
        book: what was done and decided on it.
        worth: of that against the model on which nothing was spent.
        drop: of accuracy, in absolute points.
    """

    what: str
    module: Module
    book: Book
    worth: Worth
    drop: float

    def said(self) -> str:
        """What it is worth and what it costs."""
        return f"{self.worth.said('the model on which nothing is spent')}, drop {self.drop:.4f}"


def spent(bench: Bench, module: Module, passes: Sequence[Pass]) -> Module:
    """The module behind `passes`, and in INT8, with the accuracy budget spent where that saves most.

    Args:
        bench: measures, and keeps the book.
        module: the whole float model.
        passes: run one behind another; those that leave it to joulec what to remove are decided here.
    """
    removals, budget = Removals(bench, module), bench.orders.max_drop
    with bench.apart() as book:
        fewer, _ = removals.carry_out(passes, budget)
    if bench.recorded is not None or not book.removals or bench.orders.int8 is False:
        bench.book.absorb(book)
        return quantized(bench, fewer)
    with bench.apart() as bits_book:
        whole, _ = removals.carry_out([one for one in passes if not undecided(one)], budget)
        bits = quantized(bench, whole)
    ways = [_way(bench, FEWER, whole, fewer, book), _way(bench, BITS, whole, bits, bits_book)]
    ways += _both(bench, whole, removals, passes)
    return _best(bench, ways)


def _way(bench: Bench, what: str, whole: Module, module: Module, book: Book) -> Way:
    bench.progress(f"timing what the budget buys: {what}", None)
    return Way(what, module, book, bench.weigh(whole, module), bench.drop_of(module))


def _both(bench: Bench, whole: Module, removals: Removals, passes: Sequence[Pass]) -> Iterator[Way]:
    """INT8 on the smallest model that leaves it enough of the budget."""
    budget = bench.orders.max_drop or 0.0
    for share in SHARES:
        with bench.apart() as book:
            fewer, _ = removals.carry_out(passes, share * budget)
            if (bench.verdict(fewer).bound or 0.0) > budget:
                continue  # INT8 is held to what is likely on other data, and would only add to it
            both = quantized(bench, fewer)
        if book.int8 is not None and book.removals and bench.drop_of(both) <= budget:
            yield _way(bench, BOTH, whole, both, book)
            return


def _best(bench: Bench, ways: Sequence[Way]) -> Module:
    """Take the way that is best, or only what was ordered where none pays, and say what each came to."""
    budget = bench.orders.max_drop
    open_ = [one for one in ways if not (bench.orders.int8 and one.book.int8 is None)]
    paying = [one for one in open_ if one.worth.better and (budget is None or one.drop <= budget)]
    best = best_of(bench, [(one.worth, one.module, one) for one in paying])
    taken = best or next(one for one in ways if one.what == BITS)
    bench.book.absorb(taken.book)
    for one in ways:
        bench.book.choose(f"budget on {one.what}", one is best, _why(one, best, open_), one.worth, one.drop)
    if all(one.what != BOTH for one in ways):
        bench.book.choose(f"budget on {BOTH}", False, "on fewer weights INT8 does not pay within the budget")
    return taken.module


def _why(one: Way, best: Way | None, open_: Sequence[Way]) -> str:
    if one.what == BITS and one.book.int8 is None:
        return next((said.reason for said in one.book.choices if said.what == "INT8"), "the model stays float")
    if one is best:
        return f"{one.said()}: the best that the budget buys"
    if one not in open_:
        return f"{one.said()}; INT8 was ordered"
    return one.said() if best is None else f"{one.said()}; {best.what} spent it better"
