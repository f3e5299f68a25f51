"""How narrow each group of channels may become: what the accuracy budget buys when it is spent on removing channels.

What each group loses and what its operators cost give a path from the whole model to ever narrower ones, each step the
one that saves the most time for what it loses. Where on that path the budget ends is judged on the models themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from joulec.compile.bench import Bench, Verdict
from joulec.errors import JoulecError
from joulec.fidelity import too_few
from joulec.ir.module import Module
from joulec.passes import spelling
from joulec.passes._channel_survey import Survey, survey
from joulec.passes.base import Pass
from joulec.passes.pipeline import Outcome
from joulec.passes.prune_channels import PruneChannels

CHANNELS = "channels"
"""What the decision is called."""

STEP, NARROWEST = 1 / 8, 7 / 8
"""Share of a group that goes in a step of the path, and at most."""

RUNG = 0.92
"""Predicted time of one candidate over that of the one before."""

NOTHING = 1e-6
"""Loss that is as good as none, so that what costs nothing goes by what it saves."""


@dataclass(frozen=True)
class Narrowed:
    """What the search found.

    Attributes:
        one: the pass with the shares of its groups.
        outcome: of running it on the module.
        verdict: how accurate the result is.
    """

    one: PruneChannels
    outcome: Outcome
    verdict: Verdict


def undecided(one: object) -> bool:
    """Whether a pass leaves it to joulec what to remove."""
    return isinstance(one, PruneChannels) and one.ratio is None and not one.groups and not one.dead


def narrowed(bench: Bench, module: Module, order: PruneChannels) -> Narrowed | None:
    """The narrowest model on the path that keeps the budget, where it pays, or None; the decision goes on record."""
    refusal = _why_not(bench)
    if refusal is not None:
        bench.book.choose(CHANNELS, False, refusal, ordered=True)
        return None
    deadline = time.monotonic() + bench.orders.search_seconds
    candidates = list(path(bench, module, order))
    low, high, best = 0, len(candidates), None
    while low < high and (time.monotonic() < deadline or best is None):
        middle = (low + high) // 2
        bench.progress("looking for the narrowest model within the budget", None)
        tried = _tried(bench, module, candidates[middle])
        if tried is not None and _accurate(bench, tried.verdict):
            low, best = middle + 1, tried
        else:
            high = middle
    return _decided(bench, module, best, len(candidates))


def _why_not(bench: Bench) -> str | None:
    if bench.inputs.obstacle is not None:
        return "the input model does not run here, so what channels are worth is not known"
    if bench.inputs.judge is None or bench.inputs.feeds is None:
        return "no calibration data: with --data and --max-drop joulec chooses how many channels go; or order a ratio"
    if bench.orders.max_drop is None:
        return "no budget: --max-drop says what removing channels may cost; or order a ratio"
    return None


def _tried(bench: Bench, module: Module, one: PruneChannels) -> Narrowed | None:
    outcome = bench.run([one], module)
    if outcome.steps[-1].status != "applied":
        return None
    try:
        return Narrowed(one, outcome, bench.verdict(outcome.module))
    except JoulecError:
        return None


def _accurate(bench: Bench, verdict: Verdict) -> bool:
    """Within the budget on the data that the user judges by, as for everything that is ordered."""
    return bench.orders.max_drop is not None and verdict.drop <= bench.orders.max_drop


def _decided(bench: Bench, module: Module, best: Narrowed | None, count: int) -> Narrowed | None:
    """The pass is ordered, its widths are joulec's choice, and that must pay like any other."""
    if best is None:
        said = "no channel could go within the budget" if count else "there is no group of channels that can be cut"
        bench.book.choose(CHANNELS, False, said, ordered=True)
        return None
    worth = bench.weigh(module, best.outcome.module)
    removed = next((note for note in best.outcome.steps[-1].result.notes if "channels removed" in note), "")
    said = f"{removed}, drop {best.verdict.drop:.4f}; {worth.would('the whole')}"
    bench.book.choose(CHANNELS, worth.better, said, worth, best.verdict.drop, ordered=True)
    if not worth.better:
        bench.book.drop(best.outcome, said)
        return None
    _doubt(bench, best.verdict)
    return best


