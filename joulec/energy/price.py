"""From work to joules: the roofline-with-energy formula, as a sum of amounts times coefficients.

    E = sum_d flop_d * e_d + sum_l bytes_l * e_l + launches * e_launch + P_static * T,   E <= P_cap * T
    T = measured, else max(sum_d flop_d / (eta * peak_d), dram / (eta_m * bw), cache / (eta_m * bw)) + n * t_launch

Choi et al. 2013 (a roofline model of energy); the static term follows T. Kept as terms (name -> amount), so that two
estimates can be subtracted term by term: coefficients that both share then cancel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from joulec.energy.families import IN_PLACE
from joulec.energy.profile import Coefficient, DeviceProfile
from joulec.energy.terms_dense import BY_FAMILY as DENSE
from joulec.energy.work import Work

PICO = 1e-12


@dataclass(frozen=True)
class Bounds:
    """A number and the interval of its coefficients."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Price:
    """What one node costs.

    Attributes:
        joules: dynamic and static energy.
        seconds: its time, measured or estimated.
        terms: term -> amount, in operations, bytes, launches or seconds; joules = sum of amount * coefficient.
    """

    joules: float
    seconds: float
    terms: Mapping[str, float]


_BOUNDS = ("matrix", "vector", "dram", "cache")
"""What can bound the time of a kernel."""


class Rates:
    """A profile's coefficients by term, and its time per operation by class, each worked out once."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self._bounds: dict[str, Bounds] = {}
        self._kinds: dict[str, tuple[str, str, float]] = {}
        memory = profile.memory
        self.cache_size = memory["cache_size"].value
        near = memory.get("near_cache_size")
        self.near_cache_size = self.cache_size if near is None else near.value
        self.bandwidth = {name: memory[f"{name}_bandwidth"].value for name in ("dram", "cache")}
        self.launch_time = profile.launch["time"].value
        self.laws = {
            family: {name: one.value for name, one in law.items()} for family, law in profile.kernels.items()
        }
        self.efficiency = {f"static:{kind}": _efficiency(profile, kind).value for kind in _BOUNDS}

    def bounds(self, term: str) -> Bounds:
        """Joules per unit of a term, with its interval."""
        if term not in self._bounds:
            self._bounds[term] = coefficient(self.profile, term)
        return self._bounds[term]

    def kind(self, kind: str) -> tuple[str, str, float]:
        """(energy term, static term, operations per second) of an arithmetic class."""
        if kind not in self._kinds:
            unit = "matrix" if kind.endswith("-matrix") else "vector"
            peak = self.profile.peak[self.profile.resolve("peak", kind)].value
            self._kinds[kind] = (f"energy:{self.profile.resolve('energy', kind)}", f"static:{unit}", peak)
        return self._kinds[kind]


@dataclass(frozen=True)
class Resident:
    """The shares of the model's weights, 0..1, that stay from run to run in the last cache and in the core's own."""

    last: float = 1.0
    near: float = 1.0

    @classmethod
    def of(cls, footprint: float, rates: Rates) -> Resident:
        """Those of a model that touches `footprint` bytes between two uses of the same weight."""
        return cls(_share(footprint, rates.cache_size), _share(footprint, rates.near_cache_size))


def _share(footprint: float, cache: float) -> float:
    """All of it while it fits; none from twice the cache's size: what is used in turns evicts itself."""
    return min(1.0, max(0.0, 2.0 - footprint / cache))


def price(work: Work, rates: Rates, resident: Resident, seconds: float | None = None) -> Price:
    """The price of `work` on a device.

    Args:
        work: what the node does.
        rates: the device's coefficients.
        resident: how much of the weights caches keep.
        seconds: measured time, replacing the roofline's.
    """
    if work.launches == 0:
        return Price(0.0, 0.0, {})
    terms: dict[str, float] = {}
    for kind, count in work.flops.items():
        _add(terms, rates.kind(kind)[0], count)
    dram = missing_bytes(work, rates.cache_size, resident.last)
    _add(terms, "memory:cache", work.bytes)
    _add(terms, "memory:dram", dram)
    _add(terms, "launch", work.launches)
    time = _static_terms(terms, work, rates, resident, seconds)
    joules = sum(amount * rates.bounds(name).value for name, amount in terms.items())
    return _capped(Price(joules, time, terms), rates.profile)


def missing_bytes(work: Work, cache: float, resident: float) -> float:
    """Bytes that miss a cache: of the weights what is not resident, of the activations what exceeds it."""
    activations = work.input_bytes + work.output_bytes
    return work.weight_bytes * (1.0 - resident) + max(0.0, activations - cache)


def missing(work: Work, cache: float, resident: float) -> tuple[float, float]:
    """(read, written) bytes that miss a cache.

    Smooth in the sizes (no cliff at the cache's size), and never smaller for larger tensors. What is computed in place
    is written to where it was read.
    """
    activations = work.input_bytes + work.output_bytes
    share = max(0.0, 1.0 - cache / activations) if activations else 0.0
    read = work.weight_bytes * (1.0 - resident) + work.fed_bytes * max(share, 1.0 - resident)
    written = 0.0 if work.family in IN_PLACE else work.output_bytes * share
    return read + (work.input_bytes - work.fed_bytes) * share, written


