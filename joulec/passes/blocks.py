"""Which operators may run on integers: blocks, and the reasons of those that are none.

A block is one integer kernel: an operator and the bias addition, Relu or Clip behind it that the kernel swallows.
Everything here is O(nodes + edges).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.values import attribute, constant, constant_tensor, input_at, is_overridable, rank, sole_consumer
from joulec.passes._exposing import branches
from joulec.passes._qdq import Bounds
from joulec.passes.target import QuantizationScheme

Kind = Literal["compute", "arithmetic", "movement", "rescale"]

ALL_INPUTS = frozenset({"Add", "Mul", "Concat"})
ARITHMETIC = ALL_INPUTS | {"AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Relu", "Clip"}
"""Carrying operators whose result has a range of its own."""

LAYOUT = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"})
MOVEMENT = LAYOUT | {"MaxPool", "Slice", "Gather", "Resize", "DepthToSpace"}
"""Carrying operators that pass numbers through unchanged: their result shares its input's scale."""

RESCALE = frozenset({"Mul", "Div"})
"""Operators that, with a positive scalar, only change the scale: the integers stay, and nothing is computed."""

RESCALE_LIMIT = 2.0**20
"""Largest factor, up or down, that is moved into a scale."""

CLAMPS = frozenset({"Relu", "Clip"})
FLOAT_RESULT = frozenset({"MatMul", "Gemm"})
"""Operators whose integer kernel can also end in float."""


@dataclass(frozen=True)
class Block:
    """One integer kernel.

    Attributes:
        node: the operator that computes.
        kind: `compute`, or a carrying operator with a scale of its own (`arithmetic`), its input's (`movement`),
            or its input's times a constant (`rescale`).
        operands: which inputs of `node` are activations.
        constants: which inputs of a carrying operator are constants, to be quantized with it.
        tail: the nodes behind it that the kernel swallows, in order.
        within: the bounds that a swallowed Relu or Clip sets, which the integers must keep.
    """

    node: ir.Node
    kind: Kind
    operands: tuple[int, ...]
    tail: tuple[ir.Node, ...] = ()
    within: Bounds | None = None
    constants: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The activations it reads."""
        return tuple(value for i in self.operands if (value := self.node.inputs[i]) is not None)

    @property
    def output(self) -> ir.Value:
        """The value behind its last node."""
        return (self.tail[-1] if self.tail else self.node).outputs[0]

    @property
    def weight(self) -> ir.Value | None:
        """Its constant weight, if it has one."""
        return None if self.kind != "compute" or 1 in self.operands else self.node.inputs[1]

    @property
    def bias(self) -> ir.Value | None:
        """The bias among its own inputs."""
        return None if self.kind != "compute" or self.node.op_type == "MatMul" else input_at(self.node, 2)

    @property
    def may_end_in_float(self) -> bool:
        """Whether its kernel can hand out float: not where ONNX Runtime merges an Add behind it first, or sees a clamp.

        Behind a clamp it looks for a QuantizeLinear, and without one it computes in float.
        """
        clamped = bool(self.tail) and self.tail[0].op_type in CLAMPS
        return self.node.op_type in FLOAT_RESULT and not self.merges and not clamped

    @property
    def merges(self) -> bool:
        """Whether ONNX Runtime makes a Gemm of a MatMul and the Add behind it, before it looks for integers."""
        following = self.tail[0] if self.tail else sole_consumer(self.node.outputs[0])
        both = self.node.op_type == "MatMul" and following is not None and walk.is_onnx(following, "Add")
        return both and rank(self.node.inputs[0]) in (2, None)


@dataclass(frozen=True)
class Survey:
    """The blocks of a module in graph order, and why each other operator on floats is none."""

    blocks: tuple[Block, ...]
    refused: tuple[tuple[ir.Node, str], ...]


Veto = Callable[[ir.Node], str | None]
"""Says why an operator must stay float, or None."""


def survey(module: Module, scheme: QuantizationScheme, target: str, veto: Veto = lambda node: None) -> Survey:
    """Find every block that `scheme` has a kernel for, in the main graph and in the branches of its Ifs.

    Bodies of Loop and Scan run many times in one run of the model, and functions are called from many places: one
    range would have to serve all of it. Reads weights only to look for NaN.
    """
    blocks: list[Block] = []
    refused: list[tuple[ir.Node, str]] = []
    swallowed: set[int] = set()
    reached = list(branches(module.graph))
    for node in (node for graph in reached for node in graph):
        if id(node) in swallowed or not _on_floats(node):
            continue
        reason = _refusal(node, scheme, target) or veto(node)
        if reason is not None:
            refused.append((node, reason))
            continue
        block = _block(node, scheme, veto)
        blocks.append(block)
        swallowed.update(map(id, block.tail))
    unseen = "inside a loop or function: not calibrated"
    refused += [(node, unseen) for node in _inner_compute(module, scheme, reached)]
    return Survey(tuple(blocks), tuple(refused))


def _on_floats(node: ir.Node) -> bool:
    floats = (value is not None and value.dtype == ir.DataType.FLOAT for value in node.inputs)
    return any(floats) and any(value.dtype == ir.DataType.FLOAT for value in node.outputs)


def _inner_compute(module: Module, scheme: QuantizationScheme, reached: Iterable[ir.Graph]) -> Iterable[ir.Node]:
    seen = {id(graph) for graph in reached}
    inner = (graph for graph in walk.graphs(module.model) if id(graph) not in seen)
    return (node for graph in inner for node in graph if walk.is_onnx(node, *sorted(scheme.compute)))


# -- guards -------------------------------------------------------------------------------------------------


def _refusal(node: ir.Node, scheme: QuantizationScheme, target: str) -> str | None:
    op = node.op_type
    known = op in scheme.compute or (op in scheme.carry and op in ARITHMETIC | MOVEMENT | RESCALE)
    if not walk.is_onnx(node) or not known:
        return f"no INT8 kernel on {target}"
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return "an attribute refers to a function attribute"
    if sum(bool(value.name) for value in node.outputs) != 1 or not node.outputs[0].name:
        return "it has more than one result"
    operands = [input_at(node, index) for index in _operands(node)]
    if not operands or any(value is None for value in operands):
        return "its operands are constants"
    if any(value is not None and value.dtype != ir.DataType.FLOAT for value in operands):
        return "an operand is not float32, or of unknown type"
    if not all(map(_is_dynamic, operands)):
        return "its operand is a constant"
    if op == "Div" and rescaling(node) is None:
        return f"no INT8 kernel on {target}"
    return _compute_refusal(node) if op in scheme.compute else _carry_refusal(node)


def _operands(node: ir.Node) -> tuple[int, ...]:
    if node.op_type in ALL_INPUTS:
        return tuple(index for index, value in enumerate(node.inputs) if not _is_stored(value))
    return (0, 1) if node.op_type == "MatMul" and _is_dynamic(input_at(node, 1)) else (0,)


def _compute_refusal(node: ir.Node) -> str | None:
    if node.op_type == "MatMul" and _is_dynamic(input_at(node, 1)):
        return None
    weight, bias = input_at(node, 1), input_at(node, 2) if node.op_type != "MatMul" else None
    if weight is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return f"no rule quantizes {node.op_type} yet"
    if node.op_type == "Gemm" and (reason := _gemm_refusal(node)) is not None:
        return reason
    return weight_refusal(weight) or (_bias_refusal(node, bias, channels(node)) if bias is not None else None)


def _is_dynamic(value: ir.Value | None) -> bool:
    """Whether `value` is computed, or fed."""
    return value is not None and not _is_stored(value)


def _is_stored(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer, even one that a caller may replace, or a Constant."""
    return value is not None and (value.is_initializer() or constant_tensor(value) is not None)


