"""One tool on one model, in a process of its own: what `benchmarks/simplify.py` starts.

    python benchmarks/simplify_worker.py run TOOL IN OUT          (prints seconds, peak memory, nodes)
    python benchmarks/simplify_worker.py compare IN OUT HOW       (HOW: JSON of shapes and values;
                                                                   prints deviation, latency ratio, cold-start ratio)
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from backend_suite import simplifier

COLD_STARTS = 5
SECONDS = 3.0
"""How long latency is timed, in pairs."""


def dependent_nodes(model: onnx.ModelProto) -> int:
    """Nodes that depend on a graph input, those inside control flow counted one by one."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    return _count(model.graph, {value.name for value in model.graph.input} - fixed)


def _count(graph: onnx.GraphProto, live: set[str]) -> int:
    known, total = set(live), 0
    for node in graph.node:
        bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        read = {*node.input, *(name for body in bodies for inner in body.node for name in inner.input)}
        if known.isdisjoint(read):
            continue
        total += 1 + sum(_count(body, known | {value.name for value in body.input}) for body in bodies)
        known.update(node.output)
    return total


def run(tool: str, source: str, target: str) -> dict[str, Any]:
    """Simplify `source` into `target`: load, simplify and save are timed, and by themselves the tool's imports."""
    start = time.perf_counter()
    simplify = _file_to_file(tool)
    imported = time.perf_counter()
    simplify(Path(source), Path(target))
    seconds = time.perf_counter() - imported
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    after = onnx.load(target, load_external_data=False)
    symbols = [d.dim_param for v in after.graph.input for d in v.type.tensor_type.shape.dim if d.HasField("dim_param")]
    return {
        "seconds": seconds, "start": imported - start, "peak_mib": max(peaks) / 1024, "nodes": dependent_nodes(after),
        "symbols": symbols,
    }  # fmt: skip


def _file_to_file(tool: str) -> Any:
    if tool == "joulec":
        from joulec import api

        return api.simplify_file
    if tool == "joulec.simplify":
        import joulec

        return lambda source, target: target.write_bytes(joulec.simplify(source).SerializeToString())
    if tool == "onnxruntime":
        return _saved_by_onnxruntime
    call = simplifier(tool)
    return lambda source, target: onnx.save(call(onnx.load(source)), target)


def _saved_by_onnxruntime(source: Path, target: Path) -> None:
    """ONNX Runtime's own optimized graph, on the level that does not depend on the machine; a yardstick, no peer."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(target)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def compare(before: str, after: str, shapes: dict[str, Any], values: dict[str, int]) -> dict[str, Any]:
    """Outputs on one seeded feed, latency in pairs on one thread, and the time from file to first answer."""
    import joulec
    from joulec.api import synthetic_feeds
    from joulec.ir.lower import lower

    module = lower(before).module
    feed = dict(synthetic_feeds(module.inputs(), shapes, 1, 0).head(1)[0])
    feed |= {name: np.full_like(feed[name], value) for name, value in values.items()}
    found: dict[str, Any] = {"difference": _difference(before, after, feed)}
    paired = joulec.measure(after, against=before, data=[feed], seconds=SECONDS)
    found |= {"ratio": paired.ratio, "low": paired.low, "high": paired.high}
    found["cold"] = float(np.median([_cold(before, feed) / _cold(after, feed) for _ in range(COLD_STARTS)]))
    return found


def _difference(before: str, after: str, feed: dict[str, Any]) -> str | None:
    """Where an output deviates beyond what joulec allows an exact pass in float32: 1e-4 of its largest, or of 0.01."""
    from joulec.passes.equivalence import TOLERANCE, deviation

    wanted, got = (_session(path).run(None, feed) for path in (before, after))
    if len(wanted) != len(got):
        return "other outputs"
    worst = max(deviation(one, other) for one, other in zip(wanted, got, strict=True))
    return None if worst <= TOLERANCE["float32"] else f"an output deviates by {worst:.1e}"


def _session(path: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _cold(path: str, feed: dict[str, Any]) -> float:
    start = time.perf_counter()
    _session(path).run(None, feed)
    return time.perf_counter() - start


def main() -> None:
    action, *given = sys.argv[1:]
    if action == "run":
        found = run(*given)
    else:
        before, after, how = given
        shapes, values = json.loads(how)
        found = compare(before, after, {k: tuple(v) if isinstance(v, list) else v for k, v in shapes.items()}, values)
    sys.stdout.write("RESULT " + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
