"""Filling the report: from what the compiler did to the dataclasses that people and machines read."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import joulec
from joulec.backends.base import Rung
from joulec.energy.model import Estimate, compare
from joulec.energy.profile import DeviceProfile
from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.module import tensors as stored_tensors
from joulec.passes.pipeline import Step
from joulec.report.data import (
    MAX_REFUSALS,
    EnergyChange,
    Latency,
    RefusalReport,
    Report,
    Roofs,
    RungReport,
    Sparsity,
    StepReport,
    Tensor,
)

if TYPE_CHECKING:
    from joulec.compiler import Compiled


LARGEST = 1 << 30
"""Bytes of weights that are compressed to say what zeros save, at most: half a minute."""


def step_report(step: Step, dropped: str | None = None) -> StepReport:
    """One step; `dropped` says why what it made was undone."""
    refusals = step.result.refusals
    status = "dropped" if dropped is not None and step.status == "applied" else step.status
    return StepReport(
        spelling=step.spelling,
        fidelity=step.fidelity.value,
        status=status,
        rewrites=len(step.result.rewrites),
        rules=dict(Counter(rewrite.rule for rewrite in step.result.rewrites)),
        refusals=tuple(RefusalReport(r.rule, r.node, r.reason) for r in refusals[:MAX_REFUSALS]),
        refusal_count=len(refusals),
        notes=step.result.notes,
        nodes_before=step.nodes[0],
        nodes_after=step.nodes[1],
        joules_before=step.energy[0].total_joules if step.energy else None,
        joules_after=step.energy[1].total_joules if step.energy else None,
        seconds=step.seconds,
        deviation=step.deviation.value if step.deviation else None,
        reason=dropped if status == "dropped" else step.reason,
    )


def energy_change(
    before: Estimate, after: Estimate, layers: Mapping[str, str] | None = None, roofs: Roofs | None = None
) -> EnergyChange:
    """Both estimates, by operator, and what the model can tell of the difference."""
    old, new = before.by_op(), after.by_op()
    names = sorted({**old, **new}, key=lambda op: (-max(old.get(op, 0.0), new.get(op, 0.0)), op))
    rows = tuple((op, old.get(op), new.get(op)) for op in names)
    change = asdict(compare(before, after))
    return EnergyChange(before.to_json(), after.to_json(), rows, change, dict(layers or {}), roofs)


def roofs(profile: DeviceProfile, *estimates: Estimate) -> Roofs:
    """The profile's peaks that at least 1 % of an estimate's operations run against, and its bandwidths."""
    terms = [pair for one in estimates for pair in one.terms.items() if pair[0].startswith("energy:")]
    amounts: dict[str, float] = {}
    for term, amount in terms:
        name = term.removeprefix("energy:").partition("+")[0]
        amounts[name] = amounts.get(name, 0.0) + amount
    peaks: dict[float, str] = {}
    for name in sorted(amounts, key=lambda name: -amounts[name]):
        if amounts[name] >= 0.01 * sum(amounts.values()):
            peaks.setdefault(profile.peak[profile.resolve("peak", name)].value, name.removesuffix("-matrix"))
    memory = {"DRAM": profile.memory["dram_bandwidth"].value, "cache": profile.memory["cache_bandwidth"].value}
    return Roofs(tuple((name, peak) for peak, name in peaks.items()), tuple(memory.items()))


def sparsity(module: Module) -> tuple[Sparsity, ...]:
    """What each mask keeps, in the order of the initializers."""
    names = [name for graph in walk.graphs(module.model) for name in graph.initializers if name in module.masks]
    return tuple(Sparsity(name, int(module.masks[name].sum()), module.masks[name].size) for name in names)


def compressed(module: Module) -> int | None:
    """Bytes of the weights behind deflate; None where there are more than `LARGEST`, which would take long."""
    if module.weight_bytes() > LARGEST:
        return None
    squeezing = zlib.compressobj()
    return sum(len(squeezing.compress(one.tobytes())) for one in stored_tensors(module.model)) + len(squeezing.flush())


def report(
    base: Module, compiled: Compiled, *, target: str, device: str, orders: tuple[str, ...], model: str, status: str
) -> Report:
    """The report without accuracy, latency, energy, checks and files, which come later."""
    return Report(
        joulec=joulec.__version__,
        model=model,
        format=base.origin.format,
        target=target,
        device=device,
        status=status,
        orders=orders,
        steps=(*(step_report(step) for step in compiled.steps), *compiled.decisions.dropped),
        decisions=compiled.decisions.decisions,
        nodes_before=base.node_count(),
        nodes_after=compiled.module.node_count(),
        size_before=base.weight_bytes(),
        size_after=compiled.module.weight_bytes(),
        latency=compiled.decisions.latency,
        points=compiled.decisions.points,
        costs=compiled.decisions.costs,
        tensors=tensors(compiled.module),
        sparsity=sparsity(compiled.module),
        compressed_before=compressed(base) if compiled.module.masks else None,
        compressed_after=compressed(compiled.module) if compiled.module.masks else None,
        notes=(*base.origin.notes, *foreign_notes(base), *compiled.notes),
    )


def tensors(module: Module) -> tuple[Tensor, ...]:
    """The calibrated activations."""
    found = sorted(module.ranges.items())
    return tuple(Tensor(name, one.low, one.high, one.method, one.sqnr, one.saturated) for name, one in found)


def foreign_notes(base: Module) -> list[str]:
    """What could not be verified because nobody named the library that computes it."""
    foreign = walk.foreign_operators(base.model)
    if not foreign or base.origin.custom_ops:
        return []
    return [f"passed through untouched and not verified: {', '.join(foreign)}; --custom-ops names their library"]


def rungs(found: list[Rung]) -> tuple[RungReport, ...]:
    """The ladder of evidence as data."""
    return tuple(RungReport(rung.name, rung.status, rung.detail) for rung in found)


def files(digests: Mapping[str, Mapping[str, object]]) -> dict[str, int]:
    """Name and size of every file."""
    return {name: int(str(entry["bytes"])) for name, entry in digests.items()}


def latency_of(report: Report) -> Latency | None:
    """The report's latency, for callers that print it."""
    return report.latency
