"""fuse-gemm: MatMul and Add become one Gemm, where ranks allow."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import attribute, constant_tensor, input_at, rank, sole_consumer, static_shape
from joulec.passes._linear import FLOATS
from joulec.passes.base import Context, RulePass


@dataclass(frozen=True)
class FuseGemm(RulePass):
    """Turn MatMul + Add into Gemm where the input has rank 2, and move transposes and biases into Gemm."""

    def rules(self, context: Context) -> list[Rule]:
        """MatMul + Add first; the Gemm it makes may take a Transpose."""
        return [MatMulAdd(), TransposeIntoGemm()]


class MatMulAdd(Rule):
    """Add(MatMul(x, w), b) -> Gemm(x, w, b), for constant w and b and x of rank 2."""

    ops = ("Add",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        product, bias = _operands(node)
        if product is None or bias is None:
            return
        matmul = product.producer()
        if matmul is None:
            return
        x, weight = matmul.inputs[0], matmul.inputs[1]
        tensor = constant_tensor(weight)
        if x is None or weight is None or tensor is None or len(tensor.shape) != 2:
            return
        if tensor.dtype not in FLOATS or constant_tensor(bias) is None:
            return
        if rank(x) != 2:
            raise Refused("its input has unknown rank" if rank(x) is None else f"its input has rank {rank(x)}")
        if sole_consumer(product) is not node:
            raise Refused("the product is used elsewhere too")
        shape = static_shape(bias)
        if shape is None or len(shape) > 2 or (len(shape) == 2 and shape[0] != 1) or not _fits(shape, tensor):
            raise Refused(f"its bias of shape {shape} does not broadcast to the rows of the product")
        (output,) = rewriter.add(
            "Gemm", [x, weight, bias], before=node, name=matmul.name or node.name, like=node.outputs[0]
        )
        rewriter.replace(node.outputs[0], output)
        rewriter.erase(node)
        rewriter.erase(matmul)


def _operands(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """(product, bias) of an Add whose one operand comes from a MatMul."""
    if len(node.inputs) != 2 or node.attributes:  # before opset 7, `axis` aligned the operands
        return None, None
    first, second = node.inputs
    for product, bias in ((first, second), (second, first)):
        producer = None if product is None else product.producer()
        if producer is not None and walk.is_onnx(producer, "MatMul"):
            return product, bias
    return None, None


def _fits(shape: tuple[int, ...], weight: ir.TensorProtocol) -> bool:
    return not shape or shape[-1] in (1, int(weight.shape.numpy()[-1]))


class TransposeIntoGemm(Rule):
    """Gemm(Transpose(x), w) -> Gemm(x, w) with transA flipped."""

    ops = ("Gemm",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        for index, flag in ((0, "transA"), (1, "transB")):
            value = input_at(node, index)
            source = None if value is None else value.producer()
            if value is None or source is None or not walk.is_onnx(source, "Transpose"):
                continue
            if tuple(attribute(source, "perm", (1, 0))) != (1, 0) or sole_consumer(value) is not node:
                continue
            rewriter.set_attribute(node, flag, 1 - attribute(node, flag, 0))
            rewriter.set_input(node, index, source.inputs[0])
            rewriter.erase(source)
