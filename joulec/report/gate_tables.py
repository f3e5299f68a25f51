"""What `gate` shows in a terminal: quantities, then operators, then decisions, each then and now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from joulec.report import units
from joulec.report.terminal import grid, section

MAX_OPERATORS = 20
"""Operators listed; --json has all."""

TRIFLE = 1e-6
"""Joules below which an operator has not moved, as a share of the whole."""

_STYLES = {"worse": "bold red", "better": "green", "same": "dim", "not compared": "dim"}
_NAMES = {"latency": "speed, against the input", "time": "time, on this machine", "size": "size of the model"}


def gate(out: Console, found: Mapping[str, Any]) -> None:
    """The whole comparison; `found` is `Gate.to_json()`."""
    out.print(Text(f"{units.safe(found['artefact'], 400)} against {units.safe(found['baseline'], 400)}", style="bold"))
    for note in found["notes"]:
        out.print(units.safe(note, 400))
    if found["checks"]:
        _checks(out, found)
        _operators(out, found)
        _choices(out, found)
    elif found["updated"]:
        out.print("nothing to compare with: there was no lock of this target and profile")
    out.print()
    if found["updated"]:
        out.print(Text(f"written  {units.safe(found['baseline'], 4000)}"), soft_wrap=True)
    elif any(one["verdict"] == "better" for one in found["checks"]) and not found["regressed"]:
        out.print("better than the lock: --update keeps it that way")
    elif not found["regressed"]:
        out.print("within noise and slack of the lock")


def _checks(out: Console, found: Mapping[str, Any]) -> None:
    table = grid("", ">then", ">now", ">change", "verdict", "*")
    for one in found["checks"]:
        verdict = Text(one["verdict"], style=_STYLES[one["verdict"]])
        then, now = (_amount(one[side], one["unit"]) for side in ("before", "after"))
        table.add_row(_NAMES.get(one["what"], one["what"]), then, now, _change(one), verdict, _why(one))
    section(out, "What it costs", table)


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "—"
    if unit == "J":
        return units.joules(value)
    if unit == "ms":
        return units.milliseconds(value)
    if unit == "B":
        return units.size(int(value))
    return f"{value:.2f}x" if unit == "x" else f"{value:.4f}"


def _change(one: Mapping[str, Any]) -> str:
    change = one["change"]
    if change is None:
        return ""
    if abs(change) < (5e-5 if one["what"] == "accuracy" else 1e-6):
        return "no change"
    if one["what"] == "accuracy":
        return f"{change:+.4f}".replace("-", "−")
    return units.percent(change) + (" time" if one["what"] == "latency" else "")


def _why(one: Mapping[str, Any]) -> str:
    if one["why"] or one["change"] is None:
        return units.safe(one["why"], 200)
    allowed = f"{one['allowed']:g} points" if one["what"] == "accuracy" else f"{one['allowed']:.0%}"
    exact = one["low"] == one["high"]
    if one["what"] == "accuracy":
        interval = "" if exact else f"{one['low']:+.4f} to {one['high']:+.4f}, "
    else:
        interval = "" if exact else f"{units.percent(one['low'])} to {units.percent(one['high'])}, "
    return f"{interval}{allowed} allowed".replace("-", "−")


def change(one: Mapping[str, Any]) -> str:
    """One regression in words: `energy +12 %`, `accuracy −0.0100`."""
    name = {"latency": "against the input", "time": "on this machine"}.get(one["what"], one["what"])
    return f"{name} {_change(one)}" + (" time" if one["what"] == "time" else "")


def _operators(out: Console, found: Mapping[str, Any]) -> None:
    total = sum(one["joules_before"] for one in found["operators"])
    moved = [
        one for one in found["operators"]
        if one["nodes_before"] != one["nodes_after"] or abs(one["joules_after"] - one["joules_before"]) > TRIFLE * total
    ]  # fmt: skip
    if not moved:
        return
    table = grid("operator", ">nodes", ">energy then", ">now", ">change", "*")
    for one in moved[:MAX_OPERATORS]:
        then, now = one["joules_before"], one["joules_after"]
        counts = dict.fromkeys((one["nodes_before"], one["nodes_after"]))
        nodes = "→".join(map(str, counts))
        delta = f"{'+' if now > then else '−'}{units.joules(abs(now - then))}"
        word = "new" if not one["nodes_before"] else "gone" if not one["nodes_after"] else units.change(then, now)
        table.add_row(units.safe(one["op"]), nodes, units.joules(then), units.joules(now), delta, word)
    if len(moved) > MAX_OPERATORS:
        table.add_row(f"and {len(moved) - MAX_OPERATORS} more", "", "", "", "", "")
    section(out, "By operator, what moved most first", table)


def _choices(out: Console, found: Mapping[str, Any]) -> None:
    if not found["choices"]:
        return
    table = grid("", ">then", "*now")
    for what, then, now in found["choices"]:
        table.add_row(units.safe(what), then, units.safe(now, 400))
    section(out, "Decided otherwise", table)
