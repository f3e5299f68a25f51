"""Attention as one operator against the MatMul, Softmax and MatMul that spell it, under ONNX Runtime on this CPU.

    python benchmarks/attention.py

Compared are ONNX's own Attention (opset 23) and ONNX Runtime's MultiHeadAttention with the transposes that it needs
around it, on one thread. The smallest of many runs in turns; a ratio above 1 is faster than the spelling.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPES = ((4, 16, 64), (12, 64, 64), (12, 128, 64), (12, 512, 64), (8, 196, 32))
"""Heads, words, size of a head."""


def session(nodes: Sequence[onnx.NodeProto], opset: int, heads: int, size: int, *held: onnx.TensorProto) -> Any:
    """A session over query, key and value of (batch, heads, words, size)."""
    import onnxruntime as ort

    dims = ["batch", heads, "words", size]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in "qkv"]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(list(nodes), "attention", inputs, outputs, list(held))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=imports, ir_version=11)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def spelled(heads: int, size: int) -> Any:
    """MatMul, Softmax, MatMul."""
    scale = numpy_helper.from_array(np.array(size**-0.5, np.float32), "scale")
    nodes = [
        helper.make_node("Transpose", ["k"], ["t"], perm=[0, 1, 3, 2]), helper.make_node("Mul", ["q", "scale"], ["s"]),
        helper.make_node("MatMul", ["s", "t"], ["a"]), helper.make_node("Softmax", ["a"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]  # fmt: skip
    return session(nodes, 22, heads, size, scale)


def standard(heads: int, size: int) -> Any:
    """ONNX's Attention."""
    return session([helper.make_node("Attention", ["q", "k", "v"], ["y"])], 23, heads, size)


def microsoft(heads: int, size: int) -> Any:
    """ONNX Runtime's MultiHeadAttention, which takes (batch, words, heads * size)."""
    flat = numpy_helper.from_array(np.array([0, 0, heads * size], np.int64), "flat")
    split = numpy_helper.from_array(np.array([0, 0, heads, size], np.int64), "split")
    nodes = [helper.make_node("Transpose", [name], [f"{name}t"], perm=[0, 2, 1, 3]) for name in "qkv"]
    nodes += [helper.make_node("Reshape", [f"{name}t", "flat"], [f"{name}f"]) for name in "qkv"]
    nodes += [
        helper.make_node("MultiHeadAttention", ["qf", "kf", "vf"], ["m"], domain="com.microsoft", num_heads=heads),
        helper.make_node("Reshape", ["m", "split"], ["z"]),
        helper.make_node("Transpose", ["z"], ["y"], perm=[0, 2, 1, 3]),
    ]
    return session(nodes, 22, heads, size, flat, split)


def ratio(base: Any, other: Any, feed: dict[str, Any], rounds: int = 60) -> float:
    """How many times as fast `other` is, by the smallest times of both in turns."""
    seconds = np.zeros((rounds, 2))
    for row in seconds:
        for column, one in enumerate((base, other)):
            start = time.perf_counter()
            one.run(None, feed)
            row[column] = time.perf_counter() - start
    base_seconds, other_seconds = seconds.min(axis=0)
    return float(base_seconds / other_seconds)


def main() -> None:
    random = np.random.default_rng(0)
    for heads, words, size in SHAPES:
        feed = {name: random.standard_normal((1, heads, words, size)).astype(np.float32) for name in "qkv"}
        base = spelled(heads, size)
        for name, other in (("Attention", standard(heads, size)), ("MultiHeadAttention", microsoft(heads, size))):
            np.testing.assert_allclose(other.run(None, feed)[0], base.run(None, feed)[0], atol=1e-4)
            print(f"{heads} heads, {words} words of {size}: {name} {ratio(base, other, feed):.2f}x", flush=True)


if __name__ == "__main__":
    main()
