"""Modules: what is counted, and where weights lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from compile_kit import write

from joulec.ir.module import Module
from joulec.ir.onnx_file import read


def test_weights_in_files_can_be_brought_into_memory(
    parse: Callable[..., Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("joulec.ir.module.INLINE_LIMIT", 8)
    weights = np.arange(100, dtype=np.float32)  # below 256 bytes a weight is never put outside
    write(tmp_path / "w.onnx", "g (float[100] x) => (float[100] y) { y = Mul(x, w) }", {"w": weights})
    read(tmp_path / "w.onnx").save(tmp_path / "m.onnx")
    module = read(tmp_path / "m.onnx")
    assert isinstance(module.graph.initializers["w"].const_value, ir.ExternalTensor)
    module.load_weights()
    for file in tmp_path.iterdir():
        file.unlink()
    tensor = module.graph.initializers["w"].const_value
    assert tensor is not None and not isinstance(tensor, ir.ExternalTensor)
    np.testing.assert_array_equal(tensor.numpy(), weights)


def test_constant_nodes_compute_nothing_and_are_not_counted(parse: Callable[..., Module]) -> None:
    module = parse("g (float[1] x) => (float[1] y) { c = Constant<value_float=2.0>() y = Add(x, c) }")
    assert module.node_count() == 1
