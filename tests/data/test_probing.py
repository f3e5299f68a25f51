"""Made-up feeds for comparing: a model with open dimensions is run in sizes that it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from joulec import api
from joulec.data import probing_feeds
from joulec.errors import InputError
from joulec.ir.module import Module

Parse = Callable[..., Module]
TWO = "agraph (float[batch, words] x, int64[batch, ?] m) => (float[batch, words] y) { y = Neg(x) }"


def shapes(module: Module, **given: int | tuple[int, ...]) -> list[dict[str, tuple[int, ...]]]:
    return [{name: array.shape for name, array in feed.items()} for feed in probing_feeds(module.inputs(), given, 0)]


def test_ones_first_then_each_symbol_another_size_then_larger_ones(parse: Parse) -> None:
    found = shapes(parse(TWO))
    assert found[:3] == [
        {"x": (1, 1), "m": (1, 1)}, {"x": (2, 3), "m": (2, 4)}, {"x": (1, 16), "m": (1, 16)},
    ]  # fmt: skip
    assert found[-1] == {"x": (1, 1024), "m": (1, 1024)}


def test_sizes_that_are_given_stay(parse: Parse) -> None:
    assert [one["x"] for one in shapes(parse(TWO), batch=5)[:2]] == [(5, 1), (5, 2)]
    assert {one["x"] for one in shapes(parse(TWO), x=(4, 7))} == {(4, 7)}


def test_without_open_dimensions_two_feeds_of_different_numbers(parse: Parse) -> None:
    one, other = probing_feeds(parse("agraph (float[4] x) => (float[4] y) { y = Neg(x) }").inputs(), {}, 0)
    assert not np.array_equal(one["x"], other["x"])


def test_feeds_end_where_they_get_too_large(parse: Parse) -> None:
    volume = "agraph (float[n, a, b, c] x) => (float[n, a, b, c] y) { y = Neg(x) }"
    assert shapes(parse(volume))[-1] == {"x": (1, 64, 64, 64)}


def test_a_signed_seed_is_refused(parse: Parse) -> None:
    with pytest.raises(InputError, match="seed -1"):
        probing_feeds(parse(TWO).inputs(), {}, -1)


def conv_over(kernel: int, tmp_path: Path) -> Path:
    """A convolution that needs at least `kernel` samples, behind a constant to fold."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[batch, samples] x) => (float[batch, 1, t] y) <int64[1] one = {{1}}, float[1, 1, {kernel}] w = {{{
        ", ".join(["0.5"] * kernel)}}}> {{ i = Identity(x) u = Unsqueeze(i, one) y = Conv(u, w) }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "sound.onnx")
    return tmp_path / "sound.onnx"


@pytest.mark.parametrize("kernel", [2, 300])
def test_a_model_that_needs_more_than_one_sample_is_compared(kernel: int, tmp_path: Path) -> None:
    report = api.simplify_file(conv_over(kernel, tmp_path), tmp_path / "out.onnx")
    assert not [note for note in report.notes if "not compared" in note]
    assert any(step.deviation is not None for step in report.steps)
    assert api.verify(tmp_path / "sound.onnx", tmp_path / "out.onnx").equal


def test_two_sizes_taken_for_the_same_are_noticed(tmp_path: Path) -> None:
    texts = {
        "right": "s = Shape <start = 1, end = 2> (x)",
        "wrong": "s = Shape <start = 0, end = 1> (x)",
    }
    for name, body in texts.items():
        text = f"""<ir_version: 8, opset_import: ["" : 17]>
            agraph (float[rows, columns] x) => (int64[1] s) {{ {body} }}"""
        onnx.save(onnx.parser.parse_model(text), tmp_path / f"{name}.onnx")
    assert not api.verify(tmp_path / "right.onnx", tmp_path / "wrong.onnx").equal