def _add(terms: dict[str, float], name: str, amount: float) -> None:
    if amount:
        terms[name] = terms.get(name, 0.0) + amount


def _static_terms(
    terms: dict[str, float], work: Work, rates: Rates, resident: Resident, seconds: float | None
) -> float:  # fmt: skip
    """Add the terms of static energy, by what bounds the time, and return the time.

    Their amounts are seconds at peak: the clock's range moves all peaks alike, so only the efficiencies' remain.
    """
    if seconds is not None:
        _add(terms, "static:measured", seconds)
        return seconds
    if work.family in rates.laws:
        return _fitted_seconds(terms, work, rates, resident)
    dram = missing_bytes(work, rates.cache_size, resident.last)
    candidates = [
        _compute_seconds(work, rates),
        {"static:dram": dram / rates.bandwidth["dram"]},
        {"static:cache": work.bytes / rates.bandwidth["cache"]},
    ]
    times = [sum(amount / rates.efficiency[name] for name, amount in one.items()) for one in candidates]
    bound = max(range(len(times)), key=lambda index: times[index])
    for name, amount in candidates[bound].items():
        _add(terms, name, amount)
    _add(terms, "static:launch", work.launches)
    return times[bound] + work.launches * rates.launch_time


def _fitted_seconds(terms: dict[str, float], work: Work, rates: Rates, resident: Resident) -> float:
    """Add the terms of static energy of kernels whose times were fitted, and return their time."""
    total = 0.0
    for family, amounts in kernel_features(work, rates, resident).items():
        law = rates.laws.get(family, {})
        seconds = sum(law.get(name, 0.0) * amount for name, amount in amounts.items())
        _add(terms, f"static:kernels:{family}", seconds)
        total += seconds
    return total


def kernel_features(work: Work, rates: Rates, resident: Resident) -> dict[str, dict[str, float]]:
    """What the time of a kernel is a sum of, by family: its own terms, changes of layout for it, and memory traffic.

    What a byte beyond the caches costs is the machine's, not the kernel's: all kernels share those coefficients.
    """
    if not work.launches:
        return {}
    own = {**work.terms, "launch": float(work.launches)}
    if work.family.removeprefix("int8-") not in DENSE:
        own["byte"] = work.bytes
    found = {work.family: own, "memory": _traffic(work, rates, resident)}
    if work.reorders:
        found["reorder"] = {"byte": work.reordered_bytes, "launch": work.reorders}
    if work.views:
        found["view"] = {"launch": work.views}
    if work.turns:
        found["turn"] = {"byte": work.turned_bytes, "launch": work.turns}
    return found


def _traffic(work: Work, rates: Rates, resident: Resident) -> dict[str, float]:
    """Bytes that come from the last cache, or from DRAM, and that go there."""
    far, dram = missing(work, rates.near_cache_size, resident.near), missing(work, rates.cache_size, resident.last)
    return {"far_read": far[0] - dram[0], "far_write": far[1] - dram[1], "dram_read": dram[0], "dram_write": dram[1]}


def _compute_seconds(work: Work, rates: Rates) -> dict[str, float]:
    """Seconds at peak that the arithmetic takes, on matrix and on vector units."""
    found: dict[str, float] = {}
    for kind, count in work.flops.items():
        _, term, peak = rates.kind(kind)
        _add(found, term, count / peak)
    return found


def _efficiency(profile: DeviceProfile, term: str) -> Coefficient:
    """The share of peak that a `static:` term's kernels reach."""
    kind = term.removeprefix("static:")
    return profile.efficiency[kind if kind in ("matrix", "vector") else "memory"]


def coefficient(profile: DeviceProfile, term: str) -> Bounds:
    """Joules per unit of a term, with the interval that its coefficients span."""
    kind, _, key = term.partition(":")
    if kind == "energy":
        return _scale(profile.energy[key], PICO)
    if kind == "memory":
        return _scale(profile.memory[f"{key}_energy"], PICO)
    if kind == "launch":
        return _scale(profile.launch["energy"], 1.0)
    power = profile.power["static"]
    if key == "measured":
        return _scale(power, 1.0)
    if key.startswith("kernels:") and profile.calibration is not None:
        spread = profile.calibration.spread
        return Bounds(power.value, power.low / spread, power.high * spread)
    if key == "launch":
        return _product(power, profile.launch["time"])
    share = _efficiency(profile, term)
    return Bounds(power.value / share.value, power.low / share.high, power.high / share.low)


def _scale(number: Coefficient, factor: float) -> Bounds:
    return Bounds(number.value * factor, number.low * factor, number.high * factor)


def _product(a: Coefficient, b: Coefficient) -> Bounds:
    return Bounds(a.value * b.value, a.low * b.low, a.high * b.high)


def _capped(found: Price, profile: DeviceProfile) -> Price:
    """No operator draws more than the device's cap: E <= P_cap * T."""
    most = profile.power["cap"].value * found.seconds
    if found.joules <= most or found.joules == 0.0:
        return found
    share = most / found.joules
    return Price(most, found.seconds, {name: amount * share for name, amount in found.terms.items()})
