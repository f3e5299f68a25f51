"""The report's sentences, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from joulec.report import units
from joulec.report.data import Accuracy, Decision, EnergyChange, Latency, Report, StepReport

TIER_WORDS = {
    "measured": "measured: a hardware counter's reading on this machine, split over the operators",
    "calibrated": "calibrated: times measured on this device or fitted to some that were, power of the device's class",
    "estimated": "estimated: arithmetic and bytes from the graph, coefficients of the device's class; nothing was run",
}

MAX_NOTES = 4
"""Notes on an estimate that people are shown; a model with fifty branches has fifty."""

COUNTED = "counted"
"""How exact numbers were obtained."""


@dataclass(frozen=True)
class Fact:
    """One row of "what changed".

    Attributes:
        name: what is compared.
        before, after: formatted, with units.
        change: the difference in plain words.
        good: True for better, False for worse, None where it cannot be told.
        how: how the numbers were obtained.
    """

    name: str
    before: str
    after: str
    change: str
    good: bool | None
    how: str


def facts(report: Report) -> list[Fact]:
    """What changed, one fact a line, only what is known."""
    rows = [
        None if report.accuracy is None else accuracy(report.accuracy),
        None if report.latency is None else latency(report.latency),
        None if report.energy is None else energy(report.energy, report.max_energy),
        _counted(
            "nodes", report.nodes_before, report.nodes_after, f"{report.nodes_before:,}", f"{report.nodes_after:,}"
        ),
        _counted(
            "weights",
            report.size_before,
            report.size_after,
            units.size(report.size_before),
            units.size(report.size_after),
        ),
        _compressed(report.compressed_before, report.compressed_after),
    ]
    return [row for row in rows if row is not None]


def _compressed(before: int | None, after: int | None) -> Fact | None:
    """What zeros without a pattern save, beside what they do not."""
    if before is None or after is None:
        return None
    return replace(
        _counted("weights, compressed", before, after, units.size(before), units.size(after)),
        how="deflated, as zip and gzip do; what zeros without a pattern save is this",
    )


def accuracy(found: Accuracy) -> Fact:
    """The row for the metric, or for fidelity to the input model."""
    allowed = "no budget" if found.budget is None else f"{found.budget:g} allowed"
    if abs(found.drop) < 5e-5:
        change = f"unchanged ({allowed})"
    else:
        change = f"{'drops' if found.drop > 0 else 'rises'} by {abs(found.drop):.4f} ({allowed})"
    within = found.budget is not None and 0 <= found.drop <= found.budget
    good = None if within or abs(found.drop) < 5e-5 else found.drop < 0
    how = "the user's metric" if found.name == "metric" else "1 − ‖y − y₀‖ / ‖y₀‖ of the worst output"
    return Fact(
        found.name, f"{found.before:.4f}", f"{found.after:.4f}", change, good, f"{how}; {units.safe(found.feeds)}"
    )


def latency(found: Latency) -> Fact:
    """The row for measured time, with the interval of the paired ratio."""
    interval = f"{found.low:.2f} to {found.high:.2f}"
    if found.low > 1:
        change, good = f"{found.ratio:.2f}x as fast ({interval})", True
    elif found.high < 1:
        change, good = f"{found.ratio:.2f}x as fast: slower ({interval})", False
    else:
        change, good = f"no difference shown: {found.ratio:.2f}x ({interval})", None
    how = (
        f"measured here in pairs, {units.plural(found.rounds, 'round')} on {units.plural(found.threads, 'thread')}; "
        "medians, 95 % interval"
    )
    return Fact("latency", units.milliseconds(found.before_ms), units.milliseconds(found.after_ms), change, good, how)


def energy(found: EnergyChange, allowed: float | None = None) -> Fact:
    """The row for joules per inference; what the model cannot tell apart is said to be so."""
    before, after = found.before["total_joules"], found.after["total_joules"]
    difference = units.change(before, after)
    good: bool | None = None
    if found.change is not None and not found.change.get("detectable"):
        difference = f"{difference}, within the model's error" if before != after else difference
    elif before != after:
        good = after < before
    if allowed is not None:
        difference += f" ({units.joules(allowed)} allowed)"
    return Fact("energy", units.joules(before), units.joules(after), difference, good, energy_basis(found))


def energy_basis(found: EnergyChange) -> str:
    """Where the joules come from: tier, device and interval."""
    after = found.after
    low, high = units.joules(after["low"]), units.joules(after["high"])
    return f"{after['tier']} for {units.safe(after['device'])}, {low} to {high} per inference"


def saving(found: EnergyChange) -> str | None:
    """The saving with its paired interval, in which coefficients common to both cancel."""
    change = found.change
    if change is None:
        return None
    if not change["detectable"]:
        return "no detectable change in energy: the interval of the difference reaches zero; measure on the device"
    low, high = sorted((abs(change["low"]), abs(change["high"])))
    word = "saves" if change["joules"] > 0 else "costs"
    return f"{word} {units.joules(abs(change['joules']))} per inference ({units.joules(low)} to {units.joules(high)})"


def estimate_headline(estimate: Mapping[str, Any]) -> str:
    """A model alone in one sentence; `estimate` is `Estimate.to_json()`."""
    said = f"{units.joules(estimate['total_joules'])} per inference"
    if (estimate["samples"] or 1) > 1:
        said += f", {units.joules(estimate['joules_per_sample'])} per sample"
    return said


def estimate_facts(estimate: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, what it is) of a model alone."""
    nodes = [node for node in estimate["nodes"] if node["joules"]]
    flops, moved = (sum(node[name] or 0 for node in nodes) for name in ("flops", "bytes"))
    low, high = units.joules(estimate["low"]), units.joules(estimate["high"])
    costliest = max(nodes, key=lambda node: float(node["joules"]), default=None)
    facts = [
        ("energy", units.joules(estimate["total_joules"]), f"{low} to {high}, {estimate['tier']}"),
        ("time", units.seconds(estimate["seconds"]), "as the device profile predicts it"),
        ("operations", units.count(flops), "per inference, a multiply-add counts as two"),
        ("bytes moved", units.size(moved), "read and written by kernels"),
        ("nodes", f"{len(nodes):,}", f"that cost something, of {len(estimate['nodes']):,}"),
    ]
    if costliest is not None:
        part = f"{100 * costliest['joules'] / estimate['total_joules']:.0f} %"
        facts.append(("costliest node", part, f"{units.node(costliest['name'], 40)} ({units.safe(costliest['op'])})"))
    return facts


