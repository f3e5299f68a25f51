"""quantize-weights: weights of few bits, computed with in float or INT8; for models whose cost is reading weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import numpy as np
import onnx_ir as ir

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, input_at
from joulec.ir.walk import MICROSOFT_DOMAIN
from joulec.passes._patterns import unmatched
from joulec.passes._stored_weights import Product, Store, add_bias, kept_float, places, product_of
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option
from joulec.passes.blocks import weight_refusal
from joulec.passes.calibrate import not_quantizable
from joulec.passes.materialize_weights import materialize

TARGETS = ("cpu", "cuda")
"""Targets whose providers have MatMulNBits."""

SMALLEST = 4096
"""Weights with fewer numbers stay float: they fit every cache."""

SHRINKING = tuple(1.0 - step / 40 for step in range(17))
"""Shares of the largest magnitude that are tried as the largest integer of a block: down to 0.6."""


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store the weights of MatMul, Gemm and embeddings in 8 or 4 bits; activations stay float. Needs no data.

    MatMul and Gemm become ONNX Runtime's MatMulNBits, with a scale for each block of a column; each scale is the one
    with the smallest squared error of its block. An embedding (Gather from a weight) is stored in int8 with a scale
    for each row. Pays where reading weights is the cost: at batch 1, one row at a time.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    bits: int = cast(int, option(8, "bits of a weight, 8 or 4"))
    block: int = cast(int, option(32, "numbers of a column that share a scale: 16, 32, 64, 128 or 256"))
    keep_float: tuple[str, ...] = cast(
        "tuple[str, ...]", option((), "operators that stay float: patterns of node names or operator types")
    )
    only: tuple[str, ...] = cast("tuple[str, ...]", option((), "operator types to quantize; empty means all"))
    arithmetic: Literal["int8", "float"] = cast(
        Literal["int8", "float"], option("int8", "what blocks are multiplied in; int8 quantizes activations by blocks")
    )

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"bits must be 8 or 4, not {self.bits}")
        if self.block not in (16, 32, 64, 128, 256):
            raise ValueError(f"block must be 16, 32, 64, 128 or 256, not {self.block}")

    def run(self, module: Module, context: Context) -> PassResult:
        """Replace every product with, and every gather from, a constant weight."""
        if context.target.name not in TARGETS:
            return PassResult.nothing(f"nothing to quantize: {context.target.name} has no kernel for it")
        if (reason := not_quantizable(module)) is not None:
            return PassResult.nothing(reason)
        lost = [f"keep-float={one} fits no operator" for one in unmatched(module.model, self.keep_float)]
        rewriter = Rewriter(module, self.pass_name())
        materialize(rewriter, ("MatMul", "Gemm"))
        work = _Blocks(rewriter, self.bits, self.block, self.arithmetic)
        for node, held in places(module, ("MatMul", "Gemm", "Gather")):
            problem = held or self._veto(node) or work.apply(node)
            if problem:
                rewriter.refuse(self.pass_name(), node, problem)
        return PassResult.of(rewriter, [*lost, *work.notes()])

    def _veto(self, node: ir.Node) -> str | None:
        if (reason := kept_float(node, self.keep_float)) is not None:
            return reason
        return f"not among only={';'.join(self.only)}" if self.only and node.op_type not in self.only else None


class _Blocks:
    """One run of the pass."""

    def __init__(self, rewriter: Rewriter, bits: int, block: int, arithmetic: str) -> None:
        self.rewriter = rewriter
        self.bits, self.block, self.arithmetic = bits, block, arithmetic
        self.store = Store(rewriter)
        self.made: Counter[str] = Counter()
        self.bytes = [0, 0]

    def apply(self, node: ir.Node) -> str | None:
        """Quantize one operator's weight, or say why not; "" where there is nothing to say."""
        if node.op_type == "Gather":
            return self._embedding(node)
        found = product_of(node)
        if isinstance(found, str):
            return found
        if np.asarray(constant(found.weight)).size < SMALLEST:
            return f"its weight has fewer than {SMALLEST} numbers"
        with self.rewriter.rewriting(f"weights-{node.op_type.lower()}", node):
            self._product(found)
            self.made[node.op_type] += 1
        return None

    def _product(self, found: Product) -> None:
        node = found.node
        stored = self.store.get(
            found.weight, f"{found.transposed} {found.factor}", node, lambda: self._packed(found)
        )
        numbers = np.asarray(constant(found.weight))
        rows, columns = numbers.shape[::-1] if found.transposed else numbers.shape
        given = {
            "K": int(rows), "N": int(columns), "bits": self.bits, "block_size": self.block,
            "accuracy_level": 4 if self.arithmetic == "int8" else 1,
        }  # fmt: skip
        (result,) = self.rewriter.add(
            "MatMulNBits", [found.data, *stored], given, before=node, domain=MICROSOFT_DOMAIN,
            name=f"{node.name or node.op_type}_{self.bits}bits", like=node.outputs[0],
        )  # fmt: skip
        result = add_bias(self.rewriter, result, found)
        self.rewriter.replace(node.outputs[0], result)
        self.rewriter.erase(node)
        self.store.drop(found.weight)

    def _packed(self, found: Product) -> tuple[ir.Value, ...]:
        """(out, blocks, bytes of a block) unsigned integers around the middle, and (out, blocks) scales."""
        columns = found.columns()
        packed, scales, restored = blocked(columns, self.bits, self.block)
        self.store.judge(columns, restored)
        self._count(found.weight, packed.nbytes + scales.nbytes)
        constants, name = self.rewriter.constant, found.weight.name
        scales = np.asarray(scales * np.float32(found.factor), np.float32)
        return (
            constants(packed, f"{name}_{self.bits}bits", at=found.node),
            constants(scales, f"{name}_scales", at=found.node),
        )

    def _count(self, weight: ir.Value, size: int) -> None:
        self.bytes[0] += np.asarray(constant(weight)).nbytes
        self.bytes[1] += size

    def _embedding(self, node: ir.Node) -> str | None:
        """Gather(table, i) -> Cast(Gather(int8 table, i)) * Gather(scales, i)."""
        table, index = input_at(node, 0), input_at(node, 1)
        numbers = constant(table)
        if table is None or index is None or numbers is None or numbers.dtype != np.float32:
            return ""
        if numbers.ndim != 2 or numbers.size < SMALLEST or attribute(node, "axis", 0) not in (0, -2):
            return ""
        if (reason := weight_refusal(table)) is not None:
            return reason
        with self.rewriter.rewriting("weights-gather", node):
            rows, scales = self.store.get(table, "rows", node, lambda: self._rows(table, numbers, node))
            add, name = self.rewriter.add, node.name or "Gather"
            (integers,) = add("Gather", [rows, index], {"axis": 0}, before=node, name=f"{name}_integers")
            (floats,) = add("Cast", [integers], {"to": int(ir.DataType.FLOAT)}, before=node, name=f"{name}_float")
            (scale,) = add("Gather", [scales, index], {"axis": 0}, before=node, name=f"{name}_scale")
            (result,) = add("Mul", [floats, scale], before=node, name=f"{name}_scaled", like=node.outputs[0])
            self.rewriter.replace(node.outputs[0], result)
            self.rewriter.erase(node)
            self.store.drop(table)
            self.made["Gather"] += 1
        return None

    def _rows(self, table: ir.Value, numbers: Array, node: ir.Node) -> tuple[ir.Value, ...]:
        scale = np.maximum(np.max(np.abs(numbers), axis=1, keepdims=True) / 127, np.float32(2.0**-100))
        scale = np.asarray(scale, np.float32)
        integers = np.asarray(np.clip(np.rint(numbers / scale), -127, 127), np.int8)
        self.store.judge(numbers, integers * scale.astype(np.float64))
        self._count(table, integers.nbytes + scale.nbytes)
        constants = self.rewriter.constant
        return (
            constants(integers, f"{table.name}_quantized", at=node, follows=table),
            constants(scale, f"{table.name}_scale", at=node),
        )

    def notes(self) -> Iterator[str]:
        """What was made, and how well the weights are held."""
        if not self.made:
            yield "nothing was quantized"
            return
        said = ", ".join(f"{count} {op}" for op, count in sorted(self.made.items()))
        yield f"weights of {self.bits} bits: {said}; {self.bytes[0]:,} bytes became {self.bytes[1]:,}"
        yield self.store.said()


