"""Statistics of inputs and closed forms: im2col against the operators themselves, corrections against plain solvers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from pruning_kit import TARGET, compute, model, numbers, run

from joulec.ir.feeds import Feeds
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner, Runner
from joulec.passes import _correction, _moments
from joulec.passes._moments import Moments, Reading, channels_of, collect
from joulec.passes._products import Product, product_of
from joulec.passes.base import Context, Pass
from joulec.passes.prune_magnitude import PruneMagnitude
from joulec.passes.prune_pattern import PrunePattern


@pytest.fixture
def runner() -> Iterator[Runner]:
    with LocalRunner() as one:
        yield one


def context(runner: Runner, feeds: list[dict[str, np.ndarray]]) -> Context:
    return Context(target=TARGET, runner=runner, feeds=Feeds.of(feeds))


PRODUCTS = {
    "conv": ("y = Conv<pads=[1,0,2,1], strides=[2,1], dilations=[1,2]>(x, w)", (2, 4, 7, 9), (6, 4, 3, 2)),
    "same upper": ("y = Conv<auto_pad=\"SAME_UPPER\", strides=[2,2]>(x, w)", (2, 4, 7, 8), (6, 4, 3, 3)),
    "same lower": ("y = Conv<auto_pad=\"SAME_LOWER\", strides=[2,2]>(x, w)", (2, 4, 7, 8), (6, 4, 3, 3)),
    "grouped": ("y = Conv<group=2>(x, w)", (2, 4, 5, 5), (6, 2, 3, 3)),
    "depthwise, in one dimension": ("y = Conv<group=4, pads=[1,1]>(x, w)", (2, 4, 9), (4, 1, 3)),
    "matmul": ("y = MatMul(x, w)", (2, 3, 8), (8, 5)),
    "matmul from the left": ("y = MatMul(w, x)", (2, 8, 3), (5, 8)),
    "gemm": ("y = Gemm<transA=1>(x, w)", (8, 3), (8, 5)),
    "gemm, transposed": ("y = Gemm<transB=1>(x, w)", (3, 8), (5, 8)),
    "gemm from the left": ("y = Gemm<transA=1, transB=1>(w, x)", (3, 8), (8, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_an_operator_is_its_matrix_times_its_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_moments, "spread", lambda count, wanted, turn: slice(None))
    text, shape, weight = PRODUCTS[name]
    module = model(f"g (float[{','.join(map(str, shape))}] x) => (float[] y) {{ {text} }}", w=weight)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    (node,) = module.graph
    slot = next(index for index, value in enumerate(node.inputs) if value is not None and value.name == "w")
    product = product_of(node, slot, weight)
    assert isinstance(product, Product)
    matrix = product.matrix(numbers(module, "w"))
    rows = product.reading().rows(x, 1 << 30, 0)
    assert rows is not None
    found = np.einsum("gok,gnk->gno", matrix, rows)
    expected = compute(module, x=x)[0]
    assert np.isclose(np.square(found).sum(), np.square(expected).sum(), rtol=1e-4)
    assert np.allclose(np.sort(found.ravel()), np.sort(expected.ravel()), atol=1e-4)
    assert np.array_equal(product.seen(matrix), numbers(module, "w"))


@pytest.mark.parametrize(
    ("text", "weight", "reason"),
    [
        ("y = ConvTranspose<group=2>(x, w)", (4, 3, 1, 1), "a grouped transposed convolution"),
        ("y = MatMul(x, w)", (1, 4, 5, 3), "its weight has rank 4"),
        ("y = Add(x, w)", (5,), "the sums of Add are not those of a product"),
    ],
)
def test_what_is_no_product_says_why(text: str, weight: tuple[int, ...], reason: str) -> None:
    (node,) = model(f"g (float[2, 4, 5, 5] x) => (float[] y) {{ {text} }}", w=weight).graph
    assert product_of(node, 1, weight) == reason


def test_moments_are_those_of_all_rows_and_each_half_is_its_own(runner: Runner) -> None:
    module = model("g (float[3, 4] x) => (float[3, 2] y) { a = Relu(x) y = MatMul(a, w) }", w=(4, 2))
    feeds = [{"x": np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32)} for seed in range(6)]
    ((_, moments),) = collect(module, context(runner, feeds), [channels_of("a", -1, 4)])
    rows = [np.maximum(feed["x"], 0).astype(np.float64) for feed in feeds]
    for which in (0, 1):
        half = np.concatenate(rows[which::2])
        assert np.allclose(moments.half(which)[0], half.T @ half / len(half), rtol=1e-5)
    every = np.concatenate(rows)
    assert np.allclose(moments.gram[0], every.T @ every / len(every), rtol=1e-5)


def test_moments_that_do_not_fit_together_take_more_runs(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    module = model("g (float[3, 4] x) => (float[3, 2] y) { a = Relu(x) y = MatMul(a, w) }", w=(4, 2))
    feeds = [{"x": np.full((3, 4), seed, np.float32)} for seed in range(4)]
    readings = [channels_of("a", -1, 4), channels_of("x", 1, 4), channels_of("y", 1, 2)]
    whole = {index: moments.gram for index, moments in collect(module, context(runner, feeds), readings)}
    monkeypatch.setattr(_moments, "CHUNK_BYTES", readings[0].bytes)
    parts = {index: moments.gram for index, moments in collect(module, context(runner, feeds), readings)}
    assert list(parts) == [0, 1, 2]
    assert all(np.array_equal(parts[index], whole[index]) for index in whole)


def correlated(width: int, rows: int, seed: int = 0) -> np.ndarray:
    """Rows of fewer dimensions than columns, and some noise: what activations are like."""
    generator = np.random.default_rng(seed)
    base = generator.standard_normal((rows, width // 3)) @ generator.standard_normal((width // 3, width))
    return (base + 0.1 * generator.standard_normal((rows, width))).astype(np.float32)


def moments_of(rows: np.ndarray) -> Moments:
    moments = Moments.of(Reading((), 1, rows.shape[1], lambda array, wanted, turn: None))
    for half in (0, 1):
        moments.add(rows[half::2][None], half)
    return moments


def test_the_correction_is_the_least_squares_solution() -> None:
    rows = correlated(24, 2000)
    generator = np.random.default_rng(3)
    matrix, mask = generator.standard_normal((1, 5, 24)), generator.random((1, 5, 24)) < 0.5
    found, left = _correction.corrected(matrix, mask, moments_of(rows))
    assert not np.any(found[~mask])
    for row in range(5):
        kept = mask[0, row]
        best = np.linalg.lstsq(rows[:, kept], rows @ matrix[0, row], rcond=None)[0]
        errors = [
            np.square(rows @ (w - matrix[0, row])).mean() for w in (found[0, row], np.where(kept, matrix[0, row], 0))
        ]
        least = np.square(rows[:, kept] @ best - rows @ matrix[0, row]).mean()
        assert least <= errors[0] < 1.5 * least + 1e-3 * errors[1]
    assert left < 0.2


def test_nothing_is_corrected_where_it_does_not_help_on_other_data() -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((16, 64)).astype(np.float32)  # fewer rows than columns, and no structure
    matrix, mask = generator.standard_normal((1, 4, 64)), generator.random((1, 4, 64)) < 0.5
    found, left = _correction.corrected(matrix, mask, moments_of(rows))
    assert left == 1.0
    assert np.array_equal(found, np.where(mask, matrix, 0))


def test_scores_are_what_removing_one_weight_costs() -> None:
    rows = correlated(12, 500).astype(np.float64)
    gram, matrix = (rows.T @ rows / len(rows))[None], np.random.default_rng(1).standard_normal((1, 3, 12))
    energy = np.square(rows @ matrix[0].T).sum(1).mean()
    alone = np.square(rows[:, 4] * matrix[0, 1, 4]).mean() / energy
    assert np.isclose(_correction.wanda(matrix, gram)[0, 1, 4], alone)
    others = np.delete(rows, 4, 1)
    best = np.linalg.lstsq(others, rows[:, 4] * matrix[0, 1, 4], rcond=None)[0]
    compensated = np.square(others @ best - rows[:, 4] * matrix[0, 1, 4]).mean() / energy
    assert compensated < _correction.optimal_brain(matrix, gram)[0, 1, 4] < 0.1 * alone


GRAPH = """g (float[4, 3, 8, 8] x) => (float[4, 5] y) { a = Conv<pads=[1,1,1,1]>(x, u, b) r = Relu(a)
    d = Conv<pads=[1,1,1,1]>(r, v) s = Relu(d) p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, w) }"""


@pytest.mark.parametrize(
    "one",
    [
        PruneMagnitude(sparsity=0.5), PruneMagnitude(sparsity=0.5, score="wanda"),
        PruneMagnitude(sparsity=0.5, scope="tensor", score="optimal-brain"), PrunePattern(n=2, m=4),
        PrunePattern(n=2, m=4, score="optimal-brain"), PrunePattern(block="2x2", score="wanda"),
    ],
    ids=str,
)  # fmt: skip
def test_a_corrected_model_is_nearer_to_the_whole_one(one: Pass, runner: Runner) -> None:
    weights = {"u": (16, 3, 3, 3), "b": (16,), "v": (16, 16, 3, 3), "w": (5, 16)}
    module = model(GRAPH, **weights)
    generator = np.random.default_rng(5)
    feeds = [{"x": generator.standard_normal((4, 3, 8, 8)).astype(np.float32)} for _ in range(24)]
    expected = compute(module, **feeds[-1])[0]
    found = {}
    for correct in (False, True):
        given = type(one)(**{**vars(one), "correct": correct})
        outcome = run(module, given, context=context(runner, feeds[:16]))
        found[correct] = np.square(compute(outcome.module, **feeds[-1])[0] - expected).sum()
        assert all(not np.any(numbers(outcome.module, name)[~mask]) for name, mask in outcome.module.masks.items())
        said = " ".join(outcome.steps[0].result.notes)
        assert ("corrected by least squares" in said) == correct
    assert found[True] < 0.7 * found[False]


def test_shared_weights_are_corrected_for_all_their_readers(runner: Runner) -> None:
    text = "g (float[6, 16] x) => (float[6, 16] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
    module = model(text, w=(16, 16))
    feeds = [{"x": correlated(16, 6, seed)} for seed in range(40)]
    outcome = run(module, PruneMagnitude(sparsity=0.5), context=context(runner, feeds))
    assert any("1 weights corrected" in note for note in outcome.steps[0].result.notes)


def test_scores_that_need_data_say_so() -> None:
    module = model("g (float[6, 16] x) => (float[6, 16] y) { y = MatMul(x, w) }", w=(16, 16))
    for one in (PruneMagnitude(sparsity=0.5, score="wanda"), PrunePattern(score="wanda")):
        outcome = run(module, one)
        assert outcome.steps[0].status == "unchanged"
        assert "there is no calibration data" in outcome.steps[0].result.notes[0]
    with pytest.raises(ValueError, match="threshold is one of magnitudes"):
        PruneMagnitude(threshold=0.1, score="wanda")


def test_what_has_no_statistics_is_pruned_and_said(runner: Runner) -> None:
    text = "g (float[4, 2, 8] x) => (float[4, 1, 2, 8] y) { y = RNN<hidden_size=8>(x, w, r) }"
    module: Module = model(text, w=(1, 8, 8), r=(1, 8, 8))
    feeds = [{"x": np.ones((4, 2, 8), np.float32)}] * 4
    outcome = run(module, PruneMagnitude(sparsity=0.5, score="wanda"), context=context(runner, feeds))
    assert set(outcome.module.masks) == {"w", "r"}
    assert {one.rule for one in outcome.steps[0].result.refusals} == {"correct"}
