"""What `carbon` shows in a terminal. Every number stands beside its region, year and kind of intensity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from joulec.report import units, words
from joulec.report.terminal import grid

Told = Mapping[str, Any]
"""`Carbon.to_json()`."""


def emissions(out: Console, model: str | None, found: Sequence[Told]) -> None:
    """`carbon`: one row a region, then what all of them rest on."""
    first = found[0]
    if model is not None:
        out.print(Text(units.safe(model, 400), style="bold"))
    table = grid("region", ">year", "kind", ">gCO2e/kWh", ">per inference", ">interval", ">per year", ">interval")
    for one in found:
        yearly = one["gco2e_per_year"]
        table.add_row(
            units.safe(one["name"]), str(one["year"]), one["kind"], f"{one['gco2e_per_kwh']:g}",
            units.grams(one["gco2e_per_inference"]["value"]), _interval(one["gco2e_per_inference"]),
            "—" if yearly is None else units.grams(yearly["value"]), "" if yearly is None else _interval(yearly),
        )  # fmt: skip
    out.print(table)
    out.print()
    basis = grid("", "*")
    for name, said in _basis(first):
        basis.add_row(name, said)
    for source in dict.fromkeys(f"{one['source']}: {one['scope']}" for one in found):
        basis.add_row("intensity", units.safe(source, 400))
    out.print(basis)


def _basis(one: Told) -> list[tuple[str, str]]:
    """What the numbers rest on."""
    joules, rate, embodied = one["joules"], one["rate_per_second"], one["embodied"]
    low, high = units.joules(joules["low"]), units.joules(joules["high"])
    spread = "" if low == high else f" ({low} to {high})"
    tier = words.TIER_WORDS.get(one["tier"], "given: joules as you said")
    rows = [("energy", f"{units.joules(joules['value'])} per inference{spread}; {tier}"), ("PUE", f"{one['pue']:g}")]
    said = "no --rate, so nothing per year" if rate is None else f"{units.digits(rate)} inferences per second, all year"
    rows.append(("rate", said))
    if one["left_out"]:
        rows.append(("left out", f"price unknown: {', '.join(units.safe(name, 60) for name in one['left_out'][:6])}"))
    if isinstance(embodied, str):
        rows.append(("embodied", embodied))
    else:
        whole = f"{embodied['kilograms']:g} kgCO2e over {embodied['years']:g} years"
        rows.append(("embodied", f"{whole}, {embodied['share']:.0%} of the hardware"))
    return rows


def line(one: Told) -> str:
    """One region in one line, with all that it must never be without."""
    embodied = one["embodied"] if isinstance(one["embodied"], str) else "included"
    value = one["gco2e_per_inference"]
    return (
        f"{units.grams(value['value'])}CO2e per inference ({_interval(value)}): {units.safe(one['name'])}, "
        f"{one['year']}, {one['kind']} intensity, PUE {one['pue']:g}, embodied {embodied}"
    )


def grids(out: Console, rows: Sequence[Told]) -> None:
    """`carbon --list`: every row of the table."""
    table = grid("code", "*region", ">year", "kind", ">gCO2e/kWh", "source")
    sources = list(dict.fromkeys((row["source"], row["scope"]) for row in rows))
    for row in sorted(rows, key=lambda row: (row["region"], -row["year"])):
        number = sources.index((row["source"], row["scope"])) + 1
        table.add_row(
            units.safe(row["region"]), units.safe(row["name"]), str(row["year"]), row["kind"], f"{row['value']:g}",
            f"[{number}]",
        )  # fmt: skip
    out.print(table)
    out.print()
    for index, (title, scope) in enumerate(sources, 1):
        out.print(Text(f"[{index}] {units.safe(title, 400)}: {units.safe(scope, 400)}"))


def _interval(found: Mapping[str, float]) -> str:
    return "" if found["low"] == found["high"] else f"{units.grams(found['low'])}–{units.grams(found['high'])}"
