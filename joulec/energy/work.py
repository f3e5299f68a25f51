"""Work: what one node asks of the machine, as the kernel that really runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from joulec.energy.constants import Constants
from joulec.energy.families import FAMILIES, family_of
from joulec.energy.kernel import Kernel
from joulec.energy.ops_linear import REQUANTIZE
from joulec.energy.table import FORMULAS, Formula, formula_of
from joulec.energy.terms import Terms, terms_of
from joulec.energy.view import Cost, Sizes, Unpriced, View, dtype_class


@dataclass(frozen=True)
class Work:
    """The work of one node per run.

    Attributes:
        flops: arithmetic class -> operations; `-matrix` marks the multiply-adds of dense contractions, which
            matrix units can execute; a multiply-add counts as two.
        weight_bytes: constant bytes read.
        input_bytes: other bytes read.
        fed_bytes: those of them that the caller hands in: untouched since the run before, like weights.
        output_bytes: bytes written.
        launches: kernels started.
        kernel: what runs, e.g. `QLinearConv`, or why nothing does, e.g. `folded at load`.
        family: the kernels whose time follows the same law (`joulec.energy.families`).
        terms: what its time is a sum of, as far as that follows from shapes (`joulec.energy.terms`).
        reordered_bytes: bytes written where its input or output changes layout for it.
        reorders: how many such changes there are.
        views: Reshapes that the runtime puts around it.
        turned_bytes: bytes that Transposes move which the runtime puts around it.
        turns: how many such there are.
    """

    flops: Mapping[str, int] = field(default_factory=dict)
    weight_bytes: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    launches: int = 0
    kernel: str = ""
    family: str = "other"
    terms: Terms = field(default_factory=dict)
    reordered_bytes: int = 0
    reorders: int = 0
    views: int = 0
    fed_bytes: int = 0
    turned_bytes: int = 0
    turns: int = 0

    @property
    def bytes(self) -> int:
        """All bytes read and written."""
        return self.weight_bytes + self.input_bytes + self.output_bytes

    @property
    def operations(self) -> int:
        """All arithmetic, whatever its class."""
        return sum(self.flops.values())


def work_of(node: ir.Node, kernel: Kernel, sizes: Sizes, constants: Constants) -> Work:
    """The work of `node` when `kernel` runs it.

    Raises:
        Unpriced: the operator is unknown, or its formula cannot tell; the reason is the message.
    """
    if not kernel.runs:
        return Work(kernel=kernel.name)
    formula = _formula(node, kernel)
    if formula is None:
        raise Unpriced(f"no work formula for {node.op_type}" + (f" of domain '{node.domain}'" if node.domain else ""))
    view = View(node, sizes, kernel.compute, fixed_inputs(kernel, constants), kernel.name)
    cost = formula(view)
    weights, activations = _read(cost, kernel, sizes, constants)
    written = cost.write if cost.write is not None else sum(sizes.nbytes(value) for value in kernel.writes)
    done = _all_flops(cost, view, kernel, sizes)
    op = node.op_type if kernel.formula is None else kernel.formula[1]
    family = family_of(op, view, "int8-matrix" in done or _moves_bytes(kernel))
    if kernel.blocked and f"blocked-{family}" in FAMILIES:
        family = f"blocked-{family}"
    terms = terms_of(family, op, view, replace(cost, flops=done))
    return Work(
        done, weights, activations, written, 1, kernel.name, family, terms,
        sum(sizes.nbytes(value) for value in kernel.reordered), len(kernel.reordered), kernel.views,
        min(activations, sum(sizes.nbytes(value) for value in _fed(kernel))),
        sum(sizes.nbytes(value) for value in kernel.turned), len(kernel.turned),
    )  # fmt: skip


def _fed(kernel: Kernel) -> set[ir.Value]:
    return {value for value in kernel.reads if value is not None and value.is_graph_input()}


def fixed_inputs(kernel: Kernel, constants: Constants) -> frozenset[int]:
    """The inputs of a kernel that are the same in every run."""
    return frozenset(index for index, value in enumerate(kernel.reads) if value in constants)


def _moves_bytes(kernel: Kernel) -> bool:
    """Whether what it writes are 8-bit numbers."""
    return bool(kernel.writes) and dtype_class(kernel.writes[0].dtype) == "int8"


def _formula(node: ir.Node, kernel: Kernel) -> Formula | None:
    if kernel.formula is None:
        return formula_of(node)
    domain, op = kernel.formula
    return FORMULAS[domain][op]


def _read(cost: Cost, kernel: Kernel, sizes: Sizes, constants: Constants) -> tuple[int, int]:
    """(constant bytes, other bytes) that the kernel reads; a value read twice by one node counts once."""
    weights = activations = 0
    seen: set[ir.Value] = set()
    for index, value in enumerate(kernel.reads):
        if value is None or value in seen:
            continue
        seen.add(value)
        size = cost.touched[index] if index in cost.touched else sizes.nbytes(value)
        if value in constants:
            weights += size
        else:
            activations += size
    return weights, activations


def _all_flops(cost: Cost, view: View, kernel: Kernel, sizes: Sizes) -> dict[str, int]:
    """The node's own operations, those of what is fused behind it, and requantization in an integer kernel."""
    total = dict(cost.flops)
    for fused in kernel.epilogue:
        formula = formula_of(fused)
        extra = formula(View(fused, sizes)).flops if formula is not None else {}
        for kind, count in extra.items():
            total[kind] = total.get(kind, 0) + count
    if kernel.requantizes:
        total["fp32"] = total.get("fp32", 0) + REQUANTIZE * view.m()
    return {kind: count for kind, count in total.items() if count}
