"""fold-constants: compute what does not depend on an input, within a size limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.evaluate import FOLDABLE, RELAYOUT, Limits, NotEvaluated, evaluate, relayout
from joulec.ir.module import Module
from joulec.ir.partial import ShapeFacts, reshape_target
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule, apply_rules
from joulec.ir.shapes import infer_shapes
from joulec.ir.values import Array, attribute, constant_tensor, tensor_shape
from joulec.passes._sequences import sequence_rules
from joulec.passes.base import Context, Pass, PassResult, option
from joulec.passes.inline_if import InlineIf
from joulec.passes.inline_loop import InlineLoop

MIB = 1 << 20
GENERATORS = ("ConstantOfShape", "Expand", "Tile", "Range", "EyeLike")
MAX_GENERATED = 8 << 10
"""Bytes that one operator which makes much of little may add. Runtimes compute the rest at load, and no pass that
only needs to know such a constant has to have it stored."""

MAX_ROUNDS = 8
"""Folding reveals shapes, shapes reveal constants; real models settle in two or three rounds."""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute nodes whose inputs are constants, know shapes and sequences, and inline a decided If or a few turns."""

    size_limit: int = option(MIB, "bytes that all folding together may add to the model")

    def run(self, module: Module, context: Context) -> PassResult:
        """Fold until nothing changes; graphs, subgraphs and functions alike."""
        rewriter = Rewriter(module, self.pass_name())
        budget, limits, opsets = Budget(self.size_limit), Limits(), standard_opsets(module)
        loops = InlineLoop()
        for _ in range(MAX_ROUNDS):
            before = len(rewriter.rewrites)
            apply_rules(rewriter, [LiftConstant(), Fold(module, budget, limits, opsets), InlineIf(), loops])
            infer_shapes(module)
            facts = ShapeFacts.of(module)
            folded = len(rewriter.rewrites)
            apply_rules(rewriter, [FoldKnownShape(facts), ResolveReshape(facts), KnownCastLike(), *sequence_rules()])
            if len(rewriter.rewrites) in (before, folded):  # no new constants since shapes were inferred
                break
        return PassResult.of(rewriter)


@dataclass
class Budget:
    """Bytes that folding may still add."""

    left: int

    def spend(self, growth: int) -> bool:
        if growth > self.left:
            return False
        self.left -= max(growth, 0)
        return True


