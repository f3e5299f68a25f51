"""equalize-weights and smooth-quant: the function stays, to the bit, and 8 bits hold more of it."""

from __future__ import annotations

from typing import Any

import int8_kit as kit
import numpy as np
import pytest

from joulec.ir.feeds import Feeds
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes._absorb import power_of_two
from joulec.passes._layers import layers, restored_matrix
from joulec.passes.base import Pass, PassResult
from joulec.passes.equalize_weights import EqualizeWeights
from joulec.passes.smooth_quant import SmoothQuant

CHAIN = """g (float[N,4,10,10] x) => (float[N,5] y) {
  a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
  d = Conv<group=6>(m, w2, b2)  l = LeakyRelu(d)  c = Conv(l, w3)
  g1 = GlobalAveragePool(c)  f = Flatten(g1)  y = Gemm<transB=1>(f, w4, b4)
}"""
IMAGE = {"x": (2, 4, 10, 10)}


def chain() -> Module:
    weights = kit.random(w1=(6, 4, 3, 3), b1=(6,), w2=(6, 1, 3, 3), b2=(6,), w3=(8, 6, 1, 1), w4=(5, 8), b4=(5,))
    weights["w1"] *= np.float32([1, 30, 0.1, 1, 5, 1]).reshape(6, 1, 1, 1)
    return kit.build(CHAIN, weights)


ENCODER = """t (float[N,6,16] x) => (float[N,6,16] y) {
  n = LayerNormalization(x, scale, shift)  q = MatMul(n, wq)  k = MatMul(n, wk)  s = Add(q, k)
  h = MatMul(s, wh)  hb = Add(h, bh)  r = Relu(hb)  u = MatMul(r, wu)  y = Add(u, x)
}"""
ROWS = {"x": (2, 6, 16)}


def encoder(outliers: float = 60.0) -> Module:
    weights = kit.random(scale=(16,), shift=(16,), wq=(16, 16), wk=(16, 16), wh=(16, 32), bh=(32,), wu=(32, 16))
    weights["scale"] = np.ones(16, np.float32)
    weights["scale"][[3, 9]] = outliers
    weights["shift"] *= 0
    for name in ("wq", "wk"):
        weights[name][[3, 9]] /= outliers
    return kit.build(ENCODER, weights)


def made_from(one: Pass, module: Module, data: list[Any]) -> tuple[Module, PassResult]:
    made = module.clone()
    verifier = Verifier(made)
    result = one.run(made, kit.context(data))
    assert infer_shapes(made) is None
    verifier.verify(made)
    return made, result


def weight_noise(module: Module) -> float:
    """Relative error of all weights under one scale each."""
    parts = [layer.matrix().reshape(1, -1) for layer in layers(module)]
    return float(np.mean([np.linalg.norm(restored_matrix(p, 127) - p) / np.linalg.norm(p) for p in parts]))


# -- equalize-weights -------------------------------------------------------------------------------------------


def test_layers_share_their_ranges_and_compute_the_same_to_the_bit() -> None:
    made, result = made_from(EqualizeWeights(), chain(), [])
    assert [one.rule for one in result.rewrites] == ["equalize"] * 2
    assert kit.relative_error(chain(), made, kit.feeds(3, **IMAGE)) < 1e-6
    assert weight_noise(made) < weight_noise(chain())
    assert result.notes[0].startswith("2 activations balanced; the widest channel was ")
    assert kit.reasons(result)["conv0"] == "its input is the model's own"
    assert kit.reasons(result)["gemm8"] == "Flatten before it takes no factor in"


def test_masks_stay_with_their_weights() -> None:
    module = chain()
    weight = module.graph.initializers["w1"]
    mask = np.abs(weight.const_value.numpy()) > 0.5  # type: ignore[union-attr]
    weight.const_value = kit.ir.tensor(weight.const_value.numpy() * mask, name="w1")  # type: ignore[union-attr]
    module.masks["w1"] = mask
    made, _ = made_from(EqualizeWeights(), module, [])
    np.testing.assert_array_equal(made.masks["w1_balanced"], mask)


