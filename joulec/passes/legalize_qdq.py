"""legalize-qdq: quantized models, whoever made them, in the form that TensorRT takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Refusal, Rewrite, Rewriter
from joulec.ir.shapes import infer_shapes
from joulec.ir.values import constant_tensor
from joulec.passes._integer_edges import (
    Table,
    begin_in_floats,
    begins_in_integers,
    end_in_floats,
    ends_in_integers,
)
from joulec.passes._integer_operators import (
    expand,
    is_dynamic_pair,
    is_integer_operator,
    pad_floats,
    pads_integers,
)
from joulec.passes._qdq_graph import computes, is_dequantize, is_quantize, nodes_of
from joulec.passes._qdq_places import NODE_RULES, NodeRule, agree, disagreements, drop_pair
from joulec.passes._symmetric import (
    fold_weight,
    groups,
    is_loose_clamp,
    legal_constant,
    loosen,
    make_symmetric,
    needs_legalizing,
    needs_symmetry,
)
from joulec.passes.base import Context, Fidelity, Pass, PassResult
from joulec.passes.eliminate_dead_code import EliminateDeadCode


@dataclass(frozen=True)
class LegalizeQdq(Pass):
    """Bring Q/DQ, and integer operators, into TensorRT's form: signed, symmetric, float bias, pairs where they fuse."""

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    indivisible: ClassVar[bool] = True

    def run(self, module: Module, context: Context) -> PassResult:
        """Rule after rule over the main graph; what cannot be mended stays, with its reason. O(edges) a rule."""
        if context.target.quantization is not None and context.target.quantization.activation != "int8":
            return PassResult.nothing(f"{context.target.name} does not want this form")
        if not any(_is_quantized(node) for node in nodes_of(module)):
            return PassResult.nothing("nothing here is quantized")
        results = [self._apply(module, _to_qdq), EliminateDeadCode().run(module, context)]
        results += [self._apply(module, step) for step in (_numbers, _pairs)]
        results.append(EliminateDeadCode().run(module, context))
        results += [self._apply(module, step) for step in (_scales, _clamps)]
        results.append(EliminateDeadCode().run(module, context))
        return _joined(results)

    def _apply(self, module: Module, step: Callable[[Rewriter], None]) -> PassResult:
        infer_shapes(module)
        rewriter = Rewriter(module, self.pass_name())
        step(rewriter)
        return PassResult.of(rewriter)


def _is_quantized(node: ir.Node) -> bool:
    return is_quantize(node) or is_dequantize(node) or is_integer_operator(node)


def _to_qdq(rewriter: Rewriter) -> None:
    for node in nodes_of(rewriter.module):
        if is_integer_operator(node) and node.op_type not in ("DynamicQuantizeLinear",):
            with rewriter.rewriting("integer-operator", node):
                expand(rewriter, node)
        elif is_dynamic_pair(node):
            with rewriter.rewriting("integer-operator", node):
                drop_pair(rewriter, node)
                rewriter.erase(node)
    for node in nodes_of(rewriter.module):
        if pads_integers(node):
            with rewriter.rewriting("integer-operator", node):
                pad_floats(rewriter, node)


def _numbers(rewriter: Rewriter) -> None:
    """Parameters: stored ones first, because what is folded is a constant to the rules behind."""
    for node in nodes_of(rewriter.module):
        if walk.is_onnx(node, "Constant") and _feeds_integers(node):
            with rewriter.rewriting("constant-to-initializer", node):
                _to_initializer(rewriter, node)
    for node in nodes_of(rewriter.module):
        if is_quantize(node) and constant_tensor(node.inputs[0]) is not None:
            with rewriter.rewriting("stored-weight", node):
                fold_weight(rewriter, node)
    tables: dict[Table, ir.Value] = {}
    for group in groups(rewriter.module):
        if begins_in_integers(group):
            with rewriter.rewriting("stored-integers" if group.stored else "integer-input", *group.members):
                begin_in_floats(rewriter, group, tables)
        elif ends_in_integers(group):
            with rewriter.rewriting("integer-output", *group.members):
                end_in_floats(rewriter, group)
    for node in nodes_of(rewriter.module):
        if is_dequantize(node) and needs_legalizing(node):
            with rewriter.rewriting("symmetric-constant", node):
                legal_constant(rewriter, node)
    for group in groups(rewriter.module):
        if needs_symmetry(group):
            with rewriter.rewriting("symmetric-activation", *group.members):
                make_symmetric(rewriter, group)


def _feeds_integers(node: ir.Node) -> bool:
    users = [use.node for use in node.outputs[0].uses()]
    return any(is_quantize(one) or is_dequantize(one) or computes(one) for one in users)


def _to_initializer(rewriter: Rewriter, node: ir.Node) -> None:
    tensor = constant_tensor(node.outputs[0])
    if tensor is None or node.outputs[0].is_graph_output():
        return
    value = rewriter.constant(tensor, f"{node.outputs[0].name}_stored", at=node)
    rewriter.replace(node.outputs[0], value)
    rewriter.erase(node)


def _pairs(rewriter: Rewriter) -> None:
    for rule in NODE_RULES:
        _mend(rewriter, rule)


def _mend(rewriter: Rewriter, rule: NodeRule) -> None:
    for node in nodes_of(rewriter.module):
        if node.graph is not None and rule.broken(node) is not None:
            with rewriter.rewriting(rule.name, node):
                rule.mend(rewriter, node)


def _scales(rewriter: Rewriter) -> None:
    for found in disagreements(rewriter.module):
        with rewriter.rewriting("scales-differ", found.node, *found.members):
            agree(rewriter, found)


def _clamps(rewriter: Rewriter) -> None:
    """What saturates in the integers behind it needs no bound of its own."""
    for node in nodes_of(rewriter.module):
        if is_loose_clamp(node):
            with rewriter.rewriting("clamp-in-integers", node):
                loosen(rewriter, node)


def _joined(results: Iterable[PassResult]) -> PassResult:
    rewrites: list[Rewrite] = []
    refusals: list[Refusal] = []
    for one in results:
        rewrites += one.rewrites
        refusals += one.refusals
    return PassResult(tuple(rewrites), tuple(dict.fromkeys(refusals)))
