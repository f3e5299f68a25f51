"""1-D convolutions against the same ones as images of height 1, under ONNX Runtime on this CPU.

    python benchmarks/widening.py

Three convolutions with activations in a row, on one thread; the images have an Unsqueeze in front and a Squeeze behind.
The smallest of many runs in turns; a ratio above 1 says that images are faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from attention import ratio
from onnx import TensorProto, helper, numpy_helper

CASES = ((64, 3, 4, 1), (64, 3, 100, 1), (128, 3, 500, 1), (256, 1, 200, 1), (64, 31, 500, 64), (24, 3, 100, 1))
"""Channels, kernel, samples, groups; the last fills no block of channels."""


def layers(
    channels: int, kernel: int, groups: int, wide: bool
) -> Iterator[tuple[onnx.NodeProto, onnx.TensorProto | None]]:
    """Nodes, and the weight of each that has one."""
    random, pad = np.random.default_rng(0), kernel // 2
    for index in range(3):
        weight = random.standard_normal((channels, channels // groups, kernel)).astype(np.float32) * 0.05
        pads = [0, pad, 0, pad] if wide else [pad, pad]
        held = numpy_helper.from_array(weight[:, :, None] if wide else weight, f"w{index}")
        yield helper.make_node("Conv", [f"r{index}", f"w{index}"], [f"c{index}"], group=groups, pads=pads), held
        yield helper.make_node("Relu", [f"c{index}"], [f"r{index + 1}"]), None


def session(channels: int, kernel: int, groups: int, wide: bool) -> Any:
    """A session over (batch, channels, samples)."""
    import onnxruntime as ort

    made = list(layers(channels, kernel, groups, wide))
    held = [weight for _, weight in made if weight is not None]
    held.append(numpy_helper.from_array(np.array([2], np.int64), "height"))
    first, last = ("Unsqueeze", "Squeeze") if wide else ("Identity", "Identity")
    axes = ["height"] if wide else []
    nodes = [helper.make_node(first, ["x", *axes], ["r0"]), *(node for node, _ in made)]
    nodes.append(helper.make_node(last, ["r3", *axes], ["y"]))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", channels, f"t{n}"]) for n in "xy"]
    graph = helper.make_graph(nodes, "convolutions", values[:1], values[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    for channels, kernel, samples, groups in CASES:
        plain, wide = (session(channels, kernel, groups, wide) for wide in (False, True))
        feed = {"x": np.random.default_rng(1).standard_normal((1, channels, samples)).astype(np.float32)}
        np.testing.assert_allclose(wide.run(None, feed)[0], plain.run(None, feed)[0], atol=1e-4)
        said = f"{channels} channels, kernel {kernel}, {samples} samples, groups {groups}"
        print(f"{said}: {ratio(plain, wide, feed):.2f}x", flush=True)


if __name__ == "__main__":
    main()
