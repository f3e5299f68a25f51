"""The rungs of the ladder of evidence that look at the file alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import joulec
from joulec.backends.checks import checker
from tests.passes.int8_kit import CNN, build, cnn_weights

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


def test_channels_that_were_cut_by_order_fail_no_check_of_numbers(tmp_path: Path) -> None:
    data, out = tmp_path / "x.npz", tmp_path / "out"
    (tmp_path / "cnn").mkdir()
    build(CNN, cnn_weights()).save(tmp_path / "cnn" / "model.onnx")
    np.savez(data, x=np.random.default_rng(0).normal(size=(8, 3, 12, 12)).astype(np.float32))
    order = "prune-channels{ratio=0.5}"
    found = joulec.optimize(tmp_path / "cnn" / "model.onnx", out, data=data, passes=order, max_drop=None, int8=False)
    (rung,) = [rung for rung in found.reports["cpu"].checks if rung.name == "CPU numerics"]
    assert rung.status == "passed" and "for the accuracy budget to judge" in rung.detail


def test_a_contradiction_inside_the_graph_fails(tmp_path: Path) -> None:
    inside = "g (float[1, 4] x, float[3, 2] w) => (float[1, 2] y) { y = MatMul(x, w) }"
    assert checker(written(tmp_path, inside), None).status == "failed"
    assert checker(tmp_path, "something older").status == "skipped"


def test_a_model_that_holds_passes(tmp_path: Path) -> None:
    assert checker(written(tmp_path, "g (float[4] x) => (float[4] y) { y = Relu(x) }"), None).status == "passed"
