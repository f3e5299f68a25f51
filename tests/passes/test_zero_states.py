"""Recurrent operators lose inputs that are zeros, and only those."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, numbers
from rewrite_kit import apply

from joulec.ir.module import Module
from joulec.passes.eliminate_identity import EliminateIdentity

HEAD = "(float[5,N,3] x) => (float[5,D,N,4] y)"
F = {
    "w": numbers(1, 16, 3), "r": numbers(1, 16, 4), "b": numbers(1, 32), "b0": np.zeros((1, 32), np.float32), "h": np.zeros((1, 3, 4), np.float32),
    "one": np.array([1]), "four": np.array([4]), "tail": np.array([4]), "z": np.zeros((1, 1, 4), np.float32), "m": np.full((1, 3, 4), -0.0, np.float32),
    "k": numbers(1, 3, 4), "p": np.zeros((1, 12), np.float32), "two": np.array([2]), "start": np.array([0]),
}  # fmt: skip
SIZE = "s = Shape(x) n = Gather(s, one) t = Concat<axis = 0>(one, n, tail) "


def module(body: str, head: str = HEAD) -> Module:
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return build(f"{head} {{ {body} }}", 17, **{name: array for name, array in F.items() if name in words})


def inputs(body: str) -> list[str | None]:
    made = module(body)
    apply(made, EliminateIdentity(), {"x": numbers(5, 3, 3)})
    node = next(node for node in made.graph if node.op_type in ("LSTM", "GRU", "RNN"))
    return [None if value is None else value.name for value in node.inputs]


@pytest.mark.parametrize(
    "body",
    [
        "y = LSTM<hidden_size = 4>(x, w, r, b, , h, h)",
        SIZE + "c = ConstantOfShape(t) y = LSTM<hidden_size = 4>(x, w, r, b, , c, c)",
        SIZE + "c = Expand(z, t) d = Identity(c) y = LSTM<hidden_size = 4>(x, w, r, b, , d, c)",
        "s = Shape(x) n = Gather(s, one) t = Concat<axis = 0>(two, n, tail) c = ConstantOfShape(t) d = Slice(c, start, one, start) y = LSTM<hidden_size = 4>(x, w, r, b, , d, d)",
        "y = LSTM<hidden_size = 4>(x, w, r, b, , h, h, p)",
    ],
)
def test_zero_states_go(body: str) -> None:
    assert inputs(body) == ["x", "w", "r", "b"]


def test_a_state_that_is_something_stays() -> None:
    assert inputs("y = LSTM<hidden_size = 4>(x, w, r, b, , h, k)") == ["x", "w", "r", "b", None, None, "k"]
    assert inputs("y = LSTM<hidden_size = 4>(x, w, r, b0, , k, h)") == ["x", "w", "r", None, None, "k"]
    assert inputs(SIZE + "c = ConstantOfShape<value = float[1] {0.5}>(t) y = LSTM<hidden_size = 4>(x, w, r, b, , c, c)")[5:] == ["c", "c"]


def test_negative_zeros_stay() -> None:
    assert inputs("y = LSTM<hidden_size = 4>(x, w, r, b, , m, m)") == ["x", "w", "r", "b", None, "m", "m"]


def test_a_state_that_is_fed_stays() -> None:
    made = module("y = LSTM<hidden_size = 4>(x, w, r, b, , g, g)", "(float[5,N,3] x, float[1,N,4] g) => (float[5,D,N,4] y)")
    assert not apply(made, EliminateIdentity()).changed
