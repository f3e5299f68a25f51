"""materialize-weights: passes that change a weight's numbers need them stored, however cheap they are to compute."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.evaluate import FOLDABLE, Limits
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.rules import apply_rules
from joulec.ir.values import constant_tensor
from joulec.passes.base import Context, Pass, PassResult
from joulec.passes.fold_constants import GENERATORS, Budget, Fold, LiftConstant, standard_opsets

LIMIT = 1 << 30
"""Bytes that materialized weights may add to a model: what the model itself could have stored in one file."""


WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose weights are pruned and quantized."""


@dataclass(frozen=True)
class MaterializeWeights(Pass):
    """Store weights that nodes compute; fold-constants leaves them computed where that keeps the file small."""

    def run(self, module: Module, context: Context) -> PassResult:
        """Weights and biases of Conv, ConvTranspose, Gemm and MatMul, in every graph."""
        rewriter = Rewriter(module, self.pass_name())
        materialize(rewriter)
        return PassResult.of(rewriter)


def computes_weights(module: Module) -> bool:
    """Whether there is anything for this pass to do."""
    return bool(_computing(Rewriter(module, MaterializeWeights.pass_name()), WEIGHTED))


def materialize(rewriter: Rewriter, ops: Collection[str] = WEIGHTED) -> None:
    """Turn the weights and biases of operators `ops` that constant nodes compute into initializers.

    `fold-constants` leaves them computed where they are cheap to compute and large to store. Functions are left alone:
    no initializer can stand in them.
    """
    needed = _computing(rewriter, ops)
    if not needed:
        return
    module = rewriter.module
    fold = _Materialize(needed, module, Budget(LIMIT), Limits(), standard_opsets(module), LIMIT)
    apply_rules(rewriter, [_Lift(needed), fold])


def _computing(rewriter: Rewriter, ops: Collection[str]) -> dict[int, ir.Node]:
    """Nodes that generate weights of `ops` from constants alone, by id."""
    kinds: dict[int, int] = {}
    needed: dict[int, ir.Node] = {}
    for node in walk.nodes(rewriter.module.model):
        if not walk.is_onnx(node, *ops) or rewriter.in_function(node):
            continue
        for value in node.inputs[:3]:
            producer = None if value is None else value.producer()
            if producer is not None and _kind(producer, kinds) == _GENERATED:
                _collect(producer, needed)
    return needed


_VARIABLE, _STORED, _GENERATED = range(3)
"""What a node computes: no constant; another layout or value of stored numbers; much of little."""


def _kind(last: ir.Node, kinds: dict[int, int]) -> int:
    """What a node computes; answers are kept in `kinds`, so that all are O(nodes)."""
    pending = [last]
    while pending:
        node = pending[-1]
        unknown = [] if id(node) in kinds else [one for one in _producers(node) if id(one) not in kinds]
        if unknown and _foldable(node):
            pending += unknown
            continue
        if id(node) not in kinds:
            kinds[id(node)] = _kind_of(node, [kinds.get(id(one), _VARIABLE) for one in _producers(node)])
        pending.pop()
    return kinds[id(last)]


def _kind_of(node: ir.Node, before: list[int]) -> int:
    if not _foldable(node) or _VARIABLE in before:
        return _VARIABLE
    return _GENERATED if node.op_type in GENERATORS or _GENERATED in before else _STORED


def _foldable(node: ir.Node) -> bool:
    if walk.is_onnx(node, "Constant"):
        return constant_tensor(node.outputs[0]) is not None
    inputs = [value for value in node.inputs if value is not None]
    stored = (value.producer() is not None or constant_tensor(value) is not None for value in inputs)
    return walk.is_onnx(node) and node.op_type in FOLDABLE and bool(inputs) and all(stored)


def _producers(node: ir.Node) -> list[ir.Node]:
    return [made for value in node.inputs if value is not None and (made := value.producer()) is not None]


def _collect(last: ir.Node, needed: dict[int, ir.Node]) -> None:
    """Add `last` and all that it computes from."""
    pending = [last]
    while pending:
        node = pending.pop()
        needed[id(node)] = node
        pending += [one for one in _producers(node) if id(one) not in needed]


class _Lift(LiftConstant):
    """Constant -> initializer, where a weight is one."""

    def __init__(self, needed: Mapping[int, ir.Node]) -> None:
        self._needed = needed

    @property
    def name(self) -> str:
        return "materialize"

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        if id(node) in self._needed:
            super().apply(node, rewriter)


class _Materialize(Fold):
    """A node that computes a weight -> its value."""

    def __init__(self, needed: Mapping[int, ir.Node], *fold: object) -> None:
        super().__init__(*fold)  # type: ignore[arg-type]
        self._needed = needed

    @property
    def name(self) -> str:
        return "materialize"

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        if id(node) in self._needed:
            super().apply(node, rewriter)
