"""merge-steps: the same product of every slice becomes one product; whatever differs between slices stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st

from joulec.ir.module import Module
from joulec.passes.eliminate_dead_code import EliminateDeadCode
from joulec.passes.merge_steps import MergeSteps

INDICES = {f"i{step}": np.array(step, np.int64) for step in range(8)}
AXES = {"front": np.array([0], np.int64), "middle": np.array([1], np.int64)}


def unrolled(step: str, *, count: int = 3, axis: int = 1, stack: int | None = 1) -> str:
    """What `step` makes of each slice, `s -> t`, of x along `axis`; stacked along `stack`, or summed."""
    lines = []
    for number in range(count):
        each = step.replace(" s", f" s{number}").replace("(s", f"(s{number}").replace("t =", f"t{number} =")
        lines.append(f"s{number} = Gather<axis={axis}>(x, i{number}) {each}")
    if stack is None:
        return "\n".join(lines) + f" y = Sum({', '.join(f't{n}' for n in range(count))})"
    lines += [f"u{n} = Unsqueeze(t{n}, {'front' if stack == 0 else 'middle'})" for n in range(count)]
    return "\n".join(lines) + f" y = Concat<axis={stack}>({', '.join(f'u{n}' for n in range(count))})"


def merged(text: str, signature: str = "(float[N,3,5] x) => (float[N,3,6] y)", **weights: np.ndarray) -> Module:
    module = build(f"{signature} {{ {text} }}", 17, **INDICES, **AXES, **weights)
    fuse(module, MergeSteps())
    fuse(module, EliminateDeadCode())
    return module


W: dict[str, Any] = {"w": numbers(5, 6), "b": numbers(6)}


def test_a_dense_layer_over_time_as_keras_unrolls_it() -> None:
    module = merged(unrolled("t = Gemm(s, w, b)"), **W)
    assert ops(module) == ["Reshape", "Gemm", "Reshape"]


def test_steps_along_the_last_axis_come_to_the_front() -> None:
    """As behind a convolution, whose channels are the features of each step."""
    module = merged(unrolled("t = Gemm(s, w, b)", axis=2), "(float[N,5,3] x) => (float[N,3,6] y)", **W)
    assert ops(module) == ["Transpose", "Reshape", "Gemm", "Reshape", "Transpose"]


def test_steps_along_the_first_axis() -> None:
    module = merged(unrolled("t = Gemm(s, w, b)", axis=0, stack=0), "(float[3,N,5] x) => (float[3,N,6] y)", **W)
    assert ops(module) == ["Reshape", "Gemm", "Reshape"]


@pytest.mark.parametrize(
    "step",
    ["t = Gemm<alpha=0.5,beta=2.0,transB=1>(s, v, b)", "t = Gemm(s, w)", "t = MatMul(s, w)", "t = Gemm(s, w, row)"],
)
def test_every_form_of_a_product(step: str) -> None:
    module = merged(unrolled(step), **W, v=numbers(6, 5), row=numbers(1, 6))
    assert sum(name in ("Gemm", "MatMul") for name in ops(module)) == 1


def test_a_chain_of_operators_moves_as_a_whole() -> None:
    step = "m = MatMul(s, w) a = Add(m, b) t = Tanh(a)"
    text = unrolled(step.replace("m ", "m# ").replace("(m", "(m#").replace("a ", "a# ").replace("(a", "(a#"))
    for number in range(3):  # give each step's inner values names of their own
        text = text.replace("#", str(number), 4)
    assert ops(merged(text, **W)) == ["MatMul", "Add", "Tanh"]


def test_steps_that_are_used_one_by_one_still_share_their_product() -> None:
    """As in a recurrent cell whose input products do not depend on the state."""
    module = merged(unrolled("t = Gemm(s, w, b)", stack=None), "(float[N,3,5] x) => (float[N,6] y)", **W)
    assert ops(module) == ["Reshape", "Gemm", "Reshape", "Gather", "Gather", "Gather", "Sum"]


def test_two_cells_that_read_the_same_steps() -> None:
    text = unrolled("t = Gemm(s, w, b)", stack=None) + " z = Sum(r0, r1, r2)"
    text = text.replace(" y =", " ".join(f" r{n} = Gemm(s{n}, v, b)" for n in range(3)) + " y =")
    module = merged(text, "(float[N,3,5] x) => (float[N,6] y, float[N,6] z)", **W, v=numbers(5, 6))
    assert ops(module).count("Gemm") == 2


def test_weights_written_anew_at_each_step_are_the_same_weights() -> None:
    text = unrolled("t = Gemm(s, w, b)").replace("w, b) s", "w, b) s")
    for number in range(3):
        text = text.replace(f"Gemm(s{number}, w, b)", f"Gemm(s{number}, w{number}, b)")
    copies = {f"w{number}": W["w"].copy() for number in range(3)}
    assert ops(merged(text, b=W["b"], **copies)).count("Gemm") == 1
    copies["w1"] = copies["w1"] + 1
    module = build(f"(float[N,3,5] x) => (float[N,3,6] y) {{ {text} }}", 17, **INDICES, **AXES, b=W["b"], **copies)
    assert unchanged(module, MergeSteps()) == set()


@pytest.mark.parametrize(
    ("text", "signature"),
    [
        (unrolled("t = Gemm(s, w, b)", count=2), "(float[N,3,5] x) => (float[N,2,6] y)"),  # one slice is not used
        (unrolled("t = Gemm(s, w, b)"), "(float[N,M,5] x) => (float[N,3,6] y)"),  # nobody knows how many there are
        (unrolled("t = Gemm(s, z, b)"), "(float[N,3,5] x, float[5,6] z) => (float[N,3,6] y)"),  # not a weight
        (unrolled("t = Gemm<transA=1>(s, q)"), "(float[4,3,5] x) => (float[5,3,7] y)"),  # mixes the rows of a slice
        (unrolled("t = Softmax<axis=0>(s)"), "(float[N,3,5] x) => (float[N,3,5] y)"),  # likewise
        (unrolled("t = Add(s, whole)"), "(float[N,3,5] x) => (float[2,3,N,5] y)"),  # wider than a slice
        (unrolled("t = Gemm(s, w)").replace("Gemm(s1, w)", "MatMul(s1, w)"), "(float[N,3,5] x) => (float[N,3,6] y)"),
    ],
)  # fmt: skip
def test_what_differs_or_does_not_fit_stays(text: str, signature: str) -> None:
    weights = {**W, "q": numbers(4, 7), "whole": numbers(2, 1, 5)}
    module = build(f"{signature} {{ {text} }}", 17, **INDICES, **AXES, **weights)
    assert unchanged(module, MergeSteps()) == set()


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 1, 1), (2, 1, 0)])
def test_steps_that_are_stacked_in_another_order_stay_stacked(order: tuple[int, ...]) -> None:
    text = unrolled("t = Gemm(s, w, b)").replace("(u0, u1, u2)", f"(u{order[0]}, u{order[1]}, u{order[2]})")
    assert ops(merged(text, **W))[-1] == "Concat"


def test_an_empty_batch() -> None:
    merged(unrolled("t = Gemm(s, w, b)"), "(float[0,3,5] x) => (float[0,3,6] y)", **W)


def test_a_stack_that_is_a_graph_output_keeps_its_name() -> None:
    text = unrolled("t = Relu(s)", axis=0, stack=0)
    module = merged(text, "(float[3,N,5] x) => (float[3,N,5] y)")
    assert ops(module) == ["Relu"] and [value.name for value in module.graph.outputs] == ["y"]


def test_a_pruned_weight_keeps_its_mask() -> None:
    mask = np.abs(W["w"]) > 0.5
    text = unrolled("t = Gemm(s, w, b)")
    weights = {**W, "w": W["w"] * mask}
    module = build(f"(float[N,3,5] x) => (float[N,3,6] y) {{ {text} }}", 17, **INDICES, **AXES, **weights)
    module.masks["w"] = mask
    fuse(module, MergeSteps())
    assert list(module.masks) == ["w"]


STEPS = ["Relu(s)", "Mul(s, c)", "Mul(p, s)", "MatMul(s, p)", "Gemm(s, p, c)"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2), st.integers(0, 1), st.integers(2, 6), st.sampled_from(STEPS))
def test_any_axis_any_stack(axis: int, stack: int, count: int, step: str) -> None:
    shape = [4, 4]
    shape.insert(axis, count)
    text = unrolled(f"t = {step}", count=count, axis=axis, stack=stack)
    signature = f"(float[{','.join(map(str, shape))}] x) => (float[{4 if stack else count},{count if stack else 4},4] y)"
    module = merged(text, signature, c=numbers(4), p=numbers(4, 4))
    assert "Gather" not in ops(module) and "Concat" not in ops(module)
