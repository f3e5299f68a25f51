"""Which execution provider gets each node of a model: placement.py MODEL [OPTION=VALUE ...], under the stand-ins.

Options are the CUDA provider's; those that start with `session.` are the session's.

Prints JSON: nodes by provider, the nodes on the CPU, copies between host and device (Memcpy), and the operators of the
graph that would run, after the provider's own fusions. The session is only created, never run: no kernel computes
anything.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort

CUDA = "CUDAExecutionProvider"


def main() -> None:
    model, given = sys.argv[1], dict(word.split("=", 1) for word in sys.argv[2:])
    config = {name: given.pop(name) for name in list(given) if name.startswith("session.")}
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "placed.onnx"
        providers = [(CUDA, given), "CPUExecutionProvider"]
        session = ort.InferenceSession(model, options(optimized, config), providers=providers)
        if session.get_providers()[0] != CUDA:
            sys.exit("the CUDA provider did not load: are the stand-ins on LD_LIBRARY_PATH?")
        runs = Counter(node.op_type for node in nodes(onnx.load(optimized, load_external_data=False).graph))
        placed = [
            (part.ep_name, node.op_type, node.name)
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]
    counts = Counter(provider for provider, _, _ in placed)
    on_cpu = [f"{op} {name}" for provider, op, name in placed if provider != CUDA]
    copies = sum(count for op, count in runs.items() if op.startswith("Memcpy"))
    found = {"providers": dict(sorted(counts.items())), "cpu": on_cpu, "memcpy": copies, "operators": dict(runs)}
    sys.stdout.write(json.dumps(found) + "\n")


def options(optimized: Path, config: dict[str, str]) -> ort.SessionOptions:
    """Everything that a session does before it runs, and the graph that comes of it written to a file."""
    found = ort.SessionOptions()
    found.log_severity_level = 4
    found.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for name, value in config.items():
        found.add_session_config_entry(name, value)
    found.optimized_model_filepath = str(optimized)
    return found


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those in the bodies of others too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)


if __name__ == "__main__":
    main()
