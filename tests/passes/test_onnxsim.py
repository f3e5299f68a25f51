"""onnxsim: the external pass is held to the same checks as every other."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from joulec.errors import UnavailableError
from joulec.ir.module import Module
from joulec.passes.base import Context
from joulec.passes.onnxsim import Onnxsim
from joulec.passes.pipeline import Pipeline
from joulec.passes.target import Target

TARGET = Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu")
GRAPH = "agraph (float[N, 4] x) => (float[N, 4] y) { a = Identity(x) b = Relu(a) y = Identity(b) }"


def test_it_simplifies_and_the_record_says_so(parse: Callable[..., Module]) -> None:
    pytest.importorskip("onnxsim")
    outcome = Pipeline([Onnxsim()]).run(parse(GRAPH), Context(target=TARGET))
    (step,) = outcome.steps
    assert step.status == "applied", step.reason
    assert step.nodes == (3, 1)
    assert step.result.notes == ("onnx-simplifier: 3 nodes became 1",)
    assert [v.name for v in outcome.module.graph.outputs] == ["y"]


def test_masks_are_refused(parse: Callable[..., Module]) -> None:
    pytest.importorskip("onnxsim")
    module = parse("agraph (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {0, 1, 1, 1}> { y = MatMul(x, w) }")
    weight = module.graph.initializers["w"].const_value
    assert weight is not None
    module.masks["w"] = weight.numpy() != 0
    outcome = Pipeline([Onnxsim()]).run(module, Context(target=TARGET))
    assert outcome.steps[0].reason == "onnx-simplifier knows no masks; run it before pruning"


def test_missing_package_says_how_to_get_it(parse: Callable[..., Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    with pytest.raises(UnavailableError, match=r"joulec\[onnxsim\]"):
        Onnxsim().run(parse(GRAPH), Context(target=TARGET))
