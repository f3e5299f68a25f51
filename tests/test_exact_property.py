"""Whatever the graph, the exact passes keep what it computes, verify clean, and come to the same bytes twice."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx.printer
import onnx_ir as ir
from campaign import campaign
from hypothesis import assume, given, note
from random_graphs import Grown, graphs

from joulec.errors import JoulecError
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.ir.session import SessionOptions
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.base import Context
from joulec.passes.default import simplifying_passes
from joulec.passes.target import Target
from joulec.passes.upgrade_opset import UpgradeOpset

PLAIN = SessionOptions(optimization="none")
CONTEXT = Context(target=Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu"))
TOLERANCE = 1e-5
"""Relative to the largest output; the numbers of the graphs are small integers and powers of two, so sums are exact."""


def run(module: Module, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The outputs, or None where ONNX Runtime does not take the model or the feed."""
    with LocalRunner() as runner:
        try:
            return runner.run(runner.load(module, options=PLAIN), feed)
        except JoulecError:
            return None


def simplified(module: Module) -> list[str]:
    """Run every exact pass in place, each verified, and return the names of those that changed something."""
    verifier = Verifier(module)
    fired = []
    for one in simplifying_passes():
        infer_shapes(module)
        if one.run(module, CONTEXT).changed:
            fired.append(one.pass_name())
        verifier.verify(module)
    return fired


def agree(actual: dict[str, np.ndarray] | None, expected: dict[str, np.ndarray], exact: bool) -> None:
    assert actual is not None
    assert list(actual) == list(expected)
    for name, reference in expected.items():
        same(actual[name], reference, exact)


def same(actual: np.ndarray, expected: np.ndarray, exact: bool) -> None:
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if exact or expected.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        if expected.dtype.kind == "f":
            numbers = ~np.isnan(expected)
            np.testing.assert_array_equal(np.signbit(actual[numbers]), np.signbit(expected[numbers]))
        return
    finite = np.abs(expected[np.isfinite(expected)])
    atol = TOLERANCE * max(1.0, float(finite.max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, equal_nan=True)


@campaign(80)
@given(graphs())
def test_exact_passes_keep_what_a_graph_computes(grown: Grown) -> None:
    module = Module(ir.from_proto(grown.model))
    before = [run(module, feed) for feed in (grown.feed, grown.other)]
    assume(before[0] is not None)  # a runtime that cannot run the original says nothing about the passes
    note(onnx.printer.to_text(grown.model))
    twin = module.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        note(f"fired: {simplified(module)}")
        simplified(twin)
    note(onnx.printer.to_text(module.to_proto()))
    assert module.to_proto().SerializeToString(deterministic=True) == twin.to_proto().SerializeToString(deterministic=True)
    for feed, expected in zip((grown.feed, grown.other), before, strict=True):
        if expected is not None:
            agree(run(module, feed), expected, grown.exact)


@campaign(80)
@given(graphs())
def test_a_raised_opset_keeps_what_a_graph_computes(grown: Grown) -> None:
    module = Module(ir.from_proto(grown.model))
    before, verifier = run(module, grown.feed), Verifier(module)
    assume(before is not None and module.opset < 21)
    result = UpgradeOpset(to=21).run(module, CONTEXT)
    assert result.refusals == ()
    verifier.verify(module)
    agree(run(module, grown.feed), before or {}, exact=True)