class LiftConstant(Rule):
    """Constant -> initializer, where initializers can stand."""

    ops = ("Constant",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        output = node.outputs[0]
        tensor = constant_tensor(output)
        if tensor is None or rewriter.in_function(node) or output.is_graph_output():
            return
        rewriter.replace(output, rewriter.constant(tensor, output.name or "constant", at=node, follows=output))
        rewriter.erase(node)


class Fold(Rule):
    """A node whose inputs are all constants -> its value."""

    ops = tuple(sorted(FOLDABLE))

    def __init__(
        self, module: Module, budget: Budget, limits: Limits, opsets: Mapping[int, int],
        most_generated: int = MAX_GENERATED,
    ) -> None:  # fmt: skip
        self._module, self._budget, self._limits, self._opsets = module, budget, limits, opsets
        self._most_generated = most_generated

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        tensors = [None if value is None else constant_tensor(value) for value in node.inputs]
        if not tensors or any(t is None for t, v in zip(tensors, node.inputs, strict=True) if v is not None):
            return
        if any(a.is_ref() for a in node.attributes.values()):
            return
        named = any(output.is_graph_output() for output in node.outputs)
        if named and node.op_type == "Identity":  # it only gives an output its name
            return
        if any(t is not None and t.dtype == ir.DataType.STRING for t in tensors):
            raise Refused("it holds strings")
        arrays = [None if tensor is None else tensor.numpy() for tensor in tensors]
        self._limits.bytes = self._budget.left + _dying(node)
        results = self._evaluate(node, arrays)
        growth = sum(r.nbytes for r in results if r is not None) - _dying(node)
        if (node.op_type in GENERATORS and growth > self._most_generated) or not self._budget.spend(growth):
            raise Refused(f"folding it would add {growth} bytes; cheap to compute, large to store")
        follows = self._followed(node, arrays)
        if named and follows is not None and follows.name in self._module.masks:
            raise Refused("a graph output that is a pruned weight keeps its node")
        for output, result in zip(node.outputs, results, strict=True):
            if result is None or not output.name:
                continue
            # laying out anew keeps the element type, also of those (int4, bfloat16) that numpy alone cannot name
            kept = tensors[0].dtype if node.op_type in RELAYOUT and tensors[0] is not None else None
            tensor = ir.tensor(result, dtype=kept)
            moved = partial(self._relaid, node, arrays)
            rewriter.replace(output, _held(output, tensor, node, rewriter, follows, moved))
        rewriter.erase(node)

    def _evaluate(self, node: ir.Node, arrays: list[Array | None]) -> list[Array | None]:
        try:
            return evaluate(node, arrays, self._opset(node), self._limits)
        except NotEvaluated as reason:
            raise Refused(str(reason)) from reason

    def _opset(self, node: ir.Node) -> int:
        return self._opsets.get(id(node.graph), self._module.opset)

    def _followed(self, node: ir.Node, arrays: list[Array | None]) -> ir.Value | None:
        """The weight that is only laid out anew here, whose mask and source go along."""
        held = [v for v in node.inputs if v is not None and v.is_initializer()]
        masked = [value for value in held if value.name in self._module.masks]
        value, array = node.inputs[0], arrays[0]
        if not masked and (value is None or value.name not in self._module.sources):
            return None
        moves = value in held and array is not None and relayout(node, array, arrays, self._opset(node)) is not None
        if masked and (not moves or masked != [value]):
            raise Refused("it computes on a pruned weight, whose mask could not follow")
        return value if moves else None

    def _relaid(self, node: ir.Node, arrays: list[Array | None], elements: Array) -> Array:
        found = relayout(node, elements, arrays, self._opset(node))
        if found is None:
            raise RuntimeError(f"{node.op_type} lays nothing out anew")
        return found


def _held(
    output: ir.Value, tensor: ir.TensorProtocol, node: ir.Node, rewriter: Rewriter,
    follows: ir.Value | None = None, moved: Callable[[Array], Array] | None = None,
) -> ir.Value:  # fmt: skip
    """A constant that can stand for `output`: an initializer, or a Constant where a graph output's name is kept."""
    if not output.is_graph_output():
        return rewriter.constant(tensor, output.name or "constant", at=node, follows=follows, moved=moved)
    (value,) = rewriter.add("Constant", [], {"value": tensor}, before=node, name=node.name)
    value.dtype, value.shape = tensor.dtype, tensor_shape(tensor)
    return value


def standard_opsets(module: Module) -> dict[int, int]:
    """The standard opset of every function body (each imports its own), by graph."""
    found: dict[int, int] = {}
    for function in module.model.functions.values():
        version = function.opset_imports.get("", function.opset_imports.get("ai.onnx", module.opset))
        found.update((id(graph), version) for graph in [function.graph, *function.graph.subgraphs()])
    return found


def _dying(node: ir.Node) -> int:
    """Bytes of the constants that only `node` uses."""
    values = {id(value): value for value in node.inputs if value is not None}.values()
    dying = (constant_tensor(value) for value in values if len({id(u.node) for u in value.uses()}) == 1)
    return sum(tensor.nbytes for tensor in dying if tensor is not None)


class FoldKnownShape(Rule):
    """Integer arithmetic on known dimensions -> its value (Shape of a static tensor, Gather of one dimension, ...)."""

    ops = (
        "Shape", "Size", "Gather", "Slice", "Squeeze", "Unsqueeze", "Concat", "Cast", "Reshape", "Flatten", "Add",
        "Sub", "Mul", "Div", "Mod", "Max", "Min", "Where", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual",
        "And", "Or", "Not", "ReduceProd", "Expand", "Tile", "ConstantOfShape",
    )  # fmt: skip

    def __init__(self, facts: ShapeFacts) -> None:
        self._facts = facts

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        output = node.outputs[0]
        known, numbers = self._facts.facts.get(id(output)), self._numbers(node)
        if known is None or numbers is None or output.dtype is None:
            return
        users = output.uses()
        if not users and not output.is_graph_output():
            rewriter.erase(node)
            return
        leads = not output.is_graph_output() and len(users) <= MAX_USERS
        if leads and all(self._folds_too(usage.node) for usage in users):
            return  # what only leads to another known value needs no constant of its own
        array = np.array(numbers, output.dtype.numpy()).reshape(() if known.rank == 0 else (-1,))
        rewriter.replace(output, _held(output, ir.tensor(array), node, rewriter))
        rewriter.erase(node)

    def _numbers(self, node: ir.Node) -> tuple[int, ...] | None:
        """The numbers of the only output of `node`, if all of them are known and a constant may take its place."""
        output = node.outputs[0]
        known = self._facts.facts.get(id(output))
        if known is None or len(node.outputs) != 1 or output.dtype not in _INTEGERS:
            return None
        return known.numbers()

    def _folds_too(self, user: ir.Node) -> bool:
        return walk.is_onnx(user, *self.ops) and self._numbers(user) is not None


MAX_USERS = 16
"""Users of a known value that are asked whether they are known too, so that many users stay linear."""

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


class KnownCastLike(Rule):
    """CastLike(x, y) -> Cast(x) to the type of y, which then need not be computed."""

    ops = ("CastLike",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        like, output = node.inputs[1], node.outputs[0]
        if like is None or not isinstance(like.type, ir.TensorType) or like.dtype == ir.DataType.UNDEFINED:
            return
        if rewriter.in_function(node):
            raise Refused("a function may be called with other types")
        if any(found.is_ref() for found in node.attributes.values()):
            return
        given = {**{name: found.value for name, found in node.attributes.items()}, "to": int(like.type.dtype)}
        (cast,) = rewriter.add("Cast", [node.inputs[0]], given, before=node, name=node.name)
        cast.dtype = like.type.dtype
        cast.shape = None if output.shape is None else output.shape.copy()
        rewriter.replace(output, cast)
        rewriter.erase(node)


class ResolveReshape(Rule):
    """Reshape(x, computed shape) -> Reshape(x, constant with 0 or one -1)."""

    ops = ("Reshape",)

    def __init__(self, facts: ShapeFacts) -> None:
        self._facts = facts

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        if len(node.inputs) != 2 or node.inputs[0] is None or constant_tensor(node.inputs[1]) is not None:
            return
        known, data = self._facts.get(node.inputs[1]), self._facts.shape(node.inputs[0])
        if known is None or known.rank != 1 or data is None:
            return
        allow = bool(attribute(node, "allowzero", 0))
        result = self._facts.shape(node.outputs[0])
        target = reshape_target(self._facts.symbols, data, known.elements, result, allow)
        if target is None:
            raise Refused("more than one dimension of its shape is unknown")
        shape = rewriter.constant(np.array(target, np.int64), f"{node.name or 'reshape'}_shape", at=node)
        rewriter.set_input(node, 1, shape)
        if allow:
            rewriter.set_attribute(node, "allowzero", None)
