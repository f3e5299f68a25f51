"""What TensorRT-RTX makes of a model: engine.py MODEL [INPUT=MIN/OPT/MAX ...], e.g. x=1x3x8x8/8x3x8x8/32x3x8x8.

Parses and builds on a machine without a GPU, and prints JSON: whether it did, what it objected to, and for every layer
of the engine the types of what it reads and writes and the ONNX nodes in it. This is evidence of one compiler of
TensorRT's family, not of TensorRT itself, and nothing is run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import tensorrt_rtx as trt


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what the compiler says."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[tuple[int, str]] = []

    def log(self, severity: Any, message: str) -> None:
        """Called by TensorRT."""
        self.lines.append((int(severity), message))


def main() -> None:
    log = Log()
    found = built(log, sys.argv[1], dict(word.rsplit("=", 1) for word in sys.argv[2:]))
    errors = [text for severity, text in log.lines if severity <= int(trt.ILogger.Severity.ERROR)]
    sys.stdout.write(json.dumps({"version": trt.__version__, **found, "errors": errors[:20]}) + "\n")


def built(log: Log, model: str, profiles: dict[str, str]) -> dict[str, Any]:
    """Parse and build; types are as the graph has them (TensorRT-RTX is always strongly typed)."""
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(model):
        said = [f"{parser.get_error(i).node_name()}: {parser.get_error(i).desc()}" for i in range(parser.num_errors)]
        return {"parsed": False, "built": False, "refused": said, "layers": []}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    shapes = builder.create_optimization_profile()
    for name, lowest, best, highest in opened(network, profiles):
        shapes.set_shape(name, lowest, best, highest)
    config.add_optimization_profile(shapes)
    engine = builder.build_serialized_network(network, config)
    layers = [layer for _, text in log.lines for layer in layers_of(text)]
    return {"parsed": True, "built": engine is not None, "refused": [], "layers": layers}


def opened(network: Any, profiles: dict[str, str]) -> Iterator[tuple[Any, ...]]:
    """The inputs with open sizes: as given, else 1."""
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name in profiles:
            yield (tensor.name, *(tuple(map(int, one.split("x"))) for one in profiles[tensor.name].split("/")))
        elif -1 in tuple(tensor.shape):
            shape = tuple(1 if size < 0 else size for size in tensor.shape)
            yield tensor.name, shape, shape, shape


TYPES = re.compile(r"Datatype: (\w+)")
NODES = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


def layers_of(text: str) -> Iterator[dict[str, Any]]:
    """The layers in the compiler's own listing of an engine."""
    if not text.startswith("Layers:"):
        return
    for line in text.splitlines():
        if line.startswith("Name: ") and "LayerType: " in line:
            read, _, rest = line.partition("Outputs: [")
            made, _, after = rest.partition("TacticName: ")
            kind = line.split("LayerType: ", 1)[1].split(",", 1)[0]
            yield {
                "type": kind, "reads": TYPES.findall(read), "makes": TYPES.findall(made), "nodes": NODES.findall(after),
            }  # fmt: skip


if __name__ == "__main__":
    main()
