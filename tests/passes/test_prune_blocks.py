"""prune-blocks: branches beside a shortcut are found, left out, and what follows makes up for them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_kit import TARGET, compute, model, numbers, run

from joulec.errors import InputError
from joulec.ir.feeds import Feeds
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner, Runner
from joulec.passes.base import Context
from joulec.passes.pipeline import Outcome
from joulec.passes.prune_blocks import PruneBlocks
from joulec.passes.spelling import parse

IMAGE = "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) "
TOKENS = "g (float[N, 5, 8] x) => (float[N, 5, 8] y) "


@pytest.fixture
def runner() -> Iterator[Runner]:
    with LocalRunner() as one:
        yield one


def prune(module: Module, runner: Runner | None = None, data: list[dict[str, np.ndarray]] | None = None, **options: object) -> Outcome:  # fmt: skip
    context = Context(target=TARGET, runner=runner, feeds=None if data is None else Feeds.of(data))
    outcome = run(module, PruneBlocks(**options), context=context)  # type: ignore[arg-type]
    onnx.shape_inference.infer_shapes(outcome.module.to_proto(), strict_mode=True)
    return outcome


def operators(module: Module) -> list[str]:
    return [f"{node.outputs[0].name} = {node.op_type}({', '.join(v.name for v in node.inputs)})" for node in module.graph]  # type: ignore[misc]


CONV = dict.fromkeys("uvwz", (4, 4, 1, 1))
SQUARE = dict.fromkeys("uvwz", (8, 8))

CASES = {
    "a block with an activation behind it": (
        IMAGE + "{ a = Conv(x, u) b = Relu(a) f = Conv(b, v) t = Add(f, b) r = Relu(t) y = Conv(r, w) }", CONV,
        ["a = Conv(x, u)", "b = Relu(a)", "r = Relu(b)", "y = Conv(r, w)"],
    ),
    "two, one behind the other": (
        IMAGE + "{ a = Conv(x, u) f = Conv(a, v) s = Add(a, f) g = Conv(s, w) t = Add(s, g) y = Conv(t, z) }", CONV,
        ["a = Conv(x, u)", "y = Conv(a, z)"],
    ),
    "one inside another": (
        IMAGE + "{ f = Conv(x, u) g = Conv(f, v) s = Add(f, g) t = Add(x, s) y = Conv(t, w) }", CONV,
        ["y = Conv(x, w)"],
    ),
    "a shortcut with a layer of its own": (
        "g (float[N, 4, 6, 6] x) => (float[N, 4, 3, 3] y) { a = Relu(x) p = Conv<strides=[2,2]>(a, u) "
        "f = Conv<strides=[2,2]>(a, v) h = Relu(f) g = Conv(h, w) t = Add(g, p) y = Conv(t, z) }", CONV,
        ["a = Relu(x)", "p = Conv(a, u)", "y = Conv(p, z)"],
    ),
    "a sum of three": (
        TOKENS + "{ n = Relu(x) f = MatMul(n, u) s = Add(x, f) g = MatMul(n, v) t = Add(s, g) y = MatMul(t, w) }",
        SQUARE, ["y = MatMul(x, w)"],
    ),
    "sizes that are equal though nobody wrote them down": (
        "g (float[N, M, 8] x) => (float[N, M, 8] y) { i = Shape(x) p = Reshape(x, r) a = MatMul(p, u) h = Tanh(a) "
        "b = MatMul(h, v) f = Reshape(b, i) t = Add(x, f) y = MatMul(t, w) }",
        {**SQUARE, "r": np.array([-1, 8])}, ["y = MatMul(x, w)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_before_and_after(name: str) -> None:
    text, weights, expected = CASES[name]
    used = {key: shape for key, shape in weights.items() if f" {key})" in text or f", {key}" in text}
    outcome = prune(model(text, **used), blocks=("Add",))
    assert operators(outcome.module) == expected
    assert set(outcome.module.graph.initializers) == {key for key in used if any(f" {key})" in o for o in expected)}


def test_what_is_left_computes_what_the_whole_computes_without_the_branch() -> None:
    text = IMAGE + "{ a = Conv(x, u) b = Relu(a) f = Conv(b, v) t = Add(f, b) r = Relu(t) y = Conv(r, w) }"
    weights = {name: np.random.default_rng(1).standard_normal((4, 4, 1, 1)).astype(np.float32) for name in "uvw"}
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    cut = prune(model(text, **weights), blocks=("t",)).module
    silent = model(text, **(weights | {"v": np.zeros((4, 4, 1, 1), np.float32)}))
    np.testing.assert_allclose(compute(cut, x=x)[0], compute(silent, x=x)[0], rtol=1e-6, atol=1e-6)


REFUSED = {
    "a shortcut that is stretched": (
        "g (float[N, 4, 1, 1] x) => (float[N, 4, 6, 6] y) { a = Relu(x) f = ConvTranspose(a, k) y = Add(a, f) }",
        {"k": (4, 4, 6, 6)}, "another shape",
    ),
    "a branch that is read elsewhere": (
        "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] q) "
        "{ f = Conv(x, u) s = Add(x, f) y = Relu(s) q = Tanh(f) }", {"u": (4, 4, 1, 1)}, "more than the addition reads",
    ),
    "two branches of the same length": (
        IMAGE + "{ f = Conv(x, u) g = Conv(x, v) y = Add(f, g) }", {"u": (4, 4, 1, 1), "v": (4, 4, 1, 1)},
        "no operand is a shortcut",
    ),
    "a branch without layers": (IMAGE + "{ f = Tanh(x) y = Add(x, f) }", {}, "no operand is a shortcut"),
    "an output that cannot be an input": (
        IMAGE + "{ f = Conv(x, u) y = Add(x, f) }", {"u": (4, 4, 1, 1)}, "output of the model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_left_out_says_why(name: str) -> None:
    text, weights, reason = REFUSED[name]
    module = model(text, **weights)
    before = operators(module)
    step = prune(module, blocks=("*",)).steps[0]
    assert step.status == "unchanged"
    assert [reason in one.reason for one in step.result.refusals] == [True]
    assert operators(module) == before


def test_a_body_that_reads_the_branch_keeps_it() -> None:
    text = IMAGE + """{ f = Conv(x, u) s = Add(x, f) c = Cast<to=9>(k)
        y = If(c) <then_branch = t () => (float[N, 4, 6, 6] p) { p = Relu(s) },
                   else_branch = e () => (float[N, 4, 6, 6] q) { q = Tanh(f) }> }"""
    step = prune(model(text, u=(4, 4, 1, 1), k=np.array(1)), blocks=("s",)).steps[0]
    assert "more than the addition reads" in step.result.refusals[0].reason


def rows(count: int = 48) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    return [{"x": generator.standard_normal((1, 5, 8)).astype(np.float32)} for _ in range(count)]


THREE = TOKENS + """{ a = MatMul(x, u1) ra = Relu(a) fa = MatMul(ra, v1) s = Add(x, fa)
    o = MatMul(s, u2) b = Add(o, d) rb = Relu(b) fb = MatMul(rb, v2) t = Add(s, fb) n = MatMul(t, w) y = Add(n, c) }"""


def three(second: float) -> Module:
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal((8, 8)).astype(np.float32) / 3 for name in ("u1", "v1", "u2", "v2", "w")}
    weights["v2"] *= second
    return model(THREE, **weights, c=np.zeros(8, np.float32), d=np.zeros(8, np.float32))


@pytest.mark.parametrize(("second", "name"), [(0.05, "Add_8"), (20.0, "Add_3")])
def test_the_block_that_changes_least_goes(runner: Runner, second: float, name: str) -> None:
    outcome = prune(three(second), runner, rows(), count=1, correct=False)
    assert outcome.steps[0].result.notes[0].startswith(f"1 of 2 residual blocks left out: '{name}'")


def test_what_a_scale_explains_counts_as_no_change(runner: Runner) -> None:
    """A block that triples its input is one whose removal the next layer can make up for whole."""
    generator, eye = np.random.default_rng(0), np.eye(8, dtype=np.float32)
    weights = {"u1": 2 * eye, "v1": eye, "w": generator.standard_normal((8, 8)).astype(np.float32)}
    weights |= {name: generator.standard_normal((8, 8)).astype(np.float32) / 3 for name in ("u2", "v2")}
    module = model(THREE.replace("Relu(a)", "Identity(a)"), **weights, c=np.zeros(8, np.float32), d=np.zeros(8, np.float32))
    outcome = prune(module, runner, rows(), count=1)
    assert "left out: 'Add_3'" in outcome.steps[0].result.notes[0]
    assert "layers fitted to the whole model" in outcome.steps[0].result.notes[1]
    np.testing.assert_allclose(numbers(outcome.module, "u2"), 3 * weights["u2"], rtol=2e-2, atol=2e-2)


def test_what_follows_makes_up_for_the_branch(runner: Runner) -> None:
    module, data = three(1.0), rows(96)
    fitted, plain = (prune(module.clone(), runner, data, blocks=("s",), correct=c).module for c in (True, False))
    fresh = rows(120)[96:]
    errors = [
        sum(float(np.square(compute(module, **one)[0] - compute(other, **one)[0]).sum()) for one in fresh)
        for other in (fitted, plain)
    ]
    assert errors[0] < 0.6 * errors[1]
    np.testing.assert_array_equal(numbers(fitted, "w").shape, (8, 8))


def test_a_name_that_is_no_block_is_said() -> None:
    notes = prune(three(1.0), blocks=("s", "nobody*")).steps[0].result.notes
    assert notes[0].startswith("1 of 2 residual blocks left out")
    assert notes[1] == "no residual block ends in an addition called 'nobody*'"


def test_masks_go_with_their_weights() -> None:
    module = three(1.0)
    module.masks |= {"u1": numbers(module, "u1") > -9, "u2": numbers(module, "u2") > -9}
    assert set(prune(module, blocks=("s",)).module.masks) == {"u2"}


def test_without_data_no_count(runner: Runner) -> None:
    step = prune(three(1.0), runner, count=1).steps[0]
    assert (step.status, "no calibration data" in step.result.notes[0]) == ("unchanged", True)


@pytest.mark.parametrize("text", ["prune-blocks{count=0}", "prune-blocks{count=1,blocks=a}"])
def test_options_out_of_range(text: str) -> None:
    with pytest.raises(InputError, match="count"):
        parse(text, {PruneBlocks.pass_name(): PruneBlocks})


CHAINS = st.recursive(
    st.just("layer"), lambda inner: st.tuples(st.sampled_from(["block", "scaled"]), st.lists(inner, min_size=1, max_size=3))
)
"""A layer, or a block around a chain of them; `scaled` blocks multiply their input by a number first."""


class _Written:
    """A random network as ONNX text, and what is left of it when every outermost block has gone."""

    def __init__(self, chain: list[object]) -> None:
        self.lines: list[str] = []
        self.left: list[str] = []
        self.end = self._chain(chain, "x0", outermost=True)

    def _made(self, text: str) -> str:
        self.lines.append(f"v{len(self.lines)} = {text}")
        return f"v{len(self.lines) - 1}"

    def _chain(self, chain: list[object], value: str, outermost: bool) -> str:
        for one in chain:
            if one == "layer":
                value = self._made(f"MatMul({value}, u)")
                self.left += ["layer"] if outermost else []
            else:
                kind, inner = one  # type: ignore[misc]
                value = self._made(f"Mul({value}, k)") if kind == "scaled" else value
                self.left += ["scale"] if kind == "scaled" and outermost else []
                value = self._made(f"Add({self._chain(inner, value, False)}, {value})")
        return value


@settings(max_examples=30, deadline=None)
@given(chain=st.lists(CHAINS, min_size=1, max_size=4))
def test_whatever_is_nested_the_shortcuts_are_left(chain: list[object]) -> None:
    made = _Written(chain)
    text = f"g (float[N, 8] x0) => (float[N, 8] y) {{ {' '.join(made.lines)} y = Relu({made.end}) }}"
    u = np.random.default_rng(5).standard_normal((8, 8)).astype(np.float32) / 3
    x = np.random.default_rng(6).standard_normal((2, 8)).astype(np.float32)
    expected = x
    for one in made.left:
        expected = expected @ u if one == "layer" else expected * np.float32(1.5)
    cut = prune(model(text, u=u, k=np.array(1.5, np.float32)), blocks=("*",)).module
    assert not any("Add" in one for one in operators(cut))
    np.testing.assert_allclose(compute(cut, x0=x)[0], np.maximum(expected, 0), rtol=1e-5, atol=1e-6)


def test_linear_in_blocks() -> None:
    """A chain of blocks inside each other's shortcut is walked once: 1,000 of them in a moment."""
    count = 1000
    body = " ".join(f"f{i} = MatMul(x{i}, u) x{i + 1} = Add(x{i}, f{i})" for i in range(count))
    text = f"g (float[N, 8] x0) => (float[N, 8] y) {{ {body} y = Relu(x{count}) }}"
    outcome = prune(model(text, u=(8, 8)), blocks=("*",))
    assert operators(outcome.module) == ["y = Relu(x0)"]
