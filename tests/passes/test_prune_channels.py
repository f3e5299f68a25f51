"""prune-channels: groups are found, cut, and what is left computes what the whole computes without them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir
import pytest
from pruning_kit import TARGET, compute, model, numbers, run

from joulec.backends import backend
from joulec.backends.cpu import channel_block
from joulec.data import synthetic_feeds
from joulec.errors import InputError
from joulec.ir.machine import cpu_flags
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner, Runner
from joulec.passes.base import Context
from joulec.passes.pipeline import Outcome
from joulec.passes.prune_channels import PruneChannels, rounded
from joulec.passes.spelling import parse

IMAGE = "g (float[N, 3, 6, 6] x) => "


@pytest.fixture
def runner() -> Iterator[Runner]:
    with LocalRunner() as one:
        yield one


def prune(module: Module, runner: Runner, **options: object) -> Outcome:
    """Prune without rounding, and insist that the result was compared with the whole."""
    probes = synthetic_feeds(module.inputs(), {}, 2, 0).head(2)
    one = PruneChannels(**{"ratio": 0.5, "multiple": 1, **options})  # type: ignore[arg-type]
    outcome = run(module, one, context=Context(target=TARGET, runner=runner, probes=probes))
    if outcome.steps[0].status == "applied":
        assert any(note.startswith("equal to the whole") for note in outcome.steps[0].result.notes)
        onnx.shape_inference.infer_shapes(outcome.module.to_proto(), strict_mode=True)
    return outcome


def shapes(module: Module) -> dict[str, tuple[int, ...]]:
    return {name: numbers(module, name).shape for name in module.graph.initializers}


def refusals(outcome: Outcome) -> list[str]:
    return [one.reason for one in outcome.steps[0].result.refusals]


CASES = {
    "chain": (
        "(float[N, 4, 2, 2] y) { a = Conv(x, u, b) r = Relu(a) y = Conv(r, v) }",
        {"u": (8, 3, 3, 3), "b": (8,), "v": (4, 8, 3, 3)},
        {"u": (4, 3, 3, 3), "b": (4,), "v": (4, 4, 3, 3)},
    ),
    "residual": (
        """(float[N, 4, 6, 6] y) { a = Conv(x, u) r = Relu(a) f = Conv(r, v) s = Add(a, f) y = Conv(s, w) }""",
        {"u": (8, 3, 1, 1), "v": (8, 8, 1, 1), "w": (4, 8, 1, 1)},
        {"u": (4, 3, 1, 1), "v": (4, 4, 1, 1), "w": (4, 4, 1, 1)},
    ),
    "concat and batch normalization": (
        """(float[N, 4, 6, 6] y) { a = Conv(x, u) b = Conv(x, v) c = Concat<axis=1>(a, b)
            n = BatchNormalization(c, s, t, m, d) y = Conv(n, w) }""",
        {"u": (6, 3, 1, 1), "v": (4, 3, 1, 1), "s": (10,), "t": (10,), "m": (10,), "d": np.ones(10, np.float32),
         "w": (4, 10, 1, 1)},
        {"u": (3, 3, 1, 1), "v": (2, 3, 1, 1), "s": (5,), "t": (5,), "m": (5,), "d": (5,), "w": (4, 5, 1, 1)},
    ),
    "split": (
        """(float[N, 4, 6, 6] y) { a = Conv(x, u) p, q = Split<axis=1>(a, k) s = Mul(p, q) y = Conv(s, w) }""",
        {"u": (8, 3, 1, 1), "k": np.array([4, 4]), "w": (4, 4, 1, 1)},
        {"u": (4, 3, 1, 1), "w": (4, 2, 1, 1)},
    ),
    "slices of different parts": (
        """(float[N, 4, 6, 6] y) { a = Conv(x, u) p = Slice(a, i, j, k) q = Slice(a, j, l, k) s = Conv(p, v)
            t = Conv(q, w) y = Add(s, t) }""",
        {"u": (8, 3, 1, 1), "i": np.array([0]), "j": np.array([4]), "k": np.array([1]), "l": np.array([1 << 40]),
         "v": (4, 4, 1, 1), "w": (4, 4, 1, 1)},
        {"u": (4, 3, 1, 1)},
    ),
    "depthwise, squeeze and excite": (
        """(float[N, 4, 6, 6] y) { a = Conv(x, u) d = Conv<group=8, pads=[1,1,1,1]>(a, v) g = GlobalAveragePool(d)
            h = Conv(g, r) i = Relu(h) j = Conv(i, e) k = Sigmoid(j) m = Mul(d, k) y = Conv(m, w) }""",
        {"u": (8, 3, 1, 1), "v": (8, 1, 3, 3), "r": (2, 8, 1, 1), "e": (8, 2, 1, 1), "w": (4, 8, 1, 1)},
        {"u": (4, 3, 1, 1), "v": (4, 1, 3, 3), "r": (1, 4, 1, 1), "e": (4, 1, 1, 1), "w": (4, 4, 1, 1)},
    ),
    "shuffle of grouped convolutions": (
        """(float[N, 4, 6, 6] y) { a = Conv(x, u) b = Conv<group=2>(a, v) c = Reshape(b, p) d = Transpose<perm=[0,2,1,3,4]>(c)
            e = Reshape(d, q) f = Conv<group=2>(e, w) y = Conv(f, z) }""",
        {"u": (8, 3, 1, 1), "v": (8, 4, 1, 1), "p": np.array([-1, 2, 4, 6, 6]), "q": np.array([0, 8, 6, 6]),
         "w": (12, 4, 1, 1), "z": (4, 12, 1, 1)},
        {"u": (4, 3, 1, 1), "v": (4, 2, 1, 1), "w": (6, 2, 1, 1), "z": (4, 6, 1, 1)},
    ),
    "flatten in front of a dense layer": (
        """(float[N, 5] y) { a = Conv(x, u) f = Reshape(a, p) h = Gemm<transB=1>(f, v, c) r = Relu(h) y = MatMul(r, w) }""",
        {"u": (8, 3, 1, 1), "p": np.array([-1, 288]), "v": (6, 288), "c": (6,), "w": (6, 5)},
        {"u": (4, 3, 1, 1), "v": (3, 144), "c": (3,), "w": (3, 5)},
    ),
    "flatten behind a transpose": (
        "(float[N, 5] y) { a = Conv(x, u) t = Transpose<perm=[0,2,3,1]>(a) f = Flatten(t) y = MatMul(f, w) }",
        {"u": (8, 3, 1, 1), "w": (288, 5)},
        {"u": (4, 3, 1, 1), "w": (144, 5)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_belongs_together_goes_together(name: str, runner: Runner) -> None:
    text, weights, expected = CASES[name]
    outcome = prune(model(IMAGE + text, **weights), runner)
    found = shapes(outcome.module)
    assert {one: found[one] for one in expected} == expected


ATTENTION = """g (float[N, 5, 12] x) => (float[N, 5, 12] y) {
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    q4 = Reshape(q, s) k4 = Reshape(k, s) v4 = Reshape(v, s)
    qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4)
    l = MatMul(qt, kt) p = Softmax<axis=-1>(l) o = MatMul(p, vt) ot = Transpose<perm=[0,2,1,3]>(o)
    f = Reshape(ot, r) z = MatMul(f, wo) y = Add(x, z) }"""


def test_whole_attention_heads_go(runner: Runner) -> None:
    weights = dict.fromkeys(("wq", "wk", "wv", "wo"), (12, 12))
    sizes = {"s": np.array([0, 0, 4, 3]), "r": np.array([0, 0, 12])}
    found = shapes(prune(model(ATTENTION, **weights, **sizes), runner).module)
    assert [found[name] for name in ("wq", "wk", "wv", "wo")] == [(12, 6), (12, 6), (12, 6), (6, 12)]


def test_shared_weights_tie_their_layers(runner: Runner) -> None:
    text = "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = Relu(c) }"
    outcome = prune(model(text, w=(8, 8)), runner)
    assert outcome.steps[0].status == "unchanged"
    assert refusals(outcome) == ["MatMul 'MatMul_0' ties them to something that cannot change"]


def test_merged_biases_tie_nothing(runner: Runner) -> None:
    text = IMAGE + "(float[N, 8, 6, 6] y) { a = Conv(x, u, b) c = Conv(a, v, b) y = Conv(c, w, b) }"
    found = shapes(prune(model(text, u=(8, 3, 1, 1), v=(8, 8, 1, 1), w=(8, 8, 1, 1), b=(8,)), runner).module)
    assert (found["u"], found["v"], found["w"]) == ((4, 3, 1, 1), (4, 4, 1, 1), (8, 4, 1, 1))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[N, 8, 6, 6] y) { y = Conv(x, u) }", "'y' is an output of the model"),
        ("(float[N, 4, 6, 6] y) { a = Conv(x, u) b = LRN<size=3>(a) y = Conv(b, w) }", "LRN 'LRN_1' reads them in a way"),
        ("(float[N, 4, 6, 6] y) { a = Conv(x, u) b = Softmax<axis=1>(a) y = Conv(b, w) }", "Softmax 'Softmax_1' reads"),
        ("(float[N, 4, 6, 6] y) { a = Conv(x, u) b = ReduceMax<axes=[1]>(a) c = Add(a, b) y = Conv(c, w) }", "ReduceMax"),
        ("(float[N, 4, 6, 6] y) { a = Conv(x, u) b = Foreign(a) y = Conv(b, w) }", "Foreign"),
    ],
)
def test_what_cannot_be_cut_says_why(text: str, reason: str) -> None:
    module = model(IMAGE + text, opset=13, u=(8, 3, 1, 1), w=(4, 8, 1, 1))
    result = PruneChannels(ratio=0.5).run(module, Context(target=TARGET))
    assert any(reason in one.reason for one in result.refusals)
    assert numbers(module, "u").shape == (8, 3, 1, 1)


def test_a_body_that_reads_a_channel_keeps_it() -> None:
    text = """(float[N, 4, 6, 6] y) { a = Conv(x, u) z = Conv(a, w) y = If(c) <
        then_branch = t () => (float[N, 4, 6, 6] p) { p = Conv(a, v) },
        else_branch = e () => (float[N, 4, 6, 6] q) { q = Identity(z) }> }"""
    module = model("g (float[N, 3, 6, 6] x, bool c) => " + text, u=(8, 3, 1, 1), w=(4, 8, 1, 1), v=(4, 8, 1, 1))
    result = PruneChannels(ratio=0.5).run(module, Context(target=TARGET))
    assert "'a' is read inside a control-flow body" in [one.reason for one in result.refusals]
    assert numbers(module, "u").shape[0] == 8


def test_dead_channels_go_and_nothing_changes(runner: Runner) -> None:
    text, weights, _ = CASES["residual"]
    module = model(IMAGE + text, **weights)
    for name in ("v", "w"):
        array = numbers(module, name).copy()
        array[:, [1, 4, 6]] = 0
        module.graph.initializers[name].const_value = ir.tensor(array)
    after = prune(module, runner, ratio=None, dead=True).module
    assert numbers(after, "u").shape == (5, 3, 1, 1)
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    assert np.allclose(compute(module, x=x)[0], compute(after, x=x)[0], atol=1e-5)


def test_the_weakest_go(runner: Runner) -> None:
    text, weights, _ = CASES["chain"]
    module = model(IMAGE + text, **weights)
    u = numbers(module, "u").copy()
    u[[0, 2, 5, 7]] *= 0.01
    module.graph.initializers["u"].const_value = ir.tensor(u)
    assert np.array_equal(numbers(prune(module, runner).module, "u"), u[[1, 3, 4, 6]])


@pytest.mark.parametrize(
    ("wanted", "total", "multiple", "width"),
    [(44.8, 64, 16, 48), (22.4, 32, 16, 24), (11.2, 16, 16, 12), (2.1, 3, 16, 2), (44.8, 64, 1, 45), (63.9, 64, 16, 60), (0.2, 8, 16, 1)],
)  # fmt: skip
def test_widths(wanted: float, total: int, multiple: int, width: int) -> None:
    assert rounded(wanted, total, multiple) == width


@pytest.mark.parametrize(("name", "width"), [("cuda", 168), ("tensorrt", 160)])
def test_widths_are_blocks_of_the_target(name: str, width: int, runner: Runner) -> None:
    """Of 256 channels about 168 stay: tensor cores take 8 at once in 16 bits, and 32 in INT8."""
    module = model(IMAGE + "(float[N, 4, 6, 6] y) { a = Conv(x, u) y = Conv(a, v) }", u=(256, 3, 1, 1), v=(4, 256, 1, 1))
    outcome = run(module, PruneChannels(ratio=0.34375), context=Context(target=backend(name).target))
    assert shapes(outcome.module)["u"][0] == width


def test_a_block_of_the_cpu_is_a_vector_register() -> None:
    flags = [{"avx2", "avx512f"}, {"avx2"}, {"asimddp"}]
    assert [channel_block(one) for one in flags] == [16, 8, 16]
    assert backend("cpu").target.channel_block == channel_block(cpu_flags())


@pytest.mark.parametrize("text", ["ratio=1", "ratio=-0.1", "multiple=0", "ratio=0.5,dead=true"])
def test_options_out_of_range(text: str) -> None:
    with pytest.raises(InputError, match="prune-channels"):
        parse(f"prune-channels{{{text}}}", {"prune-channels": PruneChannels})


def test_names_that_folding_gave_are_not_given_again(runner: Runner) -> None:
    """Folding calls the target that it finds `p_shape`, which is what the smaller one would be called, too."""
    text = """(float[N, 4, 6, 6] y) { a = Conv(x, u) s = Shape(x) n = Gather(s, k) t = Concat<axis=0>(n, l)
        p = Reshape(a, t) q = Relu(p) y = Conv(q, w) }"""
    sizes = {"k": np.array([0]), "l": np.array([8, 6, 6])}
    module = model(IMAGE + text, u=(8, 3, 1, 1), w=(4, 8, 1, 1), **sizes)
    for node in module.graph:
        node.name = node.outputs[0].name
    assert shapes(prune(module, runner).module)["u"] == (4, 3, 1, 1)
