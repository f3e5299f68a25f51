"""Timing: every run's latency and CPU seconds, its kernels by ONNX Runtime's profiler, pairs in turns, the ladder."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from zoo import BATCHES, FAMILIES, RAW, Run, changes, number_in

from joulec.data import synthetic_feeds
from joulec.energy.calibrate import time_rungs
from joulec.energy.kernels import plan_kernels
from joulec.energy.ladder import ladder
from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.ir.session import SessionOptions
from joulec.payoff import BLOCKS, summarize

OPTIONS = SessionOptions(threads=1)
SECONDS, PROFILED, RUNG_SECONDS = 1.5, 1.0, 0.25
"""How long a pair of models is timed, one is profiled, and a rung of the ladder is timed."""

LOADS, LEAST, MOST = 3, 8, 1500
"""Fresh sessions of a pair; fewest profiled and most timed inferences."""


def network(family: str, name: str, batch: int) -> dict[str, Any]:
    """All that is timed of one network at one batch size."""
    variants = dict.fromkeys(variant for change in changes(family) for variant in change)
    modules = {variant: Run(family, name, batch, variant).module() for variant in variants}
    found: dict[str, Any] = {"pairs": {}, "runs": {}}
    for pair in changes(family):
        found["pairs"][" -> ".join(pair)] = _pair(*(modules[one] for one in pair), found["runs"], pair)
    for variant, module in modules.items():
        if variant != RAW:
            found["runs"][variant] |= kernels(module)
    return found


def _pair(base: Module, candidate: Module, seen: dict[str, Any], names: tuple[str, str]) -> dict[str, float]:
    """The two in turns: the ratio of their times, and each one's own."""
    feed = synthetic_feeds(base.inputs(), {}).head(1)[0]
    with LocalRunner() as runner:
        loads = [_load(runner, (base, candidate), feed, load % 2 == 1) for load in range(LOADS)]
    paired = summarize([load[..., 0] for load in loads], OPTIONS.threads)
    for column, name in enumerate(names):
        seen.setdefault(name, _spent(loads, column))
    return {"ratio": _rounded(paired.ratio), "low": _rounded(paired.low), "high": _rounded(paired.high)}


def _load(runner: LocalRunner, pair: tuple[Module, Module], feed: Feed, turned: bool) -> np.ndarray:
    """Both loaded afresh, in either order: wall and CPU seconds, (rounds, 2, 2)."""
    handles = [runner.load(module, options=OPTIONS) for module in (pair[::-1] if turned else pair)]
    once = float(np.min(runner.time(handles, feed, rounds=2).sum(axis=1)))
    rounds = int(np.clip(SECONDS / LOADS / once, BLOCKS, MOST))
    spent = runner.spend(handles, feed, rounds=rounds)
    for handle in handles:
        runner.unload(handle)
    return spent[:, ::-1] if turned else spent


def _spent(loads: Sequence[np.ndarray], column: int) -> dict[str, float]:
    """Median seconds, and CPU seconds, of the quietest load: what else the machine does only ever adds."""
    medians = [np.median(load[:, column], axis=0) for load in loads]
    wall, cpu = min(medians, key=lambda one: float(one[0]))
    return {"seconds": _rounded(wall), "cpu_seconds": _rounded(cpu)}


# -- kernels ----------------------------------------------------------------------------------------------------------


def kernels(module: Module) -> dict[str, Any]:
    """Microseconds and number of what runs for each of the module's nodes; under "" what was added for none."""
    feed = dict(synthetic_feeds(module.inputs(), {}).head(1)[0])
    with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
        times, owners = _profiled(module, feed, Path(folder))
    by_node: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for name, seconds in times.items():
        total, count = by_node[owners.get(name, "")]
        by_node[owners.get(name, "")] = total + seconds, count + 1
    return {"kernels": {name: _microseconds(*one) for name, one in sorted(by_node.items())}}


def _microseconds(total: float, count: int) -> float | tuple[float, int]:
    """Short: the time alone where one kernel runs for a node."""
    time = float(f"{1e6 * total:.3g}")
    return time if count == 1 else (time, count)


