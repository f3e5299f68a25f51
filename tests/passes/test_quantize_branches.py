"""INT8 inside the branches of If: ranges of what runs there, kernels found there, and branches never taken."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import int8_kit as kit
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from joulec.ir import walk
from joulec.ir.module import Module, inline_proto
from joulec.ir.runner import LocalRunner
from joulec.passes._exposing import expose
from joulec.passes.calibrate import Calibrate
from joulec.passes.quantize_dynamic import QuantizeDynamic

BRANCHES = """g (float[1,4,6,6] x, bool t) => (float[1,4,6,6] y) {
  c0 = Conv(x, w)  c = Relu(c0)
  y = If(t) <then_branch = a () => (float[1,4,6,6] p) { d = Conv(c, w) e = Relu(d) p = Conv(e, w) },
             else_branch = b () => (float[1,4,6,6] q) { d = Conv(c, v) e = Relu(d) q = Conv(e, v) }>
}"""
"""Sibling branches use the same names, share a weight with the main graph, and read a value of it."""


def module() -> Module:
    weights = {name: array / 2 for name, array in kit.random(w=(4, 4, 1, 1), v=(4, 4, 1, 1)).items()}
    return kit.build(BRANCHES, weights)


def data(*taken: bool) -> list[dict[str, Any]]:
    return [{**kit.random(i, x=(1, 4, 6, 6)), "t": np.array(taken[i % len(taken)])} for i in range(6)]


def kernels(made: Module, folder: Path) -> Counter[str]:
    """What ONNX Runtime runs, in branches too."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(inline_proto(made.model).SerializeToString(), settings, providers=["CPUExecutionProvider"])
    pending, found = [onnx.load(folder / "optimized.onnx").graph], Counter[str]()
    while pending:
        for node in pending.pop().node:
            found[node.op_type] += 1
            pending += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found


def test_both_branches_run_on_integers(tmp_path: Path) -> None:
    given = data(True, False)
    made, result = kit.quantized(module(), given)
    found = kernels(made, tmp_path)
    assert found["QLinearConv"] == 5 and found["Conv"] == 0
    assert result.notes == ("INT8: 5 Conv",)
    assert kit.relative_error(module(), made, given) < 0.04


def test_a_branch_that_the_data_never_take_stays_float() -> None:
    given = data(True)
    made, result = kit.quantized(module(), given)
    assert result.notes == ("INT8: 1 Conv",), "and names that it shares have no range: they would be its range too"
    assert "'e' is not calibrated" in kit.reasons(result).values()
    assert {"v"} <= set(made.graph.initializers)
    assert kit.relative_error(module(), made, data(False)) < 0.04


def test_ranges_of_a_name_used_in_both_branches_cover_both() -> None:
    both, one = module(), module()
    given = data(True, False)
    Calibrate(method="minmax").run(both, kit.context(given))
    Calibrate().run(one, kit.context(data(True)))
    with LocalRunner() as runner:
        opened, carriers = expose(both, ["e"])
        handle = runner.load(opened, extra_outputs=carriers["e"])
        seen = [array for feed in given for array in list(runner.run(handle, feed).values())[1:] if array.size]
    assert len(carriers["e"]) == 2 and len(seen) == len(given)
    assert both.ranges["e"].high == max(float(array.max()) for array in seen)
    assert "c" in one.ranges and "e" not in one.ranges, "the other branch never ran: whose range would it be?"


@pytest.mark.parametrize("taken", [True, False])
def test_nested_branches_are_handed_out_level_by_level(taken: bool) -> None:
    text = """g (float[1,4,6,6] x, bool t) => (float[1,4,6,6] y) {
      y = If(t) <then_branch = a () => (float[1,4,6,6] p) {
          p = If(t) <then_branch = c () => (float[1,4,6,6] r) { k = Conv(x, w) r = Relu(k) },
                     else_branch = f () => (float[1,4,6,6] s) { s = Relu(x) }>
        }, else_branch = b () => (float[1,4,6,6] q) { q = Neg(x) }>
    }"""
    one = kit.build(text, kit.random(w=(4, 4, 1, 1)))
    opened, carriers = expose(one, ["k", "x", "nothing"])
    assert list(carriers) == ["k"] and len(carriers["k"]) == 1
    (feed,) = data(taken)[:1]
    with LocalRunner() as runner:
        found = runner.run(runner.load(opened, extra_outputs=carriers["k"]), feed)[carriers["k"][0]]
    assert found.size == (4 * 36 if taken else 0)


def test_nothing_inside_means_no_copy() -> None:
    one = module()
    assert expose(one, ["c", "x"]) == (one, {})


def test_a_float_output_of_a_branch_keeps_its_name() -> None:
    made, _ = kit.quantized(module(), data(True, False))
    (node,) = (node for node in made.graph if node.op_type == "If")
    assert [[v.name for v in graph.outputs] for graph in walk.subgraphs(node)] == [["p"], ["q"]]


def test_ranges_of_each_run_may_follow_calibrated_ones() -> None:
    text = "g (float[1,4,6,6] x) => (float[1,9,8] y) { c = Conv(x, w) r = Reshape(c, s) f = Exp(r) y = MatMul(f, m) }"
    one = kit.build(text, {**kit.random(w=(4, 4, 1, 1), m=(16, 8)), "s": np.array([1, 9, 16])})
    wide = kit.build(text.replace("[1,9,8]", "[1,9,80]"), {**kit.random(w=(4, 4, 1, 1), m=(16, 80)), "s": np.array([1, 9, 16])})
    for each, count in ((one, 0), (wide, 1)):
        given = kit.feeds(x=(1, 4, 6, 6))
        made, _ = kit.quantized(each, given, only=("Conv",))
        result = QuantizeDynamic().run(made, kit.context(given))
        assert kit.ops(made)["MatMulInteger"] == count and kit.ops(made)["QuantizeLinear"] >= 1, result.notes