def weight_refusal(weight: ir.Value) -> str | None:
    """Why the numbers of `weight` cannot become integers, or None."""
    if weight.is_initializer() and is_overridable(weight):
        return f"weight '{weight.name}' is a graph input: a caller may replace it"
    numbers = constant(weight)
    if numbers is None:
        return "weight not constant (fold-constants comes first)"
    if weight.dtype != ir.DataType.FLOAT and numbers.dtype != np.float32:
        return f"weight is {numbers.dtype}, not float32"
    if numbers.size == 0 or numbers.ndim < 1:
        return "weight is empty or a scalar"
    return None if np.all(np.isfinite(numbers)) else f"weight '{weight.name}' holds NaN or Inf"


def _bias_refusal(node: ir.Node, bias: ir.Value, count: int) -> str | None:
    numbers = None if bias.is_initializer() and is_overridable(bias) else constant(bias)
    if numbers is None:
        return "bias not constant"
    if numbers.size not in (1, count) or numbers.shape[-1:] not in ((), (1,), (count,)):
        return f"bias has shape {list(numbers.shape)}, not one number a channel"
    if node.op_type != "Gemm" and numbers.ndim != 1:
        return f"bias has rank {numbers.ndim}"
    return None if np.all(np.isfinite(numbers)) else f"bias '{bias.name}' holds NaN or Inf"


def _gemm_refusal(node: ir.Node) -> str | None:
    if attribute(node, "transA", 0):
        return "transA is set"
    scaled = attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0
    return "alpha or beta is not 1" if scaled else None


def _carry_refusal(node: ir.Node) -> str | None:
    if node.op_type in ALL_INPUTS and not all(map(_is_finite, _stored(node))):
        return "a constant operand is not finite float32, or a caller may replace it"
    if node.op_type == "Resize" and attribute(node, "mode", "nearest") != "nearest":
        return "it interpolates"
    if node.op_type == "Clip" and clip_bounds(node) is None:
        return "its bounds are not constants around zero"
    return None


