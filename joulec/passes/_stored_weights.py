"""Weights stored as integers for the passes that need no calibration: each is quantized once, however many use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, input_at, is_overridable
from joulec.passes._patterns import first_match
from joulec.passes.blocks import weight_refusal


@dataclass(frozen=True)
class Product:
    """A MatMul or Gemm whose second operand is a stored weight.

    Attributes:
        node: the operator.
        data: its float32 operand that is computed.
        weight: the stored one, of rank 2.
        transposed: whether the weight is (out, in).
        factor: what the product is multiplied with (Gemm's alpha).
        bias: Gemm's third operand.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    transposed: bool = False
    factor: float = 1.0
    bias: ir.Value | None = None

    def columns(self) -> Array:
        """The weight as (in, out), float32."""
        numbers = np.asarray(constant(self.weight), np.float32)
        return np.ascontiguousarray(numbers.T if self.transposed else numbers)


def product_of(node: ir.Node) -> Product | str:
    """`node`, a MatMul or Gemm, as a product with a stored weight; or why it is none."""
    data, weight = input_at(node, 0), input_at(node, 1)
    if data is None or weight is None:
        return "an operand is missing"
    if (reason := data_refusal(data) or weight_refusal(weight)) is not None:
        return reason
    numbers = constant(weight)
    if numbers is None or numbers.ndim != 2:
        return "its weight has not two dimensions"
    if node.op_type == "MatMul":
        return Product(node, data, weight)
    if any(one.is_ref() for one in node.attributes.values()):
        return "an attribute refers to a function attribute"
    bias = input_at(node, 2)
    if attribute(node, "transA", 0):
        return "transA is set"
    if bias is not None and attribute(node, "beta", 1.0) != 1.0:
        return "beta is not 1"
    return Product(
        node, data, weight, bool(attribute(node, "transB", 0)), float(attribute(node, "alpha", 1.0)), bias
    )  # fmt: skip


def data_refusal(data: ir.Value) -> str | None:
    """Why `data` cannot become integers while the model runs, or None."""
    if data.dtype != ir.DataType.FLOAT:
        return "its operand is not float32, or of unknown type"
    return "its operand is a constant" if constant(data) is not None else None


def places(module: Module, ops: tuple[str, ...]) -> Iterator[tuple[ir.Node, str | None]]:
    """Every node of `ops` outside functions, with why it must be left alone; in graph order, bodies included."""
    functions = {id(node) for function in module.model.functions.values() for node in function.all_nodes()}
    for node in list(walk.nodes(module.model)):
        if walk.is_onnx(node, *ops):
            yield node, "inside a function" if id(node) in functions else None


def kept_float(node: ir.Node, patterns: tuple[str, ...]) -> str | None:
    """Why the user's patterns keep `node` float, or None."""
    pattern = first_match(node, patterns)
    return None if pattern is None else f"kept float by keep-float={pattern}"


class Store:
    """Integers made of weights, by weight, graph and form, so that what is shared stays shared.

    Attributes:
        ratios: signal to quantization noise of each weight, in decibel.
    """

    def __init__(self, rewriter: Rewriter) -> None:
        self.rewriter = rewriter
        self.ratios: list[float] = []
        self._made: dict[tuple[int, int, str], tuple[ir.Value, ...]] = {}

    def get(
        self, weight: ir.Value, form: str, node: ir.Node, make: Callable[[], tuple[ir.Value, ...]]
    ) -> tuple[ir.Value, ...]:
        """What `make` stores for `weight` in the graph of `node`, made once."""
        key = id(weight), id(node.graph), form
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def judge(self, exact: Array, restored: Array) -> None:
        """Remember how well the integers hold the weight."""
        power = float(np.sum(np.square(exact, dtype=np.float64)))
        error = float(np.sum(np.square(exact.astype(np.float64) - restored)))
        self.ratios.append(200.0 if error <= power * 1e-20 else 10 * float(np.log10(power / error)))

    def drop(self, weight: ir.Value | None) -> None:
        """Erase a weight that nobody reads any more."""
        if weight is None or weight.uses() or weight.is_graph_output():
            return
        producer, graph = weight.producer(), weight.graph
        if producer is not None:
            self.rewriter.erase(producer)
        elif weight.is_initializer() and graph is not None and not is_overridable(weight):
            self.rewriter.erase_initializer(graph, weight.name or "")

    def said(self) -> str:
        """The quality of all weights, for a note."""
        if not self.ratios:
            return ""
        return f"weights hold {np.mean(self.ratios):.1f} dB on average, {min(self.ratios):.1f} dB at worst"


def add_bias(rewriter: Rewriter, result: ir.Value, product: Product) -> ir.Value:
    """`result`, with the bias of a Gemm."""
    if product.bias is None:
        return result
    node, operands = product.node, [result, product.bias]
    (shifted,) = rewriter.add("Add", operands, before=node, name=f"{node.name}_bias", like=node.outputs[0])
    return shifted