def test_a_second_time_nothing_is_left_to_do() -> None:
    once, _ = made_from(EqualizeWeights(), chain(), [])
    twice, result = made_from(EqualizeWeights(), once, [])
    assert weight_noise(twice) <= weight_noise(once) * 1.1 and len(result.rewrites) <= 2


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        ("r = Clip(a, lo, hi)", "Clip before it takes no factor in"),
        ("r = Relu(a)  o = Neg(r)", None),
        ("r = Sigmoid(a)", "Sigmoid before it takes no factor in"),
    ],
)
def test_what_does_not_scale_is_refused(middle: str, reason: str | None) -> None:
    extra = ", float[1,4,4,4] o" if "o =" in middle else ""
    text = f"g (float[1,4,4,4] x) => (float[1,4,4,4] y{extra}) {{ a = Conv(x, w)  {middle}  y = Conv(r, v) }}"
    weights = {**kit.random(w=(4, 4, 1, 1), v=(4, 4, 1, 1))}
    if "Clip" in middle:
        weights |= {"lo": np.float32(0), "hi": np.float32(6)}
    _, result = made_from(EqualizeWeights(), kit.build(text, weights), [])
    assert not result.rewrites and result.notes == ("no two layers could be balanced",)
    assert reason is None or reason in kit.reasons(result).values()


def test_a_weight_of_zeros_and_a_shared_weight() -> None:
    text = "g (float[1,4,4,4] x) => (float[1,4,4,4] y) { a = Conv(x, w)  b = Conv(a, w)  y = Conv(b, w) }"
    weights = kit.random(w=(4, 4, 1, 1))
    weights["w"][1] = 0
    weights["w"][2] *= 100
    module = kit.build(text, weights)
    made, result = made_from(EqualizeWeights(), module, [])
    assert len(result.rewrites) == 2 and "w" not in made.graph.initializers, "each reader has its own now"
    assert kit.relative_error(module, made, kit.feeds(2, x=(1, 4, 4, 4))) < 1e-6


def test_factors_are_powers_of_two_within_bounds() -> None:
    found = power_of_two(np.array([1.0, 3.1, 0.2, 0.0, np.inf, np.nan, 1e30]))
    np.testing.assert_array_equal(found, [1, 4, 0.25, 1, 1, 1, 65536])


# -- smooth-quant -----------------------------------------------------------------------------------------------


def test_outlier_channels_move_into_the_weights() -> None:
    data = kit.feeds(8, **ROWS)
    made, result = made_from(SmoothQuant(), encoder(), data)
    assert result.rewrites[0].rule == "smooth"
    assert "activations smoothed; products of 8 bits there hold" in result.notes[0]
    assert kit.relative_error(encoder(), made, data) < 1e-6
    plain, _ = kit.quantized(encoder(), data)
    smooth, _ = kit.quantized(made, data)
    assert kit.relative_error(encoder(), smooth, data) < 0.7 * kit.relative_error(encoder(), plain, data)


def test_a_spelled_out_normalization_and_a_bias_take_the_division_in() -> None:
    text = ENCODER.replace(
        "n = LayerNormalization(x, scale, shift)", "z = Tanh(x)  z1 = Mul(z, scale)  n = Add(z1, shift)"
    )
    module = kit.build(text, {n: v.const_value.numpy() for n, v in encoder().graph.initializers.items()})  # type: ignore[union-attr]
    data = kit.feeds(8, **ROWS)
    made, result = made_from(SmoothQuant(strength=0.5), module, data)
    assert {"scale_balanced", "shift_balanced"} <= set(made.graph.initializers)
    assert kit.relative_error(module, made, data) < 1e-6
    assert result.notes


def test_convolutions_are_smoothed_too() -> None:
    data = kit.feeds(8, **IMAGE)
    made, result = made_from(SmoothQuant(), chain(), data)
    assert kit.relative_error(chain(), made, data) < 1e-6
    assert len(result.rewrites) >= 1


def test_where_nothing_is_gained_nothing_changes() -> None:
    _, result = made_from(SmoothQuant(), encoder(1.0), kit.feeds(8, **ROWS))
    assert not any(one.node == "matmul1" for one in result.rewrites)


def test_what_is_in_the_way_is_said() -> None:
    module, data = encoder(), kit.feeds(4, **ROWS)
    assert SmoothQuant().run(module, kit.context(Feeds.of([], "synthetic"))).notes == (
        "no data: what outliers there are only data can show",
    )
    _, result = made_from(SmoothQuant(keep_float=("q",)), module, data)
    assert kit.reasons(result)["matmul1"] == "left alone by keep-float=q"
    made, _ = kit.quantized(module, data)
    assert "never quantized twice" in SmoothQuant().run(made, kit.context(data)).notes[0]
    with pytest.raises(ValueError, match="must lie"):
        SmoothQuant(strength=1.5)
