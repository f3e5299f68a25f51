"""A Loop of a few turns against what `joulec simplify` makes of it, under ONNX Runtime on this CPU.

    python benchmarks/unrolling.py

Each turn is a Relu and an Add, on one thread. The smallest of many runs in turns; a ratio above 1 says that the turns
one after another are faster than the Loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
from attention import ratio

import joulec

CASES = tuple((size, turns) for size in (64, 65536) for turns in (2, 8, 16))
"""Elements of the state, and turns."""


def looped(size: int, turns: int) -> onnx.ModelProto:
    """A Loop whose number of turns is stored."""
    state = f"float[{size}]"
    body = f"b (int64 i, bool go, {state} s) => (bool on, {state} t) {{ on = Identity(go) r = Relu(s) t = Add(r, s) }}"
    held = f"<int64 n = {{{turns}}}, bool c = {{1}}>"
    graph = f"g ({state} x) => ({state} y) {held} {{ y = Loop(n, c, x) <body = {body}> }}"
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\n{graph}')


def session(model: onnx.ModelProto) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    for size, turns in CASES:
        before = looped(size, turns)
        after = joulec.simplify(before)
        if any(node.op_type == "Loop" for node in after.graph.node):
            raise RuntimeError(f"a Loop of {turns} turns was left")
        sessions = session(before), session(after)
        feed = {"x": np.random.default_rng(1).standard_normal(size).astype(np.float32)}
        np.testing.assert_allclose(sessions[1].run(None, feed)[0], sessions[0].run(None, feed)[0], rtol=1e-6)
        print(f"{size} elements, {turns} turns: {ratio(*sessions, feed):.2f}x", flush=True)


if __name__ == "__main__":
    main()
