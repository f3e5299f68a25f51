"""What simplify does not tell ONNX Runtime about sizes: residual sums stay sums, and a LayerNormalization stays one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

import joulec

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
HEADS = (
    HEAD + "g (float[1,words,4,8] x, float[1,words,32] z, float[32] gain) => (float[1,words,32] y) "
    "<int64[3] merged = {1, 0, 32}> { r = Reshape(x, merged) a = Add(z, r) "
    "n = LayerNormalization<axis = -1>(a, w) y = Mul(n, gain) }"
)


def proto(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(32, np.float32), "w"))
    return model


def session(model: onnx.ModelProto, folder: Path) -> tuple[ort.InferenceSession, Counter[str]]:
    settings = ort.SessionOptions()
    settings.log_severity_level, settings.optimized_model_filepath = 4, str(folder / "optimized.onnx")
    made = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return made, Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_heads_that_are_merged_hand_no_name_on(tmp_path: Path) -> None:
    before = proto(HEADS)
    assert session(before, tmp_path)[1]["SkipLayerNormalization"] == 1, "else this test shows nothing"
    after = joulec.simplify(before)
    made, ran = session(after, tmp_path)
    assert ran["SkipLayerNormalization"] == 0 and ran["LayerNormalization"] == 1
    for words in (3, 0):
        rng = np.random.default_rng(0)
        shapes = {"x": (1, words, 4, 8), "z": (1, words, 32), "gain": (32,)}
        feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        expected = session(before, tmp_path)[0].run(None, feed)[0]
        np.testing.assert_allclose(made.run(None, feed)[0], expected, rtol=1e-5, atol=1e-6)
    assert len(after.graph.initializer) == 2, "the target that nobody reads any more is gone"


@pytest.mark.parametrize(
    ("shape", "target"), [("1,words,32", "{1, 0, 4, 8}"), ("1,8,4,8", "{1, 0, 32}"), ("1,words,4,8", "{0, 0, 32}")]
)
def test_other_targets_stay(shape: str, target: str) -> None:
    """What splits heads, sizes with a number, and two sizes that are kept."""
    count = target.count(",") + 1
    text = f"{HEAD}g (float[{shape}] x) => (float[{','.join('abcd'[:count])}] y) <int64[{count}] t = {target}> {{ r = Reshape(x, t) y = Exp(r) }}"
    (kept,) = joulec.simplify(onnx.parser.parse_model(text)).graph.initializer
    assert -1 not in onnx.numpy_helper.to_array(kept)
