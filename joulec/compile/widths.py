"""How narrow each group of channels may become: a path from the whole model to ever narrower ones.

What each group loses and what its operators cost say which step is next: the one that saves the most time for what it
loses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from joulec.compile.bench import Bench
from joulec.ir.module import Module
from joulec.passes._channel_survey import Survey, survey
from joulec.passes.prune_channels import PruneChannels

STEP, NARROWEST = 1 / 8, 7 / 8
"""Share of a group that goes in a step of the path, and at most."""

RUNG = 0.92
"""Predicted time of one candidate over that of the one before."""

NOTHING = 1e-6
"""Loss that is as good as none, so that what costs nothing goes by what it saves."""


def path(bench: Bench, module: Module, order: PruneChannels) -> Iterator[PruneChannels]:
    """Ever narrower models, by about equal factors of their predicted time."""
    bench.progress("asking what each channel is worth", None)
    found = survey(module, bench.context(module))
    walk = _Walk(found, predicted_seconds(bench, module))
    last = walk.total
    while walk.step():
        if walk.total <= RUNG * last:
            last = walk.total
            yield replace(order, groups=walk.spelled())


def predicted_seconds(bench: Bench, module: Module) -> dict[str, float]:
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
