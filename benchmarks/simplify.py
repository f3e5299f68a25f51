"""joulec's exact passes beside every installed simplifier, on the same models, on the same machine, in the same run.

    make bench-simplify                              (everything; writes docs/simplify.md)
    python benchmarks/simplify.py --quick            (small models only, in a few minutes)
    python benchmarks/simplify.py --models Silero --tools joulec onnxslim --no-write

Every tool runs with its defaults on every model, in a process of its own with a time and a memory limit. Counted are
the nodes that depend on a graph input, those inside control flow one by one; what only makes constants costs nothing at
run time and is not counted. Outputs are compared with the input model's under ONNX Runtime, and latency is timed in
pairs with it, single-threaded; above 1 is faster than the input model. `cold` is the time from file to first answer.
onnxruntime is not a peer: the column shows what the runtime does by itself when it loads the input model.
Peers that are not installed are left out: pip install onnxsim onnxslim onnxoptimizer onnxscript.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from backend_suite import PEERS
from simplify_models import Missing, Source, sources
from simplify_worker import dependent_nodes

from joulec.key import cpu, versions

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("simplify_worker.py")
RESULTS = Path(__file__).with_name("results") / "simplify.json"
PAGE = ROOT / "docs" / "simplify.md"
TOOLS = ("joulec", *PEERS, "onnxruntime")
SECONDS, MEMORY = 300, 16 << 30


def installed(tool: str) -> bool:
    """Whether `tool` can be imported."""
    return tool in ("joulec", "onnxruntime") or importlib.util.find_spec(PEERS[tool][0].split(".")[0]) is not None


def child(arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    """What a worker printed, or `{"error": why}`."""
    try:
        done = subprocess.run(
            [sys.executable, str(WORKER), *arguments], capture_output=True, text=True, timeout=seconds, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"no result in {seconds:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        return dict(json.loads(lines[-1].removeprefix("RESULT ")))
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return {"error": (said[-1] if said else f"exit {done.returncode}")[:120]}


def one(source: Source, tools: Sequence[str], seconds: float) -> dict[str, Any]:
    """Every tool on one model."""
    try:
        path = source.make()
    except Missing as reason:
        return {"missing": str(reason)}
    before = onnx.load(path, load_external_data=False)
    found: dict[str, Any] = {"nodes": dependent_nodes(before), "bytes": path.stat().st_size, "tools": {}}
    found["machine"] = {**cpu(), "load": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for tool in tools:
            target = Path(folder, tool, "model.onnx")
            target.parent.mkdir()
            called = "joulec.simplify" if source.python and tool == "joulec" else tool
            result = child(["run", called, str(path), str(target)], seconds)
            if "error" not in result:
                result["growth"] = target.stat().st_size / path.stat().st_size
                if source.runs and tool != "onnxruntime":
                    how = json.dumps([source.shapes, source.values])
                    result |= child(["compare", str(path), str(target), how], seconds)
            found["tools"][tool] = result
            print(f"  {source.name:24} {tool:14} {summary(result)}", flush=True)
    return found


def summary(result: dict[str, Any]) -> str:
    """One tool's result on one line."""
    if "nodes" not in result:
        return str(result.get("error", "?"))
    cost = f"{result['seconds']:>7.2f} s +{result['start']:.2f} {result['peak_mib']:>6.0f} MiB"
    text = f"{result['nodes']:>6} nodes {cost}  x{result['growth']:.2f} bytes"
    if "ratio" in result:
        text += f"  {result['ratio']:.2f}x ({result['low']:.2f} to {result['high']:.2f})  cold {result['cold']:.2f}x"
    if result.get("difference") or result.get("error"):
        text += f"  {result.get('difference') or result['error']}"
    return text


# -- the page ---------------------------------------------------------------------------------------------------------


def _speed(result: dict[str, Any], _best: int) -> str:
    return f"{result['ratio']:.2f} ({result['low']:.2f}-{result['high']:.2f})" if "ratio" in result else ""


def _cold(result: dict[str, Any], _best: int) -> str:
    return f"{result['cold']:.2f}" if "cold" in result else ""


def _cost(result: dict[str, Any], _best: int) -> str:
    if "seconds" not in result:
        return ""
    return f"{result['seconds']:.2f} s, {result['peak_mib']:.0f}, x{result['growth']:.2f}"


def _starts(data: dict[str, Any]) -> str:
    """The middle of the seconds that each tool took to be imported."""
    lines = []
    for tool in data["tools"]:
        rows = (found["tools"].get(tool, {}) for found in data["models"].values() if "tools" in found)
        seconds = [row["start"] for row in rows if "start" in row]
        if seconds:
            lines.append(f"{tool} {statistics.median(seconds):.2f} s")
    return ", ".join(lines)


