"""Models too large to run: parts around each rewrite are compared, and a wrong rewrite is found in them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from fusion_kit import build, numbers
from onnx import TensorProto, helper
from rewrite_kit import TARGET

from joulec.ir.rewrite import Rewriter
from joulec.ir.rules import Rule
from joulec.ir.runner import LocalRunner
from joulec.passes.base import Context, Pass, RulePass
from joulec.passes.eliminate_identity import EliminateIdentity
from joulec.passes.pipeline import Outcome, Pipeline


class SubToAdd(Rule):
    """a - b -> a + b, which is wrong."""

    ops = ("Sub",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        rewriter.set_op(node, "Add")


@dataclass(frozen=True)
class Wrong(RulePass):
    """Turns Sub into Add."""

    def rules(self, context: Context) -> list[Rule]:
        return [SubToAdd()]


GRAPH = """(float[N,8] x) => (float[N,8] y) {
    a = Relu(x)  b = MatMul(a, w)  c = Identity(b)  d = Sub(c, a)  e = Identity(d)  y = Tanh(e) }"""


def ran(one: Pass) -> Outcome:
    with LocalRunner() as runner:
        context = Context(TARGET, obstacle="it is too large", runner=runner, excerpts=True)
        return Pipeline([one]).run(build(GRAPH, w=numbers(8, 8)), context)


def test_a_right_pass_is_kept_and_the_note_says_what_was_compared() -> None:
    outcome = ran(EliminateIdentity())
    assert [step.status for step in outcome.steps] == ["applied"]
    assert outcome.notes == (
        "outputs were not compared: it is too large",
        "excerpts around what the passes changed: 1 run and compared, 0 could not be run alone",
    )


def test_a_wrong_pass_is_rolled_back_by_an_excerpt() -> None:
    outcome = ran(Wrong())
    assert [step.status for step in outcome.steps] == ["rolled back"]
    assert "deviates by" in str(outcome.steps[0].reason)


LAYERS, WIDTH = 12, 8192


def large(folder: Path) -> Path:
    """3 GiB of zeros in a sparse file: MatMul, Identity, Relu, twelve times."""
    size = WIDTH * WIDTH * 4
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(LAYERS * size)
    nodes, weights, last = [], [], "x"
    for layer in range(LAYERS):
        tensor = onnx.TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", str(layer * size)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        weights.append(tensor)
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Identity", [f"m{layer}"], [f"i{layer}"]))
        nodes.append(helper.make_node("Relu", [f"i{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    shape = ["n", WIDTH]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", last)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    path = folder / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.slow
def test_three_gibibytes_are_simplified_in_half_a_gibibyte(tmp_path: Path) -> None:
    code = (
        "import joulec, sys, pathlib\n"
        "made = joulec.simplify(sys.argv[1])\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"  # not ru_maxrss, which a fork inherits
        "peak = status.partition('VmHWM:')[2].split()[0]\n"
        "print(len(made.graph.node), made.graph.initializer[0].data_location, peak)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(large(tmp_path))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    nodes, location, peak = map(int, done.stdout.split())
    assert (nodes, location) == (2 * LAYERS, onnx.TensorProto.EXTERNAL)
    assert peak < 500 * 1024, f"{peak / 1024:.0f} MiB"
