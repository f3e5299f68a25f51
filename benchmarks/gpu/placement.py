"""Which execution provider gets each node of a model: placement.py MODEL, under the libraries of standins.py.

Prints JSON: nodes by provider, the nodes on the CPU, and copies between host and device (Memcpy). The session is
only created, never run.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort

CUDA = "CUDAExecutionProvider"


def main() -> None:
    model, given = sys.argv[1], dict(word.split("=", 1) for word in sys.argv[2:])
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "placed.onnx"
        session = ort.InferenceSession(model, options(optimized), providers=[(CUDA, given), "CPUExecutionProvider"])
        if session.get_providers()[0] != CUDA:
            sys.exit("the CUDA provider did not load: are the stand-ins on LD_LIBRARY_PATH?")
        copies = sum(node.op_type.startswith("Memcpy") for node in nodes(onnx.load(optimized).graph))
        placed = [
            (part.ep_name, node.op_type, node.name)
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]
    counts = Counter(provider for provider, _, _ in placed)
    on_cpu = [f"{op} {name}" for provider, op, name in placed if provider != CUDA]
    print(json.dumps({"providers": dict(sorted(counts.items())), "cpu": on_cpu, "memcpy": copies}))


def options(optimized: Path) -> ort.SessionOptions:
    found = ort.SessionOptions()
    found.log_severity_level = 4
    found.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    found.optimized_model_filepath = str(optimized)
    return found


def nodes(graph: onnx.GraphProto):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)


if __name__ == "__main__":
    main()
