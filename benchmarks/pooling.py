"""MaxPool of 8-bit integers against MaxPool of floats, under ONNX Runtime on this CPU.

    python benchmarks/pooling.py

A pooling of 3 x 3 with strides of 2 over images with the channels first, on one thread, as behind a convolution in
float. The smallest of many runs in turns; a ratio above 1 says that floats are faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
from attention import ratio

SHAPES = ((1, 64, 112, 112), (1, 128, 56, 56), (1, 256, 28, 28))
"""Batch, channels, height, width."""


def session(kind: str, shape: tuple[int, ...]) -> Any:
    """The pooling of one element type; behind it as few numbers leave as can be."""
    import onnxruntime as ort

    dims = ",".join(map(str, shape))
    graph = f"g ({kind}[{dims}] x) => ({kind}[a,b,c,d] y) {{ y = MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(x) }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\n{graph}')
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    for shape in SHAPES:
        integers = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
        feeds = {"x": integers}, {"x": integers.astype(np.float32)}
        sessions = session("uint8", shape), session("float", shape)
        found = [one.run(None, feed)[0] for one, feed in zip(sessions, feeds, strict=True)]
        np.testing.assert_array_equal(found[0].astype(np.float32), found[1])
        runs = [_Fed(one, feed) for one, feed in zip(sessions, feeds, strict=True)]
        print(f"{'x'.join(map(str, shape))}: {ratio(*runs, {}):.1f}x", flush=True)


class _Fed:
    """A session with its own feed, because the two read different types."""

    def __init__(self, session: Any, feed: dict[str, Any]) -> None:
        self._session, self._feed = session, feed

    def run(self, outputs: None, _: dict[str, Any]) -> Any:
        return self._session.run(outputs, self._feed)


if __name__ == "__main__":
    main()
