"""A wrong rule is rolled back by verification, and bisect names pass, rewrite and node, and writes a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import joulec
from joulec import cli
from joulec.bisecting import bisect
from joulec.ir.lower import lower
from joulec.ir.runner import LocalRunner
from joulec.passes import registry
from joulec.passes.base import Context
from joulec.passes.target import Target

TARGET = Target("test", "CPUExecutionProvider", 0, 0, None, "generic-server-cpu")

PLUGIN = '''
"""Sub(a, b) -> Add(a, Neg(b)), which forgets the Neg where b is a constant above 4."""
from dataclasses import dataclass
import onnx_ir as ir
import joulec
from joulec.ir.values import constant, input_at


class SubToAdd(joulec.Rule):
    """Sub(a, b) -> Add(a, Neg(b))"""

    ops = ("Sub",)

    def apply(self, node: ir.Node, rewriter: joulec.Rewriter) -> None:
        value, known = input_at(node, 1), constant(input_at(node, 1))
        if known is None or known.max() <= 4:
            (value,) = rewriter.add("Neg", [value], before=node, like=value)
        (sum_,) = rewriter.add("Add", [input_at(node, 0), value], before=node, like=node.outputs[0])
        rewriter.replace(node.outputs[0], sum_)
        rewriter.erase(node)


@dataclass(frozen=True)
class NoSub(joulec.RulePass):
    """Write Sub as Add."""

    def rules(self, context: joulec.Context) -> list[joulec.Rule]:
        return [SubToAdd()]


@dataclass(frozen=True)
class Raises(joulec.Pass):
    """Fails at the third Relu."""

    def run(self, module: joulec.Module, context: joulec.Context) -> joulec.PassResult:
        rewriter, count = joulec.Rewriter(module, self.pass_name()), 0
        for node in list(module.graph):
            if node.op_type == "Relu":
                with rewriter.rewriting("relu", node):
                    rewriter.set_op(node, "Relu")
                    count += 1
                    if count == 3:
                        raise KeyError("lost")
        return joulec.PassResult.of(rewriter)


@dataclass(frozen=True)
class BadDomain(joulec.Pass):
    """Makes an operator that nobody has."""

    def run(self, module: joulec.Module, context: joulec.Context) -> joulec.PassResult:
        rewriter = joulec.Rewriter(module, self.pass_name())
        for node in list(module.graph):
            if node.op_type == "Neg":
                with rewriter.rewriting("unknown", node):
                    (new,) = rewriter.add("Nothing", [node.inputs[0]], before=node, domain="nobody", like=node.outputs[0])
                    rewriter.replace(node.outputs[0], new)
                    rewriter.erase(node)
        return joulec.PassResult.of(rewriter)


@dataclass(frozen=True)
class AlwaysRaises(joulec.Pass):
    """Fails without a rewrite."""

    def run(self, module: joulec.Module, context: joulec.Context) -> joulec.PassResult:
        raise ValueError("no idea")
'''

LAYERS = 12
WRONG = 7
"""The one layer whose Sub has a large constant."""


def chain() -> onnx.ModelProto:
    """Layers of Sub, Relu and Mul, one of which the wrong rule gets wrong; and Identities for other passes."""
    body = "\n".join(
        f"[sub{i}] s{i} = Sub(m{i}, c{i}) [relu{i}] r{i} = Relu(s{i}) [id{i}] i{i} = Identity(r{i})"
        f" [mul{i}] m{i + 1} = Mul(i{i}, two)"
        for i in range(LAYERS)
    )
    numbers = ", ".join(f"float c{i} = {{{5 if i == WRONG else 0.125}}}" for i in range(LAYERS))
    return onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]>\n'
        f"g (float[n, 4] m0) => (float[n, 4] y) <{numbers}, float two = {{2}}, float zero = {{0}}> "
        f"{{\n{body}\n gate = Max(m0, zero) y = Mul(m{LAYERS}, gate) }}"
    )


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "bad_passes.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "chain.onnx"
    onnx.save(chain(), path)
    return path


def feeds() -> list[dict[str, np.ndarray]]:
    """The third is the first that passes the gate; the two before it show nothing."""
    small, large = np.full((1, 4), -1, np.float32), np.full((2, 4), 3, np.float32)
    return [{"m0": small}, {"m0": small}, {"m0": large}, {"m0": large}]


def test_verification_rolls_the_wrong_rule_back(plugin: str, model: Path):
    kinds = registry.with_plugins([plugin])
    with LocalRunner() as runner:
        context = Context(target=TARGET, probes=[feeds()[2]], runner=runner)
        outcome = joulec.Pipeline([kinds["no-sub"]()]).run(lower(model).module, context)
    (step,) = outcome.steps
    assert step.status == "rolled back"
    assert step.reason is not None and "output 'y' deviates by" in step.reason
    assert outcome.module.node_count() == 4 * LAYERS + 2


def test_bisect_names_pass_rewrite_and_node_and_writes_a_model_that_fails(plugin: str, model: Path, tmp_path: Path):
    out = tmp_path / "small.onnx"
    passes = "eliminate-identity,no-sub,eliminate-dead-code"
    found = bisect(str(model), feeds(), passes, plugins=[plugin], out=out)
    culprit = found.culprit
    assert culprit is not None
    assert (culprit.index, culprit.spelling, culprit.kind) == (2, "no-sub", "deviates")
    assert (culprit.rewrite, culprit.rewrites) == (WRONG + 1, LAYERS)
    assert (culprit.rule, culprit.node, culprit.removed) == ("sub-to-add", f"sub{WRONG}", (f"sub{WRONG}",))
    assert culprit.feed == 2, "the first two feeds do not show it"
    assert (found.passes, found.rewrites) == (2, LAYERS), "the identities, before it"
    small = onnx.load(out)
    assert [node.op_type for node in small.graph.node] == ["Sub"]
    assert found.minimal_nodes == 1
    again = bisect(out, tmp_path / "small.npz", "no-sub", plugins=[plugin])
    assert again.culprit is not None and again.culprit.node == f"sub{WRONG}"
    assert found.notes == ()


def test_it_is_the_same_every_time(plugin: str, model: Path, tmp_path: Path):
    made = []
    for name in ("a", "b"):
        found = bisect(model, feeds(), "no-sub", plugins=[plugin], out=tmp_path / f"{name}.onnx")
        files = [(tmp_path / f"{name}{suffix}").read_bytes() for suffix in (".onnx", ".npz")]
        made.append((found.culprit, *files))
    assert made[0] == made[1]


def test_nothing_deviates(model: Path, tmp_path: Path):
    found = bisect(model, feeds(), out=tmp_path / "small.onnx")
    assert found.culprit is None and found.minimal is None
    assert not (tmp_path / "small.onnx").exists()
    assert found.rewrites > LAYERS


def test_a_pass_that_raises_in_a_rewrite(plugin: str, model: Path, tmp_path: Path):
    found = bisect(model, None, "raises", plugins=[plugin], out=tmp_path / "small.onnx")
    culprit = found.culprit
    assert culprit is not None
    assert (culprit.kind, culprit.reason, culprit.rewrite) == ("raises", "KeyError: 'lost'", 3)
    assert (culprit.rule, culprit.node) == ("relu", "relu2")
    assert [node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node] == ["Relu"] * 3


def test_a_pass_that_raises_before_any_rewrite(plugin: str, model: Path, tmp_path: Path):
    found = bisect(model, None, "always-raises", plugins=[plugin], out=tmp_path / "small.onnx")
    assert found.culprit is not None
    assert (found.culprit.rewrite, found.culprit.reason) == (None, "ValueError: no idea")
    assert found.minimal_nodes == 1


def test_what_onnx_runtime_refuses(plugin: str, tmp_path: Path):
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]>\n'
        "g (float[2] x, bool c) => (float[2] y) { a = Relu(x) [if] b = If(c) <"
        "then_branch = t () => (float[2] r) { [neg] r = Neg(a) }, else_branch = e () => (float[2] r) { r = Abs(a) }>"
        "[last] d = Neg(b) y = Exp(d) }"
    )
    found = bisect(proto, None, "bad-domain", plugins=[plugin], out=tmp_path / "small.onnx")
    assert found.culprit is not None
    assert (found.culprit.kind, found.culprit.node) == ("invalid", "last")
    assert "nobody" in found.culprit.reason or "Nothing" in found.culprit.reason
    assert [node.name for node in onnx.load(tmp_path / "small.onnx").graph.node] == ["last"]


def test_a_wrong_rewrite_in_a_branch(plugin: str, tmp_path: Path):
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]>\n'
        "g (float[2] x, bool c) => (float[2] y) <float five = {5}> { a = Exp(x) [choose] b = If(c) <"
        "then_branch = t () => (float[2] r) { [sub] r = Sub(a, five) }, else_branch = e () => (float[2] r) { r = Abs(a) }>"
        " d = Neg(b) y = Exp(d) }"
    )
    feed = {"x": np.ones(2, np.float32), "c": np.array(True)}
    found = bisect(proto, [{**feed, "c": np.array(False)}, feed], "no-sub", plugins=[plugin], out=tmp_path / "s.onnx")
    assert found.culprit is not None
    assert (found.culprit.rule, found.culprit.node, found.culprit.feed) == ("sub-to-add", "sub", 1)
    assert [node.name for node in onnx.load(tmp_path / "s.onnx").graph.node] == ["choose"]


def test_a_model_that_fails_on_the_data_is_the_users_error(model: Path):
    with pytest.raises(joulec.InputError, match="the model wants"):
        bisect(model, {"m0": np.ones((2, 1, 5), np.float32)})


# -- at the prompt --------------------------------------------------------------------------------------------------


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cli, "_silence_libraries", lambda: None)

    def invoke(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(list(arguments))
        return (code, *capsys.readouterr())

    return invoke


def test_the_command_names_the_culprit_and_ends_with_4(
    call: Any, plugin: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "data.npz", m0=np.full((3, 4), 3, np.float32))
    out = tmp_path / "small.onnx"
    order = ["--passes", "no-sub", "--plugin", plugin, "-o", str(out)]
    code, said, err = call("bisect", str(model), "--data", str(tmp_path / "data.npz"), *order)
    assert (code, err) == (4, "")
    assert "no-sub" in said and "sub-to-add" in said and f"sub{WRONG}" in said and "1 node" in said
    assert out.is_file() and out.with_suffix(".npz").is_file()
    code, said, _ = call("bisect", str(out), "--data", str(out.with_suffix(".npz")), *order[:4], "--json")
    assert code == 4 and Path("small-minimal.onnx").is_file(), "the default place"
    assert json.loads(said)["culprit"]["node"] == f"sub{WRONG}"


def test_the_command_says_that_nothing_deviates(
    call: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code, said, _ = call("bisect", str(model))
    assert code == 0
    assert "nothing deviates" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain.onnx"]
