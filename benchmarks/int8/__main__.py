"""joulec beside every installed INT8 quantizer, on the same models and data, judged and timed in the same run.

    make bench                                        (trained digits, ONNX Runtime's quantizers; two minutes)
    make bench-int8                          (everything, peers installed; writes docs/int8-benchmark.md; an hour)
    python benchmarks/int8 --cases Magika --tools joulec nncf --no-write

Every tool gets the same float ONNX model and the same calibration rows and runs at its defaults, in a process and an
environment of its own, under a time and a memory limit. joulec may use the metric and one point of accuracy, as
`--max-drop 0.01` says; it never sees the test rows but through the metric. Speed is the float model's time over the
result's, all under ONNX Runtime on the CPU with one thread, batch 1, in turns in one process; above 1 is faster than
the model that came in. `optimized` is that model after joulec's exact passes alone: what is due to INT8 is beyond that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cases import Case, Missing, cases
from peers import PEERS, result

from joulec.ir.machine import cpu
from joulec.key import versions

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "bench-int8"
RESULTS = ROOT / "benchmarks" / "results" / "int8.json"
PAGE = ROOT / "docs" / "int8-benchmark.md"
JUDGE = Path(__file__).with_name("judge.py")
JOULEC, OPTIMIZED, BUDGET, SECONDS = "joulec", "optimized", "0.01", 900.0


def one(case: Case, tools: Sequence[str], seconds: float, reused: Sequence[str] = ()) -> dict[str, Any]:
    """Every tool on one model; all results are timed in turns, those taken from an earlier run too."""
    try:
        place = case.folder(BUILD)
    except Missing as reason:
        return {"missing": str(reason)}
    judge, baseline = [sys.executable, str(JUDGE)], place / "float.onnx"
    score = result([*judge, "accuracy", str(place), str(baseline)], seconds, place)["accuracy"]
    found = {}
    for tool in tools:
        known = place / f"{tool}.json"
        made = json.loads(known.read_text()) if tool in reused and known.is_file() else quantized(tool, place, seconds)
        known.write_text(json.dumps(made), encoding="utf-8")
        found[tool] = made | {"baseline": score}
        if "error" not in found[tool]:
            found[tool] |= result([*judge, "accuracy", str(place), str(output(tool, place))], seconds, place)
        print(f"  {case.name:18} {tool:20} {found[tool].get('error', 'quantized')}", flush=True)
    run = [tool for tool in tools if "error" not in found[tool]]
    timed = result([*judge, "speed", str(place), *(str(output(tool, place)) for tool in run)], seconds, place)
    for tool, one in zip(run, timed.get("models", [timed] * len(run)), strict=True):
        found[tool] |= one
        print(f"  {case.name:18} {tool:20} {summary(found[tool])}", flush=True)
    return found


def output(tool: str, place: Path) -> Path:
    """Where a tool's model lies."""
    return place / tool / "model.onnx"


def quantized(tool: str, place: Path, seconds: float) -> dict[str, Any]:
    """One tool's result on one model, and what it cost."""
    model, data = place / "float.onnx", place / "calibration.npz"
    output(tool, place).parent.mkdir(exist_ok=True)
    if tool == OPTIMIZED:
        return result([*ours("simplify"), str(model), str(output(tool, place))], seconds, place)
    if tool == JOULEC:
        metric = ["--metric", f"{place / 'metric.py'}:accuracy"] if (place / "metric.py").is_file() else []
        drop = BUDGET if metric else "none"
        order = [str(model), "-o", str(place / tool), "--data", str(data), *metric, "--max-drop", drop, "--remeasure"]
        return result([*ours("optimize"), *order], seconds, place)
    peer = next(peer for peer in PEERS if peer.name == tool)
    return peer.made(model, data, output(tool, place), seconds)


def ours(command: str) -> list[str]:
    """joulec's command line, which prints its cost as the workers of the peers do."""
    return [sys.executable, str(Path(__file__).with_name("ours.py")), command]


def summary(found: dict[str, Any]) -> str:
    """One tool's result on one line."""
    if "ratio" not in found:
        return str(found.get("error", "?"))
    cost = f"{found['seconds']:>6.0f} s {found['peak_mib']:>6.0f} MiB"
    kernels = f"{found['integer']:>3} integer kernels"
    return f"{_points(found)}  {found['ratio']:.2f}x {_interval(found)}  joulec {_behind(found)}  {kernels}  {cost}"