def _doubt(bench: Bench, verdict: Verdict) -> None:
    """Say where the data are too few to promise the budget on other data."""
    samples, budget = verdict.samples, bench.orders.max_drop
    if samples is not None and budget is not None and (needed := too_few(samples, budget)) is not None:
        few = f"{samples} samples are too few to promise a drop of at most {budget:g} on other data"
        bench.book.doubts.append(f"{few}: that takes {needed}")


# -- the path ---------------------------------------------------------------------------------------------------


def path(bench: Bench, module: Module, order: PruneChannels) -> Iterator[PruneChannels]:
    """Ever narrower models, by about equal factors of their predicted time."""
    bench.progress("asking what each channel is worth", None)
    found = survey(module, bench.context(module))
    walk = _Walk(found, _seconds(bench, module))
    last = walk.total
    while walk.step():
        if walk.total <= RUNG * last:
            last = walk.total
            yield replace(order, groups=walk.spelled())


def _seconds(bench: Bench, module: Module) -> dict[str, float]:
    """Seconds of every node, as the energy model predicts them for the target."""
    estimate = bench.energy.estimate(module, bench.inputs.shapes)
    return {node.name: node.seconds for node in estimate.nodes if node.seconds}


class _Walk:
    """Widths that shrink step by step.

    Args:
        found: the groups.
        seconds: of nodes by name.
    """

    def __init__(self, found: Survey, seconds: dict[str, float]) -> None:
        self._found = found
        self._removed = [0.0] * len(found.names)
        touched: list[list[str]] = [[] for _ in found.names]
        for node, axes in found.work.items():
            for group in sorted({group for axis in axes for group in axis.groups}):
                touched[group].append(node)
        self._touched, self._seconds = touched, {node: seconds.get(node, 0.0) for node in found.work}
        self.total = sum(self._seconds.values())

    def spelled(self) -> tuple[str, ...]:
        """The shares, as `prune-channels` takes them."""
        pairs = zip(self._found.names, self._removed, strict=True)
        return tuple(f"{name}={share:g}" for name, share in pairs if share > 0)

    def step(self) -> bool:
        """Take the step that saves the most time for what it loses; whether there was one."""
        steps = [(self._saved(at) / (self._lost(at) + NOTHING), at) for at in range(len(self._removed))]
        open_ = [(gain, -at) for gain, at in steps if self._removed[at] + STEP <= NARROWEST and gain > 0]
        if not open_:
            return False
        at = -max(open_)[1]
        self.total -= self._saved(at)
        self._removed[at] += STEP
        return True

    def _kept(self) -> list[float]:
        return [1 - share for share in self._removed]

    def _saved(self, at: int) -> float:
        before = self._kept()
        after = [*before[:at], before[at] - STEP, *before[at + 1 :]]
        left = self._found.left
        return sum(self._seconds[node] * (left(node, before) - left(node, after)) for node in self._touched[at])

    def _lost(self, at: int) -> float:
        return self._loss(at, self._removed[at] + STEP) - self._loss(at, self._removed[at])

    def _loss(self, at: int, share: float) -> float:
        losses = self._found.losses[at]
        gone = min(round(share * self._found.units[at]), len(losses))
        return float(losses[gone - 1]) if gone > 0 else 0.0


def chosen_widths(bench: Bench, before: Sequence[Pass], passes: Sequence[Pass]) -> list[Pass]:
    """`passes` with every prune-channels that leaves the widths to joulec decided; one that nothing came of is gone."""
    decided: list[Pass] = []
    for one in passes:
        if not undecided(one) or not isinstance(one, PruneChannels):
            decided.append(one)
            continue
        chosen = _repeated(bench) if bench.recorded else _searched(bench, [*before, *decided], one)
        if chosen is not None:
            bench.book.channels = spelling.spell_pass(chosen)
            decided.append(chosen)
    return decided


def _searched(bench: Bench, before: Sequence[Pass], order: PruneChannels) -> PruneChannels | None:
    found = narrowed(bench, bench.run(before, bench.base).module, order)
    return None if found is None else found.one


def _repeated(bench: Bench) -> PruneChannels | None:
    """What an earlier build chose."""
    spelled = None if bench.recorded is None else bench.recorded.channels
    found = [] if spelled is None else spelling.parse(spelled, {PruneChannels.pass_name(): PruneChannels})
    return next((one for one in found if isinstance(one, PruneChannels)), None)
