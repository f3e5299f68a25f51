"""The gate itself: read the lock, look at the artefact, compare."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joulec
from joulec.api import writable_file
from joulec.backends import artefact, backend
from joulec.backends.base import MODEL_FILE
from joulec.energy import DeviceProfile, EnergyModel, Estimate, load_profile
from joulec.energy.bind import still_open
from joulec.errors import InputError
from joulec.gating import lock as locking
from joulec.gating.checks import WORSE, Check, OpDiff, Slack, checks, operators
from joulec.gating.lock import Lock, LockedAccuracy, LockedEnergy, LockedLatency, LockedModel, LockedOperator
from joulec.ir.lower import lower
from joulec.pages import report_of
from joulec.report.data import Report
from joulec.shapespec import parse_shapes

if TYPE_CHECKING:
    from joulec.ir.sandbox import Limits


@dataclass(frozen=True)
class Gate:
    """What a gate found.

    Attributes:
        artefact, baseline: what was compared with what.
        checks: every quantity; empty where there was no baseline yet.
        operators: joules by operator, what moved most first.
        choices: what joulec decided otherwise than then: (what, then, now and why).
        notes: what else a reader must know.
        updated: whether the lock was written.
    """

    artefact: str
    baseline: str
    checks: tuple[Check, ...]
    operators: tuple[OpDiff, ...]
    choices: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]
    updated: bool

    @property
    def regressed(self) -> tuple[Check, ...]:
        """What got worse, beyond noise and slack."""
        return tuple(check for check in self.checks if check.verdict == WORSE)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "artefact": self.artefact, "baseline": self.baseline, "updated": self.updated,
            "regressed": [check.what for check in self.regressed], "checks": [one.to_json() for one in self.checks],
            "operators": [one.to_json() for one in self.operators], "choices": [list(one) for one in self.choices],
            "notes": list(self.notes),
        }  # fmt: skip


def gate(
    directory: str | Path, baseline: str | Path = "joulec.lock", *, update: bool = False, device: str | None = None,
    slack: Mapping[str, float] | None = None, limits: Limits | None = None,
) -> Gate:  # fmt: skip
    """Compare an artefact with a lock file.

    Args:
        directory: what `joulec optimize -o` wrote.
        baseline: the lock file.
        update: write what the artefact costs into it; also makes it where there is none.
        device: profile that a new lock pins; by default the target's, which ships. An old lock's stays pinned.
        slack: quantity -> what may get worse without being a regression (`Slack`).
        limits: read the model in a child process with these limits.

    Raises:
        InputError: no intact artefact, no lock, a lock of another target, or of a profile that changed since.
    """
    folder, place = Path(directory), Path(baseline)
    granted = Slack().granted(slack or {})
    old = _known(place) if update else locking.read(place)
    report = intact(folder)
    pinned = device or (None if old is None else old.energy.profile)
    profile = load_profile(pinned or backend(report.target).target.device)
    if old is not None and not update:
        _require_comparable(old, report, profile, place)
    new = measured(folder, report, pinned or profile.name, profile, limits)
    if update:
        _write(new, place)
    if old is None or not _same_basis(old, report, profile):
        return Gate(str(folder), str(place), (), (), (), (), update)
    found = tuple(checks(old, new, profile, granted))
    return Gate(
        str(folder), str(place), found, operators(old, new), _choices(old, new, report), tuple(_notes(old, new)), update
    )


def _known(place: Path) -> Lock | None:
    """The lock that is about to be replaced, where there is one that can be read."""
    try:
        return locking.read(place)
    except InputError:
        return None


def _choices(old: Lock, new: Lock, report: Report) -> tuple[tuple[str, str, str], ...]:
    """What was decided otherwise, with the reason of now."""
    reasons = {one.what: one.reason for one in report.decisions}
    names = sorted(name for name in {*old.choices, *new.choices} if old.choices.get(name) != new.choices.get(name))
    then, now = ({name: one.choices.get(name, "not tried") for name in names} for one in (old, new))
    return tuple(
        (name, then[name], f"{now[name]}: {reasons[name]}" if name in reasons else now[name]) for name in names
    )


def _notes(old: Lock, new: Lock) -> Iterator[str]:
    for what, then, now in (("model", old.model, new.model), ("joulec", old.joulec, new.joulec)):
        if then != now:
            yield f"{what} then {then}, now {now}"
    if old.shape != new.shape:
        yield f"sizes then {' '.join(old.shape) or 'as they come'}, now {' '.join(new.shape) or 'as they come'}"


def _same_basis(old: Lock, report: Report, profile: DeviceProfile) -> bool:
    return old.target == report.target and old.energy.digest == digest(profile)


def _require_comparable(old: Lock, report: Report, profile: DeviceProfile, place: Path) -> None:
    if old.target != report.target:
        raise InputError(f"{place}: made for target '{old.target}', the artefact is for '{report.target}'")
    if old.energy.digest != digest(profile):
        raise InputError(
            f"{place}: its joules are of another '{old.energy.profile}' than this joulec has (written by joulec "
            f"{old.joulec}, this is {joulec.__version__}); gate with that version, or --update and say so in the review"
        )


def digest(profile: DeviceProfile) -> str:
    """sha256 of all that a profile says."""
    return "sha256:" + hashlib.sha256(json.dumps(profile.to_json(), sort_keys=True).encode()).hexdigest()


def intact(folder: Path) -> Report:
    """The report of an artefact whose files are those that it names.

    Raises:
        InputError: no artefact, or one that was changed.
    """
    if not (folder / artefact.MANIFEST_FILE).is_file():
        raise InputError(f"{folder}: no {artefact.MANIFEST_FILE}; give the directory that 'joulec optimize -o' wrote")
    report = report_of(folder)
    if artefact.read_json(folder / artefact.MANIFEST_FILE).get("files") != artefact.digests(folder):
        raise InputError(f"{folder}: its files are not those that {artefact.MANIFEST_FILE} names; build it again")
    return report


def measured(folder: Path, report: Report, pinned: str, profile: DeviceProfile, limits: Limits | None) -> Lock:
    """What an artefact costs: joules by the pinned profile, the rest as its build measured it."""
    module = lower(folder / MODEL_FILE, limits=limits).module
    sizes = still_open(module, parse_shapes(report.shapes))  # some targets fix them in the artefact
    priced = EnergyModel(profile, report.target).estimate(module, sizes, in_place=True)
    entries = artefact.digests(folder)
    weights = (MODEL_FILE, f"{MODEL_FILE}.data")
    return Lock(
        joulec=joulec.__version__, model=report.model, target=report.target, shape=report.shapes,
        artefact=LockedModel(
            sum(entries[name]["bytes"] for name in weights if name in entries), report.nodes_after,
            entries[MODEL_FILE]["sha256"],
        ),
        energy=_energy(priced, pinned, profile),
        choices={one.what: "kept" if one.kept else "dropped" for one in report.decisions},
        latency=_latency(report), accuracy=_accuracy(report),
    )  # fmt: skip


def _energy(priced: Estimate, pinned: str, profile: DeviceProfile) -> LockedEnergy:
    found: dict[str, LockedOperator] = {}
    for node in priced.nodes:
        if not node.energy.joules:
            continue
        one = found.get(node.op, LockedOperator(0, 0.0, 0, 0))
        found[node.op] = LockedOperator(
            one.nodes + 1, one.joules + node.energy.joules, one.operations + (node.flops or 0),
            one.bytes + (node.bytes or 0),
        )  # fmt: skip
    unknown = Counter(node.op for node in priced.nodes if node.energy.joules is None)
    totals = priced.total_joules, priced.low, priced.high
    return LockedEnergy(pinned, digest(profile), *totals, dict(priced.terms), found, dict(unknown))


def _latency(report: Report) -> LockedLatency | None:
    found = report.latency
    if found is None or not 0 < found.low <= found.high < float("inf"):
        return None
    return LockedLatency(found.ratio, found.low, found.high, found.after_ms, found.machine, found.threads)


def _accuracy(report: Report) -> LockedAccuracy | None:
    found = report.accuracy
    if found is None:
        return None
    noise = 0.0 if found.bound is None else max(0.0, found.bound - found.drop)
    return LockedAccuracy(found.name, found.feeds, found.after, noise)


def _write(new: Lock, place: Path) -> None:
    with artefact.replacing_file(writable_file(place)) as staging:
        staging.write_text(locking.text(new), encoding="utf-8")
