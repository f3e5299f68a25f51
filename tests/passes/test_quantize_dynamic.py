"""quantize-dynamic: what ONNX Runtime makes of it, numbers, shared inputs and weights, bodies, and every refusal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import int8_kit as kit
import numpy as np
import pytest

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.base import PassResult
from joulec.passes.quantize_dynamic import QuantizeDynamic

ENCODER = """t (float[N,6,64] x) => (float[N,6,64] y) {
  q = MatMul(x, wq)  k = MatMul(x, wk)  s = Add(q, k)  u = MatMul(s, wu)  z = Add(u, bu)  y = Add(z, x)
}"""
X = {"x": (2, 6, 64)}


def encoder() -> Module:
    return kit.build(ENCODER, kit.random(wq=(64, 64), wk=(64, 64), wu=(64, 64), bu=(64,)))


def made_from(module: Module, **options: Any) -> tuple[Module, PassResult]:
    made = module.clone()
    verifier = Verifier(made)
    result = QuantizeDynamic(**{"reduce_range": "off", **options}).run(made, kit.context([]))
    assert infer_shapes(made) is None
    verifier.verify(made)
    return made, result


def test_every_product_runs_on_integers(tmp_path: Path) -> None:
    made, result = made_from(encoder())
    assert kit.kernels(made, tmp_path) == Counter(
        DynamicQuantizeLinear=1, MatMulIntegerToFloat=2, DynamicQuantizeMatMul=1, Add=2
    )
    assert result.notes[0] == "INT8 with ranges of each run: 3 MatMul"
    assert result.notes[1].startswith("weights hold ")
    assert kit.relative_error(encoder(), made, kit.feeds(4, **X)) < 0.02


def test_an_input_of_several_products_is_quantized_once() -> None:
    made, _ = made_from(encoder())
    assert kit.ops(made)["DynamicQuantizeLinear"] == 2
    assert kit.ops(made) == Counter(
        DynamicQuantizeLinear=2, MatMulInteger=3, Cast=3, Mul=6, Add=3
    )  # fmt: skip
    assert not {"wq", "wk", "wu"} & set(made.graph.initializers), "float weights are gone"


def test_a_shared_weight_is_stored_once() -> None:
    module = kit.build("g (float[3,64] x) => (float[3,64] y) { a = MatMul(x, w) y = MatMul(a, w) }", kit.random(w=(64, 64)))
    made, _ = made_from(module)
    assert sorted(made.graph.initializers) == ["w_quantized", "w_scale"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", ["", ", b"])
def test_gemm_keeps_its_bias_its_factor_and_its_mask(transposed: int, bias: str) -> None:
    weights = kit.random(w=(40, 48) if transposed else (48, 40), b=(40,))
    text = f"g (float[N,48] x) => (float[N,40] y) {{ y = Gemm<transB={transposed}, alpha=0.5>(x, w{bias}) }}"
    module = kit.build(text, weights if bias else {"w": weights["w"]})
    mask = np.abs(weights["w"]) > 0.3
    module.graph.initializers["w"].const_value = kit.ir.tensor(weights["w"] * mask, name="w")
    module.masks["w"] = mask
    made, _ = made_from(module)
    np.testing.assert_array_equal(made.masks["w_quantized"], mask.T if transposed else mask)
    assert kit.relative_error(module, made, kit.feeds(3, x=(5, 48))) < 0.02


@pytest.mark.parametrize("weights", ["channel", "tensor"])
def test_lstm_becomes_the_runtimes_own(weights: str, tmp_path: Path) -> None:
    text = """g (float[S,1,16] x, float[1,1,32] h) => (float[S,1,1,32] y, float[1,1,32] c) {
      y, e, c = LSTM<hidden_size=32>(x, w, r, b, , h)
    }"""
    arrays = {name: array / 4 for name, array in kit.random(w=(1, 128, 16), r=(1, 128, 32), b=(1, 256)).items()}
    module = kit.build(text, arrays)
    made, result = made_from(module, weights=weights)
    assert kit.kernels(made, tmp_path) == Counter(DynamicQuantizeLSTM=1)
    assert result.notes[0] == "INT8 with ranges of each run: 1 LSTM"
    assert kit.relative_error(module, made, kit.feeds(3, x=(7, 1, 16), h=(1, 1, 32))) < 0.04


def test_both_directions_and_bodies_of_control_flow() -> None:
    text = """g (bool c, float[4,1,16] x) => (float[4,2,1,32] y) {
      y = If(c) <then_branch = t () => (float[4,2,1,32] a) { a = LSTM<hidden_size=32, direction="bidirectional">(x, w, r) },
                 else_branch = e () => (float[4,2,1,32] d) { m = MatMul(x, v) d = Reshape(m, shape) }>
    }"""
    arrays = kit.random(w=(2, 128, 16), r=(2, 128, 32), v=(16, 64))
    module = kit.build(text, {**{n: a / 4 for n, a in arrays.items()}, "shape": np.array([4, 2, 1, 32])})
    made, result = made_from(module)
    assert result.notes[0] == "INT8 with ranges of each run: 1 LSTM, 1 MatMul"
    inner = Counter(node.op_type for node in walk.nodes(made.model))
    assert inner["DynamicQuantizeLSTM"] == inner["MatMulInteger"] == 1
    for chosen in (True, False):
        data = [{"c": np.asarray(chosen), **kit.random(x=(4, 1, 16))}]
        assert kit.relative_error(module, made, data) < 0.03


def test_seven_bits_where_the_cpu_needs_them() -> None:
    made, result = made_from(encoder(), reduce_range="on")
    integers = made.graph.initializers["wq_quantized"].const_value.numpy()  # type: ignore[union-attr]
    assert np.abs(integers).max() == 63 and result.notes[-1].startswith("weights keep to 7 bits")


def test_what_shall_stay_float_stays() -> None:
    _, result = made_from(encoder(), keep_float=("q", "nothing"))
    assert kit.reasons(result)["matmul0"] == "kept float by keep-float=q"
    assert result.notes[0] == "keep-float=nothing fits no operator"
    _, result = made_from(encoder(), only=("LSTM",))
    assert set(kit.reasons(result).values()) == {"not among only=LSTM"} and result.notes == ("nothing was quantized",)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("g (float[3,64] x, float[64,64] v) => (float[3,64] y) { y = MatMul(x, v) }", "weight not constant"),
        ("g (float[64,3] x) => (float[64,3] y) { y = MatMul(w, x) }", "its operand is a constant"),
        ("g (float[3,64] x) => (float[3,64] y) { a = Transpose(x) y = Gemm<transA=1>(a, w) }", "transA is set"),
        ("g (float[3,64] x) => (float[3,64] y) { y = Gemm<beta=0.5>(x, w, x) }", "beta is not 1"),
        ("g (float[3,8] x) => (float[3,8] y) { y = MatMul(x, small) }", "its weight has fewer than 1024 numbers"),
        ("g (float[3,64] x) => (float[3,64] y) { y = MatMul(x, bad) }", "weight 'bad' holds NaN or Inf"),
        ("g (float[2,3,64] x) => (float[2,3,64] y) { y = MatMul(x, deep) }", "its weight has not two dimensions"),
        ("g (float[1,3,8] x) => (float[1,3,1,8] y) { y = LSTM<hidden_size=8, layout=1>(x, lw, lr) }", "batch first"),
    ],
)
def test_refusals(graph: str, reason: str) -> None:
    weights = kit.random(w=(64, 64), small=(8, 8), bad=(64, 64), deep=(2, 64, 64), lw=(1, 32, 8), lr=(1, 32, 8))
    weights["bad"][0, 0] = np.nan
    used = {name: array for name, array in weights.items() if f" {name}" in graph or f"({name}" in graph}
    _, result = made_from(kit.build(graph, used))
    (found,) = kit.reasons(result).values()
    assert reason in found


def test_where_it_cannot_be_done_nothing_changes() -> None:
    module = encoder()
    assert QuantizeDynamic().run(module, kit.context([], kit.TENSORRT)).notes == (
        "nothing to quantize: tensorrt has no kernels that quantize their input at each run",
    )
    made, _ = made_from(module)
    assert "never quantized twice" in QuantizeDynamic().run(made, kit.context([])).notes[0]
    old = kit.build(ENCODER, kit.random(wq=(64, 64), wk=(64, 64), wu=(64, 64), bu=(64,)), opset=10)
    assert QuantizeDynamic().run(old, kit.context([])).notes == (
        "opset 10 cannot express it, 11 can (upgrade-opset comes first)",
    )