def _counted(name: str, before: int, after: int, before_text: str, after_text: str) -> Fact:
    good = None if before == after else after < before
    return Fact(name, before_text, after_text, units.change(before, after), good, COUNTED)


def headline(report: Report) -> str:
    """The result in one sentence."""
    parts = []
    if report.latency is not None:
        parts.append(_speed(report.latency))
    if report.energy is not None:
        parts.append(_spent(report.energy))
    if abs(report.size_after - report.size_before) >= 0.01 * report.size_before:
        parts.append(_less(report.size_before, report.size_after, "smaller", "larger"))
    if not parts:
        return f"{units.plural(report.nodes_before, 'node')} became {units.plural(report.nodes_after, 'node')}"
    return ", ".join(parts) + _cost(report.accuracy)


def _speed(found: Latency) -> str:
    if found.low > 1:
        return f"{found.ratio:.2f}x as fast"
    return f"{found.ratio:.2f}x as fast (slower)" if found.high < 1 else "as fast as before"


def _spent(found: EnergyChange) -> str:
    before, after = found.before["total_joules"], found.after["total_joules"]
    if found.change is not None and not found.change["detectable"]:
        return "no detectable change in energy"
    return "the same energy" if before == after else _less(before, after, "less energy", "more energy")


def _less(before: float, after: float, fewer: str, more: str) -> str:
    """`61 % less energy`."""
    if before == 0:
        return more
    percent = 100 * abs(after - before) / before
    return f"{units.digits(percent, 1 if percent < 1 else 2)}\u00a0% {fewer if after < before else more}"


def _cost(found: Accuracy | None) -> str:
    if found is None:
        return ""
    if abs(found.drop) < 5e-5:
        return f", {found.name} unchanged"
    return f", {found.name} {'lower' if found.drop > 0 else 'higher'} by {abs(found.drop):.4f}"


def decision(found: Decision) -> str:
    """Why something is in the artefact or not, with what was measured unless the reason says it already."""
    text = units.safe(found.reason, 400)
    measured = []
    if (
        found.ratio is not None
        and found.low is not None
        and found.high is not None
        and f"{found.ratio:.2f}x" not in text
    ):
        measured.append(f"{found.ratio:.2f}x as fast, {found.low:.2f} to {found.high:.2f}")
    if found.drop is not None and f"{found.drop:.4f}" not in text:
        measured.append(f"accuracy drop {found.drop:.4f}")
    if found.basis is not None and found.basis not in text:
        measured.append(found.basis)
    return f"{text} ({'; '.join(measured)})" if measured else text


def verdict(found: Decision) -> str:
    """`ordered`, `kept` or `dropped`."""
    if not found.kept:
        return "dropped"
    return "ordered" if found.ordered else "kept"


def share(step: StepReport) -> str:
    """A pass's own share of the energy."""
    before, after = step.joules_before, step.joules_after
    if before is None or after is None:
        return "not priced"
    if before == after:
        return "—"
    sign = "+" if after > before else "−"
    return f"{sign}{units.joules(abs(after - before))}"


def folded(step: StepReport) -> str:
    """What there is to unfold about a pass."""
    parts = [
        units.plural(len(step.rules), "rule") + " fired" if step.rules else "",
        units.plural(step.refusal_count, "rewrite") + " refused" if step.refusal_count else "",
    ]
    return ", ".join(part for part in parts if part) or "more"


def detail(step: StepReport) -> str:
    """What else a reader must know of a pass: why undone, or its first note."""
    if step.reason is not None:
        return units.safe(step.reason, 400)
    return units.safe(step.notes[0], 400) if step.notes else ""


def parity(found: Mapping[str, Any]) -> str:
    """How lowering compared with the source framework; `found` is `Parity.to_json()`."""
    if found.get("note"):
        return f"lowering was not compared with the source framework: {units.safe(found['note'], 400)}"
    worst = max(found["outputs"].items(), key=lambda item: float(item[1]), default=None)
    said = "" if worst is None else f", largest deviation {float(worst[1]):.1e} at output '{units.safe(worst[0])}'"
    return f"lowering matches the source framework on {units.plural(found['feeds'], 'seeded feed')}{said}"


def caveats(estimate: Mapping[str, Any]) -> list[str]:
    """What a total leaves out or assumes; `estimate` is `Estimate.to_json()`."""
    lines = []
    if estimate["unknown"]:
        lines.append(f"price unknown, not in the total: {_some(estimate['unknown'])}")
    if estimate["assumed"]:
        lines.append(f"taken as 1 because nobody gave it: {_some(estimate['assumed'])} (--shape sets dimensions)")
    lines += [units.safe(note, 400) for note in estimate["notes"][:MAX_NOTES]]
    if len(estimate["notes"]) > MAX_NOTES:
        lines.append(f"and {units.plural(len(estimate['notes']) - MAX_NOTES, 'more note')} on the estimate in --json")
    return lines


def _some(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(units.node(name, 40) for name in names[:limit]) + more
