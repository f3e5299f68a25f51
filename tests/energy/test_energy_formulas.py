"""Work as a formula in a model's symbols, and sweeps over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from command_kit import run_all
from hypothesis import given, settings
from hypothesis import strategies as st

from joulec.energy import EnergyModel, load_profile
from joulec.energy.formulas import formulas
from joulec.errors import InputError
from joulec.ir.module import Module
from joulec.shapespec import parse_shapes, sweep

MODEL = EnergyModel(load_profile())
HEAD = '<ir_version: 9, opset_import: ["": 17]> '
TOKENS = HEAD + "g (float[batch,seq,64] x, float[64,32] w) => (float[batch,seq,32] y) { h = MatMul(x, w) y = Relu(h) }"
SQUARE = HEAD + "g (float[n,8] x) => (float[n,n] y) { t = Transpose<perm=[1,0]>(x) y = MatMul(x, t) }"
HALVED = HEAD + "g (float[1,1,n,n] x) => (float[1,1,a,b] y) { y = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x) }"


def module(text: str) -> Module:
    return Module(ir.from_onnx_text(text))


def test_formulas_are_those_made_by_hand() -> None:
    found = MODEL.formulas(module(TOKENS))
    assert found == {"flops": f"{2 * 64 * 32 + 32}*batch*seq", "bytes": f"{4 * (64 + 32 + 64)}*batch*seq + {4 * 64 * 32}"}


def test_a_symbol_twice_is_squared() -> None:
    assert MODEL.formulas(module(SQUARE))["flops"] == "16*n^2"


def test_what_is_no_polynomial_has_no_formula() -> None:
    assert "flops" not in MODEL.formulas(module(HALVED))


def test_fixed_models_have_none() -> None:
    assert MODEL.formulas(module(TOKENS.replace("batch", "2").replace("seq", "3"))) == {}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=9, max_size=9), st.integers(1, 40), st.integers(1, 40))
def test_every_polynomial_of_degree_two_is_found(coefficients: list[int], a: int, b: int) -> None:
    def value(sizes: Mapping[str, int]) -> int:
        powers = [sizes["a"] ** (i // 3) * sizes["b"] ** (i % 3) for i in range(9)]
        return sum(c * power for c, power in zip(coefficients, powers, strict=True))

    (text,) = formulas(["a", "b"], lambda sizes: {"work": value(sizes)}).values()
    formula = text.replace("^", "**")
    assert eval(formula, {"a": a, "b": b}) == value({"a": a, "b": b})  # noqa: S307 - a formula made here


def test_a_range_is_swept_by_doubling() -> None:
    assert [point["batch"] for point in sweep(parse_shapes("batch=1..64,seq=8"))] == [1, 2, 4, 8, 16, 32, 64]
    assert [point["batch"] for point in sweep(parse_shapes("batch=3..20"))] == [3, 6, 12, 20]
    assert sweep(parse_shapes("batch=8")) == []
    with pytest.raises(InputError, match="one range at a time"):
        sweep(parse_shapes("batch=1..2,seq=1..4"))


def test_the_command_line_sweeps(tmp_path: Path) -> None:
    path = tmp_path / "tokens.onnx"
    onnx.save(onnx.parser.parse_model(TOKENS), path)
    (done,) = run_all([["estimate", str(path), "--shape", "batch=1..8,seq=4", "--json"]], tmp_path)
    told = json.loads(done.out)
    assert [point["shape"] for point in told["sweep"]] == [{"batch": n, "seq": 4} for n in (1, 2, 4, 8)]
    each = [point["joules_per_sample"] for point in told["sweep"]]
    assert each == sorted(each, reverse=True) and told["total_joules"] == told["sweep"][-1]["total_joules"]
    assert "batch" in told["formulas"]["flops"]
