"""What the commands show in a terminal, at 80 columns and when piped. Names from models are never read as markup."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from joulec.energy import Calibrated
from joulec.report import points, units, words
from joulec.report.data import Decision, EnergyChange, Report, StepReport
from joulec.report.pictures.by_layer import layer_rows

PIPED_WIDTH, MAX_WIDTH = 100, 120
BAR = 20
"""Columns of the longest bar."""

MAX_SETS = 5
"""Sets of operators in the summary; the page lists all."""

MAX_ROWS = 12
"""Operators in the summary; the page lists all."""

_STYLES = {"kept": "green", "ordered": "cyan", "dropped": "yellow", "rolled back": "red", "applied": "green"}


def console(file: IO[str] | None = None, stderr: bool = False) -> Console:
    """A console that neither invents emoji nor highlights numbers; a pipe gets `PIPED_WIDTH` columns."""
    found = Console(file=file, stderr=stderr, highlight=False, emoji=False, markup=False, soft_wrap=False)
    if not found.is_terminal:
        return Console(
            file=file, stderr=stderr, highlight=False, emoji=False, markup=False, width=PIPED_WIDTH, no_color=True
        )
    if found.width > MAX_WIDTH:
        found.width = MAX_WIDTH
    return found


def summary(out: Console, report: Report) -> None:
    """The end of `optimize` and `simplify`: what changed, what was kept and why, and where everything is."""
    place = "" if report.directory is None else f" → {units.safe(report.directory, 400)}"
    out.print(Text(f"{units.safe(report.model)}{place}  ({units.safe(report.target)})", style="bold"))
    if report.status == "up to date":
        out.print("up to date: nothing it depends on has changed")
        return
    section(out, "What changed", _facts(report))
    for fact in words.facts(report):
        if fact.name != "energy" and fact.how != words.COUNTED:
            out.print(Padding(Text(f"{fact.name}: {fact.how}", style="dim"), (0, 0, 0, 2)))
    if report.decisions:
        section(out, "Kept and dropped", _decisions(report.decisions))
    if len(report.points) > 1:
        section(out, "Operators in INT8: sets that were tried", _points(report))
    if report.energy is not None and report.energy.by_op:
        section(out, f"Energy by operator, {words.energy_basis(report.energy)}", _operators(report.energy))
        _saving(out, report.energy)
    if report.steps:
        section(out, "Passes, each with its own share", _steps(report.steps))
    _notes(out, report)
    _places(out, report)


def section(out: Console, title: str, body: Table) -> None:
    out.print()
    out.print(Text(title, style="bold"))
    out.print(Padding(body, (0, 0, 0, 2)))


def grid(*columns: str) -> Table:
    """A table without lines; a column spelled `>name` is right-aligned, and `*name` takes what is left."""
    table = Table(box=None, pad_edge=False, show_header=any(name.strip(">*") for name in columns), header_style="dim")
    for name in columns:
        right, wide = name.startswith(">"), name.startswith("*")
        table.add_column(
            name.strip(">*"), justify="right" if right else "left", overflow="fold", ratio=1 if wide else None,
            no_wrap=right,
        )  # fmt: skip
    return table


def _facts(report: Report) -> Table:
    table = grid("", ">before", ">after", "*change")
    for fact in words.facts(report):
        style = "" if fact.good is None else "green" if fact.good else "red"
        table.add_row(fact.name, fact.before, Text(fact.after, style="bold"), Text(fact.change, style=style))
    return table


def _decisions(decisions: Sequence[Decision]) -> Table:
    table = grid("", "", "*")
    for found in decisions:
        verdict = words.verdict(found)
        table.add_row(Text(verdict, style=_STYLES[verdict]), units.safe(found.what), words.decision(found))
    return table


def _points(report: Report) -> Table:
    table = grid("", ">operators", ">drop", ">speed against float", ">energy", "*")
    tried = points.rows(report.points)
    for row in tried[:MAX_SETS]:
        verdict = Text(row.verdict, style=_STYLES.get(row.verdict, "dim"))
        table.add_row(verdict, row.operators, row.drop, row.speed, row.energy, "")
    if len(tried) > MAX_SETS:
        table.add_row(f"and {len(tried) - MAX_SETS} more", "", "", "", "", "")
    return table


def _operators(found: EnergyChange) -> Table:
    table = grid("", ">before", ">after", "*")
    largest = max((after or 0.0 for _, _, after in found.by_op), default=0.0)
    for op, before, after in found.by_op[:MAX_ROWS]:
        bar = "█" * round(BAR * (after or 0.0) / largest) if largest else ""
        table.add_row(units.safe(op), _maybe(before), _maybe(after), bar)
    if len(found.by_op) > MAX_ROWS:
        table.add_row(f"and {len(found.by_op) - MAX_ROWS} more", "", "", "")
    return table


def _saving(out: Console, found: EnergyChange) -> None:
    """The paired interval of the difference, which is narrower than those of the totals."""
    if (saving := words.saving(found)) is not None:
        out.print(Padding(Text(saving, style="dim"), (0, 0, 0, 2)))


def _maybe(value: float | None) -> str:
    return "—" if value is None else units.joules(value)


def _steps(steps: Sequence[StepReport]) -> Table:
    table = grid("pass", "outcome", ">made", ">refused", ">nodes", ">energy")
    for step in steps:
        became = "" if step.nodes_before == step.nodes_after else f"→{step.nodes_after}"
        table.add_row(
            units.safe(step.spelling),
            Text(step.status, style=_STYLES.get(step.status, "dim")),
            str(step.rewrites or ""),
            str(step.refusal_count or ""),
            f"{step.nodes_before}{became}",
            words.share(step),
        )
    return table


def _notes(out: Console, report: Report) -> None:
    undone = [f"{units.safe(s.spelling)}: {words.detail(s)}" for s in report.steps if s.status == "rolled back"]
    failed = [
        f"{units.safe(r.name)} {r.status}: {units.safe(r.detail, 400)}" for r in report.checks if r.status != "passed"
    ]
    priced = [] if report.energy is None else words.caveats(report.energy.after)
    parity = [] if report.parity is None else [words.parity(report.parity)]
    lines = [*undone, *failed, *parity, *priced, *(units.safe(note, 400) for note in report.notes)]
    if not lines:
        return
    table = grid("", "*")
    for line in dict.fromkeys(lines):
        table.add_row("·", line)
    section(out, "Notes", table)


def _places(out: Console, report: Report) -> None:
    """Paths are printed whole on one line, however long, so that they can be copied."""
    if report.directory is None:
        return
    out.print()
    place = units.safe(report.directory, 4000)
    out.print(Text(f"artefact  {place}"), soft_wrap=True)
    if report.files:
        out.print(Text(f"report    {place}/report.html"), soft_wrap=True)


def place(out: Console, what: str, path: Path) -> None:
    """Where something was written, whole on one line, however long, so that it can be copied."""
    out.print(Text(f"{what}  {units.safe(path, 4000)}"), soft_wrap=True)


_BESIDE_NODE = 64
"""Columns of the estimate's table in front of the node's name, with an operator of usual length."""


def estimate_table(out: Console, model: str, estimate: Mapping[str, Any], limit: int | None = None) -> None:
    """Nodes by energy, then the total and what it leaves out.

    Args:
        out: where to print.
        model: the model's name, as a title.
        estimate: `Estimate.to_json()`.
        limit: rows; None for all.
    """
    costly = [node for node in estimate["nodes"] if node["joules"] is None or node["joules"] > 0]
    nodes = sorted(costly, key=lambda node: (node["joules"] is not None, -(node["joules"] or 0.0)))
    total, free = estimate["total_joules"], len(estimate["nodes"]) - len(costly)
    table = grid(">energy", ">share", ">interval", "tier", "operator", "*node")
    room = max(24, out.width - _BESIDE_NODE)
    for node in nodes[:limit]:
        known = node["joules"] is not None
        table.add_row(
            units.joules(node["joules"]), f"{100 * node['joules'] / total:.1f} %" if known and total else "",
            f"{units.joules(node['low'])}–{units.joules(node['high'])}" if known else "", str(node["tier"]),
            units.safe(node["op"]), units.node(node["name"], room),
        )  # fmt: skip
    out.print(Text(f"{units.safe(model)} on {units.safe(estimate['device'])}", style="bold"))
    out.print(table)
    left = nodes[len(nodes) if limit is None else limit :]
    if left:
        spent = sum(node["joules"] or 0.0 for node in left)
        share = f", {100 * spent / total:.0f} % of the energy" if total else ""
        out.print(f"and {units.plural(len(left), 'more node')}{share} (--top 0 lists all)")
    if free:
        out.print(f"and {units.plural(free, 'node')} at no cost: constants, and what the runtime folds or fuses")
    out.print(Text("\nBy operator", style="bold"))
    out.print(_by_operator(nodes, total))
    if layers := layer_rows(estimate):
        out.print(Text("\nBy layer", style="bold"))
        out.print(_by_layer(layers, total))
    out.print()
    for line in _totals(estimate):
        out.print(Text(line))


def _by_operator(nodes: Iterable[Mapping[str, Any]], total: float) -> Table:
    """Energy, share and number of nodes of each operator, the costliest first."""
    sums: dict[str, list[float]] = {}
    for node in nodes:
        sums.setdefault(node["op"], []).append(node["joules"] or 0.0)
    table = grid(">energy", ">share", ">nodes", "*operator")
    ranked = sorted(sums.items(), key=lambda item: (-sum(item[1]), item[0]))
    for op, joules in ranked[:MAX_ROWS]:
        share = f"{100 * sum(joules) / total:.1f} %" if total else ""
        table.add_row(units.joules(sum(joules)), share, f"{len(joules):,}", units.safe(op))
    if len(ranked) > MAX_ROWS:
        rest = sum(sum(joules) for _, joules in ranked[MAX_ROWS:])
        table.add_row(units.joules(rest), "", "", f"and {len(ranked) - MAX_ROWS} more operators")
    return table


def _by_layer(layers: Sequence[tuple[str, float, int]], total: float) -> Table:
    """Energy, share and number of nodes of the costliest layers, in the order in which they run."""
    table = grid(">energy", ">share", ">nodes", "*layer")
    least = sorted((joules for _, joules, _ in layers), reverse=True)[:MAX_ROWS][-1]
    shown = [one for one in layers if one[1] >= least][:MAX_ROWS]
    for path, joules, nodes in shown:
        share = f"{100 * joules / total:.1f} %" if total else ""
        table.add_row(units.joules(joules), share, f"{nodes:,}", units.node(path, 60))
    if len(layers) > len(shown):
        rest = sum(joules for _, joules, _ in layers) - sum(joules for _, joules, _ in shown)
        table.add_row(units.joules(rest), "", "", f"and {len(layers) - len(shown)} more layers")
    return table


def _totals(estimate: Mapping[str, Any]) -> Iterable[str]:
    low, high = units.joules(estimate["low"]), units.joules(estimate["high"])
    yield f"total {units.joules(estimate['total_joules'])} per inference ({low} to {high}), static power included"
    if (estimate["samples"] or 1) > 1:
        yield f"{units.joules(estimate['joules_per_sample'])} per sample, batch {estimate['samples']}"
    if (told := estimate.get("formulas", {})).keys() >= {"flops", "bytes"}:
        yield f"{units.safe(told['flops'], 200)} operations, {units.safe(told['bytes'], 200)} bytes"
    yield words.TIER_WORDS.get(estimate["tier"], str(estimate["tier"]))
    yield from words.caveats(estimate)


def comparison(out: Console, found: Mapping[str, Any]) -> None:
    """`verify`: whether two models compute the same; `found` is `Comparison.to_json()`."""
    if found["output"] is None:
        out.print("nothing to compare: the models have no output that stays the same from run to run")
        return
    word = "equal" if found["equal"] else "different"
    allowed = f"{found['tolerance']:.0e}"
    out.print(Text(word, style="bold green" if found["equal"] else "bold red"))
    deviation = found["deviation"] if isinstance(found["deviation"], str) else f"{found['deviation']:.2g}"
    out.print(
        f"worst output: {units.safe(found['output'])}, deviation {deviation} of its largest value, allowed {allowed}"
    )
    out.print(f"feeds: {units.safe(found['feeds'], 400)}")


def pass_table(out: Console, rows: Sequence[tuple[str, str, str]]) -> None:
    """`passes`: name, fidelity and one line each."""
    table = grid("pass", "fidelity", "*what it does")
    for name, fidelity, text in rows:
        table.add_row(name, fidelity, text)
    out.print(table)


def pass_help(out: Console, name: str, fidelity: str, text: str, options: Sequence[tuple[str, str, str, str]]) -> None:
    """`passes NAME`: its whole documentation and its options."""
    out.print(Text(f"{name} ({fidelity})", style="bold"))
    out.print(Text(text))
    out.print()
    if not options:
        out.print("no options")
        return
    table = grid("option", "type", "default", "*what it does")
    for row in options:
        table.add_row(*row)
    out.print(table)
    option, _, default, _ = options[0]
    example = "VALUE" if default in ("none", '""') else default
    out.print(f"\nexample: --passes '{name}{{{option}={example}}}'")


def target_table(out: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """`targets`: name, provider, whether this machine has it, opset, operators with a kernel, and what is emitted."""
    table = grid("target", "execution provider", "here", ">opset", ">operators", "*what is emitted")
    for row in rows:
        here = "yes" if row["here"] else "no"
        table.add_row(row["name"], row["provider"], here, str(row["opset"]), str(row["operators"]), row["emits"])
    out.print(table)
    sources = {row["kernel_table"]: None for row in rows}
    out.print(f"operators of the kernel table ({', '.join(sources)}); 'joulec targets NAME' lists them")


def kernel_list(out: Console, found: Mapping[str, Any]) -> None:
    """`targets NAME`: one line a kernel."""
    out.print(f"kernels of {found['name']}, as {found['kernel_table']} reports them")
    table = grid("operator", "opsets", "*types")
    for row in found["kernels"]:
        name = f"{row['domain']}:{row['operator']}" if row["domain"] else row["operator"]
        spelled = ("; ".join(f"{key}: {', '.join(kinds)}" for key, kinds in types.items()) for types in row["types"])
        table.add_row(name, row["opsets"], " | ".join(spelled))
    out.print(table)


def device_table(out: Console, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """`devices`: name, static and highest power, and what it stands for."""
    table = grid("device", ">static", ">cap", "*what it is")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def device_help(out: Console, head: str, text: str, rows: Sequence[tuple[str, str, str, str, str]]) -> None:
    """`devices NAME`: every coefficient with its range, unit and source."""
    out.print(Text(head, style="bold"))
    out.print(Text(text))
    out.print()
    table = grid("coefficient", ">value", "range", "unit", "*source")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)


def calibrated(out: Console, place: Path, found: Calibrated) -> None:
    """`calibrate-device`: how good the profile is, and where it lies."""
    made = found.profile.calibration
    out.print(Text(f"{found.profile.name}: {found.rungs} microbenchmarks in {found.seconds:.0f} s", style="bold"))
    out.print(f"families of kernels   {len(found.profile.kernels)}")
    out.print(f"median error          {found.median_error:.1%}, each predicted by a fit of the others")
    if made is not None:
        out.print(f"95 % of times within  a factor of {made.spread:.2f}")
    if found.unstable:
        out.print(f"unstable              its speed changed by {found.drift:.0%} meanwhile; repeat when it is idle")
    out.print(f"written to            {units.safe(str(place))}")


def documentation(kind: type) -> str:
    """A class's docstring without its indentation."""
    return inspect.getdoc(kind) or ""
