"""Shared fixtures: models in ONNX text form, and modules made from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx.parser
import onnx_ir as ir
import pytest

from joulec.ir.module import Module


@pytest.fixture(autouse=True)
def no_profiles_of_the_users(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that somebody calibrated on this machine must not price the tests' models."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-config"))


@pytest.fixture(autouse=True)
def no_decisions_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier build measured, in this run or before it, must not answer for this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.with_name(f"{tmp_path.name}-cache")))  # tests list tmp_path


@pytest.fixture
def parse() -> Callable[..., Module]:
    """Make a module from a graph in ONNX text form: `parse("agraph (float[N] x) => (float[N] y) { y = Relu(x) }")`."""

    def make(graph: str, opset: int = 19, functions: str = "") -> Module:
        header = f'<ir_version: 9, opset_import: ["" : {opset}]>'
        return Module(ir.from_proto(onnx.parser.parse_model(f"{header}\n{graph}\n{functions}")))

    return make