def _profiled(module: Module, feed: dict[str, np.ndarray], folder: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds by node of the graph that runs, and whose kernel each is."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    settings.enable_profiling, settings.profile_file_prefix = True, str(folder / "profile")
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    session = ort.InferenceSession(module.to_proto().SerializeToString(), settings, providers=["CPUExecutionProvider"])
    start, rounds = time.perf_counter(), 0
    while rounds < LEAST or (time.perf_counter() - start < PROFILED and rounds < MOST):
        session.run(None, feed)
        rounds += 1
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _by_node(events, rounds), _owners(module, folder / "optimized.onnx")


def _by_node(events: Sequence[dict[str, Any]], rounds: int) -> dict[str, float]:
    """Mean of the faster half without its fastest tenth: durations are whole microseconds, which a quantile keeps."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"].removesuffix("_kernel_time")].append(event["dur"] * 1e-6)
    found = {}
    for name, durations in times.items():
        count = len(durations)
        found[name] = float(np.mean(np.sort(durations)[count // 10 : count // 2 + 1])) * count / rounds
    return found


MOVES = ("ReorderInput", "ReorderOutput", "Transpose", "Cast")
"""What ONNX Runtime adds between kernels that want different layouts."""


def _owners(module: Module, optimized: Path) -> dict[str, str]:
    """Node of the graph that runs -> the node of `module` that it computes, or that it was added for."""
    made = _makers(module)
    graph = onnx.load(optimized, load_external_data=False).graph
    owners = {}
    for node in graph.node:
        named = made.get(node.name.removesuffix("_nchwc")) or number_in(node.name)
        owner = next((made[out] for out in node.output if out in made), named)
        if owner is not None:
            owners[node.name] = owner
    producer = {out: node for node in graph.node for out in node.output}
    reader = {given: node for node in graph.node for given in node.input}
    for node in graph.node:
        if node.name not in owners and node.op_type in MOVES:
            owners[node.name] = _neighbour(node, producer, reader, owners)
    return owners


def _makers(module: Module) -> dict[str, str]:
    """Value -> the node whose kernel computes it."""
    found = {}
    for node, kernel in plan_kernels(module).kernels.items():
        owner = str(node.name) if kernel.runs else number_in(kernel.name)
        found.update({str(value.name): owner for value in node.outputs if owner is not None})
    return found


def _neighbour(node: Any, producer: dict[str, Any], reader: dict[str, Any], owners: dict[str, str]) -> str:
    """The kernel behind what only prepares its input, else the kernel before."""
    before = producer.get(node.input[0]) if node.input else None
    behind = reader.get(node.output[0])
    order = (behind, before) if node.op_type == "ReorderInput" else (before, behind)
    return next((owners[one.name] for one in order if one is not None and one.name in owners), "")


# -- the file ---------------------------------------------------------------------------------------------------------


def collect(place: Path, only: Sequence[str], about: Mapping[str, Any]) -> None:
    """Time the ladder and every network, or those named; the file is written after each, so that work is not lost."""
    kept = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {"networks": {}}
    if not only or "rungs" not in kept:
        print("timing the ladder", flush=True)
        rungs = ladder()
        seconds, drift = time_rungs(rungs, OPTIONS.threads, RUNG_SECONDS, lambda _message, _share: None)
        kept |= {"rungs": {r.name: _rounded(s) for r, s in zip(rungs, seconds, strict=True)}, "drift": drift, **about}
        _write(place, kept)
    for family, builders in FAMILIES.items():
        for name in (build.__name__ for build in builders if not only or build.__name__ in only):
            for batch in BATCHES:
                print(f"timing {name} x{batch}", flush=True)
                kept["networks"][f"{name} x{batch}"] = {"family": family, **network(family, name, batch)}
                _write(place, kept)


def _write(place: Path, kept: Mapping[str, Any]) -> None:
    draft = place.with_suffix(".part")
    draft.write_text(json.dumps(kept, separators=(",", ":")) + "\n", encoding="utf-8")
    draft.replace(place)


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")
