"""What an energy estimate says: joules by node, each with its interval and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from joulec.energy.price import Bounds

Tier = Literal["measured", "calibrated", "estimated"]
TIERS: tuple[Tier, ...] = ("measured", "calibrated", "estimated")
"""From the best evidence to the weakest: a counter's delta, measured time, nothing but the model."""

SPREAD: Mapping[Tier, float] = {"measured": 1.05, "calibrated": 1.5, "estimated": 3.0}
"""An interval is joules / spread to joules * spread. Measured: the sensors' own gain error of 5 %."""

MAX_ASSUMED = 100
"""Names listed in `assumed`; more are counted."""


@dataclass(frozen=True)
class Energy:
    """Joules, or None for unknown; the interval is [low, high]."""

    joules: float | None
    low: float | None
    high: float | None
    tier: Tier

    @classmethod
    def of(cls, joules: float, tier: Tier, spread: float = 1.0) -> Energy:
        """Joules with the interval of their tier, or a wider one where `spread` is known to be larger."""
        factor = max(SPREAD[tier], spread)
        return cls(joules, joules / factor, joules * factor, tier)

    @classmethod
    def unknown(cls, tier: Tier = "estimated") -> Energy:
        """No price."""
        return cls(None, None, None, tier)


@dataclass(frozen=True)
class NodeEnergy:
    """The energy of one node per run.

    Attributes:
        name: its name (its first output's where it has none); a path where it is in a control-flow body.
        op: its operator; `domain` is empty for standard ones.
        energy: joules, or unknown.
        flops: arithmetic operations of all classes; None where unknown.
        bytes: bytes read and written; None where unknown.
        kernel: what runs, or why nothing does, or why it is unknown.
        seconds: its time, measured or by the roofline.
        repeats: how many times it runs (in a Loop or Scan body).
    """

    name: str
    op: str
    energy: Energy
    flops: int | None
    bytes: int | None
    kernel: str
    domain: str = ""
    seconds: float | None = None
    repeats: int = 1

    def to_json(self) -> dict[str, Any]:
        """The node as JSON; unknown numbers are null."""
        return {
            "name": self.name, "op": self.op, "joules": self.energy.joules, "low": self.energy.low,
            "high": self.energy.high, "tier": self.energy.tier, "flops": self.flops, "bytes": self.bytes,
            "kernel": self.kernel, "domain": self.domain, "seconds": self.seconds, "repeats": self.repeats,
        }  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """The energy of one run of a model.

    Attributes:
        total_joules: the sum over the nodes with a known price; `unknown` lists the others.
        low: the sum of the nodes' lows: their errors are taken as fully correlated, the conservative reading.
        high: the sum of the nodes' highs.
        tier: the weakest tier among the priced nodes.
        device: the profile's name.
        nodes: in graph order; nodes of a control-flow body follow it, under its name.
        unknown: operators without a price, each once.
        assumed: what was taken as 1 because nobody gave it: dimensions, trip counts, branches.
        samples: the batch size, where the model has one.
        seconds: the sum of the nodes' times.
        formulas: `flops` and `bytes` as formulas in the model's symbols, where it has some and they were asked for.
        notes: what else a reader must know (costlier branch taken, inference failed).
        terms: energy term -> amount, for `compare`.
        coefficients: energy term -> joules per unit, with its interval.
        features: kernel family -> operations, bytes, bytes beyond the cache, launches: what a measured profile's time
            is a sum of.
    """

    total_joules: float
    low: float
    high: float
    tier: Tier
    device: str
    nodes: tuple[NodeEnergy, ...]
    unknown: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    samples: int | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    terms: Mapping[str, float] = field(default_factory=dict, repr=False)
    coefficients: Mapping[str, Bounds] = field(default_factory=dict, repr=False)
    features: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)
    formulas: Mapping[str, str] = field(default_factory=dict)

    @property
    def joules_per_sample(self) -> float | None:
        """Joules per sample of the batch, where the batch size is known."""
        return None if self.samples is None else self.total_joules / self.samples

    def by_op(self) -> dict[str, float]:
        """Joules by operator, largest first."""
        sums: dict[str, float] = {}
        for node in self.nodes:
            if node.energy.joules:
                sums[node.op] = sums.get(node.op, 0.0) + node.energy.joules
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))

    def to_json(self) -> dict[str, Any]:
        """The estimate as JSON."""
        return {
            "total_joules": self.total_joules, "low": self.low, "high": self.high, "tier": self.tier,
            "device": self.device, "nodes": [node.to_json() for node in self.nodes], "unknown": list(self.unknown),
            "assumed": list(self.assumed), "samples": self.samples, "joules_per_sample": self.joules_per_sample,
            "seconds": self.seconds, "static_included": True, "notes": list(self.notes),
            "formulas": dict(self.formulas),
        }  # fmt: skip


@dataclass(frozen=True)
class Change:
    """What a change saves per run.

    Attributes:
        joules: energy before minus energy after; positive is a saving.
        low: the least it can be, within the coefficients' ranges.
        high: the most.
        detectable: whether the interval excludes zero. If not: "no detectable change"; measure.
    """

    joules: float
    low: float
    high: float
    detectable: bool


def compare(before: Estimate, after: Estimate) -> Change:
    """The saving from `before` to `after`, paired: coefficients that both share cancel where amounts are equal.

    Each coefficient is one unknown number for both; the saving's interval takes every coefficient at its worst end
    independently (conservative). Estimates of different devices share nothing: their whole intervals are subtracted.
    With different unknown operators nothing is detectable.
    """
    saving = before.total_joules - after.total_joules
    if before.device != after.device or not before.coefficients or not after.coefficients:
        low, high = before.low - after.high, before.high - after.low
    else:
        low, high = _paired(before, after)
    excludes_zero = low > 0 or high < 0
    same_unknown = _unknown_count(before) == _unknown_count(after) and before.unknown == after.unknown
    return Change(saving, low, high, excludes_zero and same_unknown)


def _unknown_count(estimate: Estimate) -> int:
    return sum(node.energy.joules is None for node in estimate.nodes)


def _paired(before: Estimate, after: Estimate) -> tuple[float, float]:
    low = high = 0.0
    for term in dict.fromkeys([*before.terms, *after.terms]):
        amount = before.terms.get(term, 0.0) - after.terms.get(term, 0.0)
        bounds = before.coefficients.get(term) or after.coefficients[term]
        if abs(amount) <= 1e-9 * max(before.terms.get(term, 0.0), after.terms.get(term, 0.0)):
            continue
        ends = amount * bounds.low, amount * bounds.high
        low, high = low + min(ends), high + max(ends)
    return low, high
