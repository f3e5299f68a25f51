"""The Rewriter: what it changes, what it records, what it refuses, and what it will not let a pass do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.ir.provenance import HISTORY_KEY, MAX_SOURCES, PASS_KEY, RULE_KEY, SOURCES_KEY, history_of, sources_of
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import MAX_APPLICATIONS, Rule, apply_rules
from joulec.ir.verify import problems

Parse = Callable[..., Module]
CHAIN = "agraph (float[4] x) => (float[4] y) { a = Neg(x) b = Relu(a) y = Abs(b) }"
BRANCHES = (
    "agraph (bool c, float[4] x) => (float[4] y) { s = Neg(x) y = If(c) <"
    "then_branch = g () => (float[4] t) <float[4] w = {1,2,3,4}> { u = Mul(s, w) t = Relu(u) }, "
    "else_branch = h () => (float[4] e) <float[4] w2 = {5,6,7,8}> { u2 = Mul(s, w2) e = Abs(u2) }> }"
)


def named(module: Module) -> Module:
    """Names for all nodes: their operator in lower case, unique in these graphs."""
    for count, node in enumerate(walk.nodes(module.model)):
        node.name = node.op_type.lower() if node.op_type != "Mul" else f"mul{count}"
    return module


def find(module: Module, op_type: str) -> ir.Node:
    return next(node for node in walk.nodes(module.model) if node.op_type == op_type)


def ops(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


@pytest.fixture
def chain(parse: Parse) -> tuple[Module, Rewriter]:
    module = named(parse(CHAIN))
    return module, Rewriter(module, "my-pass")


# -- the record ---------------------------------------------------------------------------------------------------


def test_replace_is_recorded_with_what_went_and_what_came(chain: tuple[Module, Rewriter]) -> None:
    module, rewriter = chain
    relu = find(module, "Relu")
    with rewriter.rewriting("soften", relu):
        (new,) = rewriter.add("Softplus", [relu.inputs[0]], before=relu, like=relu.outputs[0])
        rewriter.replace(relu.outputs[0], new)
        rewriter.erase(relu)
    assert ops(module.graph) == ["Neg", "Softplus", "Abs"]
    (rewrite,) = rewriter.rewrites
    assert (rewrite.rule, rewrite.node, rewrite.removed, rewrite.created) == (
        "soften", "relu", ("relu",), ("relu_softplus",),
    )  # fmt: skip
    assert list(problems(module)) == []


def test_a_block_without_changes_leaves_no_record(chain: tuple[Module, Rewriter]) -> None:
    module, rewriter = chain
    with rewriter.rewriting("nothing", find(module, "Relu")):
        pass
    assert rewriter.rewrites == [] and not rewriter.refusals


def test_a_refusal_is_recorded_once(chain: tuple[Module, Rewriter]) -> None:
    module, rewriter = chain
    for _ in range(3):
        with rewriter.rewriting("soften", find(module, "Relu")):
            raise Refused("it is hard")
    (refusal,) = rewriter.refusals.values()
    assert (refusal.rule, refusal.node, refusal.reason) == ("soften", "relu", "it is hard")
    assert rewriter.rewrites == []


def test_refusing_after_a_change_is_an_error_of_the_pass(chain: tuple[Module, Rewriter]) -> None:
    module, rewriter = chain
    relu = find(module, "Relu")
    with pytest.raises(RuntimeError, match="changed the graph at relu, then refused: too late"):  # noqa: SIM117
        with rewriter.rewriting("soften", relu):
            rewriter.set_op(relu, "Softplus")
            raise Refused("too late")


def test_changes_outside_a_block_and_nested_blocks_are_errors(chain: tuple[Module, Rewriter]) -> None:
    module, rewriter = chain
    relu = find(module, "Relu")
    with pytest.raises(RuntimeError, match="'my-pass' changed the graph outside"):
        rewriter.set_op(relu, "Softplus")
    assert relu.op_type == "Relu"
    with rewriter.rewriting("outer", relu), pytest.raises(RuntimeError, match="'inner' inside rewrite 'outer'"):  # noqa: SIM117
        with rewriter.rewriting("inner", relu):
            pass


def test_an_exception_still_leaves_the_record_of_what_changed(chain: tuple[Module, Rewriter]) -> None:
    module, rewriter = chain
    with pytest.raises(ZeroDivisionError), rewriter.rewriting("soften", find(module, "Relu")):
        rewriter.set_op(find(module, "Relu"), "Softplus")
        raise ZeroDivisionError
    assert len(rewriter.rewrites) == 1


# -- provenance ---------------------------------------------------------------------------------------------------


def test_sources_pass_through_one_pass_after_another(parse: Parse) -> None:
    module = named(parse(CHAIN))
    for name, old, made in (("first", "Relu", "Softplus"), ("second", "Softplus", "Tanh")):
        rewriter, node = Rewriter(module, name), find(module, old)
        with rewriter.rewriting("swap", node, find(module, "Neg") if name == "first" else node):
            (new,) = rewriter.add(made, [node.inputs[0]], before=node)
            rewriter.replace(node.outputs[0], new)
            rewriter.erase(node)
    made_last = find(module, "Tanh")
    assert sources_of(made_last) == ["relu", "neg"]
    assert (made_last.metadata_props[PASS_KEY], made_last.metadata_props[RULE_KEY]) == ("second", "swap")
    assert sources_of(find(module, "Neg")) == ["neg"]


def test_sources_are_capped_and_counted(parse: Parse) -> None:
    count = MAX_SOURCES + 5
    body = " ".join(f"v{i} = Neg({'x' if i == 0 else f'v{i - 1}'})" for i in range(count))
    module = parse(f"agraph (float[4] x) => (float[4] y) {{ {body} y = Abs(v{count - 1}) }}")
    for index, node in enumerate(module.graph):
        node.name = f"n{index}"
    rewriter = Rewriter(module, "p")
    last = find(module, "Abs")
    with rewriter.rewriting("r", *module.graph):
        (made,) = rewriter.add("Relu", [last.inputs[0]], before=last)
        rewriter.replace(last.outputs[0], made)
    kept = json.loads(find(module, "Relu").metadata_props[SOURCES_KEY])
    assert len(kept) == MAX_SOURCES + 1 and kept[-1] == "+6 more"


def test_who_only_reads_another_value_is_not_stamped(chain: tuple[Module, Rewriter]) -> None:
    module, rewriter = chain
    relu = find(module, "Relu")
    with rewriter.rewriting("skip", relu):
        rewriter.replace(relu.outputs[0], relu.inputs[0])
        rewriter.erase(relu)
    assert all(not node.metadata_props for node in module.graph)


def test_an_edited_node_stands_for_itself_and_for_what_it_swallowed(parse: Parse) -> None:
    """a <- b <- c: c goes into b, then b and d into a; e is erased in the same rewrite but is no neighbour."""
    module = parse("g (float[4] x) => (float[4] y) { a = Exp(x) b = Relu(a) c = Abs(b) y = Neg(c) e = Sin(x) }")
    for name, node in zip("abcye", module.graph, strict=True):
        node.name = name
    a, b, c, y, e = module.graph
    for name, keeps, goes in (("first", b, [c]), ("second", a, [b, e])):
        rewriter = Rewriter(module, name)
        with rewriter.rewriting("swallow", goes[0]):
            rewriter.set_op(keeps, "Tanh")
            rewriter.replace(goes[0].outputs[0], keeps.outputs[0])
            for node in goes:
                rewriter.erase(node)
    assert sources_of(a) == ["a", "b", "c"]
    assert history_of(a) == [("first", "swallow"), ("second", "swallow")]
    assert sources_of(y) == ["y"] and history_of(y) == []


def test_the_history_is_written_only_where_it_says_more(chain: tuple[Module, Rewriter]) -> None:
    module, rewriter = chain
    relu = find(module, "Relu")
    with rewriter.rewriting("one", relu):
        rewriter.set_op(relu, "Exp")
    assert HISTORY_KEY not in relu.metadata_props and history_of(relu) == [("my-pass", "one")]
    with rewriter.rewriting("two", relu):
        rewriter.set_op(relu, "Relu")
    assert history_of(relu) == [("my-pass", "one"), ("my-pass", "two")]
    relu.metadata_props[HISTORY_KEY] = "[" * 100_000
    assert history_of(relu) == [("my-pass", "two")], "a forged one is not believed"


@pytest.mark.parametrize("text", ["not json", "3", "{}"])
def test_forged_sources_are_not_believed(text: str, chain: tuple[Module, Rewriter]) -> None:
    relu = find(chain[0], "Relu")
    relu.metadata_props[SOURCES_KEY] = text
    assert sources_of(relu) == ["relu"]


# -- outputs keep their names -------------------------------------------------------------------------------------


def test_an_output_keeps_its_name_type_and_doc(chain: tuple[Module, Rewriter]) -> None:
    module, rewriter = chain
    last = find(module, "Abs")
    old = last.outputs[0]
    old.doc_string = "the answer"
    with rewriter.rewriting("drop", last):
        rewriter.replace(old, last.inputs[0])
        rewriter.erase(last)
    (output,) = module.graph.outputs
    assert (output.name, str(output.shape), output.dtype, output.doc_string) == (
        "y", "[4]", ir.DataType.FLOAT, "the answer",
    )  # fmt: skip
    assert ops(module.graph) == ["Neg", "Relu"]
    assert list(problems(module)) == []


@pytest.mark.parametrize(
    ("graph", "new"),
    [
        ("agraph (float[4] x) => (float[4] y) { y = Identity(x) }", "x"),
        ("agraph (float[4] x) => (float[4] y) <float[4] w = {1,2,3,4}> { z = Neg(x) y = Identity(w) }", "w"),
        ("agraph (float[4] x) => (float[4] z, float[4] y) { z = Neg(x) y = Identity(z) }", "z"),
    ],
)
def test_what_cannot_take_an_outputs_place(graph: str, new: str, parse: Parse) -> None:
    module = named(parse(graph))
    rewriter, node = Rewriter(module, "p"), find(module, "Identity")
    with rewriter.rewriting("drop", node):
        rewriter.replace(node.outputs[0], node.inputs[0])  # type: ignore[arg-type]
    (refusal,) = rewriter.refusals.values()
    assert refusal.reason == f"'y' is a graph output and '{new}' cannot take its place"
    assert ops(module.graph)[-1] == "Identity" and rewriter.rewrites == []


def test_a_value_of_an_outer_graph_cannot_become_a_branches_output(parse: Parse) -> None:
    module = named(parse(BRANCHES))
    rewriter, inner = Rewriter(module, "p"), find(module, "Relu")
    assert not rewriter.can_replace(inner.outputs[0], find(module, "Neg").outputs[0])
    assert rewriter.can_replace(inner.outputs[0], inner.inputs[0])  # type: ignore[arg-type]


# -- subgraphs ----------------------------------------------------------------------------------------------------


def test_replacing_a_value_reaches_the_bodies_that_capture_it(parse: Parse) -> None:
    module = named(parse(BRANCHES))
    rewriter, neg = Rewriter(module, "p"), find(module, "Neg")
    with rewriter.rewriting("swap", neg):
        (new,) = rewriter.add("Abs", [neg.inputs[0]], before=neg, like=neg.outputs[0])
        rewriter.replace(neg.outputs[0], new)
        rewriter.erase(neg)
    captured = [node.inputs[0] for node in walk.nodes(module.model) if node.op_type == "Mul"]
    assert captured == [new, new]
    assert list(problems(module)) == []


def test_a_captured_value_counts_as_used(parse: Parse) -> None:
    module = named(parse(BRANCHES))
    rewriter = Rewriter(module, "p")
    with pytest.raises(ValueError), rewriter.rewriting("drop", find(module, "Neg")):
        rewriter.erase(find(module, "Neg"))
    assert find(module, "Neg").graph is module.graph


def test_an_erased_if_gives_up_what_its_bodies_read(parse: Parse) -> None:
    text = """agraph (bool c, float[2] x) => (float[2] y) { e = Exp(x) f = Abs(x)
        d = If (c) <then_branch = t () => (float[2] u) { i = Neg(e) u = Neg(i) },
                    else_branch = s () => (float[2] v) { v = Add(e, f) }> y = Neg(x) }"""
    rewriter = Rewriter(parse(text), "test")
    touched: list[str] = []
    rewriter.on_touch = lambda node: touched.append(node.op_type)
    exp, absolute, branching, _ = rewriter.module.graph
    with rewriter.rewriting("gone", branching):
        rewriter.erase(branching)
    assert not exp.outputs[0].uses()
    assert not absolute.outputs[0].uses()
    assert touched == ["Exp", "Abs"], "and nothing of what was inside"


def test_names_are_fresh_across_all_graphs(parse: Parse) -> None:
    module = named(parse(BRANCHES))
    rewriter = Rewriter(module, "p")
    assert [rewriter.fresh(name) for name in ("u", "w2", "x", "new", "new")] == ["u_1", "w2_1", "x_1", "new", "new_1"]


def test_splice_moves_a_branch_and_its_masked_weight(parse: Parse) -> None:
    module = named(parse(BRANCHES))
    module.masks["w"] = np.array([True, True, False, True])
    rewriter, node = Rewriter(module, "p"), find(module, "If")
    branch = node.attributes["then_branch"].as_graph()
    with rewriter.rewriting("inline", node):
        result = branch.outputs[0]
        rewriter.splice(branch, before=node)
        rewriter.replace(node.outputs[0], result)
        rewriter.erase(node)
    assert ops(module.graph) == ["Neg", "Mul", "Relu"]
    (name,) = module.graph.initializers
    assert list(module.masks) == [name] and name != "w"
    assert [output.name for output in module.graph.outputs] == ["y"]
    module.graph.initializers[name].const_value = ir.tensor(np.array([1, 2, 0, 4], np.float32))
    assert list(problems(module)) == []


def test_functions_get_constant_nodes_instead_of_initializers(parse: Parse) -> None:
    module = parse(
        "agraph (float[4] x) => (float[4] y) { y = local.twice(x) }",
        functions='<domain: "local", opset_import: ["": 19]> twice (a) => (b) { b = Neg(a) }',
    )
    rewriter, neg = Rewriter(module, "p"), find(module, "Neg")
    assert rewriter.in_function(neg)
    with rewriter.rewriting("scale", neg):
        two = rewriter.constant(np.array([2.0], np.float32), "two", at=neg)
        (scaled,) = rewriter.add("Mul", [neg.inputs[0], two], before=neg)
        rewriter.set_input(neg, 0, scaled)
    (function,) = module.model.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Mul", "Neg"]
    assert not function.graph.initializers and list(problems(module)) == []


# -- edits --------------------------------------------------------------------------------------------------------


def test_inputs_grow_and_shrink(parse: Parse) -> None:
    module = named(parse("agraph (float[4] x, float low) => (float[4] y) { y = Clip(x) }"))
    rewriter, clip = Rewriter(module, "p"), find(module, "Clip")
    low = module.graph.inputs[1]
    with rewriter.rewriting("bound", clip):
        rewriter.set_input(clip, 2, low)
    assert list(clip.inputs) == [module.graph.inputs[0], None, low]
    with rewriter.rewriting("unbound", clip):
        rewriter.drop_inputs(clip, 1)
    assert list(clip.inputs) == [module.graph.inputs[0]] and not low.uses()


def test_erasing_what_is_used_is_refused_by_the_graph(chain: tuple[Module, Rewriter]) -> None:
    module, rewriter = chain
    with pytest.raises(ValueError), rewriter.rewriting("drop", find(module, "Neg")):
        rewriter.erase(find(module, "Neg"))
    assert ops(module.graph) == ["Neg", "Relu", "Abs"]


def test_erasing_an_initializer_takes_its_mask_along(parse: Parse) -> None:
    module = parse("agraph (float[4] x) => (float[4] y) <float[4] w = {1,2,3,4}> { y = Neg(x) }")
    module.masks["w"] = np.ones(4, bool)
    rewriter = Rewriter(module, "p")
    with rewriter.rewriting("drop"):
        rewriter.erase_initializer(module.graph, "w")
    assert not module.graph.initializers and not module.masks
    assert rewriter.rewrites[0].removed == ("w",)


# -- the driver ---------------------------------------------------------------------------------------------------


class NegToRelu(Rule):
    """Neg -> Relu."""

    ops = ("Neg",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        rewriter.set_op(node, "Relu")


class ReluToNeg(Rule):
    """Relu -> Neg: undoes the other."""

    ops = ("Relu",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        rewriter.set_op(node, "Neg")


class CountVisits(Rule):
    """Counts the nodes it is shown."""

    ops = ("Neg", "Relu", "Abs")
    seen: ClassVar[list[str]] = []

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        self.seen.append(node.name or "")


def test_rules_that_undo_each_other_end_and_are_said(chain: tuple[Module, Rewriter]) -> None:
    _, rewriter = chain
    apply_rules(rewriter, [NegToRelu(), ReluToNeg()])
    assert len(rewriter.rewrites) == 2 * MAX_APPLICATIONS
    assert {r.reason for r in rewriter.refusals.values()} == {f"stopped after {MAX_APPLICATIONS} rewrites of this node"}


def test_without_changes_every_node_is_seen_once_in_graph_order(
    chain: tuple[Module, Rewriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountVisits, "seen", [])
    apply_rules(chain[1], [CountVisits()])
    assert CountVisits.seen == ["neg", "relu", "abs"]


def test_rules_reach_bodies_and_leave_other_domains_alone(parse: Parse) -> None:
    module = named(parse(BRANCHES))
    find(module, "Neg").domain = "mine"
    rewriter = Rewriter(module, "p")

    class AnyToTanh(Rule):
        """Neg or Relu -> Tanh."""

        ops = ("Neg", "Relu")

        def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
            rewriter.set_op(node, "Tanh")

    apply_rules(rewriter, [AnyToTanh()])
    assert [rewrite.node for rewrite in rewriter.rewrites] == ["relu"]
    assert find(module, "Neg").domain == "mine"


# -- masks go by name ---------------------------------------------------------------------------------------------


def test_initializers_of_sibling_bodies_get_names_of_their_own() -> None:
    """ONNX allows one name in two branches; masks, which go by name, would take one weight for the other."""
    graph = BRANCHES.replace("w2", "w").replace("u2", "u")
    module = read(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]>\n{graph}'))
    held = {name: value.const_value for one in walk.graphs(module.model) for name, value in one.initializers.items()}
    assert {name: tensor.numpy().tolist() for name, tensor in held.items() if tensor is not None} == {
        "w": [1, 2, 3, 4], "w_1": [5, 6, 7, 8],
    }  # fmt: skip
    assert [node.inputs[1].name for node in walk.nodes(module.model) if node.op_type == "Mul"] == ["w", "w_1"]  # type: ignore[union-attr]
    assert list(problems(module)) == []


def test_a_name_that_hides_one_further_out_is_left_alone() -> None:
    """ONNX forbids it, and ONNX Runtime and onnx_ir disagree on which of the two is meant."""
    graph = BRANCHES.replace("w2", "w").replace("{ s = Neg(x)", "<float[4] w = {9,9,9,9}> { s = Mul(x, w)", 1)
    module = read(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]>\n{graph}'))
    assert [list(one.initializers) for one in walk.graphs(module.model)] == [["w"], ["w"], ["w"]]
