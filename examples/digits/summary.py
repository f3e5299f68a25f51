"""What the demo changed, read back from the artefacts that joulec wrote.

    python examples/digits/summary.py build/demo/small build/demo/wide
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TOP = 5


def main(*folders: str) -> None:
    """Print one block per artefact."""
    for folder in folders:
        report = json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))["report"]
        print("\n".join(["", *lines(report, Path(folder)), ""]))


def lines(report: dict[str, Any], folder: Path) -> list[str]:
    """The summary of one artefact."""
    return [
        f"== {report['model']} -> {folder / 'model.onnx'}",
        *_changes(report),
        *_energy(report["energy"]),
        *_passes(report["steps"]),
        *_decisions(report["decisions"]),
        f"   report     {folder / 'report.html'}",
    ]


def _changes(report: dict[str, Any]) -> list[str]:
    accuracy, latency = report["accuracy"], report["latency"]
    size = (report["size_before"] / 1024, report["size_after"] / 1024)
    said = [f"   nodes      {report['nodes_before']} -> {report['nodes_after']}"]
    said.append(f"   weights    {size[0]:,.1f} KiB -> {size[1]:,.1f} KiB")
    if accuracy:
        said.insert(0, f"   accuracy   {accuracy['before']:.4f} -> {accuracy['after']:.4f} on the held-out digits")
    if latency:
        times = f"{latency['before_ms']:.4f} ms -> {latency['after_ms']:.4f} ms"
        interval = f"[{latency['low']:.2f}, {latency['high']:.2f}]"
        said.append(f"   latency    {times}: {latency['ratio']:.2f} times as fast, 95 % interval {interval}, paired")
    return said


def _energy(energy: dict[str, Any] | None) -> list[str]:
    if not energy:
        return []
    rows = [f"{op} {_joules(old)} -> {_joules(new)}" for op, old, new in energy["by_op"][:TOP]]
    return [_block("energy", f"by operator, the {len(rows)} largest", rows)]


def _passes(steps: list[dict[str, Any]]) -> list[str]:
    rows = []
    for step in steps:
        if step["rewrites"]:
            nodes = f"nodes {step['nodes_before']} -> {step['nodes_after']}"
            joules = f"energy {_joules(step['joules_before'])} -> {_joules(step['joules_after'])}"
            rows.append(f"{step['spelling']} ({step['status']}): rewrites {step['rewrites']}, {nodes}, {joules}")
    return [_block("passes", f"{len(rows)} of {len(steps)} changed something", rows)]


def _decisions(decisions: list[dict[str, Any]]) -> list[str]:
    rows = [f"{'kept' if one['kept'] else 'dropped'} {one['what']}: {one['reason']}" for one in decisions]
    return [_block("decisions", str(len(rows)), rows)]


def _block(title: str, head: str, rows: list[str]) -> str:
    return "\n".join([f"   {title:<10} {head}", *(f"              {row}" for row in rows)])


def _joules(value: float | None) -> str:
    if value is None:
        return "-"
    for unit, scale in (("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} nJ"


if __name__ == "__main__":
    main(*sys.argv[1:])