def page(data: dict[str, Any]) -> str:
    """The results as a page of tables."""
    tools, numbered = data["tools"], ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    parts = [
        "# Simplifiers side by side",
        "Written by `make bench-simplify`; `benchmarks/simplify.py` says what is measured and how.",
        f"{data['cpu']['model']}, {data['cpu']['cores']} cores; {numbered}.",
        *_conditions(data),
        "## Nodes left",
        "Nodes that depend on a graph input. **Bold** is the fewest of joulec and its peers, `!` marks other outputs.",
        _table(data, tools, _nodes),
        "## Speed under ONNX Runtime",
        "Latency of the input model over that of the result, with its 95 % interval; above 1 is faster.",
        _table(data, tools, _speed),
        "## From file to first answer",
        "The input model's time over the result's; above 1 is sooner.",
        _table(data, tools, _cold),
        "## Cost",
        "Seconds, peak memory in MiB, and the size as a multiple of the input's, weights outside the file left "
        "out. Before that comes the import, once a process (median): " + _starts(data) + ".",
        _table(data, tools, _cost),
    ]
    return "\n\n".join(parts) + "\n"


def _elsewhere(data: dict[str, Any], found: dict[str, Any]) -> str:
    """Where a model was measured, if on another processor than the page names or on a busy one; else nothing."""
    machine = found.get("machine", data["cpu"])
    load, cores = machine.get("load", 0.0), machine["cores"]
    if machine["model"] == data["cpu"]["model"] and load <= cores:
        return ""
    busy = f", busy with other work (load {load:.0f})" if load > cores else ""
    return f"{machine['model']}, {cores} cores{busy}"


def _conditions(data: dict[str, Any]) -> list[str]:
    """What holds for the models with a mark: seconds on a busy machine are longer than they need be."""
    places = dict.fromkeys(filter(None, (_elsewhere(data, found) for found in data["models"].values())))
    return [f"Models with a *: {'; '.join(places)}. Ratios are of runs in turns."] if places else []


def _table(data: dict[str, Any], tools: Sequence[str], cell: Any) -> str:
    lines = ["| model | before | " + " | ".join(tools) + " |", "| --- | ---: |" + " ---: |" * len(tools)]
    for name, found in data["models"].items():
        if "missing" in found:
            lines.append(f"| {name} | {found['missing']} |" + " |" * len(tools))
            continue
        results = found["tools"]
        counts = [results[t]["nodes"] for t in tools if t != "onnxruntime" and "nodes" in results.get(t, {})]
        cells = [_cell(results.get(t, {}), cell, min(counts, default=-1), t) for t in tools]
        mark = " *" if _elsewhere(data, found) else ""
        lines.append(f"| {name}{mark} | {found['nodes']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(result: dict[str, Any], cell: Any, best: int, tool: str) -> str:
    if "nodes" not in result:
        return str(result.get("error", "")).replace("|", "/")[:40]
    return str(cell(result, best if tool != "onnxruntime" else -1))


def _nodes(result: dict[str, Any], best: int) -> str:
    text = f"**{result['nodes']}**" if result["nodes"] == best else str(result["nodes"])
    return text + (" !" if result.get("difference") else "")


def kept(tools: Sequence[str]) -> dict[str, Any]:
    """The rows of an earlier run with the same tools, which `--models` leaves as they are."""
    if not RESULTS.is_file():
        return {}
    earlier = json.loads(RESULTS.read_text())
    return dict(earlier["models"]) if earlier["tools"] == list(tools) else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", metavar="TEXT", nargs="*", default=[], help="only models named like one of these; other rows stay"
    )
    parser.add_argument("--tools", nargs="*", choices=TOOLS, default=TOOLS, help="only these tools")
    parser.add_argument("--quick", action="store_true", help="leave out what takes minutes")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of one tool on one model")
    parser.add_argument("--no-write", action="store_true", help="print only; leave docs/simplify.md as it is")
    options = parser.parse_args()
    tools = [tool for tool in options.tools if installed(tool)]
    chosen = [s for s in sources() if not (options.quick and s.slow)]
    chosen = [s for s in chosen if not options.models or any(text.lower() in s.name.lower() for text in options.models)]
    models = {source.name: one(source, tools, options.seconds) for source in chosen}
    numbered = {t: importlib.metadata.version(t) for t in tools if t in PEERS}
    earlier = kept(tools) if options.models else {}
    machine = json.loads(RESULTS.read_text())["cpu"] if earlier else cpu()
    models = earlier | models
    data = {"cpu": machine, "versions": versions() | numbered, "tools": tools, "models": models}
    if not options.no_write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(data, indent=1) + "\n")
        PAGE.write_text(page(data))
        print(f"written: {PAGE.relative_to(ROOT)}, {RESULTS.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
