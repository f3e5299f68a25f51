"""What a gate compares, and what counts as worse: more than noise and more than the slack that a user grants."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

from joulec.energy import DeviceProfile, Energy, Estimate, NodeEnergy, compare
from joulec.energy.price import Rates
from joulec.errors import InputError
from joulec.gating.lock import Lock, LockedAccuracy, LockedEnergy, LockedLatency, LockedOperator
from joulec.report.data import Data

SAME, BETTER, WORSE, SKIPPED = "same", "better", "worse", "not compared"


@dataclass(frozen=True)
class Slack:
    """What may get worse without being a regression, beside noise: shares, and points of accuracy.

    Attributes:
        energy, size: predicted joules and bytes have no noise; a percent of them is nobody's regression.
        latency: of the ratio to the input; two runs on a busy machine differ by more than their own intervals.
        time: of milliseconds on the same machine, which drift with all that runs beside.
        accuracy: in absolute points.
    """

    energy: float = 0.01
    size: float = 0.01
    latency: float = 0.10
    time: float = 0.25
    accuracy: float = 0.002

    def granted(self, entries: Mapping[str, float]) -> Slack:
        """The same with other numbers.

        Raises:
            InputError: a name that is none, or a number that is no share.
        """
        known = [one.name for one in fields(self)]
        for name, value in entries.items():
            if name not in known:
                raise InputError(f"--slack {name}: known are {', '.join(known)}")
            if not 0 <= value < math.inf:
                raise InputError(f"--slack {name}={value:g}: write a share such as 5%, or points such as 0.01")
        return replace(self, **entries)


@dataclass(frozen=True)
class Check(Data):
    """One quantity, then and now.

    Attributes:
        what: `energy`, `latency`, `time`, `size` or `accuracy`.
        unit: of `before` and `after`: `J`, `x` (as fast as the input), `ms`, `B`, or empty.
        change: after over before - 1, or after - before of accuracy; None where nothing was compared.
        low, high: the interval of `change`, as far as noise is known.
        allowed: how much worse it may be.
        verdict: `same`, `better`, `worse` or `not compared`.
        why: what a reader must know about the verdict.
    """

    what: str
    unit: str
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    allowed: float
    verdict: str
    why: str = ""


@dataclass(frozen=True)
class OpDiff(Data):
    """All nodes of one operator, then and now."""

    op: str
    nodes_before: int
    nodes_after: int
    joules_before: float
    joules_after: float

    @property
    def moved(self) -> float:
        return self.joules_after - self.joules_before


def checks(old: Lock, new: Lock, profile: DeviceProfile, slack: Slack) -> Iterator[Check]:
    """Every quantity that both locks have."""
    yield energy(old, new, profile, slack.energy)
    if old.latency is not None or new.latency is not None:
        yield from latency(old.latency, new.latency, slack)
    same = old.artefact.sha256 == new.artefact.sha256
    yield _share("size", "B", old.artefact.bytes, new.artefact.bytes, slack.size, "the same model" if same else "")
    if old.accuracy is not None or new.accuracy is not None:
        yield accuracy(old.accuracy, new.accuracy, slack.accuracy)


def energy(old: Lock, new: Lock, profile: DeviceProfile, allowed: float) -> Check:
    """Predicted joules in pairs: what both builds have in common is no noise between them."""
    before, after = old.energy.joules, new.energy.joules
    if old.artefact.sha256 == new.artefact.sha256:
        repriced = not math.isclose(before, after, rel_tol=1e-6)
        why = _REPRICED.format(old.joulec, new.joulec) if repriced else "the same model"
        return Check("energy", "J", before, after, 0.0, 0.0, 0.0, allowed, SAME, why)
    saving = compare(estimated(old.energy, profile), estimated(new.energy, profile))
    low, high = (-end / before if before else 0.0 for end in (saving.high, saving.low))
    change = after / before - 1 if before else 0.0
    verdict = SAME
    if saving.detectable and abs(change) > allowed:
        verdict = WORSE if change > 0 else BETTER
    why = "" if saving.detectable or before == after else "no detectable change: its interval reaches zero"
    return Check("energy", "J", before, after, change, low, high, allowed, verdict, why)


_REPRICED = "the same model; joulec {} priced it then, {} now"


def estimated(locked: LockedEnergy, profile: DeviceProfile) -> Estimate:
    """What `compare` needs of an estimate: amounts by term, and what a unit of each costs.

    Raises:
        InputError: a term that the profile does not know.
    """
    rates, nodes = Rates(profile), list[NodeEnergy]()
    for op, count in locked.unknown.items():
        nodes += [NodeEnergy(op, op, Energy.unknown(), None, None, "")] * count
    try:
        coefficients = {term: rates.bounds(term) for term in locked.terms}
    except KeyError as error:
        raise InputError(f"lock file: profile '{profile.name}' knows no energy term {error}") from None
    return Estimate(
        locked.joules, locked.low, locked.high, "estimated", profile.name, tuple(nodes), tuple(locked.unknown),
        terms=locked.terms, coefficients=coefficients,
    )  # fmt: skip


def latency(old: LockedLatency | None, new: LockedLatency | None, slack: Slack) -> Iterator[Check]:
    """Speed against the input, each measured in one run; and milliseconds where both runs were on one machine."""
    if old is None or new is None:
        why = "not timed then" if old is None else "not timed now"
        yield Check("latency", "x", _ratio(old), _ratio(new), None, None, None, slack.latency, SKIPPED, why)
        return
    noise = math.hypot(*(0.5 * math.log(one.high / one.low) for one in (old, new)))
    yield _timed("latency", "x", old.ratio, new.ratio, noise, slack.latency, old.ratio / new.ratio)
    if (old.machine, old.threads) != (new.machine, new.threads) or not old.machine:
        why = "another machine, or another number of threads"
        times = old.milliseconds, new.milliseconds
        yield Check("time", "ms", *times, None, None, None, slack.time, SKIPPED, why)
        return
    yield _timed(
        "time", "ms", old.milliseconds, new.milliseconds, noise, slack.time, new.milliseconds / old.milliseconds
    )


def _ratio(one: LockedLatency | None) -> float | None:
    return None if one is None else one.ratio


def _timed(what: str, unit: str, before: float, after: float, noise: float, allowed: float, slower: float) -> Check:
    """`slower` is how many times as slow it is now; `noise` the half width of the interval of its logarithm."""
    low, high = slower * math.exp(-noise) - 1, slower * math.exp(noise) - 1
    verdict = WORSE if low > allowed else BETTER if high < -allowed else SAME
    return Check(what, unit, before, after, slower - 1, low, high, allowed, verdict)


def _share(what: str, unit: str, before: float, after: float, allowed: float, why: str) -> Check:
    change = after / before - 1 if before else 0.0
    verdict = WORSE if change > allowed else BETTER if change < -allowed else SAME
    return Check(what, unit, before, after, change, change, change, allowed, verdict, why)


def accuracy(old: LockedAccuracy | None, new: LockedAccuracy | None, allowed: float) -> Check:
    """The score itself: what is deployed counts, not its distance to an input that may have changed too."""
    if old is None or new is None or (old.name, old.data) != (new.name, new.data):
        why = "not judged then" if old is None else "not judged now" if new is None else f"judged by {old.data} then"
        before, after = None if old is None else old.value, None if new is None else new.value
        return Check("accuracy", "", before, after, None, None, None, allowed, SKIPPED, why)
    lost, noise = old.value - new.value, math.hypot(old.noise, new.noise)
    verdict = WORSE if lost - noise > allowed else BETTER if -lost - noise > allowed else SAME
    return Check("accuracy", "", old.value, new.value, -lost, -lost - noise, -lost + noise, allowed, verdict)


_NONE = LockedOperator(0, 0.0, 0, 0)


def operators(old: Lock, new: Lock) -> tuple[OpDiff, ...]:
    """By operator, what moved most first."""
    then, now = old.energy.operators, new.energy.operators
    found = []
    for op in sorted({*then, *now}):
        before, after = then.get(op, _NONE), now.get(op, _NONE)
        found.append(OpDiff(op, before.nodes, after.nodes, before.joules, after.joules))
    return tuple(sorted(found, key=lambda one: -abs(one.moved)))
