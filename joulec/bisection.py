"""The first pass of a pipeline that changes what a model computes, then the single rewrite, then a small model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from joulec.errors import UnavailableError
from joulec.ir.allowance import Allowance
from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.base import Context, Fidelity, Pass
from joulec.passes.equivalence import Equivalence
from joulec.passes.pipeline import Attempt, attempt
from joulec.passes.spelling import spell_pass
from joulec.reduction import Case, Reducer, differing
from joulec.report.data import Data

Kind = Literal["deviates", "invalid", "raises"]
"""What is wrong after a pass: the outputs; the model itself, or ONNX Runtime refuses it; the pass raised an error."""


@dataclass(frozen=True)
class Culprit(Data):
    """The pass, and the rewrite, with which a model goes wrong.

    Attributes:
        index: which pass of the list, from 1.
        spelling: the pass with its options.
        kind: `deviates`, `invalid` or `raises`.
        reason: what is wrong after it.
        rewrites: how many rewrites the pass makes.
        rewrite: with which of them it goes wrong, from 1; None where no single one does.
        rule, node: that rewrite.
        removed, created: names of nodes that it took away and made.
        feed: the first feed on which it shows, from 0; None where it shows without any.
    """

    index: int
    spelling: str
    kind: str
    reason: str
    rewrites: int
    rewrite: int | None = None
    rule: str | None = None
    node: str | None = None
    removed: tuple[str, ...] = ()
    created: tuple[str, ...] = ()
    feed: int | None = None


@dataclass(frozen=True)
class Bisection(Data):
    """What `bisect` found.

    Attributes:
        passes: how many were looked at, up to and with the culprit.
        rewrites: how many rewrites those before the culprit made.
        feeds: what the models were run on.
        culprit: None where every pass keeps what the model computes.
        notes: what was not compared, and why.
        minimal: the file with the smallest failing model, None where none was asked for or found.
        minimal_nodes: its number of nodes.
        reproduce: the command that shows the failure on it.
    """

    passes: int
    rewrites: int
    feeds: str
    culprit: Culprit | None = None
    notes: tuple[str, ...] = ()
    minimal: str | None = None
    minimal_nodes: int | None = None
    reproduce: str | None = None


@dataclass(frozen=True)
class Failure:
    """A pass that fails: what it was given, what the outputs should have been (the reference), and what came of it."""

    index: int
    one: Pass
    before: Module
    reference: Module
    attempt: Attempt
    rewrites: int


@dataclass(frozen=True)
class Found:
    """All that a search found.

    Attributes:
        passes, rewrites, notes, culprit: see `Bisection`.
        obstacle: why the outputs were not compared, or None.
        case: a small model on which the guilty pass alone fails, or None.
    """

    passes: int
    rewrites: int
    notes: tuple[str, ...] = ()
    obstacle: str | None = None
    culprit: Culprit | None = None
    case: Case | None = None


class Search:
    """Looks for the first pass that fails, and in it for the first rewrite.

    Args:
        passes: the pipeline, first to last.
        context: its probes are the feeds, its runner runs the models.
        small: whether the model is small already, so that no part of it is looked for.
    """

    def __init__(self, passes: Sequence[Pass], context: Context, *, small: bool = False) -> None:
        self._passes, self._context, self._small = passes, context, small
        self._notes: list[str] = []
        self._obstacle: str | None = None

    def run(self, module: Module) -> Found:
        """Search; `module` is left as it was. Runs each pass once, the culprit O(log rewrites) times more."""
        start = module.clone()
        infer_shapes(start)
        self._verifier = Verifier(start)
        failure, rewrites = self._first_failure(start)
        if failure is None:
            return Found(len(self._passes), rewrites, tuple(self._notes), self._obstacle)
        feed, equivalence = self._failing_feed(failure)
        culprit, last_good = self._first_rewrite(failure, equivalence)
        probes = () if feed is None else (self._context.probes[feed],)
        case = None if self._small else self._reduced(failure, culprit, last_good, probes)
        return Found(
            failure.index, rewrites, tuple(self._notes), self._obstacle, replace(culprit, feed=feed), case
        )  # fmt: skip

    # -- the pass -----------------------------------------------------------------------------------------------

    def _first_failure(self, module: Module) -> tuple[Failure | None, int]:
        """The first pass that fails, and how many rewrites those before it made."""
        equivalence = self._refer_to(module, self._context.probes)
        reference, total = module, 0
        for index, one in enumerate(self._passes, 1):
            candidate = _limited(module, None)
            found = attempt(one, candidate, self._context, self._verifier, equivalence)
            used = 0 if candidate.allowance is None else candidate.allowance.used
            if found.reason is not None:
                _require_available(found)
                return Failure(index, one, module, reference, found, used), total
            total += used
            if not found.result.changed:
                continue
            module = candidate
            if one.fidelity is Fidelity.LOSSY:
                reference = module
                equivalence = self._refer_to(module, self._context.probes)
        return None, total

    def _refer_to(self, module: Module, feeds: Sequence[Feed]) -> Equivalence | None:
        if self._context.runner is None or not feeds:
            self._hindered(self._context.obstacle or "no feeds to run the model on")
            return None
        equivalence = Equivalence(self._context.runner, feeds)
        if (problem := equivalence.refer_to(module)) is not None:
            self._hindered(problem)
            return None
        if equivalence.unstable:
            self._note(f"outputs not compared, they differ from run to run: {', '.join(equivalence.unstable)}")
        return equivalence

    def _hindered(self, problem: str) -> None:
        self._obstacle = self._obstacle or problem
        self._note(f"outputs were not compared: {problem}")

    def _note(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)

    def _failing_feed(self, failure: Failure) -> tuple[int | None, Equivalence | None]:
        """The first feed on which the failure shows, and a comparison on it alone."""
        for index, feed in enumerate(self._context.probes):
            equivalence = self._refer_to(failure.reference, [feed])
            if equivalence is None:
                break
            candidate = _limited(failure.before, None)
            if _kind(attempt(failure.one, candidate, self._context, self._verifier, equivalence)):
                return index, equivalence
        return None, None

    # -- the rewrite --------------------------------------------------------------------------------------------

    def _first_rewrite(self, failure: Failure, equivalence: Equivalence | None) -> tuple[Culprit, Module]:
        """The rewrite k such that all holds after k - 1 rewrites and not after k; and the module after k - 1."""
        kind = _kind(failure.attempt) or "invalid"
        spelling, reason = spell_pass(failure.one), failure.attempt.reason or ""
        culprit = Culprit(failure.index, spelling, kind, reason, failure.rewrites)
        if failure.one.indivisible or not failure.rewrites:
            return culprit, failure.before

        def tried(limit: int) -> tuple[Attempt, Module]:
            candidate = _limited(failure.before, limit)
            return attempt(failure.one, candidate, self._context, self._verifier, equivalence), candidate

        good, bad = 0, failure.rewrites
        if tried(0)[0].reason is not None:
            return culprit, failure.before  # it fails before its first rewrite
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (good, middle) if tried(middle)[0].reason is not None else (middle, bad)
        found, after = tried(bad)
        told = after.allowance or Allowance()
        last = found.result.rewrites[-1] if found.result.rewrites else None
        named = replace(
            culprit, rewrite=bad, rule=told.rule, node=told.node, kind=_kind(found) or kind,
            reason=found.reason or culprit.reason, removed=last.removed if last else (),
            created=last.created if last else (),
        )  # fmt: skip
        return named, tried(good)[1]

    # -- the model ----------------------------------------------------------------------------------------------

    def _reduced(self, failure: Failure, culprit: Culprit, last_good: Module, probes: Sequence[Feed]) -> Case | None:
        """A small model on which the guilty pass alone fails; the whole one before the rewrite, or before the pass."""
        wanted = _kind(failure.attempt)
        reducer = Reducer(self._context.runner, lambda case: self._kind_on(failure.one, case) == wanted)
        feed = probes[0] if probes else None
        for whole in dict.fromkeys(map(id, (last_good, failure.before))):
            module = last_good if whole == id(last_good) else failure.before
            module.allowance = None
            seeds = [] if culprit.rule is None else self._seeds(failure, culprit, module)
            found = reducer.reduce(Case(module, feed), seeds)
            if found is not None:
                return found
        self._note("no model on which this pass alone fails was found: the deviations of several passes add up")
        return None

    def _seeds(self, failure: Failure, culprit: Culprit, module: Module) -> list[int]:
        after = _limited(failure.before, culprit.rewrite)
        attempt(failure.one, after, self._context, self._verifier, None)
        return differing(module, after, {culprit.node or "", *culprit.removed})

    def _kind_on(self, one: Pass, case: Case) -> Kind | None:
        """How `one` alone fails on a part, or None."""
        equivalence = None
        if case.feed is not None and self._context.runner is not None:
            equivalence = Equivalence(self._context.runner, [case.feed])
            if equivalence.refer_to(case.module) is not None:
                return None
        verifier, candidate = Verifier(case.module), _limited(case.module, None)
        infer_shapes(candidate)
        return _kind(attempt(one, candidate, self._context, verifier, equivalence))


def _limited(module: Module, limit: int | None) -> Module:
    """A copy of `module` that may be rewritten `limit` times."""
    copy = module.clone()
    copy.allowance = Allowance(limit)
    return copy


def _kind(found: Attempt) -> Kind | None:
    if found.reason is None:
        return None
    if found.deviation is not None:
        return "deviates"
    return "invalid" if found.result.changed else "raises"


def _require_available(found: Attempt) -> None:
    if isinstance(found.error, UnavailableError):
        raise found.error
