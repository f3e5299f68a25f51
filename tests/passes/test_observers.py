"""Dumps: one file per pass that changed something, numbered in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from joulec.errors import InputError
from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.passes.base import Context
from joulec.passes.eliminate_dead_code import EliminateDeadCode
from joulec.passes.eliminate_identity import EliminateIdentity
from joulec.passes.fold_constants import FoldConstants
from joulec.passes.observers import Dump
from joulec.passes.pipeline import Pipeline
from joulec.passes.target import Target

TARGET = Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu")


def test_only_passes_that_changed_something_are_dumped(parse: Callable[..., Module], tmp_path: Path) -> None:
    module = parse("agraph (float[4] x) => (float[4] y) { a = Identity(x) b = Neg(x) y = Relu(a) }")
    passes = [FoldConstants(), EliminateIdentity(), EliminateDeadCode()]
    Pipeline(passes, [Dump(tmp_path / "dumps")]).run(module, Context(target=TARGET))
    files = sorted(file.name for file in (tmp_path / "dumps").iterdir())
    assert files == ["01-eliminate-identity.onnx", "02-eliminate-dead-code.onnx"]
    assert [node.op_type for node in read(tmp_path / "dumps" / files[0]).graph] == ["Neg", "Relu"]
    assert [node.op_type for node in read(tmp_path / "dumps" / files[1]).graph] == ["Relu"]


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        Dump(tmp_path / "taken")
