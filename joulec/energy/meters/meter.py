"""One interface over energy counters, and the bookkeeping that all of them need: wraparound and plausibility."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

POLL_SECONDS = 5.0
"""Counters are read at least this often while counting. The fastest wrap known (32 bits of 15.3 uJ, 65 kJ) takes
minutes at any power that a package can draw."""


class Counter(Protocol):
    """A cumulative energy counter.

    Attributes:
        name: what reports call it, e.g. `package-0`.
        scope: what it counts: `CPU package`, `DRAM`, `GPU board`.
        wraps_at: joules at which it starts again from zero; None where it never does.
        step: seconds between two updates of the counter; a shorter measurement means nothing.
        cap: watts above which a reading is impossible; None where unknown.
    """

    @property
    def name(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def wraps_at(self) -> float | None: ...
    @property
    def step(self) -> float: ...
    @property
    def cap(self) -> float | None: ...

    def read(self) -> float:
        """Joules since some fixed moment.

        Raises:
            OSError: the counter cannot be read (any more).
        """
        ...


@dataclass(frozen=True)
class Obstacle:
    """Why joules cannot be measured here, and what a user can do about it."""

    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


@dataclass(frozen=True)
class Counted:
    """What one counter counted."""

    name: str
    scope: str
    joules: float


@dataclass(frozen=True)
class Measurement:
    """Energy between two moments.

    Attributes:
        seconds: wall time between them.
        counted: joules by counter.
        problem: why the joules must not be used (too short, impossible power, a counter failed); None where they may.
    """

    seconds: float
    counted: tuple[Counted, ...]
    problem: str | None = None

    @property
    def joules(self) -> float | None:
        """The sum over the counters; None where there are none or they must not be used."""
        if self.problem or not self.counted:
            return None
        return sum(one.joules for one in self.counted)

    @property
    def scopes(self) -> tuple[str, ...]:
        """What was counted, each scope once, in the counters' order."""
        return tuple(dict.fromkeys(one.scope for one in self.counted))


def find_counters() -> tuple[list[Counter], list[Obstacle]]:
    """Every counter of this machine that can be read, and why others cannot."""
    from joulec.energy.meters.nvml import nvml_counters
    from joulec.energy.meters.rapl import rapl_counters

    cpu, cpu_obstacles = rapl_counters()
    gpu, gpu_obstacles = nvml_counters()
    return [*cpu, *gpu], [*cpu_obstacles, *gpu_obstacles]


def unwrapped(earlier: float, later: float, wraps_at: float | None) -> float:
    """Joules from one reading to the next, at most one wraparound between them.

    Raises:
        ValueError: the counter ran backwards and is not one that wraps (a driver was reloaded, a machine migrated).
    """
    if later >= earlier:
        return later - earlier
    if wraps_at is None or earlier > wraps_at:
        raise ValueError(f"the counter ran backwards, from {earlier:.3f} J to {later:.3f} J")
    return later + wraps_at - earlier


@dataclass
class _Tally:
    """Running totals; `poll` is called from the counting thread and, at the end, from the caller's."""

    counters: Sequence[Counter]
    clock: Callable[[], float]
    start: float = 0.0
    end: float = 0.0
    problem: str | None = None
    last: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        self.totals = [0.0] * len(self.counters)
        try:
            self.last = [counter.read() for counter in self.counters]
        except OSError as error:
            self.problem = f"a counter cannot be read: {error}"
        self.start = self.clock()

    def poll(self) -> None:
        with self.lock:
            if self.problem is not None:
                return
            try:
                self._add()
            except (OSError, ValueError) as error:
                self.problem = f"a counter failed: {error}"

    def _add(self) -> None:
        for index, counter in enumerate(self.counters):
            now = counter.read()
            self.totals[index] += unwrapped(self.last[index], now, counter.wraps_at)
            self.last[index] = now

    def finish(self) -> Measurement:
        self.end = self.clock()
        self.poll()
        seconds = self.end - self.start
        pairs = zip(self.counters, self.totals, strict=True)
        counted = tuple(Counted(counter.name, counter.scope, joules) for counter, joules in pairs)
        return Measurement(seconds, counted, self.problem or _implausible(self.counters, counted, seconds))


def _implausible(counters: Sequence[Counter], counted: Sequence[Counted], seconds: float) -> str | None:
    """Why joules over `seconds` cannot be believed: shorter than the counter's steps, or beyond what it can draw."""
    for counter, one in zip(counters, counted, strict=True):
        if seconds < 10 * counter.step:
            step = f"{counter.step * 1e3:.0f} ms"
            return f"{seconds * 1e3:.1f} ms is too short for {one.name}, which is updated every {step}"
        watts = one.joules / seconds
        if counter.cap is not None and watts > 1.2 * counter.cap:
            return f"{one.name} reads {watts:.0f} W, above its limit of {counter.cap:.0f} W"
        if one.joules == 0.0 and one.scope != "DRAM":
            return f"{one.name} did not move in {seconds:.1f} s"
    return None


class Counting:
    """Counting in progress; `result` is there once the block has ended."""

    def __init__(self) -> None:
        self._result: Measurement | None = None

    @property
    def result(self) -> Measurement:
        """What was counted.

        Raises:
            RuntimeError: the block has not ended.
        """
        if self._result is None:
            raise RuntimeError("still counting")
        return self._result


@contextmanager
def counting(
    counters: Sequence[Counter], clock: Callable[[], float] = time.monotonic, poll_seconds: float = POLL_SECONDS
) -> Iterator[Counting]:
    """Count joules over a block; a thread reads the counters meanwhile, so that no wraparound is missed.

    Args:
        counters: what to read; none is allowed, joules are then unknown.
        clock: seconds, monotonic.
        poll_seconds: how often to read.
    """
    tally, counted, done = _Tally(tuple(counters), clock), Counting(), threading.Event()

    def watch() -> None:
        while not done.wait(poll_seconds):
            tally.poll()

    thread = threading.Thread(target=watch, name="joulec-counters", daemon=True)
    tally.begin()
    thread.start()
    try:
        yield counted
    finally:
        done.set()
        thread.join()
        counted._result = tally.finish()
