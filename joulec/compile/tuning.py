"""How the artefact's session is opened: every setting is tried on the finished model, and stays where it pays.

For `latency` a setting must shorten an inference. For `energy` it must save CPU seconds, which stand for joules where
no counter does: those of all threads, during an inference and in the rest behind it, in which a thread pool that spins
burns cores for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from joulec.backends.base import SessionSettings
from joulec.backends.profiles import fixed_sizes
from joulec.compile.bench import Bench
from joulec.compile.worth import measured
from joulec.errors import InputError
from joulec.ir.machine import cpu
from joulec.ir.module import Module
from joulec.ir.values import Array
from joulec.payoff import BLOCKS, Paired, summarize

SESSION = "session"
"""How decisions call what is chosen here."""

PAUSE = 0.005
"""Seconds between a result and the next request, where energy is what counts."""

LOADS, SECONDS, MOST = 4, 1.0, 400
"""Sessions of each kind, seconds of inferences for a comparison, and inferences of one session at most."""

_SPIN, _UNPACKED = "session.intra_op.allow_spinning", "session.disable_prepacking"


def tuned(bench: Bench, module: Module) -> SessionSettings | None:
    """The settings that measurement chose for the finished module, or None where nothing was to be tuned."""
    goal = bench.orders.tune
    if bench.recorded is not None and bench.recorded.session is not None:
        allowed = bench.backend.provider_options
        return SessionSettings.from_json(bench.recorded.session, "decisions.json: session", allowed)
    if goal is None:
        return None
    if not bench.times_target:
        bench.book.notes.append(f"--tune {goal}: the session is not tuned, because its device is not at hand")
        return None
    return _Tuning(bench, module, goal).best()


class _Tuning:
    """Goes through the settings one by one, each on top of those that were kept."""

    def __init__(self, bench: Bench, module: Module, goal: str) -> None:
        self._bench, self._goal = bench, goal
        self._module = bench.backend.finished(module)
        self._settings = bench.backend.settings_for(module, bench.threads, bench.inputs.shapes)
        self._deadline = time.monotonic() + bench.orders.search_seconds
        self._sizes = fixed_sizes(module, bench.inputs.shapes)

    def best(self) -> SessionSettings:
        """The settings that stay."""
        for what, settings in self._candidates():
            if time.monotonic() > self._deadline:
                self._bench.book.doubts.append("--search-budget ended before every session setting was tried")
                break
            self._bench.progress(f"timing sessions: {what}", None)
            if self._pays(what, settings):
                self._settings = settings
        if self._settings.sizes:
            said = ", ".join(f"{name}={size}" for name, size in self._settings.sizes.items())
            self._bench.book.doubts.append(f"session.json fixes {said}: joulec.load opens it for these sizes only")
        return self._settings

    def _candidates(self) -> Iterator[tuple[str, SessionSettings]]:
        """Each differs in one setting from the best so far; one more thread is tried while that pays."""
        while self._bench.threads == 1 and self._settings.threads * 2 <= cpu()["cores"]:
            before, more = self._settings, self._settings.threads * 2
            yield f"{more} threads", replace(before, threads=more)
            if self._settings is before:
                break
        if self._settings.threads != 1:
            yield "threads that spin", self._configured(_SPIN, "1")
        yield "weights not packed", self._configured(_UNPACKED, "1")
        yield "no arena", replace(self._settings, arena=False)
        if self._sizes:
            yield "fixed sizes", replace(self._settings, sizes=self._sizes)

    def _configured(self, key: str, value: str) -> SessionSettings:
        return replace(self._settings, config={**self._settings.config, key: value})

    def _pays(self, what: str, settings: SessionSettings) -> bool:
        try:
            paired = self._compared(settings)
        except InputError as error:  # sizes that the data do not have
            self._bench.book.choose(SESSION, False, f"{what}: {error}")
            return False
        unit = "the speed of a session without" if self._goal == "latency" else "fewer CPU seconds per inference"
        self._bench.book.choose(SESSION, paired.faster, f"{what}: {paired} {unit}", measured(paired))
        return paired.faster

    def _compared(self, candidate: SessionSettings) -> Paired:
        """Sessions one after the other, never two at a time: the threads of one would burn the time of the other."""
        columns: list[Array] = []
        for load in range(LOADS):
            order = (self._settings, candidate) if load % 2 == 0 else (candidate, self._settings)
            spent = [self._spent(one) for one in order]
            both = spent if load % 2 == 0 else spent[::-1]
            rounds = min(map(len, both))
            columns.append(np.stack([one[:rounds] for one in both], axis=1))
        return summarize(columns, candidate.threads)

    def _spent(self, settings: SessionSettings) -> Array:
        """Seconds per inference of one fresh session: of wall time, or of all threads where energy counts."""
        runner, feed = self._bench.runner, self._bench.inputs.probes[0]
        handle = runner.load(self._module, options=settings.options(self._bench.base.origin.custom_ops))
        try:
            pause = PAUSE if self._goal == "energy" else 0.0
            usual = float(np.min(runner.time([handle], feed, rounds=4))) + pause
            rounds = int(np.clip(SECONDS / (2 * LOADS) / usual, BLOCKS, MOST))
            spent = runner.spend([handle], feed, rounds=rounds, pause=pause)
        finally:
            runner.unload(handle)
        seconds: Array = spent[:, 0, 1 if pause else 0]
        return seconds
