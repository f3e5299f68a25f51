"""Running one exact pass on a small graph: verified, compared bit for bit under ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.ir.session import SessionOptions
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.base import Context, Pass, PassResult
from joulec.passes.target import Target

TARGET = Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu")


def apply(module: Module, one: Pass, feed: Mapping[str, np.ndarray] | None = None) -> PassResult:
    """Run `one` in place, verify, and with a feed demand the very same outputs."""
    infer_shapes(module)
    before = run(module, feed) if feed is not None else {}
    verifier = Verifier(module)
    result = one.run(module, Context(target=TARGET))
    verifier.verify(module)
    for name, expected in before.items():
        np.testing.assert_array_equal(run(module, feed or {})[name], expected, strict=True)
    return result


def run(module: Module, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs, without ONNX Runtime's own optimizer."""
    with LocalRunner() as runner:
        return runner.run(runner.load(module, options=SessionOptions(optimization="none")), feed)


def ops(module: Module) -> list[str]:
    """The operators of the main graph in order, Constants left out."""
    return [node.op_type for node in module.graph if node.op_type != "Constant"]


def reasons(result: PassResult) -> set[str]:
    """Why rewrites were refused."""
    return {refusal.reason for refusal in result.refusals}
