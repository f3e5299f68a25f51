"""prune-pattern: the masks prove the pattern; what has no reduction is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pruning_kit import TARGET, model, numbers, run

from joulec.errors import InputError
from joulec.ir.verify import mask_problems
from joulec.passes._choice import blocks, has_n_of_m, keep_blocks, keep_n_of_m
from joulec.passes.base import Context
from joulec.passes.eliminate_dead_code import EliminateDeadCode
from joulec.passes.fold_constants import FoldConstants
from joulec.passes.fuse_gemm import FuseGemm
from joulec.passes.prune_pattern import PrunePattern
from joulec.passes.spelling import parse

CONV = "g (float[N, 8, 5, 5] x) => (float[N, 6, 3, 3] y) { y = Conv(x, w) }"


def test_conv_keeps_two_of_four_input_channels_at_each_tap() -> None:
    before = model(CONV, w=(6, 8, 3, 3))
    after = run(before, PrunePattern()).module
    kept = after.masks["w"].reshape(6, 2, 4, 3, 3)
    assert np.all(kept.sum(2) == 2)
    groups = np.abs(numbers(before, "w")).reshape(6, 2, 4, 3, 3)
    assert np.all(np.where(kept, groups, np.inf).min(2) >= np.where(kept, -1, groups).max(2))


@pytest.mark.parametrize(
    ("text", "shape", "axis"),
    [
        ("g (float[N, 12] x) => (float[N, 10] y) { y = MatMul(x, w) }", (12, 10), 0),
        ("g (float[12, N] x) => (float[10, N] y) { y = MatMul(w, x) }", (10, 12), 1),
        ("g (float[N, 12] x) => (float[N, 10] y) { y = Gemm(x, w) }", (12, 10), 0),
        ("g (float[N, 12] x) => (float[N, 10] y) { y = Gemm<transB=1>(x, w) }", (10, 12), 1),
        ("g (float[N, 12] x) => (float[N, 10] y) { t = Transpose(w) y = MatMul(x, t) }", (10, 12), 1),
        ("g (float[N, 8, 4, 4] x) => (float[N, 6, 5, 5] y) { y = ConvTranspose(x, w) }", (8, 6, 2, 2), 0),
    ],
)  # fmt: skip
def test_the_reduction_is_found(text: str, shape: tuple[int, ...], axis: int) -> None:
    mask = run(model(text, w=shape), PrunePattern()).module.masks["w"]
    assert has_n_of_m(mask, 2, 4, axis)
    assert mask.mean() == 0.5
    assert not has_n_of_m(mask, 2, 4, 1 - axis)


def test_the_pattern_survives_fusion() -> None:
    text = "g (float[N, 12] x) => (float[N, 10] y) { t = Transpose(w) h = MatMul(x, t) y = Add(h, b) }"
    after = run(
        model(text, w=(10, 12), b=(10,)), PrunePattern(), FoldConstants(), FuseGemm(), EliminateDeadCode()
    ).module
    ((name, mask),) = after.masks.items()
    assert mask.shape == numbers(after, name).shape == (12, 10)
    assert has_n_of_m(mask, 2, 4, 0)
    assert list(mask_problems(after)) == []


def test_depthwise_and_clashing_readers_are_refused() -> None:
    text = """g (float[N, 64, 5, 5] x, float[N, 12] a) => (float[N, 64, 3, 3] y, float[N, 12] b)
        { y = Conv<group=64>(x, w) h = Gemm(a, v) b = Gemm<transB=1>(h, v) }"""
    result = PrunePattern().run(model(text, w=(64, 1, 3, 3), v=(12, 12)), Context(target=TARGET))
    assert [one.reason for one in result.refusals] == [
        "a depthwise convolution sums over 1 elements along this axis, fewer than m=4",
        "'v' is shared by operators that sum along different axes of it",
    ]


def test_blocks() -> None:
    after = run(model(CONV, w=(6, 8, 3, 3)), PrunePattern(block="3x4", sparsity=0.25)).module
    kept = blocks(np.moveaxis(after.masks["w"], (0, 1), (-2, -1)), 3, 4)
    assert set(np.unique(kept)) == {0, 12}
    assert (kept == 0).mean() == 0.25


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine is no failure
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=st.floats(0, 4, width=16)),
    st.integers(1, 5), st.integers(1, 3),
)  # fmt: skip
def test_every_mask_has_its_pattern(scores: np.ndarray, n: int, more: int) -> None:
    mask = keep_n_of_m(scores, n, n + more, 0)
    assert mask.shape == scores.shape
    assert has_n_of_m(mask, n, n + more, 0)
    whole = keep_blocks(scores, 0.5, n, more, (0, 1))
    moved = np.moveaxis(whole, (0, 1), (-2, -1))
    sizes = blocks(np.ones(moved.shape), n, more)
    kept = blocks(moved, n, more)
    assert np.all((kept == 0) | (kept == sizes))


@pytest.mark.parametrize("text", ["n=4,m=4", "n=0", "block=4by4", "sparsity=0.5", "block=4x4,sparsity=2"])
def test_options_out_of_range(text: str) -> None:
    with pytest.raises(InputError, match="prune-pattern"):
        parse(f"prune-pattern{{{text}}}", {"prune-pattern": PrunePattern})