def blocked(columns: Array, bits: int, block: int) -> tuple[Array, Array, Array]:
    """A weight in blocks along each column, as MatMulNBits wants it.

    Args:
        columns: float32 (in, out).
        bits: 4 or 8; integers are stored unsigned around 2^(bits-1), two of four bits in a byte, the low half first.
        block: numbers that share a scale; the last block of a column is filled up with zeros.

    Returns:
        uint8 (out, blocks, block * bits / 8), float32 (out, blocks), and the float64 weight that they stand for.
    """
    rows, width = columns.shape
    blocks, middle = -(-rows // block), 1 << (bits - 1)
    padded = np.zeros((width, blocks * block), np.float32)
    padded[:, :rows] = columns.T
    cells = padded.reshape(width, blocks, block)
    scales = _best_scales(cells, middle - 1)
    integers = np.clip(np.rint(cells / scales[..., None]), -middle, middle - 1)
    restored = (integers * scales[..., None].astype(np.float64)).reshape(width, -1)[:, :rows].T
    stored = (integers + middle).astype(np.uint8)
    if bits == 4:
        stored = np.asarray(stored[..., 0::2] | (stored[..., 1::2] << 4), np.uint8)
    return np.ascontiguousarray(stored), scales, restored


def _best_scales(cells: Array, largest: int) -> Array:
    """For each block the scale with the smallest squared error, among shares of the one that holds its largest."""
    whole = np.maximum(np.max(np.abs(cells), axis=-1) / largest, np.float32(2.0**-100)).astype(np.float32)
    best, least = whole, np.full(whole.shape, np.inf)
    for share in SHRINKING if largest < 16 else SHRINKING[:1]:  # of 8 bits, no share but the whole gains anything
        scales = np.asarray(whole * np.float32(share), np.float32)
        steps = np.clip(np.rint(cells / scales[..., None]), -largest - 1, largest)
        error = np.sum(np.square(cells - steps * scales[..., None]), axis=-1, dtype=np.float64)
        better = error < least
        best, least = np.where(better, scales, best), np.where(better, error, least)
    return np.asarray(best, np.float32)
