"""What `bisect` and `explain` show in a terminal. Names from models are made harmless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from joulec.report import units
from joulec.report.terminal import grid

MAX_NAMES = 4
"""Names listed of a group; `--json` lists all."""

_KINDS = {
    "deviates": "the outputs change",
    "invalid": "the model is no longer valid, or does not run",
    "raises": "the pass fails",
}


def bisection(out: Console, found: Mapping[str, Any]) -> None:
    """`bisect`: the culprit, or that there is none; `found` is `Bisection.to_json()`."""
    culprit = found["culprit"]
    looked = f"{units.plural(found['passes'], 'pass', 'passes')}, {units.plural(found['rewrites'], 'rewrite')}"
    if culprit is None:
        out.print(Text("nothing deviates", style="bold green"))
        out.print(f"{looked}; feeds: {units.safe(found['feeds'], 400)}")
    else:
        out.print(Text(f"{_KINDS[culprit['kind']]} in {units.safe(culprit['spelling'])}", style="bold red"))
        table = grid("", "*")
        for name, said in _facts(found, culprit):
            table.add_row(name, Text(said))
        out.print(table)
    for note in found["notes"]:
        out.print(Text(f"· {units.safe(note, 400)}", style="dim"))
    if found["reproduce"] is not None:
        out.print(Text(f"\n{units.safe(found['reproduce'], 4000)}"), soft_wrap=True)


def _facts(found: Mapping[str, Any], culprit: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("pass", f"number {culprit['index']}; the {units.plural(culprit['index'] - 1, 'pass', 'passes')} before hold")
    ]
    if culprit["rewrite"] is not None:
        rows.append(
            ("rewrite", f"number {culprit['rewrite']} of {culprit['rewrites']}; with those before it all holds")
        )
        rows.append(("rule", units.safe(culprit["rule"])))
        rows.append(("node", units.safe(culprit["node"])))
        for what in ("removed", "created"):
            if culprit[what]:
                rows.append((what, names(culprit[what])))
    else:
        rows.append(("rewrite", f"no single one of {culprit['rewrites']}"))
    rows.append(("effect", units.safe(culprit["reason"], 400)))
    shown = "" if culprit["feed"] is None else f"; it shows on number {culprit['feed'] + 1} first"
    rows.append(("feeds", units.safe(found["feeds"], 400) + shown))
    if found["minimal"] is not None:
        rows.append(
            ("minimal", f"{units.safe(found['minimal'], 4000)}, {units.plural(found['minimal_nodes'], 'node')}")
        )
    return rows


def names(given: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(units.safe(name) for name in given[:MAX_NAMES])
    return shown if len(given) <= MAX_NAMES else f"{shown} and {len(given) - MAX_NAMES:,} more"
