"""joulec lint: exit codes, JSON, and a mended model that runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from joulec.cli import main
from joulec.errors import InputError
from joulec.linting import check

TEXT = """<ir_version: 9, opset_import: ["" : 19]> g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(wq, ws, wz)
    y = Conv <pads = [1, 1, 1, 1]> (d, w) }"""


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    proto = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    arrays = {
        "s": np.float32(0.05), "z": np.uint8(128), "wq": rng.integers(-99, 99, size=(16, 16, 3, 3)).astype(np.int8),
        "ws": np.float32(0.01), "wz": np.int8(0),
    }  # fmt: skip
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    path = tmp_path / "quantized.onnx"
    onnx.save(proto, path)
    return path


def test_errors_exit_with_4_and_are_listed_by_rule(quantized, capsys):
    assert main(["lint", str(quantized), "--target", "tensorrt"]) == 4
    out = capsys.readouterr().out
    assert "error unsigned-integers (2 nodes)" in out


def test_json_holds_every_finding(quantized, capsys):
    assert main(["lint", str(quantized), "--json"]) == 4
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["counts"] == {"error": 2}
    assert {row["rule"] for row in found["findings"]} == {"unsigned-integers"}


def test_fix_writes_a_model_that_passes(quantized, tmp_path, capsys):
    out = tmp_path / "mended.onnx"
    assert main(["lint", str(quantized), "--fix", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left"] == []
    assert found["deviation"] < 0.05
    assert main(["lint", str(out), "--strict"]) == 0
    assert onnx.load(out).graph.output[0].name == "y"


def test_other_targets_have_rules_but_no_fix(quantized, tmp_path, capsys):
    assert main(["lint", str(quantized), "--target", "cuda"]) == 0
    assert main(["lint", str(quantized), "--target", "cuda", "--strict"]) == 4
    with pytest.raises(InputError, match="cuda has rules but no fixes"):
        check(quantized, "cuda", tmp_path / "x.onnx")
    capsys.readouterr()


def test_rules_are_listed(capsys):
    assert main(["lint", "--rules", "--json"]) == 0
    assert {"rule", "severity", "text"} == set(json.loads(capsys.readouterr().out)[0])
    assert main(["lint"]) == 2
    assert "no model" in capsys.readouterr().err
