"""Calibrating a profile: run the ladder on this machine's CPU, fit kernel times, and write them as a profile.

What is fitted is time: this machine may have no energy counter. Joules then are this time and the base profile's powers
and energies per operation, and say so ("calibrated").
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from joulec.energy.families import FAMILIES
from joulec.energy.fit import Features, Fit, fit, held_out_error
from joulec.energy.ladder import Rung, feed_of, ladder
from joulec.energy.model import EnergyModel
from joulec.energy.profile import (
    Calibration,
    Coefficient,
    DeviceProfile,
    load_profile,
    user_folder,
    user_profiles,
)
from joulec.energy.terms import UNITS
from joulec.errors import InputError
from joulec.ir.machine import cache_sizes, cpu, cpu_flags, cpu_name
from joulec.ir.module import Module
from joulec.ir.session import SessionOptions, open_session, spend_sessions, time_sessions
from joulec.ir.values import Array

SECONDS, QUICK_SECONDS = 0.25, 0.15
"""How long a rung is timed; a run takes at least `LEAST_RUNS` times its model's own time."""

CACHE_SHARES, NEARLY = (1.0, 0.5, 0.25, 0.125), 1.02
"""Shares of the last cache that may be this process's own. Of those that fit nearly alike the smallest is taken: a rung
that runs again and again keeps more of it than a network does."""

LEAST_RUNS, CHECK_EVERY = 10, 12
UNSTABLE = 0.05
"""Relative spread of one reference rung over the whole calibration above which the machine is called unstable."""

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Calibrated:
    """A calibrated profile and how good it is.

    Attributes:
        profile: the profile.
        rungs: how many microbenchmarks were run.
        median_error: median relative error of a rung that is predicted without itself.
        drift: relative spread of the reference rung from the first minute to the last.
        seconds: how long it took.
    """

    profile: DeviceProfile
    rungs: int
    median_error: float
    drift: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.profile.name, "rungs": self.rungs, "median_error": self.median_error, "drift": self.drift,
            "unstable": self.unstable, "seconds": self.seconds, "kernels": sorted(self.profile.kernels),
        }  # fmt: skip

    @property
    def unstable(self) -> bool:
        """Whether the machine's speed changed so much meanwhile that the numbers should not be trusted."""
        return self.drift > UNSTABLE


def calibrate_cpu(
    threads: int = 1, quick: bool = False, name: str | None = None, progress: Progress = lambda _message, _share: None
) -> Calibrated:
    """Run the ladder on this CPU and fit its kernel times. Four minutes, or less than half of that with `quick`.

    Args:
        threads: intra-op threads; a profile holds for one number of them.
        quick: half of the rungs, each timed for a shorter while.
        name: the profile's; made from the CPU's model where None.
        progress: called as `progress(message, fraction)`.

    Raises:
        UnavailableError: onnxruntime or scipy is not installed.
        InputError: more threads than cores.
    """
    if not 1 <= threads <= cpu()["cores"]:
        raise InputError(f"--threads {threads}: this machine lends {cpu()['cores']} cores")
    start = time.monotonic()
    rungs = ladder(quick)
    seconds, drift = time_rungs(rungs, threads, QUICK_SECONDS if quick else SECONDS, progress)
    progress("fitting", None)
    base, fitted, _ = best_fit(rungs, seconds, threads)
    profile = fitted_profile(base, fitted, threads, name or default_name(threads), len(rungs), drift)
    errors = float(np.median(np.abs(fitted.errors)))
    return Calibrated(profile, len(rungs), errors, drift, time.monotonic() - start)


def best_fit(
    rungs: Sequence[Rung], seconds: Sequence[float], threads: int
) -> tuple[DeviceProfile, Fit, list[Features]]:  # fmt: skip
    """The fit of the last cache's share that explains the times best: other cores, and other machines, take the rest.

    Returns:
        This CPU with that share of its cache, the fit, and what each rung's time is a sum of.
    """
    tried = []
    for share in CACHE_SHARES:
        base = this_cpu(threads, share)
        features = features_of(rungs, base)
        tried.append((held_out_error(features, seconds), share, base, features))
    least = min(error for error, *_ in tried)
    _, _, base, features = min((one for one in tried if one[0] <= NEARLY * least), key=lambda one: one[1])
    return base, fit(features, seconds), features


def features_of(rungs: Sequence[Rung], base: DeviceProfile) -> list[Features]:
    """What each rung's time is a sum of."""
    model = EnergyModel(base)
    return [model.estimate(Module(ir.from_proto(rung.model)), in_place=True).features for rung in rungs]


def default_name(threads: int) -> str:
    """`intel-xeon-processor-1t`: the CPU's model, and the threads."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", str(cpu()["model"]).lower()))
    return "-".join([*words, f"{threads}t"]) or f"cpu-{threads}t"


def calibrated_profile(threads: int) -> DeviceProfile | None:
    """The profile in the user's folder that was calibrated on this CPU with this many threads; the first by name."""
    for path in user_profiles().values():
        try:
            found = load_profile(path)
        except InputError:
            continue  # a broken file of the user's is reported when it is named, and must not stop every other command
        made = found.calibration
        if made is not None and (made.machine, made.threads) == (cpu_name(), threads):
            return found
    return None


def profile_for(device: str | Path | None, default: str, threads: int = 1) -> DeviceProfile:
    """The profile that prices a model: the one named, else one calibrated on this CPU, else the target's default.

    Args:
        device: a name or a file that the user gave, or None.
        default: the target's default profile; a calibrated one replaces that of a CPU only.
        threads: intra-op threads that the model will run with.

    Raises:
        InputError: there is no such profile.
    """
    if device is not None:
        return load_profile(device)
    usual = load_profile(default)
    return (calibrated_profile(threads) if usual.kind == "cpu" else None) or usual


