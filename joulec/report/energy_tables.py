"""What the commands about energy show in a terminal. Names from models are never read as markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from joulec.report import units
from joulec.report.terminal import grid, section

ITSELF = "itself, which shows the noise of this machine"
_LATENCIES = ("p50_ms", "p90_ms", "p95_ms", "p99_ms")


def measured(out: Console, model: str, against: str | None, found: Mapping[str, Any]) -> None:
    """`measure`: latency, CPU time and joules of both models, their ratios, and the verdict.

    Args:
        out: where to print.
        model: what was measured.
        against: what it was compared with; None for itself.
        found: `joulec.measuring.Measured.to_json()`.
    """
    table = grid("", *(f">{name.removesuffix('_ms')}" for name in _LATENCIES), ">CPU time", ">energy")
    table.add_row(units.safe(model, 400), *_figures(found["model"]))
    if against is not None:
        table.add_row(units.safe(against, 400), *_figures(found["against"]))
    out.print(table)
    base = ITSELF if against is None else units.safe(against, 400)
    ratios = grid("", "*")
    ratios.add_row("time", f"{found['ratio']:.3f}x as fast as {base} ({_interval(found)})")
    ratios.add_row("CPU time", _share(found["cpu"]))
    if (energy := found["energy"]) is not None:
        said = f"measured: {', '.join(energy['scopes'])}, all that ran meanwhile included, {energy['watts']:.1f} W"
        ratios.add_row("energy", f"{_share(energy['change'])}, {said}")
    ratios.add_row("", f"{units.plural(found['rounds'], 'paired round')}, {units.plural(found['threads'], 'thread')}")
    for obstacle in found["obstacles"]:
        ratios.add_row("not counted", units.safe(obstacle, 400))
    out.print(ratios)
    out.print(Text(units.safe(found["verdict"], 400), style="bold"))


def swept(out: Console, points: Sequence[Mapping[str, Any]]) -> None:
    """`estimate` with a range of sizes: energy and time at each."""
    table = grid(">shape", ">energy", ">per sample", ">interval", ">time")
    for one in points:
        shape = ",".join(f"{units.safe(name)}={size}" for name, size in one["shape"].items())
        each = one["joules_per_sample"]
        interval = f"{units.joules(one['low'])}–{units.joules(one['high'])}"
        sample = "" if each is None else units.joules(each)
        table.add_row(shape, units.joules(one["total_joules"]), sample, interval, units.seconds(one["seconds"]))
    section(out, "By size", table)


def _figures(spent: Mapping[str, Any]) -> list[str]:
    latencies = [units.milliseconds(spent[name]) for name in _LATENCIES]
    energy = "not counted" if spent["joules"] is None else units.joules(spent["joules"])
    return [*latencies, units.seconds(spent["cpu_seconds"]), energy]


def _interval(found: Mapping[str, Any]) -> str:
    return f"95 % interval {found['low']:.3f} to {found['high']:.3f}"


def _share(change: Mapping[str, Any]) -> str:
    """A ratio of before over after as the share of before that is left."""
    low, high = 1 / change["high"], 1 / change["low"]
    return f"{1 / change['ratio']:.3f} of the other's (95 % interval {low:.3f} to {high:.3f})"
