"""`joulec measure`: what two models cost on this machine, in time, CPU time and, where they are counted, joules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from joulec.energy.meters import Counter, Measurement, Obstacle, counting, find_counters
from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.ir.session import SessionOptions
from joulec.ir.values import Array
from joulec.payoff import Paired, in_turns, ratio_of, summarize

ENERGY_BLOCKS = 8
"""Blocks of each model between readings of the counters."""

BLOCK_STEPS, BLOCK_SECONDS = 40, 0.25
"""How long a block is at least: in the counter's own steps, and in seconds."""

CPU_SCOPES, CPU_SOURCES = ("CPU package", "DRAM"), ("RAPL",)
"""What a model that runs on the CPU can be charged with; a GPU's board only idles meanwhile."""

SAME = "no detectable change"


@dataclass(frozen=True)
class Ratio:
    """The other model over this one, in one quantity: above 1 this one takes less. The interval is 95 %."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`less`, `more`, or `no detectable change`."""
        return "less" if self.low > 1.0 else "more" if self.high < 1.0 else SAME


@dataclass(frozen=True)
class Spent:
    """What one model takes per inference.

    Attributes:
        p50_ms, p90_ms, p95_ms, p99_ms: percentiles of its latency in milliseconds.
        min_ms, mean_ms: its least and mean latency.
        cpu_seconds: mean CPU seconds, of all threads.
        joules: joules by the counters; None where nothing counts here.
    """

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    mean_ms: float
    cpu_seconds: float
    joules: float | None = None


@dataclass(frozen=True)
class Counted:
    """How joules were counted: of both models by the same counters, block by block in turn."""

    change: Ratio
    base: float
    candidate: float
    watts: float
    scopes: tuple[str, ...]
    counters: tuple[str, ...]
    blocks: int


@dataclass(frozen=True)
class Measured(Paired):
    """A paired timing with all that goes with it. `ratio`, `low` and `high` are those of time.

    Attributes:
        model: the candidate's figures.
        against: those of what it is compared with.
        cpu: the ratio of CPU seconds.
        energy: joules, where something counts them.
        obstacles: why joules are missing, or not complete.
        same: whether both are one model, so that the interval shows the noise.
    """

    model: Spent
    against: Spent
    cpu: Ratio
    energy: Counted | None
    obstacles: tuple[str, ...]
    same: bool

    @property
    def verdict(self) -> str:
        """In plain words, from the best evidence there is: joules, else time."""
        return verdict_of(Ratio(self.ratio, self.low, self.high), self.energy, self.same)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        head = {
            "verdict": self.verdict, "tier": "unknown" if self.energy is None else "measured",
            "joules": self.model.joules, "static_included": True,
        }  # fmt: skip
        return {**head, **asdict(self)}


def verdict_of(time: Ratio, energy: Counted | None, same: bool) -> str:
    """What the intervals say, and no more than that."""
    if same:
        quiet = time.verdict == SAME
        if quiet:
            return f"{SAME}, as it should be: this is one model, and the interval is this machine's noise"
        return "the model differs from itself: this machine is too busy to tell small changes"
    words = {"less": "faster", "more": "slower"}
    said = f"{SAME} in time" if time.verdict == SAME else f"{words[time.verdict]}, {_times(time)} the speed"
    if energy is None:
        return f"{said}; joules are not counted here"
    change = energy.change
    if change.verdict == SAME:
        return f"{said}; {SAME} in joules"
    return f"{said}; {change.verdict} energy, the other takes {_times(change)} its joules"


def _times(one: Ratio) -> str:
    return f"{one.ratio:.2f}x ({one.low:.2f} to {one.high:.2f})"


def measure_pair(
    runner: Runner, base: Module, candidate: Module, feed: Feed, options: SessionOptions, seconds: float,
    found: tuple[Sequence[Counter], Sequence[Obstacle]] | None = None,
) -> Measured:  # fmt: skip
    """Measure two modules on one feed, in turns.

    Args:
        runner: where they run.
        base: the module compared with; the same object as `candidate` where there is none.
        candidate: the module in question.
        feed: one inference's inputs.
        options: how both sessions are opened.
        seconds: about how long to time; counting joules takes as long again, at least eight blocks of each.
        found: counters and obstacles; this machine's where None.
    """
    counters, obstacles = find_counters() if found is None else found
    relevant = [one for one in counters if one.scope in CPU_SCOPES]
    loads = in_turns(runner, runner.spend, base, candidate, feed, options, seconds)
    paired = summarize([load[..., 0] for load in loads], options.threads)
    cpu = summarize([load[..., 1] for load in loads], options.threads)
    energy, problem = None, None
    if relevant:
        energy, problem = count_joules(runner, base, candidate, feed, options, relevant, paired, seconds)
    every = np.concatenate(loads)
    said = [str(one) for one in obstacles if one.source in CPU_SOURCES] + ([problem] if problem else [])
    return Measured(
        **asdict(paired), model=_spent(every[:, 1], None if energy is None else energy.candidate),
        against=_spent(every[:, 0], None if energy is None else energy.base),
        cpu=Ratio(cpu.ratio, cpu.low, cpu.high), energy=energy, obstacles=tuple(said), same=base is candidate,
    )  # fmt: skip


def _spent(spent: Array, joules: float | None) -> Spent:
    """The figures of one model, from (rounds, 2) wall and CPU seconds."""
    wall, cpu = spent[:, 0] * 1e3, float(np.mean(spent[:, 1]))
    p50, p90, p95, p99 = (float(one) for one in np.percentile(wall, (50, 90, 95, 99)))
    return Spent(p50, p90, p95, p99, float(wall.min()), float(wall.mean()), cpu, joules)


def count_joules(
    runner: Runner, base: Module, candidate: Module, feed: Feed, options: SessionOptions, counters: Sequence[Counter],
    paired: Paired, seconds: float,
) -> tuple[Counted | None, str | None]:  # fmt: skip
    """Joules per inference of both modules, or why they cannot be told.

    A counter sees the whole package, so the blocks of the two alternate and only their ratio is free of what else ran.
    """
    least = max(BLOCK_SECONDS, BLOCK_STEPS * max(counter.step for counter in counters), seconds / (2 * ENERGY_BLOCKS))
    handles = [runner.load(module, options=options) for module in (base, candidate)]
    rounds = [max(1, round(least / (ms * 1e-3))) for ms in (paired.base_ms, paired.candidate_ms)]
    joules, watts = np.zeros((ENERGY_BLOCKS, 2)), []
    last: Measurement | None = None
    try:
        for block in range(ENERGY_BLOCKS):
            for side in (0, 1) if block % 2 == 0 else (1, 0):
                with counting(counters) as counted:
                    runner.spend([handles[side]], feed, rounds=rounds[side])
                last = counted.result
                if last.joules is None:
                    return None, last.problem or "the counters counted nothing"
                joules[block, side] = last.joules / rounds[side]
                watts.append(last.joules / last.seconds)
    finally:
        for handle in handles:
            runner.unload(handle)
    change = Ratio(*ratio_of((joules[:, 0] / joules[:, 1])[None, :]))
    middle = np.median(joules, axis=0)
    names = tuple(counter.name for counter in counters)
    scopes = () if last is None else last.scopes
    return Counted(
        change, float(middle[0]), float(middle[1]), float(np.median(watts)), scopes, names, ENERGY_BLOCKS
    ), None