def this_cpu(threads: int, share: float = 1.0) -> DeviceProfile:
    """The generic CPU with the instruction sets and the cache sizes of this one, and a share of its last cache."""
    flags = cpu_flags()
    vnni = {"avx512_vnni", "avx_vnni"} & flags
    features = [name for name, has in (("amx", "amx_int8" in flags), ("vnni", bool(vnni))) if has]
    base = load_profile().with_features(*features).with_cores(threads)
    sizes = cache_sizes()
    if not sizes:
        return base
    own, last = sizes[min(1, len(sizes) - 1)], sizes[-1]
    near, source = threads * own, "Linux, /sys/devices/system/cpu/cpu0/cache"
    fitted = f"{source}; {share:g} of it, as fitted"
    known = {
        "near_cache_size": Coefficient(near, near, near, "B", source),
        "cache_size": Coefficient(share * last, min(near, share * last), last, "B", fitted),
    }
    return replace(base, memory={**base.memory, **known})


# -- measuring --------------------------------------------------------------------------------------------------------


def time_rungs(rungs: Sequence[Rung], threads: int, budget: float, progress: Progress) -> tuple[list[float], float]:
    """Seconds per run of each rung, and the relative spread of a reference that is timed again and again."""
    options = SessionOptions(threads=threads)
    reference, checks = rungs[len(rungs) // 3], []
    order = np.random.default_rng(0).permutation(len(rungs))  # a drift must not look like a property of one family
    found: dict[int, float] = {}
    for done, index in enumerate(int(i) for i in order):
        if done % CHECK_EVERY == 0:
            checks.append(_time(reference, options, budget))
        progress(f"timing {rungs[index].name}", done / len(rungs))
        found[index] = _time(rungs[index], options, budget)
    return [found[index] for index in range(len(rungs))], float((np.max(checks) - np.min(checks)) / np.median(checks))


def _time(rung: Rung, options: SessionOptions, budget: float) -> float:
    """Median seconds of one run; of one thread, CPU seconds: those of other processes that cut in are not its own."""
    session, feed = open_session(rung.model.SerializeToString(), options), feed_of(rung)
    warm_up = time_sessions([session], feed, 4)
    once = float(np.min(warm_up[1:]))
    spent: Array = spend_sessions([session], feed, max(LEAST_RUNS, int(budget / max(once, 1e-6))))
    wall, cpu = np.median(spent[:, 0], axis=0)
    return float(cpu if options.threads == 1 else wall)


# -- the profile ------------------------------------------------------------------------------------------------------


def fitted_profile(
    base: DeviceProfile, fitted: Fit, threads: int, name: str, rungs: int, drift: float
) -> DeviceProfile:  # fmt: skip
    """`base` with the kernel times that were fitted to so many rungs, and the machine's drift meanwhile."""
    import onnxruntime

    runtime = f"onnxruntime {onnxruntime.__version__}"
    source = f"fitted to {rungs} microbenchmarks with {runtime}, {threads} thread(s)"
    kernels: dict[str, dict[str, Coefficient]] = {}
    for family in FAMILIES:
        law = {
            feature: Coefficient(one.value, one.low, one.high, UNITS[feature], source)
            for (owner, feature), one in fitted.laws.items()
            if owner == family
        }
        if law:
            kernels[family] = law
    described = f"{cpu_name()}, {threads} thread(s); times calibrated, powers and energies as {base.name}"
    if drift > UNSTABLE:
        described += f"; unstable: its speed changed by {drift:.0%} meanwhile"
    made = Calibration(cpu_name(), threads, runtime, fitted.spread * (1 + drift))
    return replace(base, name=name, description=described, kernels=kernels, calibration=made, _found={})


def write_profile(profile: DeviceProfile, path: Path | None = None) -> Path:
    """Write a profile as TOML, whole or not at all; into the user's folder where `path` is None.

    Raises:
        InputError: it cannot be written there.
    """
    place = path or user_folder() / f"{profile.name}.toml"
    draft = place.with_name(f".{place.name}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text("\n".join(_toml(profile)) + "\n", encoding="utf-8")
        draft.replace(place)
    except OSError as error:
        raise InputError(f"{place}: cannot be written: {error.strerror or error}") from None
    return place


def _toml(profile: DeviceProfile) -> Iterator[str]:
    yield "# Written by `joulec calibrate-device`. Times are this machine's; a profile holds for its number of threads."
    for key, value in (("name", profile.name), ("description", profile.description), ("kind", profile.kind)):
        yield f"{key} = {json.dumps(value)}"
    if profile.cores is not None:
        yield f"cores = {profile.cores}"
    yield f"features = {json.dumps(list(profile.features))}"
    if (made := profile.calibration) is not None:
        yield from ("", "[calibration]", f"machine = {json.dumps(made.machine)}", f"threads = {made.threads}")
        yield from (f"runtime = {json.dumps(made.runtime)}", f"spread = {made.spread:.4f}")
    groups = profile.tables() | {f"kernels.{family}": law for family, law in profile.kernels.items()}
    for table, group in groups.items():
        for key, one in group.items():
            yield from ("", f"[{table}.{json.dumps(key)}]")
            yield from (f"{bound} = {getattr(one, bound)!r}" for bound in ("value", "low", "high"))
            yield from (f"unit = {json.dumps(one.unit)}", f"source = {json.dumps(one.source)}")
