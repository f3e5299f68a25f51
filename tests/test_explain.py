"""For every node of a model: where it comes from, what would become of it, and which rewrites were refused and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.parser
import pytest
from compile_kit import cnn, feeds

import joulec
from joulec import cli
from joulec.explaining import Explanation, NearMiss, NodeStory, explain

GRAPH = """<ir_version: 9, opset_import: ["" : 18]>
g (float[n, 3] x, float[3] late) => (float[n, 2] y, float[n, 3] z)
<float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] bias = {1, 2}, float one = {1}, float two = {2}, float half = {0.5}> {
    [same] a = Mul(x, one)
    [dense] h = MatMul(a, w)
    [bias] b = Add(h, bias)
    [act] r = Relu(b)
    [keep] y = Identity(r)
    [fold1] c = Add(two, half)
    [scale] s = Mul(x, c)
    [shift] z = Add(s, late)
    [dead] d = Exp(x)
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH), path)
    return path


@pytest.fixture
def simplified(model: Path) -> Path:
    path = model.with_name("smaller.onnx")
    onnx.save(joulec.simplify(model), path)
    return path


def stories(found: Explanation) -> dict[str, NodeStory]:
    return {story.name: story for story in found.nodes}


# -- where nodes come from ------------------------------------------------------------------------------------------


def test_each_node_of_a_simplified_model_says_where_it_comes_from(simplified: Path):
    found = explain(simplified)
    told = stories(found)
    (gemm,) = (story for story in found.nodes if story.op == "Gemm")
    assert sorted(gemm.sources) == ["bias", "dense"]
    assert gemm.history[-1] == "fuse-gemm/mat-mul-add"
    assert (told["scale"].sources, told["scale"].history) == (("scale",), ())
    assert {story.op for story in found.nodes} == {"Gemm", "Relu", "Mul", "Add"}


def test_a_second_look_changes_nothing(simplified: Path):
    found = explain(simplified)
    assert found.changes == () and found.undone == ()
    assert all(story.becomes == (story.name,) and story.removed is None for story in found.nodes)


def test_forged_metadata_are_data(simplified: Path):
    proto = onnx.load(simplified)
    node = proto.graph.node[0]
    del node.metadata_props[:]
    oh.set_metadata_props(
        node, {"joulec.pass": "\x1b[31m", "joulec.sources": "[" * 10_000, "joulec.history": '{"a": 1}'}
    )
    story = explain(proto).nodes[0]
    assert story.history == ("\x1b[31m/",) and story.sources == (node.name,)


# -- what would be done ---------------------------------------------------------------------------------------------


def test_what_would_become_of_each_node_of_a_raw_model(model: Path):
    found = explain(model)
    told = stories(found)
    assert list(told) == ["same", "dense", "bias", "act", "keep", "fold1", "scale", "shift", "dead"]
    assert told["same"].removed == "eliminate-identity/remove-identity"
    assert told["dead"].removed == "eliminate-dead-code/unused-node"
    assert told["fold1"].removed == "fold-constants/fold"
    assert len(told["dense"].becomes) == 1 and told["dense"].becomes == told["bias"].becomes
    assert told["scale"].becomes == ("scale",)
    assert all(story.history == () for story in found.nodes)


def test_explaining_leaves_the_model_alone(model: Path):
    before = model.read_bytes()
    assert explain(model) == explain(model)
    assert model.read_bytes() == before


# -- what was refused -----------------------------------------------------------------------------------------------