def _stored(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and _is_stored(value)]


def _is_finite(value: ir.Value) -> bool:
    numbers = constant(value)
    return (
        numbers is not None and numbers.dtype == np.float32 and numbers.size > 0 and bool(np.all(np.isfinite(numbers)))
    )


# -- weights ------------------------------------------------------------------------------------------------


def channel_axis(node: ir.Node) -> int | None:
    """The axis of the weight of `node` that runs along output channels; None where none does so alone."""
    weight = node.inputs[1]
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if rank(weight) == 2 else None


def channels(node: ir.Node) -> int:
    """How many output channels the constant weight of `node` has."""
    tensor = constant_tensor(node.inputs[1])
    if tensor is None:
        return 0
    dims = tuple(int(dim) for dim in tensor.shape.numpy())
    if node.op_type == "ConvTranspose":
        return dims[1] * int(attribute(node, "group", 1)) if len(dims) > 1 else 0
    axis = 0 if node.op_type == "Conv" else 0 if attribute(node, "transB", 0) else -1
    return dims[axis] if dims else 0


# -- blocks -------------------------------------------------------------------------------------------------


def _block(node: ir.Node, scheme: QuantizationScheme, veto: Veto) -> Block:
    kind = _kind(node, scheme)
    operands, stored = _operands(node), _constants(node)
    if not scheme.quantize_outputs or kind in ("movement", "rescale") or node.op_type in CLAMPS:
        return Block(node, kind, operands, (), _bounds(node), stored)
    tail: tuple[ir.Node, ...] = ()
    following = sole_consumer(node.outputs[0])
    if following is not None and _is_gemm_bias(node, following):
        tail, following = (following,), sole_consumer(following.outputs[0])
    bounds = None if following is None or following.graph is not node.graph else _bounds(following)
    if following is None or bounds is None or following.op_type not in scheme.carry or veto(following) is not None:
        return Block(node, kind, operands, tail, None, stored)
    return Block(node, kind, operands, (*tail, following), bounds, stored)


def _kind(node: ir.Node, scheme: QuantizationScheme) -> Kind:
    if node.op_type in scheme.compute:
        return "compute"
    if rescaling(node) is not None:
        return "rescale"
    return "arithmetic" if node.op_type in ARITHMETIC else "movement"


def rescaling(node: ir.Node) -> float | None:
    """The positive scalar that `node` multiplies its one operand with, or None where it does anything else."""
    if node.op_type not in RESCALE or len(node.inputs) != 2:
        return None
    operands = _operands(node)
    if len(operands) != 1 or (node.op_type == "Div" and operands != (0,)):
        return None
    operand, stored = node.inputs[operands[0]], node.inputs[1 - operands[0]]
    numbers, dims = constant(stored), rank(operand)
    if numbers is None or numbers.size != 1 or dims is None or numbers.ndim > dims:
        return None
    number = float(numbers.flat[0])
    if not 1 / RESCALE_LIMIT <= number <= RESCALE_LIMIT:
        return None
    return 1 / number if node.op_type == "Div" else number


def _constants(node: ir.Node) -> tuple[int, ...]:
    if node.op_type not in ALL_INPUTS:
        return ()
    return tuple(index for index, value in enumerate(node.inputs) if _is_stored(value))


def _is_gemm_bias(node: ir.Node, following: ir.Node) -> bool:
    """Whether ONNX Runtime merges MatMul and Add into Gemm at load, with the Add as a bias."""
    if node.op_type != "MatMul" or not walk.is_onnx(following, "Add") or following.graph is not node.graph:
        return False
    if rank(node.inputs[0]) != 2 or rank(node.inputs[1]) != 2 or not _is_constant(node.inputs[1]):
        return False
    other = following.inputs[1] if following.inputs[0] is node.outputs[0] else following.inputs[0]
    tensor, count = constant_tensor(other), channels(node)
    return tensor is not None and tuple(int(dim) for dim in tensor.shape.numpy()) == (count,)


def _is_constant(value: ir.Value | None) -> bool:
    return constant_tensor(value) is not None


def _bounds(node: ir.Node) -> Bounds | None:
    if walk.is_onnx(node, "Relu"):
        return 0.0, float("inf")
    return clip_bounds(node) if walk.is_onnx(node, "Clip") else None


def clip_bounds(node: ir.Node) -> Bounds | None:
    """The constant bounds of a Clip if zero lies between them, else None."""
    low, high = _bound(node, 1, "min", -np.inf), _bound(node, 2, "max", np.inf)
    if low is None or high is None or not low <= 0.0 <= high:
        return None
    return low, high


def _bound(node: ir.Node, index: int, name: str, default: float) -> float | None:
    value = input_at(node, index)
    if value is None:
        found = attribute(node, name, default)
        return float(found)
    numbers = constant(value)
    return float(numbers.flat[0]) if numbers is not None and numbers.size == 1 else None
