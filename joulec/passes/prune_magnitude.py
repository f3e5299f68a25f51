"""prune-magnitude: set the smallest weights to zero, and keep the mask that says which stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, constant_tensor
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option

PRUNABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SMALLEST = 64
"""Weights with fewer elements are left alone: there is nothing to gain, and much to lose."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class PruneMagnitude(Pass):
    """Zero the weights of smallest magnitude, T = Model x Mask, by sparsity or threshold, globally or per tensor."""

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY

    sparsity: float | None = option(None, "share of weights to zero, 0 to 1")
    threshold: float | None = option(None, "zero weights of smaller magnitude than this")
    scope: Literal["global", "tensor"] = option("global", "whether sparsity holds over all weights, or in each tensor")

    def __post_init__(self) -> None:
        if self.sparsity is not None and self.threshold is not None:
            raise ValueError("give sparsity or threshold, not both")
        if self.sparsity is not None and not 0.0 <= self.sparsity <= 1.0:
            raise ValueError(f"sparsity must lie between 0 and 1, not {self.sparsity:g}")
        if self.threshold is not None and not self.threshold >= 0.0:
            raise ValueError(f"threshold must not be negative, it is {self.threshold:g}")

    def run(self, module: Module, context: Context) -> PassResult:
        """Prune every Conv, ConvTranspose, Gemm and MatMul weight; each shared weight once."""
        if self.sparsity is None and self.threshold is None:
            return PassResult.nothing(
                f"no sparsity ordered: zeros without a pattern save no energy on {context.target.name}, "
                "only storage when compressed"
            )
        rewriter = Rewriter(module, self.pass_name())
        weights = dict(_weights(module, rewriter))
        for (value, node), mask in zip(weights.items(), self._masks(list(weights)), strict=True):
            _apply(value, node, mask, rewriter)
        return PassResult.of(rewriter, _credit(context))

    def _masks(self, values: list[ir.Value]) -> Iterator[Array]:
        """The mask of each weight, in order. Ties at the border fall to the first elements, so counts are exact."""
        if self.threshold is not None:
            for value in values:
                yield _magnitudes(value) >= self.threshold
            return
        share = self.sparsity or 0.0
        if self.scope == "tensor":
            for value in values:
                magnitudes = _magnitudes(value)
                yield _keep_largest(magnitudes, round(share * magnitudes.size))
            return
        sizes = [_size(value) for value in values]
        whole = np.concatenate([_magnitudes(value).ravel() for value in values]) if values else np.zeros(0, np.float32)
        mask = _keep_largest(whole, round(share * whole.size))
        for value, part in zip(values, np.split(mask, np.cumsum(sizes)[:-1]) if values else [], strict=True):
            yield part.reshape(_magnitudes(value).shape)


def _weights(module: Module, rewriter: Rewriter) -> Iterator[tuple[ir.Value, ir.Node]]:
    """Prunable weights with the first node that uses each, in graph order; why others are left alone is recorded."""
    seen: set[int] = set()
    for node in walk.nodes(module.model):
        if not walk.is_onnx(node, *PRUNABLE) or len(node.inputs) < 2:
            continue
        value = node.inputs[1]
        if value is None or id(value) in seen:
            continue
        seen.add(id(value))
        reason = _reason(value)
        if reason is not None:
            rewriter.refuse("prune", node, reason)
            continue
        yield value, node


def _reason(value: ir.Value) -> str | None:
    """Why a weight is not pruned, or None."""
    tensor = constant_tensor(value)
    if value.is_initializer() and value.is_graph_input():
        return f"weight '{value.name}' is a graph input that callers may feed"
    if tensor is None:
        return "its weight is not a constant"
    if not value.is_initializer():
        return f"weight '{value.name}' is a Constant node; fold-constants makes it an initializer"
    if tensor.dtype not in FLOATS:
        return f"weight '{value.name}' is {tensor.dtype.name}, not float"
    if tensor.size < SMALLEST:
        return f"weight '{value.name}' has only {tensor.size} elements"
    if not np.all(np.isfinite(tensor.numpy().astype(np.float32, copy=False))):
        return f"weight '{value.name}' holds NaN or infinity"
    return None


def _size(value: ir.Value) -> int:
    tensor = constant_tensor(value)
    return 0 if tensor is None else tensor.size


def _magnitudes(value: ir.Value) -> Array:
    tensor = constant_tensor(value)
    if tensor is None:
        raise RuntimeError(f"'{value.name}' is not a constant")
    return np.abs(tensor.numpy().astype(np.float32, copy=False))


def _keep_largest(magnitudes: Array, zeros: int) -> Array:
    """A mask with exactly `zeros` False entries, at the smallest magnitudes; among equals, the first go first. O(n)."""
    flat = magnitudes.ravel()
    mask = np.ones(flat.size, bool)
    if zeros <= 0:
        return mask.reshape(magnitudes.shape)
    border = np.partition(flat, zeros - 1)[zeros - 1]
    below = flat < border
    mask[below] = False
    ties = np.flatnonzero(flat == border)[: zeros - int(below.sum())]
    mask[ties] = False
    return mask.reshape(magnitudes.shape)


def _apply(value: ir.Value, node: ir.Node, mask: Array, rewriter: Rewriter) -> None:
    tensor = constant_tensor(value)
    earlier = rewriter.module.masks.get(value.name or "")
    whole = mask if earlier is None else mask & earlier
    if tensor is None or (earlier is None and whole.all()) or (earlier is not None and np.array_equal(whole, earlier)):
        return
    numbers = tensor.numpy()
    with rewriter.rewriting("prune", node):
        pruned = np.where(whole, numbers, np.zeros((), numbers.dtype)).astype(numbers.dtype, copy=False)
        rewriter.set_tensor(value, ir.tensor(pruned, dtype=tensor.dtype), mask=whole)


def _credit(context: Context) -> list[str]:
    """What zeros are worth on this target, so that nobody expects speed from them."""
    if context.target.sparse_kernels:
        patterns = ", ".join(sorted(context.target.sparse_kernels))
        return [f"{context.target.name} kernels skip zeros only in the pattern {patterns}; these zeros have none"]
    return [f"no {context.target.name} kernel skips zeros: they save storage when compressed, not energy or time"]