def _interval(found: dict[str, Any]) -> str:
    return f"({found['low']:.2f}-{found['high']:.2f})"


def _behind(found: dict[str, Any]) -> str:
    return f"{found['behind']:.2f}x ({found['behind_low']:.2f}-{found['behind_high']:.2f})"


def _points(found: dict[str, Any]) -> str:
    if found.get("accuracy") is None:
        return "not judged"
    return f"{100 * (found['accuracy'] - found['baseline']):+.2f} points"


# -- the page ---------------------------------------------------------------------------------------------------------


def page(data: dict[str, Any]) -> str:
    """The results as a page of tables."""
    numbered = ", ".join(f"{name} {version}" for name, version in data["versions"].items() if version)
    parts = [
        "# INT8 side by side",
        "Written by `make bench-int8`; `benchmarks/int8` says what is measured and how.",
        f"{data['cpu']['model']}, {data['cpu']['cores']} cores; {numbered}.",
        "Speed is against the model that came in, one thread, batch 1; **bold** is the fastest within one point of "
        "accuracy, ~~struck out~~ what loses more. `joulec` says how much faster joulec's result is than this "
        "one, in the same run. `k` counts the integer kernels that ONNX Runtime really runs.",
    ]
    for name, found in data["models"].items():
        parts.append(f"## {name}")
        parts.append(f"Left out: {found['missing']}." if "missing" in found else _table(found))
    return "\n\n".join(parts) + "\n"


def _table(found: dict[str, Any]) -> str:
    best = max((one["ratio"] for tool, one in found.items() if _valid(one) and tool != OPTIMIZED), default=0.0)
    rows = ["| tool | accuracy | speed | joulec | k | build |", "| --- | --- | --- | --- | --- | --- |"]
    for tool, one in found.items():
        if "ratio" not in one:
            rows.append(f"| {tool} | | {one.get('error', '?').replace('|', '/')} | | | |")
            continue
        speed = f"{one['ratio']:.2f}x {_interval(one)}"
        speed = f"**{speed}**" if _valid(one) and one["ratio"] == best else speed if _valid(one) else f"~~{speed}~~"
        cost = f"{one['seconds']:.0f} s, {one['peak_mib']:.0f} MiB"
        behind = "" if tool == JOULEC else _behind(one)
        rows.append(f"| {tool} | {_points(one)} | {speed} | {behind} | {one['integer']} | {cost} |")
    return "\n".join(rows)


def _valid(one: dict[str, Any]) -> bool:
    """Whether it runs and loses at most the budget."""
    judged = one.get("accuracy")
    return "ratio" in one and (judged is None or one["baseline"] - judged <= float(BUDGET))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and keep the numbers with what they were measured on."""
    known = [JOULEC, OPTIMIZED, *(peer.name for peer in PEERS)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", help="parts of names; all by default")
    parser.add_argument("--tools", nargs="+", choices=known, default=known)
    parser.add_argument("--install", action="store_true", help="make the environments of peers that have none")
    parser.add_argument("--reuse", nargs="+", choices=known, default=[], help="take their models of an earlier run")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of one tool on one model")
    parser.add_argument("--no-write", action="store_true", help="leave results and page as they are")
    given = parser.parse_args(arguments)
    peers = [peer for peer in PEERS if peer.name in given.tools]
    for peer in peers if given.install else ():
        peer.install()
    chosen = [case for case in cases() if not given.cases or any(part in case.name for part in given.cases)]
    for case in chosen:
        models = {case.name: one(case, given.tools, given.seconds, given.reuse)}
        if not given.no_write:
            keep(models, [peer for peer in peers if peer.packages])


def keep(models: dict[str, Any], peers: Sequence[Any]) -> None:
    """Put the results of some models among those that are kept, and write the page."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"models": {}, "versions": {}}
    numbers = known["versions"] | versions() | {peer.name: peer.version() for peer in peers}
    found = known["models"] | models
    ordered = {case.name: found[case.name] for case in cases() if case.name in found}
    kept = {"command": "make bench-int8", "cpu": cpu(), "versions": numbers, "models": ordered}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
