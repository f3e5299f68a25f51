"""The rungs of the ladder of evidence that look at the file alone."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import joulec
from joulec.backends.checks import checker

WRONG = "g (float[1, 4] x) => (float[1, n] y) { s = Constant<value = int64[3] {1, 2, 2}>() y = Reshape(x, s) }"
"""Declares rank 2 for what has rank 3: ONNX Runtime warns and computes."""


def written(folder: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}'), folder / "model.onnx")
    return folder


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_a_model_that_declares_another_rank_for_its_output_is_compiled(tmp_path: Path, target: str) -> None:
    model = written(tmp_path, WRONG) / "model.onnx"
    found = joulec.optimize(model, tmp_path / "out", target=target).reports[target]
    (rung,) = [rung for rung in found.checks if rung.name == "onnx checker"]
    assert rung.status == "skipped" and "the input model declares outputs of another shape" in rung.detail


def test_a_contradiction_inside_the_graph_fails(tmp_path: Path) -> None:
    inside = "g (float[1, 4] x, float[3, 2] w) => (float[1, 2] y) { y = MatMul(x, w) }"
    assert checker(written(tmp_path, inside), None).status == "failed"
    assert checker(tmp_path, "something older").status == "skipped"


def test_a_model_that_holds_passes(tmp_path: Path) -> None:
    assert checker(written(tmp_path, "g (float[4] x) => (float[4] y) { y = Relu(x) }"), None).status == "passed"
