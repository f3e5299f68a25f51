"""What `bisect`, `explain` and `lint` show in a terminal. Names from models are made harmless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from joulec.report import precision, units
from joulec.report.data import Cost, Tensor
from joulec.report.terminal import grid, section

MAX_NAMES = 4
"""Names listed of a group; `--json` lists all."""

MAX_STORIES = 8
"""Nodes told one by one where a name fits several."""

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
    rows = [("pass", f"number {culprit['index']}; with the {culprit['index'] - 1} before it all holds")]
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


# -- explain --------------------------------------------------------------------------------------------------------


def explanation(out: Console, found: Mapping[str, Any], node: str | None = None) -> None:
    """`explain`: where nodes come from, what would still be done, and what was refused, in groups; or one node's story.

    Args:
        out: where to print.
        found: `Explanation.to_json()`.
        node: what was asked for, None for the whole model.
    """
    if node is not None:
        for story in found["nodes"][:MAX_STORIES]:
            _story(out, story, found)
        if len(found["nodes"]) > MAX_STORIES:
            out.print(f"and {units.plural(len(found['nodes']) - MAX_STORIES, 'more node')} (--json lists all)")
        return
    touched = [story for story in found["nodes"] if story["history"]]
    out.print(Text(f"{units.safe(found['model'])}: {units.plural(len(found['nodes']), 'node')}", style="bold"))
    if touched:
        section(
            out,
            f"Where {units.plural(len(touched), 'node')} come from; the others are the source model's",
            _origins(touched),
        )
    if found["changes"]:
        section(out, "What simplify would do", _changes(found["changes"]))
    if found["refusals"]:
        section(out, "What nearly matched, and why it was left alone", _refusals(found["refusals"]))
    if found["undone"]:
        section(out, "Undone", _undone(found["undone"]))
    _precision(out, found)
    if not (found["changes"] or found["refusals"] or touched):
        out.print("joulec has not touched it, would change nothing, and nearly matched nothing")
    for note in found["notes"]:
        out.print(Text(f"· {units.safe(note, 400)}", style="dim"))
    out.print(Text("\nWith a node's name: its own story. With --json: everything.", style="dim"))


def _precision(out: Console, found: Mapping[str, Any]) -> None:
    """What 8 bits hold of an artefact's activations, and the operators that cost most accuracy."""
    costs = precision.costliest([Cost.from_json(one) for one in found["costs"]])[: precision.MAX_ROWS]
    tensors = precision.worst([Tensor.from_json(one) for one in found["tensors"]])
    if costs:
        table = grid("operator", "*", ">error of the outputs")
        for cost in costs:
            table.add_row(units.safe(cost.op), Text(units.safe(cost.node)), precision.noise(cost))
        section(out, "Operators that cost most accuracy, each alone in integers", table)
    if tensors:
        table = grid("*tensor", ">range", "method", ">signal to noise", ">saturated")
        for one in tensors[: precision.MAX_ROWS]:
            span, decibel, cut = precision.about(one)
            table.add_row(Text(units.safe(one.name)), span, units.safe(one.method), decibel, cut)
        section(out, f"What 8 bits hold of {units.plural(len(tensors), 'tensor')}, the worst first", table)


def _origins(stories: Sequence[Mapping[str, Any]]) -> Table:
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for story in stories:
        groups.setdefault(tuple(story["history"]), []).append(story)
    table = grid("rewritten by", ">nodes", "*for example")
    for history, held in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = held[0]
        example = f"{units.safe(first['op'])} {units.safe(first['name'])} from {names(first['sources'])}"
        table.add_row("\n".join(units.safe(entry) for entry in history), str(len(held)), Text(example))
    return table


def _changes(changes: Sequence[Mapping[str, Any]]) -> Table:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for change in changes:
        groups.setdefault((change["by"], change["rule"]), []).append(change)
    table = grid("rewrite", ">times", "*at")
    for (by, rule), held in groups.items():
        at = [change["node"] or ", ".join(change["removed"][:1]) for change in held]
        table.add_row(units.safe(f"{by}/{rule}"), str(len(held)), Text(names(at)))
    return table


def _refusals(refusals: Sequence[Mapping[str, Any]]) -> Table:
    table = grid("rewrite", "why not", ">nodes", "*at")
    for miss in sorted(refusals, key=lambda miss: -len(miss["nodes"])):
        reason = Text(units.safe(miss["reason"], 400))
        table.add_row(
            units.safe(f"{miss['by']}/{miss['rule']}"), reason, str(len(miss["nodes"])), Text(names(miss["nodes"]))
        )
    return table


def _undone(undone: Sequence[Mapping[str, Any]]) -> Table:
    table = grid("", "*")
    for one in undone:
        table.add_row(units.safe(one["spelling"]), Text(units.safe(one["reason"], 400)))
    return table


