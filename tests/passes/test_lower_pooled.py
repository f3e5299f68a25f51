"""lower-pooled: convolutions of one pixel become matrix products where their channels fill no blocks."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.passes.default import exact_passes, simplifying_passes
from joulec.passes.lower_pooled import LowerPooled

IMAGE = "(float[N,24,H,W] x) => (float[N,24,H,W] y)"
EXCITATION = "p = GlobalAveragePool(x) a = Conv(p, w, b) r = Relu(a) c = Conv(r, v, d) s = HardSigmoid(c)"
WEIGHTS = {"w": numbers(6, 24, 1, 1), "b": numbers(6), "v": numbers(24, 6, 1, 1, seed=1), "d": numbers(24, seed=2)}
LOWERED = ["ReduceMean", "Gemm", "Relu", "Gemm", "HardSigmoid", "Reshape", "Mul"]


@pytest.mark.parametrize("opset", [7, 11, 13, 18, 21])
def test_squeeze_and_excitation_becomes_matrix_products(opset: int) -> None:
    module = build(f"{IMAGE} {{ {EXCITATION} y = Mul(x, s) }}", opset=opset, **WEIGHTS)
    result = fuse(module, LowerPooled())
    assert ops(module) == LOWERED
    assert [one.rule for one in result.rewrites] == ["pooled-convolutions"]


def test_activations_that_read_the_pooled_image_twice_come_along() -> None:
    swish = "p = GlobalAveragePool(x) a = Conv(p, w, b) h = HardSigmoid(a) m = Mul(a, h) k = Mul(m, two) c = Conv(k, v, d)"
    module = build(f"{IMAGE} {{ {swish} y = Mul(c, x) }}", two=np.float32(2).reshape(1), **WEIGHTS)
    fuse(module, LowerPooled())
    assert ops(module) == ["ReduceMean", "Gemm", "HardSigmoid", "Mul", "Mul", "Gemm", "Reshape", "Mul"]


def test_what_flattens_the_image_is_no_longer_needed() -> None:
    graph = "(float[N,24,H,W] x) => (float[N,6] y) { p = GlobalAveragePool(x) a = Conv(p, w, b) y = Flatten(a) }"
    module = build(graph, w=WEIGHTS["w"], b=WEIGHTS["b"])
    fuse(module, LowerPooled())
    assert ops(module) == ["ReduceMean", "Gemm"]


@pytest.mark.parametrize("flattens", ["Flatten(r)", "Reshape(r, shape)"])
def test_without_a_convolution_the_pooling_takes_the_flattening_in(flattens: str) -> None:
    graph = f"(float[N,24,H,W] x) => (float[N,24] y) {{ p = GlobalAveragePool(x) r = Relu(p) y = {flattens} }}"
    module = build(graph, **({"shape": np.array([0, -1])} if "shape" in flattens else {}))
    fuse(module, LowerPooled())
    assert ops(module) == ["ReduceMean", "Relu"]


def test_an_image_of_one_pixel_that_is_the_output_stays_one() -> None:
    graph = "(float[N,24,H,W] x) => (float[N,6,1,1] y) { p = GlobalAveragePool(x) y = Conv(p, w, b) }"
    module = build(graph, w=WEIGHTS["w"], b=WEIGHTS["b"])
    fuse(module, LowerPooled())
    assert ops(module) == ["ReduceMean", "Gemm", "Reshape"]


def test_masks_of_the_weights_follow() -> None:
    mask = np.arange(144).reshape(6, 24, 1, 1) % 2 == 0
    module = build(f"{IMAGE} {{ {EXCITATION} y = Mul(x, s) }}", **{**WEIGHTS, "w": WEIGHTS["w"] * mask})
    module.masks["w"] = mask
    fuse(module, LowerPooled())
    np.testing.assert_array_equal(module.masks["w_matrix"], mask.reshape(6, 24))


@pytest.mark.parametrize(
    ("graph", "constants", "reasons"),
    [
        (
            f"{IMAGE} {{ {EXCITATION} y = Mul(x, s) }}".replace("24", "32"),
            {"w": numbers(6, 32, 1, 1), "v": numbers(32, 6, 1, 1), "d": numbers(32)},
            {"its 32 channels fill blocks of 16, and are pooled as they are"},
        ),
        (
            f"(float[N,24,H,W] x) => (float[N,24,H,W] y, float[N,6,1,1] a) {{ {EXCITATION} y = Mul(x, s) }}",
            {},
            {"2 Reshapes would come to it"},
        ),
        ("(float[N,24,H,W] x) => (float[N,24,1,1] y) { p = GlobalAveragePool(x) y = Relu(p) }", {}, set()),
        (
            "(float[N,32,H,W] x) => (float[N,32] y) { p = GlobalAveragePool(x) y = Flatten(p) }",
            {},
            {"its 32 channels fill blocks of 16, and are pooled as they are"},
        ),
        (
            "(float[N,24,H,W] x) => (float[N,24] y, float[N,24,1,1] r) "
            "{ p = GlobalAveragePool(x) r = Relu(p) y = Flatten(p) }",
            {},
            set(),
        ),
        ("(double[N,24,H,W] x) => (double[N,24,1,1] y) { y = GlobalAveragePool(x) }", {}, set()),
        ("(float[N,24,L] x) => (float[N,24,1] y) { y = GlobalAveragePool(x) }", {}, set()),
        ("(float[N,C,H,W] x) => (float[N,6,1,1] y) { p = GlobalAveragePool(x) y = Conv(p, w, b) }", {}, set()),
        (
            "(float[N,24,H,W] x) => (float[N,6,3,3] y) { p = GlobalAveragePool(x) y = Conv<pads=[1,1,1,1]>(p, w, b) }",
            {},
            set(),
        ),
        (
            "(float[N,24,H,W] x) => (float[N,6,1,1] y) { p = GlobalAveragePool(x) y = Conv<group=2>(p, g, b) }",
            {"g": numbers(6, 12, 1, 1)},
            set(),
        ),
    ],
)
def test_what_stays(graph: str, constants: dict[str, np.ndarray], reasons: set[str]) -> None:
    given = {name: array for name, array in {**WEIGHTS, **constants}.items() if f"{name}" in graph.partition("{")[2]}
    assert unchanged(build(graph, **given), LowerPooled()) == reasons


def test_before_opset_11_a_convolution_keeps_what_has_no_bias() -> None:
    graph = "(float[N,24,H,W] x) => (float[N,6,1,1] y) { p = GlobalAveragePool(x) y = Conv(p, w) }"
    reason = "a convolution has no bias, and Gemm needs one before opset 11"
    assert unchanged(build(graph, opset=10, w=WEIGHTS["w"]), LowerPooled()) == {reason}


def test_simplify_runs_it_and_optimize_tries_it_as_a_layout() -> None:
    assert LowerPooled() in simplifying_passes() and LowerPooled() not in exact_passes()
    assert [one for one in simplifying_passes() if one != LowerPooled()] == exact_passes()
