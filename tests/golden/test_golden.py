"""Golden graphs: each file holds a pipeline, a graph, what becomes of it, and the reasons for what did not happen.

A file has sections between lines of `---`: the pipeline as at `--passes`; the model in ONNX text; the model after it, or
`unchanged`; and, where something was refused, the reasons, one a line. Value infos, node names and provenance are left
out. Both graphs are also run, and must compute the same.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.printer
import onnx_ir as ir
import pytest

from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.ir.session import SessionOptions
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.base import Context, Fidelity
from joulec.passes.registry import builtin
from joulec.passes.spelling import parse
from joulec.passes.target import Target

CONTEXT = Context(target=Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu"))
CONTEXTS = {"fit-kernels": Context(target=Target("cuda", "CUDAExecutionProvider", 19, 9, None, "h100"))}
"""Passes that look at a target's kernels -> the target of their golden graphs; the others run for the CPU."""
FILES = sorted(Path(__file__).parent.glob("*.txt"))
NOT_RUN = {
    "eliminate-common-subexpressions-random": "its numbers are random",
    "eliminate-failing-branches": "it fails on all sizes but one",
}


def normal(proto: onnx.ModelProto) -> str:
    """The text of a model without value infos, node names and provenance."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.metadata_props[:]
    _strip(bare.graph)
    return onnx.printer.to_text(bare)


def _strip(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for node in graph.node:
        node.ClearField("name")
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _strip(attribute.g)


def compiled(pipeline: str, text: str) -> tuple[str, list[str]]:
    """The model after the pipeline, each pass verified, and the reasons for what was refused, in order."""
    module = Module(ir.from_proto(onnx.parser.parse_model(text)))
    verifier, reasons = Verifier(module), []
    for one in parse(pipeline, builtin()):
        assert one.fidelity is Fidelity.EXACT
        infer_shapes(module)
        result = one.run(module, CONTEXTS.get(one.pass_name(), CONTEXT))
        reasons += [f"{refusal.rule}: {refusal.reason}" for refusal in result.refusals]
        verifier.verify(module)
    return normal(module.to_proto()), list(dict.fromkeys(reasons))


def outputs(text: str) -> dict[str, np.ndarray]:
    module = Module(ir.from_proto(onnx.parser.parse_model(text)))
    random, feed = np.random.default_rng(0), {}
    for value in module.inputs():
        assert value.shape is not None
        assert value.dtype is not None
        numbers = random.normal(size=[d if isinstance(d, int) else 3 for d in value.shape])
        feed[value.name or ""] = (numbers if value.dtype.is_floating_point() else 9 * numbers).astype(value.dtype.numpy())
    with LocalRunner() as runner:
        return runner.run(runner.load(module, options=SessionOptions(optimization="none")), feed)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    pipeline, before, expected, *refused = path.read_text().split("---\n")
    after, reasons = compiled(pipeline.strip(), before)
    wanted = normal(onnx.parser.parse_model(before if expected.strip() == "unchanged" else expected))
    assert after == wanted, "\n".join(difflib.unified_diff(wanted.splitlines(), after.splitlines(), "golden", "now", lineterm=""))
    assert reasons == (refused[0].splitlines() if refused else [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_both_graphs_compute_the_same(path: Path) -> None:
    _, before, after, *_ = path.read_text().split("---\n")
    if after.strip() == "unchanged" or path.stem in NOT_RUN:
        return
    new = outputs(after)
    for name, old in outputs(before).items():
        np.testing.assert_allclose(new[name], old, rtol=0, atol=2e-6 * max(1.0, float(np.abs(old).max())))


def test_every_exact_pass_has_a_golden_graph() -> None:
    named = {one.pass_name() for path in FILES for one in parse(path.read_text().split("---\n")[0].strip(), builtin())}
    exact = {name for name, kind in builtin().items() if kind.fidelity is Fidelity.EXACT}
    # calibrate only measures; onnxsim is another project's, whose graphs change with its versions; smooth-quant follows data
    assert exact - named == {"calibrate", "onnxsim", "smooth-quant"}