def branching() -> onnx.ModelProto:
    """A batch normalization that cannot go into the Conv before it, because the Conv's result is returned as well."""
    return onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 18]>
    g (float[n, 1, 4, 4] x) => (float[n, 1, 4, 4] y, float[n, 1, 4, 4] c)
    <float[1, 1, 1, 1] w = {2}, float[1] s = {3}, float[1] b = {1}, float[1] m = {0}, float[1] v = {1}> {
        [conv] c = Conv(x, w)
        [norm] y = BatchNormalization(c, s, b, m, v)
    }""")


def test_a_near_miss_says_why_and_where(tmp_path: Path):
    path = tmp_path / "m.onnx"
    onnx.save(joulec.simplify(branching()), path)
    (miss,) = (miss for miss in explain(path).refusals if miss.by == "fuse-affine")
    assert miss == NearMiss(
        "fuse-affine", "affine-behind", "the linear operator's output is used elsewhere too", ("norm",)
    )
    only = explain(path, "norm")
    assert [story.name for story in only.nodes] == ["norm"] and miss in only.refusals
    assert explain(path, "conv").refusals == ()


def test_an_artefact_adds_what_its_other_passes_refused(model: Path, tmp_path: Path):
    joulec.optimize(model, tmp_path / "out", passes="prune-magnitude{sparsity=0.5}", max_drop=None)
    found = explain(tmp_path / "out")
    (miss,) = (miss for miss in found.refusals if miss.by == "prune-magnitude")
    assert "has only 6 elements" in miss.reason and miss.nodes == ("dense",)
    manifest = tmp_path / "out" / "manifest.json"
    data = json.loads(manifest.read_text())
    data["report"]["steps"] = 3
    manifest.write_text(json.dumps(data))
    with pytest.raises(joulec.InputError, match="not a manifest of joulec's"):
        explain(tmp_path / "out")


# -- one node -------------------------------------------------------------------------------------------------------


def test_an_artefact_tells_what_8_bits_hold_and_which_operators_cost_most(call: Any, tmp_path: Path):
    build(tmp_path)
    found = explain(tmp_path / "out")
    assert {one.name for one in found.tensors} >= {"x"} and {cost.op for cost in found.costs} == {"Conv", "Gemm"}
    x = next(one for one in found.tensors if one.name == "x")
    assert x.low < 0 < x.high and x.sqnr is not None and x.sqnr > 20 and x.saturated is not None
    _, said, _ = call("explain", tmp_path / "out")
    assert "Operators that cost most accuracy, each alone in integers" in said
    assert "the worst first" in said and "signal to noise" in said and f"{x.sqnr:.1f} dB" in said
    costly = max(found.costs, key=lambda cost: cost.noise)
    assert "alone in integers" in call("explain", tmp_path / "out", costly.node)[1]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Operators that cost most accuracy" in page and "What 8 bits hold" in page


def build(tmp_path: Path) -> None:
    """INT8 as ordered, under a budget that not all of it holds."""
    path = cnn(tmp_path / "cnn.onnx")
    data = {"x": np.stack([feed["x"] for feed in feeds(16)])}
    joulec.optimize(path, tmp_path / "out", data=data, int8=True, max_drop=0.01)


def test_a_node_is_found_by_its_name_by_its_value_and_by_what_went_into_it(simplified: Path):
    (gemm,) = explain(simplified, "bias").nodes
    assert gemm.op == "Gemm"
    assert explain(simplified, gemm.outputs[0]).nodes == explain(simplified, gemm.name).nodes == (gemm,)
    with pytest.raises(joulec.InputError, match="no node is called 'nobody'"):
        explain(simplified, "nobody")


# -- at the prompt --------------------------------------------------------------------------------------------------


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cli, "_silence_libraries", lambda: None)

    def invoke(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return invoke


def test_the_command_tells_groups_one_node_and_data(call: Any, model: Path, simplified: Path):
    code, said, _ = call("explain", simplified)
    assert code == 0
    assert "Where 1 node come" in said and "fuse-gemm/mat-mul-add" in said and "What simplify would do" not in said
    code, said, _ = call("explain", model)
    assert code == 0 and "What simplify would do" in said and "eliminate-dead-code/unused-node" in said
    code, said, _ = call("explain", model, "dead")
    assert code == 0 and "would go" in said and "eliminate-dead-code/unused-node" in said
    code, said, _ = call("explain", simplified, "bias", "--json")
    assert code == 0 and sorted(json.loads(said)["nodes"][0]["sources"]) == ["bias", "dense"]
    code, said, err = call("explain", simplified, "\x1b[31m")
    assert (code, said) == (2, "") and "\\x1b[31m" in err and len(err.splitlines()) == 1


def test_names_from_the_model_move_no_cursor(call: Any, tmp_path: Path):
    name = "\x1b[2J\u202e[bold]"
    node = oh.make_node("Relu", ["x"], ["y"], name=name)
    value = oh.make_tensor_value_info
    graph = oh.make_graph([node], "g", [value("x", 1, [2])], [value("y", 1, [2])])
    oh.set_metadata_props(node, {"joulec.pass": name, "joulec.rule": name, "joulec.sources": json.dumps([name])})
    graph.node[0].CopyFrom(node)
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    for arguments in (["explain", tmp_path / "m.onnx"], ["explain", tmp_path / "m.onnx", name]):
        code, said, _ = call(*arguments)
        assert code == 0 and "\x1b" not in said and "\u202e" not in said
        assert "[bold]" in said


def test_whole_models_run_in_a_child_when_limited(simplified: Path):
    from joulec.ir.sandbox import Limits

    assert explain(simplified, limits=Limits(None, 60.0)) == explain(simplified)
