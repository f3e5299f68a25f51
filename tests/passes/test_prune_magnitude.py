"""prune-magnitude: exact counts, honest masks, reasons for what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pruning_kit import model

from joulec.errors import InputError
from joulec.ir.module import Module
from joulec.ir.verify import mask_problems
from joulec.passes._choice import keep_largest
from joulec.passes.base import Context
from joulec.passes.pipeline import Pipeline
from joulec.passes.prune_magnitude import PruneMagnitude
from joulec.passes.spelling import parse as parse_passes
from joulec.passes.spelling import spell
from joulec.passes.target import Target

TARGET = Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu")
GRAPH = """agraph (float[N, 10] x) => (float[N, 8] y) <float[10, 10] a, float[10, 8] b>
    { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"""


def two_layers(parse: Callable[..., Module], scale: float = 1.0) -> Module:
    """Weights a (10x10) and b (10x8), those of b larger by `scale`."""
    module = parse(
        GRAPH.replace(" <float[10, 10] a, float[10, 8] b>", "").replace(
            "float[N, 10] x)", "float[N, 10] x, float[10, 10] a, float[10, 8] b)"
        )
    )
    generator = np.random.default_rng(0)
    for name, shape, factor in (("a", (10, 10), 1.0), ("b", (10, 8), scale)):
        value = next(v for v in module.graph.inputs if v.name == name)
        module.graph.inputs.remove(value)
        value.const_value = ir.tensor((generator.standard_normal(shape) * factor).astype(np.float32))
        module.graph.register_initializer(value)
    return module


def prune(module: Module, **options: object) -> Module:
    outcome = Pipeline([PruneMagnitude(**options)]).run(module, Context(target=TARGET))  # type: ignore[arg-type]
    assert outcome.steps[0].status != "rolled back", outcome.steps[0].reason
    return outcome.module


def weights(module: Module, name: str) -> np.ndarray:
    tensor = module.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_tensor_scope_zeroes_the_same_share_of_each(parse: Callable[..., Module]) -> None:
    module = prune(two_layers(parse, scale=100.0), sparsity=0.5, scope="tensor")
    assert (module.masks["a"].sum(), module.masks["b"].sum()) == (50, 40)
    assert np.count_nonzero(weights(module, "a")) == 50


def test_global_scope_takes_the_smallest_wherever_they_are(parse: Callable[..., Module]) -> None:
    module = prune(two_layers(parse, scale=100.0), sparsity=0.5)
    assert sum(int((~mask).sum()) for mask in module.masks.values()) == 90
    assert "b" not in module.masks or (~module.masks["b"]).sum() < 5


def test_threshold(parse: Callable[..., Module]) -> None:
    before = weights(two_layers(parse), "a")
    module = prune(two_layers(parse), threshold=0.5)
    assert np.array_equal(module.masks["a"], np.abs(before) >= 0.5)
    assert np.array_equal(weights(module, "a"), np.where(np.abs(before) >= 0.5, before, 0))
    assert list(mask_problems(module)) == []


def test_pruning_again_keeps_what_was_removed(parse: Callable[..., Module]) -> None:
    once = prune(two_layers(parse), sparsity=0.3, scope="tensor")
    twice = prune(once, sparsity=0.6, scope="tensor")
    assert not np.any(twice.masks["a"] & ~once.masks["a"])
    assert twice.masks["a"].sum() == 40


def test_shared_weight_is_pruned_once(parse: Callable[..., Module]) -> None:
    module = parse("agraph (float[N, 8] x, float[8, 8] w) => (float[N, 8] y) { h = MatMul(x, w) y = MatMul(h, w) }")
    value = module.graph.inputs.pop(1)
    value.const_value = ir.tensor(np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32))
    module.graph.register_initializer(value)
    module = prune(module, sparsity=0.5)
    assert module.masks["w"].sum() == 32


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("nan", "weight 'a' holds NaN or infinity"),
        ("fed", "weight 'a' is a graph input that callers may feed"),
    ],
)
def test_refusals(parse: Callable[..., Module], change: str, reason: str) -> None:
    module = two_layers(parse)
    value = module.graph.initializers["a"]
    if change == "nan":
        array = weights(module, "a").copy()
        array[3, 3] = np.nan
        value.const_value = ir.tensor(array)
    else:
        module.graph.inputs.append(value)
    result = PruneMagnitude(sparsity=0.5).run(module, Context(target=TARGET))
    assert [refusal.reason for refusal in result.refusals] == [reason]
    assert list(module.masks) == ["b"]


def test_small_weights_are_left_alone(parse: Callable[..., Module]) -> None:
    module = parse("agraph (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }")
    result = PruneMagnitude(sparsity=0.5).run(module, Context(target=TARGET))
    assert [refusal.reason for refusal in result.refusals] == ["weight 'w' has only 4 elements"]


def test_without_an_order_nothing_happens_and_it_says_why(parse: Callable[..., Module]) -> None:
    result = PruneMagnitude().run(two_layers(parse), Context(target=TARGET))
    assert not result.changed
    assert "no sparsity ordered" in result.notes[0]


@pytest.mark.parametrize("text", ["sparsity=1.5", "sparsity=-0.1", "threshold=-1", "sparsity=0.5,threshold=0.1"])
def test_options_out_of_range(text: str) -> None:
    with pytest.raises(InputError, match="prune-magnitude"):
        parse_passes(f"prune-magnitude{{{text}}}", {"prune-magnitude": PruneMagnitude})


def test_spelling() -> None:
    assert spell([PruneMagnitude(sparsity=0.6, scope="tensor")]) == "prune-magnitude{sparsity=0.6,scope=tensor}"


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3), elements=st.floats(-4, 4, width=16)),
    st.floats(0, 1),
)
def test_counts_are_exact_and_the_smallest_go(array: np.ndarray, share: float) -> None:
    magnitudes = np.abs(array)
    zeros = round(share * array.size)
    mask = keep_largest(magnitudes, zeros)
    assert int((~mask).sum()) == zeros
    if 0 < zeros < array.size:
        assert magnitudes[~mask].max() <= magnitudes[mask].min()


def test_single_tensors_have_shares_of_their_own(parse: Callable[..., Module], tmp_path: Path) -> None:
    module = prune(two_layers(parse), sparsity=0.5, scope="tensor", tensors=("a=0.9",))
    assert (module.masks["a"].sum(), module.masks["b"].sum()) == (10, 40)
    file = tmp_path / "prune.toml"
    file.write_text('sparsity = 0.25\nscope = "tensor"\n[tensors]\n"b*" = 0\n')
    one = PruneMagnitude(schedule=str(file))
    assert one.files() == (str(file),)
    module = Pipeline([one]).run(two_layers(parse), Context(target=TARGET)).module
    assert (module.masks["a"].sum(), "b" in module.masks) == (75, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sparsity = 2", "'sparsity' takes shares from 0 to 1"),
        ("tensors = 3", "'tensors' takes shares"),
        ("speed = 1", "unknown key 'speed'"),
        ("a", "not valid TOML"),
        ("sparsity = 0.5\nthreshold = 1", "not both"),
    ],
)
def test_schedules_that_are_none(parse: Callable[..., Module], tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "prune.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        PruneMagnitude(schedule=str(file)).run(two_layers(parse), Context(target=TARGET))


def test_a_weight_behind_a_transpose_and_one_in_a_constant_node() -> None:
    w = np.random.default_rng(1).standard_normal((10, 8)).astype(np.float32)
    module = model("g (float[N, 8] x) => (float[N, 10] y) { t = Transpose(w) y = MatMul(x, t) }", w=w)
    assert prune(module, sparsity=0.5).masks["w"].shape == (10, 8)
    (node,) = (one for one in module.graph if one.op_type == "Transpose")
    constant = ir.node("Constant", [], {"value": ir.tensor(w)}, name="c")
    constant.outputs[0].name = "held"
    module.graph.insert_before(node, constant)
    node.replace_input_with(0, constant.outputs[0])
    pruned = prune(module, sparsity=0.5)
    assert pruned.masks["held_pruned"].sum() == 40
    assert [one.op_type for one in pruned.graph] == ["Transpose", "MatMul"]


def test_tied_embeddings_and_recurrent_weights() -> None:
    text = """g (int64[N, 3] i, float[3, N, 4] s) => (float[N, 3, 20] y, float[3, 1, N, 8] h)
        { e = Gather(w, i) t = Transpose(w) y = MatMul(e, t) h = GRU<hidden_size=8>(s, u, r) }"""
    module = model(text, w=(20, 8), u=(1, 24, 4), r=(1, 24, 8))
    result = PruneMagnitude(sparsity=0.5).run(module, Context(target=TARGET))
    assert [one.reason for one in result.refusals] == [
        "weight 'w' is also read by Gather 'Gather_0', as something other than a weight"
    ]
    assert sorted(module.masks) == ["r", "u"]
