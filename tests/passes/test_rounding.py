"""clip-weights, round-weights and correct-bias: less error in products of 8 bits, on data they were not fitted to."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import int8_kit as kit
import numpy as np
import onnx_ir as ir
import pytest

from joulec.ir.feeds import Feed, Feeds
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.ir.values import Array
from joulec.passes import _rounding
from joulec.passes._layers import layers, restored_matrix
from joulec.passes._moments import Moments
from joulec.passes._rounding import clipped, errors, nearest, rounded, scales
from joulec.passes.base import Context, Pass
from joulec.passes.calibrate import Calibrate
from joulec.passes.clip_weights import ClipWeights
from joulec.passes.correct_bias import CorrectBias
from joulec.passes.quantize import Quantize
from joulec.passes.round_weights import RoundWeights

NETWORK = """g (float[N,4,9,9] x) => (float[N,6] y) {
  a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)  d = Conv<group=8>(r, w2)  c = Conv(d, w3, b3)  s = Relu(c)
  p = GlobalAveragePool(s)  f = Flatten(p)  m = MatMul(f, w4)  y = Add(m, b4)
}"""


def network() -> Module:
    weights = kit.random(
        w1=(8, 4, 3, 3), b1=(8,), w2=(8, 1, 3, 3), w3=(16, 8, 3, 3), b3=(16,), w4=(16, 6), b4=(6,)
    )  # fmt: skip
    weights["w3"][:, :, 0, 0] *= 6  # outliers that make the grid coarse
    return kit.build(NETWORK, weights)


def feeds(count: int, seed: int) -> list[Feed]:
    """Images with a mean, whose neighbouring pixels are alike."""
    numbers = np.random.default_rng(seed)
    noise = numbers.standard_normal((count, 1, 4, 11, 11)).astype(np.float32)
    smooth = sum(noise[..., i : i + 9, j : j + 9] for i, j in itertools.product(range(3), repeat=2)) / 3
    return [{"x": image + np.float32(0.7)} for image in smooth]


def context(runner: LocalRunner) -> Context:
    return Context(target=kit.CPU, runner=runner, feeds=Feeds.of(feeds(32, 1)))


def error(passes: list[Pass], finish: Callable[[Module, Context], None]) -> float:
    """Squared error of the network behind `finish`, on data that no pass has seen, over the squares of the outputs."""
    module = network()
    with LocalRunner() as runner:
        handle, unseen = runner.load(module), feeds(16, 2)
        expected = np.concatenate([runner.run(handle, feed)["y"] for feed in unseen])
        for one in passes:
            one.run(module, context(runner))
        finish(module, context(runner))
        found = np.concatenate([runner.run(runner.load(module), feed)["y"] for feed in unseen])
    return float(np.sum((found - expected) ** 2) / np.sum(expected**2))


def weights_rounded(module: Module, context: Context) -> None:
    """Weights as 8-bit integers hold them, everything else in float."""
    for layer in layers(module):
        layer.weight.const_value = ir.tensor(layer.laid_out(restored_matrix(layer.matrix(), 127)))


def quantized(module: Module, context: Context) -> None:
    for one in (Calibrate(), Quantize()):
        one.run(module, context)


@pytest.mark.parametrize("passes", [[RoundWeights()], [ClipWeights(), RoundWeights()], [CorrectBias()]])
def test_rounded_weights_err_less_on_other_data(passes: list[Pass]) -> None:
    assert error(passes, weights_rounded) < 0.8 * error([], weights_rounded)


def test_the_quantized_network_errs_less_on_other_data() -> None:
    assert error([RoundWeights()], quantized) < 0.9 * error([], quantized)


def moments(rows: Array) -> Moments:
    made = Moments(np.zeros((2, 1, rows.shape[1], rows.shape[1])), np.zeros((2, 1, rows.shape[1])))
    for half in (0, 1):
        made.add(rows[None, half::2].astype(np.float32), half)
    return made


def correlated(count: int, width: int, seed: int = 0) -> Array:
    numbers = np.random.default_rng(seed)
    return numbers.standard_normal((count, width)) @ numbers.standard_normal((width, width)) + 0.5


def test_rounding_is_as_good_as_trying_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rounding, "DAMPING", 1e-9)
    matrix = np.random.default_rng(3).standard_normal((1, 4, 6))
    seen = moments(correlated(4000, 6))
    found = rounded(matrix, seen, 7, centered=False)
    assert found is not None
    scale = scales(matrix, 7)
    low = np.floor(matrix / scale)
    ways = [low + np.array(way) for way in itertools.product((0, 1), repeat=6)]
    kept = np.abs(np.rint(matrix / scale)) == 7
    tried = [np.where(kept, np.rint(matrix / scale), np.clip(way, -7, 7)) * scale - matrix for way in ways]
    best = np.min([errors(one, seen.gram) for one in tried], axis=0)
    mine, plain = errors(found[0] - matrix, seen.gram), errors(nearest(matrix, 7) - matrix, seen.gram)
    assert np.all(mine <= plain + 1e-12)
    assert mine.sum() < 1.3 * best.sum(), "coordinate descent ends near the best of all ways"
    assert found[1] < 1


def test_rounded_weights_lie_on_the_grid_that_quantize_lays() -> None:
    matrix = np.random.default_rng(4).standard_normal((2, 5, 12))
    found = rounded(matrix, both(correlated(3000, 12)), 127, centered=True)
    assert found is not None
    stored = found[0].astype(np.float32).astype(np.float64)
    assert np.abs(nearest(stored, 127) - found[0]).max() < 1e-6 * np.abs(matrix).max()


def both(rows: Array) -> Moments:
    """The same rows for two groups."""
    made = Moments(np.zeros((2, 2, rows.shape[1], rows.shape[1])), np.zeros((2, 2, rows.shape[1])))
    for half in (0, 1):
        made.add(np.repeat(rows[None, half::2], 2, axis=0).astype(np.float32), half)
    return made


def test_what_does_not_gain_on_the_other_half_is_left() -> None:
    """Inputs without any structure: nothing beats the nearest integers by more than chance."""
    matrix = np.random.default_rng(5).standard_normal((1, 8, 40))
    assert rounded(matrix, moments(np.random.default_rng(6).standard_normal((200, 40))), 127, centered=False) is None


def test_a_channel_with_an_outlier_is_clipped_and_others_are_not() -> None:
    matrix = np.random.default_rng(7).uniform(-1, 1, (1, 2, 400))
    matrix[0, 0, 5] = 1.4
    seen = moments(np.random.default_rng(8).standard_normal((4000, 400)) * np.where(np.arange(400) == 5, 0.01, 1))
    made, left = clipped(matrix, seen, 7, centered=False)
    assert np.abs(made[0, 0]).max() < 1.2 < 1.4
    assert left < 1


def test_the_mean_of_the_outputs_stays() -> None:
    """One layer: after quantization of the weights alone, the mean output is that of the float layer."""
    module = kit.build("g (float[N,8] x) => (float[N,3] y) { y = Gemm<transB=1>(x, w, b) }", kit.random(w=(3, 8), b=(3,)))
    rows = np.random.default_rng(9).uniform(0, 4, (64, 1, 8)).astype(np.float32)
    with LocalRunner() as runner:
        given = Context(target=kit.CPU, runner=runner, feeds=Feeds.of([{"x": row} for row in rows]))
        before = weights(module)
        CorrectBias().run(module, given)
        after = weights(module)
    rounded_weight = nearest(before["w"][None].astype(np.float64), 127)[0]
    shifted = after[next(name for name in after if name.endswith("bias"))]
    mean = rows[:, 0].mean(axis=0)
    np.testing.assert_allclose(rounded_weight @ mean + shifted, before["w"] @ mean + before["b"], rtol=1e-5)


def weights(module: Module) -> dict[str, Array]:
    return {name: value.const_value.numpy() for name, value in module.graph.initializers.items() if value.const_value}


@pytest.mark.parametrize("one", [ClipWeights, RoundWeights, CorrectBias])
def test_reasons_are_said(one: Callable[..., Pass]) -> None:
    module = network()
    assert "no calibration data" in one().run(module, Context(target=kit.CPU)).notes[0]
    with LocalRunner() as runner:
        refused = one(keep_float=("Conv",)).run(module, context(runner)).refusals
    assert {refusal.reason for refusal in refused} == {"left alone by keep-float=Conv"}