def _story(out: Console, story: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    out.print(Text(f"{units.safe(story['op'])} {units.safe(story['name'])}", style="bold"))
    table = grid("", "*")
    table.add_row("computes", Text(names(story["outputs"])))
    for one in (Tensor.from_json(t) for t in found["tensors"] if t["name"] in story["outputs"]):
        span, decibel, cut = precision.about(one)
        table.add_row("in 8 bits", f"{span} ({units.safe(one.method)}), signal to noise {decibel}, saturated {cut}")
    for cost in (Cost.from_json(c) for c in found["costs"] if c["node"] in story["outputs"]):
        table.add_row("costs", f"{precision.noise(cost)} error of the outputs, alone in integers")
    if story["history"]:
        table.add_row("stands for", Text(", ".join(units.safe(name) for name in story["sources"])))
        table.add_row("rewritten by", Text("\n".join(units.safe(entry) for entry in story["history"])))
    else:
        table.add_row("comes from", "the source model, unchanged")
    own = {story["name"], *story["becomes"]}
    if story["removed"] is not None and not story["becomes"]:
        table.add_row("would go", Text(f"by {units.safe(story['removed'])}"))
    elif set(story["becomes"]) != {story["name"]}:
        table.add_row("would become", Text(names(story["becomes"])))
    for change in found["changes"]:
        if own & {change["node"], *change["removed"], *change["created"]}:
            table.add_row("would be done", Text(units.safe(f"{change['by']}/{change['rule']} at {change['node']}")))
    for miss in found["refusals"]:
        if own & set(miss["nodes"]):
            said = f"{units.safe(miss['by'])}/{units.safe(miss['rule'])}: {units.safe(miss['reason'], 400)}"
            table.add_row("why not", Text(said))
    out.print(table)


_SEVERITY = {"error": "bold red", "warning": "yellow", "note": "dim"}

MAX_LINTED = 4
"""Nodes listed a rule; `--json` lists all."""


def linted(out: Console, found: Mapping[str, Any]) -> None:
    """`lint`: what a target has against a model, by rule; `found` is `Linted.to_json()`."""
    out.print(Text(f"{units.safe(found['model'])}  ({units.safe(found['target'])})", style="bold"))
    _by_rule(out, found["findings"])
    if found["fixed"] is None:
        return
    out.print(Text(f"\nmended → {units.safe(found['fixed'], 400)}", style="bold"))
    for rule, count in (found["rewrites"] or {}).items():
        out.print(f"  {rule}: {count}")
    for reason in found["refusals"][:MAX_LINTED]:
        out.print(Text(f"  not done: {units.safe(reason, 400)}", style="yellow"))
    if found["deviation"] is not None:
        said = units.safe(f"{float(found['deviation']):.2g}")
        feeds = units.safe(found["feeds"], 200)
        out.print(f"  worst output deviates by {said} of its largest value, on this CPU, on {feeds}")
    _by_rule(out, found["left"])


def _by_rule(out: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        out.print(Text("nothing against it", style="bold green"))
        return
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["rule"], []).append(row)
    for rule, group in grouped.items():
        severity = group[0]["severity"]
        out.print(Text(f"{severity} {rule} ({units.plural(len(group), 'node')})", style=_SEVERITY[severity]))
        for row in group[:MAX_LINTED]:
            out.print(f"  {units.safe(row['op_type'])} '{units.safe(row['node'])}': {units.safe(row['message'], 400)}")
        if len(group) > MAX_LINTED:
            out.print(f"  and {len(group) - MAX_LINTED} more; --json lists all")


def rules(out: Console, rows: Sequence[Mapping[str, str]]) -> None:
    """`lint --rules`: name, severity and meaning of each."""
    table = grid("rule", "severity", "*what it means")
    for row in rows:
        table.add_row(row["rule"], row["severity"], row["text"])
    out.print(table)


_SIDES = {"cpu": "all on the CPU", "gpu": "all on the GPU", "split": "where it costs least"}


def placements(out: Console, found: Mapping[str, Any]) -> None:
    """`place`: joules, time, nodes on the CPU and copies of each way; `found` is `Placed.to_json()`."""
    table = grid("nodes", ">joules", ">time", ">on the CPU", ">copies")
    for name, one in found["placements"].items():
        row = units.joules(one["joules"]), units.seconds(one["seconds"]), f"{len(one['host'])} of {one['nodes']}"
        table.add_row(_SIDES[name], *row, str(one["copies"]))
    out.print(Text(f"predicted for {units.safe(found['host'])} and {units.safe(found['device'])}", style="bold"))
    out.print(table)
    host = found["placements"]["split"]["host"]
    if 0 < len(host) < found["placements"]["split"]["nodes"]:
        more = f" and {len(host) - MAX_NAMES} more" if len(host) > MAX_NAMES else ""
        out.print(f"on the CPU: {', '.join(units.node(name, 60) for name in host[:MAX_NAMES])}{more}")
    if found["directory"] is not None:
        out.print(f"artefact  {units.safe(found['directory'], 400)}")
