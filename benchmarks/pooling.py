"""Two ways to pool, under ONNX Runtime on this CPU.

    python benchmarks/pooling.py

MaxPool of 8-bit integers against floats: 3 x 3 with strides of 2 over images with the channels first, as behind a
convolution in float; a ratio above 1 says that floats are faster. GlobalAveragePool and Flatten against ReduceMean, of
images whose channels fill no block; a ratio above 1 says that ReduceMean is faster. One thread, the smallest of many
runs in turns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
from attention import ratio

SHAPES = ((1, 64, 112, 112), (1, 128, 56, 56), (1, 256, 28, 28))
POOLED = ((1, 40, 7, 7), (1, 200, 1, 48), (1, 200, 14, 14), (1, 1000, 7, 7), (1, 200, 56, 56))
"""Batch, channels, height, width."""
MAXIMUM = "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(x)"
AVERAGES = ("p = GlobalAveragePool(x) y = Flatten(p)", "y = ReduceMean<axes = [2, 3], keepdims = 0>(x)")


def session(kind: str, shape: tuple[int, ...], body: str, made: str = "a,b,c,d") -> Any:
    """A pooling of one element type."""
    import onnxruntime as ort

    dims = ",".join(map(str, shape))
    graph = f"g ({kind}[{dims}] x) => ({kind}[{made}] y) {{ {body} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\n{graph}')
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def maximum(shape: tuple[int, ...]) -> float:
    """MaxPool: integers over floats."""
    integers = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    feeds = {"x": integers}, {"x": integers.astype(np.float32)}
    sessions = session("uint8", shape, MAXIMUM), session("float", shape, MAXIMUM)
    found = [one.run(None, feed)[0] for one, feed in zip(sessions, feeds, strict=True)]
    np.testing.assert_array_equal(found[0].astype(np.float32), found[1])
    return ratio(*(_Fed(one, feed) for one, feed in zip(sessions, feeds, strict=True)), {})


def average(shape: tuple[int, ...]) -> float:
    """The mean of every channel: GlobalAveragePool over ReduceMean."""
    feed = {"x": np.random.default_rng(0).random(shape, dtype=np.float32)}
    sessions = [session("float", shape, body, "a,b") for body in AVERAGES]
    np.testing.assert_allclose(*(one.run(None, feed)[0] for one in sessions), rtol=1e-5)
    return ratio(*sessions, feed, rounds=400)


def main() -> None:
    for name, compare, shapes in (("MaxPool", maximum, SHAPES), ("mean", average, POOLED)):
        for shape in shapes:
            print(f"{name} {'x'.join(map(str, shape))}: {compare(shape):.2f}x", flush=True)


class _Fed:
    """A session with its own feed, because the two read different types."""

    def __init__(self, session: Any, feed: dict[str, Any]) -> None:
        self._session, self._feed = session, feed

    def run(self, outputs: None, _: dict[str, Any]) -> Any:
        return self._session.run(outputs, self._feed)


if __name__ == "__main__":
    main()
