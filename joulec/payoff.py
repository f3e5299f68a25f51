"""Does it pay? Paired timing of two modules on this machine, and what counts as faster or slower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.ir.session import SessionOptions
from joulec.ir.values import Array

LOADS = 5
"""Times both models are loaded afresh: where a session's memory lands biases it, and only reloading averages that."""

HEAVY, HEAVY_LOADS = 1 << 30, 2
"""Bytes of weights beyond which models are loaded only this often: it takes long, and their weights, which no cache
holds, land everywhere in memory anyway."""

BLOCKS = 6
"""Blocks of rounds per load; the unit of the bootstrap, long enough that neighbouring runs' noise averages out."""

MIN_ROUNDS, MAX_ROUNDS = BLOCKS, 3000


@dataclass(frozen=True)
class Paired:
    """A paired timing.

    Attributes:
        ratio: time of the base over time of the candidate; above 1 the candidate is faster.
        low, high: its 95 % interval (cluster bootstrap over loads and blocks).
        base_ms, candidate_ms: median milliseconds per inference.
        rounds: timed inferences of each.
        threads: intra-op threads of both.
    """

    ratio: float
    low: float
    high: float
    base_ms: float
    candidate_ms: float
    rounds: int
    threads: int

    @property
    def faster(self) -> bool:
        """The whole interval lies above 1."""
        return self.low > 1.0

    @property
    def slower(self) -> bool:
        """The whole interval lies below 1."""
        return self.high < 1.0

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x ({self.low:.2f} to {self.high:.2f})"


def time_pair(
    runner: Runner, base: Module, candidate: Module, feed: Feed, options: SessionOptions, seconds: float = 2.0
) -> Paired:
    """Time two modules on one feed, interleaved, in `LOADS` fresh pairs of sessions (`HEAVY_LOADS` for large models).

    Args:
        runner: where they run.
        base: the module compared with.
        candidate: the module in question.
        feed: one inference's inputs.
        options: how both sessions are opened.
        seconds: about how long to time, loading not counted.
    """
    return summarize(in_turns(runner, runner.time, base, candidate, feed, options, seconds), options.threads)


def in_turns(
    runner: Runner, sample: Callable[..., Array], base: Module, candidate: Module, feed: Feed, options: SessionOptions,
    seconds: float,
) -> list[Array]:  # fmt: skip
    """What `sample` (`runner.time`, `runner.spend`) gives of both, one array a load; axis 1: base, candidate."""
    columns: list[Array] = []
    loads = LOADS if max(base.weight_bytes(), candidate.weight_bytes()) <= HEAVY else HEAVY_LOADS
    for load in range(loads):
        modules = (base, candidate) if load % 2 == 0 else (candidate, base)
        handles = [runner.load(module, options=options) for module in modules]
        rounds = _rounds(runner.time(handles, feed, rounds=4), seconds / loads)
        sampled = sample(handles, feed, rounds=rounds)
        for handle in handles:
            runner.unload(handle)
        columns.append(sampled if load % 2 == 0 else sampled[:, ::-1])
    return columns


def _rounds(warm_up: Array, seconds: float) -> int:
    per_round = float(np.min(warm_up.sum(axis=1)))
    return int(np.clip(seconds / max(per_round, 1e-7), MIN_ROUNDS, MAX_ROUNDS))


def summarize(loads: list[Array], threads: int) -> Paired:
    """Ratio and interval of paired times.

    Args:
        loads: per load, float array (rounds, 2) of seconds: base, candidate.
        threads: recorded in the result.

    The ratio of a block is that of its two medians; the estimate is the median over all blocks. The interval
    resamples loads, then blocks within them, 2,000 times with a fixed seed.
    """
    ratio, low, high = ratio_of(
        np.array([[_block_ratio(block) for block in np.array_split(timed, BLOCKS)] for timed in loads])
    )
    every = np.concatenate(loads)
    base_ms, candidate_ms = np.median(every, axis=0) * 1e3
    return Paired(ratio, low, high, float(base_ms), float(candidate_ms), len(every), threads)


def ratio_of(ratios: Array) -> tuple[float, float, float]:
    """(median, low, high) of ratios (loads, blocks), with the 95 % interval of a cluster bootstrap over both."""
    generator = np.random.default_rng(0)
    picks = generator.integers(len(ratios), size=(2000, len(ratios)))
    inner = generator.integers(ratios.shape[1], size=(2000, *ratios.shape))
    samples = np.median(ratios[picks[..., None], inner].reshape(2000, -1), axis=1)
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def _block_ratio(block: Array) -> float:
    base, candidate = np.median(block, axis=0)
    return float(base / candidate)


def confirm_slower(
    runner: Runner, base: Module, candidate: Module, feed: Feed, options: SessionOptions, seconds: float = 2.0
) -> Paired:
    """Time a pair; where the candidate looks slower, time it again three times as long and take that result."""
    first = time_pair(runner, base, candidate, feed, options, seconds)
    return time_pair(runner, base, candidate, feed, options, 3 * seconds) if first.slower else first


def paired_json(paired: Paired) -> dict[str, Any]:
    """The numbers as a JSON object, rounded to what they mean."""
    digits = {"ratio": 4, "low": 4, "high": 4, "base_ms": 6, "candidate_ms": 6}
    return {name: round(value, digits.get(name, 0)) for name, value in asdict(paired).items()}
