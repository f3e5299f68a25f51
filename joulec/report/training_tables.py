"""What `finetune` shows in a terminal. Names from models are never read as markup."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from joulec.report import units
from joulec.report.terminal import grid, section

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60
"""Epochs drawn; of more, every k-th."""


def tuned(out: Console, found: Mapping[str, Any], place: Path) -> None:
    """`finetune`: the metric before and after, what was trained how, and the course of it.

    Args:
        out: where to print.
        found: `joulec.training.tuned.Tuned.to_json()`.
        place: the file that was written.
    """
    table = grid("", f">{units.safe(found['metric'])}", ">loss", "*")
    for name, score, said in _rows(found):
        value = "" if found["metric"] == "loss" else f"{float(score[found['metric']]):.4f}"
        table.add_row(name, Text(value, style="bold"), f"{float(score['loss']):.4g}", said)
    section(out, f"Judged on {units.safe(found['judged_on'], 200)}", table)
    facts = grid("", "*")
    for name, said in _facts(found):
        facts.add_row(name, Text(said))
    section(out, "Training", facts)
    for note in found["notes"]:
        out.print(Text(f"· {units.safe(note, 400)}", style="dim"))
    out.print(Text(f"\nwritten: {units.safe(place, 400)}", style="bold"))
    for name in found["files"][1:]:
        out.print(f"         {units.safe(place.parent / name, 400)}")


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    yield "as given", found["original"], ""
    if found["pruned"] is not None:
        yield "pruned", found["pruned"], "before training"
    epoch = found["best_epoch"]
    yield "tuned", found["tuned"], f"epoch {epoch} of {found['epochs']}" if epoch else "no epoch was better"


def _facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "loss", units.safe(found["loss"])
    yield "took", f"{units.plural(found['epochs'], 'epoch')}, {units.seconds(found['seconds'])}"
    if found["sparsity"] is not None:
        held, total = found["weights"]
        yield "sparsity", f"{found['sparsity']:.1%} of the {held:,} masked weights of {total:,}; all are zero"
    if found["frozen"]:
        names = [units.safe(name) for name in found["frozen"]]
        yield "frozen", ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    for name in (f"val_{found['metric']}", "sparsity"):
        values = found["history"].get(name)
        if values:
            yield name.removeprefix("val_"), f"{curve(values)}  {float(values[0]):.4g} → {float(values[-1]):.4g}"


def curve(values: Sequence[float | str]) -> str:
    """Numbers as bars between their least and their largest; what is not finite is a gap."""
    step = max(1, math.ceil(len(values) / WIDTH))
    numbers = [float(value) for value in values[::step]]
    finite = [number for number in numbers if math.isfinite(number)]
    low, span = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)
    top = len(BARS) - 1
    return "".join(BARS[round(top * (n - low) / span) if span else top] if math.isfinite(n) else " " for n in numbers)
