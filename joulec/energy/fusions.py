"""What ONNX Runtime fuses in float: epilogues of convolutions and matrix products, padding, x * sigmoid(x)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from joulec.energy import blocked
from joulec.energy.kernel import Kernel, Plan
from joulec.energy.view import MAX_CONSTANT_ELEMENTS
from joulec.ir.values import attribute, constant_tensor, input_at, sole_consumer
from joulec.ir.walk import MICROSOFT_DOMAIN, is_onnx

CONV_ACTIVATIONS = ("Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid")
HARD_SWISH = (1 / 6, 0.5)
"""alpha and beta of the HardSigmoid in a HardSwish."""
GEMM_ACTIVATIONS = (
    "Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Elu", "Softplus", "Softsign", "ThresholdedRelu",
)  # fmt: skip


@dataclass
class Chain:
    """A head and the nodes that run in its kernel, in order."""

    head: ir.Node
    value: ir.Value
    absorbed: list[ir.Node] = field(default_factory=list)
    epilogue: list[ir.Node] = field(default_factory=list)
    extra: list[ir.Value] = field(default_factory=list)

    def take(self, node: ir.Node, *, counts: bool = True, reads: ir.Value | None = None) -> None:
        """Absorb `node`; `counts` if its arithmetic happens at run time, `reads` if it brings another operand."""
        self.absorbed.append(node)
        self.value = node.outputs[0]
        if counts:
            self.epilogue.append(node)
        if reads is not None:
            self.extra.append(reads)


def fuse_conv(plan: Plan, head: ir.Node) -> None:
    """Conv -> [BatchNormalization | Mul | Add by constants]* -> [Add of a blocked value] -> [activation]."""
    chain = Chain(head, head.outputs[0])
    if input_at(head, 1) in plan.constants:
        _fold_scales(plan, chain)
    _residual(plan, chain)
    if not _fuse_hard_swish(plan, chain):
        fuse_activation(plan, chain, CONV_ACTIVATIONS)
    if blocked.computes_blocked(plan, head):
        plan.blocked.add(chain.value)
    commit(plan, chain, "FusedConv" if chain.epilogue else "Conv", _pad_reads(plan, head))


def fuse_gemm(plan: Plan, head: ir.Node) -> None:
    """Gemm -> [activation]."""
    chain = Chain(head, head.outputs[0])
    fuse_activation(plan, chain, GEMM_ACTIVATIONS)
    commit(plan, chain, "FusedGemm" if chain.absorbed else "Gemm", plan.reads(head))


def commit(plan: Plan, chain: Chain, name: str, reads: tuple[ir.Value | None, ...], views: int = 0) -> None:
    """The kernel of a chain's head, which does the work of all of it."""
    kernel = Kernel(name, (*reads, *chain.extra), (chain.value,), epilogue=tuple(chain.epilogue), views=views)
    plan.kernels[chain.head] = kernel
    plan.absorb(chain.absorbed, chain.head)


def _fold_scales(plan: Plan, chain: Chain) -> None:
    while (node := plan.follower(chain.value)) is not None:
        if is_onnx(node, "BatchNormalization"):
            foldable = plan.origin(node.inputs[0]) is chain.value and all(v in plan.constants for v in node.inputs[1:])
        else:
            foldable = is_onnx(node, "Mul", "Add") and _per_channel(plan, node, chain)
        if not foldable:
            return
        chain.take(node, counts=False)


def _per_channel(plan: Plan, node: ir.Node, chain: Chain) -> bool:
    """Whether the other operand is a constant with one number per output channel."""
    other = other_operand(plan, node, chain.value)
    weight = input_at(chain.head, 1)
    if other is None or other not in plan.constants or weight is None or weight.shape is None or other.shape is None:
        return False
    sizes = [dim for dim in other.shape if dim != 1]
    return len(other.shape) >= 1 and sizes == [weight.shape[0]]


def _residual(plan: Plan, chain: Chain) -> None:
    node = plan.follower(chain.value)
    if node is None or not is_onnx(node, "Add", "Sum"):
        return
    other = other_operand(plan, node, chain.value)
    if other is not None and other in plan.blocked and _same_shape(other, chain.value):
        chain.take(node, reads=other)


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    return a.shape is None or b.shape is None or len(a.shape) == len(b.shape)


def other_operand(plan: Plan, node: ir.Node, value: ir.Value) -> ir.Value | None:
    """What `node` computes with beside `value`, if that is one value."""
    operands = [plan.origin(v) for v in node.inputs]
    others = [v for v in operands if v is not value]
    return others[0] if len(others) == 1 else None


def fuse_activation(plan: Plan, chain: Chain, kinds: tuple[str, ...]) -> None:
    """Take in the activation behind a chain, if it is one of `kinds`."""
    node = plan.follower(chain.value)
    if node is None or not is_onnx(node, *kinds) or any(v not in plan.constants for v in node.inputs[1:] if v):
        return
    chain.take(node)


def _fuse_hard_swish(plan: Plan, chain: Chain) -> bool:
    """x * HardSigmoid(x), and HardSwish, behind a convolution in blocks; not where the caller gets the result."""
    if not blocked.computes_blocked(plan, chain.head):
        return False
    found = _hard_swish(plan, chain.value)
    if not found or found[-1].outputs[0].is_graph_output():
        return False
    for node in found:
        chain.take(node)
    return True


def _hard_swish(plan: Plan, value: ir.Value) -> list[ir.Node]:
    """The nodes that make a HardSwish of `value`, which nobody else reads; none if there is none."""
    readers = [usage.node for usage in value.uses()]
    if value.is_graph_output() or any(node in plan.kernels for node in readers):
        return []
    if len(readers) == 1 and is_onnx(readers[0], "HardSwish"):
        return readers
    gates = [node for node in readers if is_onnx(node, "HardSigmoid") and _is_hard_swish(node)]
    product = plan.follower(gates[0].outputs[0]) if len(gates) == 1 and len(readers) == 2 else None
    return [gates[0], product] if product in readers and product is not None and is_onnx(product, "Mul") else []


def _is_hard_swish(gate: ir.Node) -> bool:
    told = (attribute(gate, "alpha", 0.2), attribute(gate, "beta", 0.5))
    return all(abs(one - wanted) < 1e-5 for one, wanted in zip(told, HARD_SWISH, strict=True))


def _pad_reads(plan: Plan, head: ir.Node) -> tuple[ir.Value | None, ...]:
    """The inputs of a convolution, a zero Pad in front of it fused away."""
    reads = plan.reads(head)
    pad = plan.producer(head.inputs[0])
    if pad is None or not is_onnx(pad, "Pad") or plan.follower(pad.outputs[0]) not in (None, head):
        return reads
    if len(pad.outputs[0].uses()) != 1 or pad.outputs[0].is_graph_output() or not _pads_zeros(plan, pad):
        return reads
    plan.kernels[pad] = Kernel(f"fused into {head.op_type} '{head.name}'", runs=False)
    return (plan.origin(pad.inputs[0]), *reads[1:])


def _pads_zeros(plan: Plan, pad: ir.Node) -> bool:
    mode = pad.attributes.get("mode")
    if mode is not None and (mode.is_ref() or mode.value != "constant"):
        return False
    fill = input_at(pad, 2)
    legacy = pad.attributes.get("value")
    if fill is None:
        constant_pads = input_at(pad, 1) is None or input_at(pad, 1) in plan.constants
        return constant_pads and (legacy is None or (not legacy.is_ref() and legacy.value == 0))
    tensor = constant_tensor(fill)
    return tensor is not None and 0 < tensor.size <= MAX_CONSTANT_ELEMENTS and not np.any(tensor.numpy())


def fuse_swish(plan: Plan, node: ir.Node) -> bool:
    """x * Sigmoid(alpha * x) runs as one QuickGelu: the Sigmoid is computed inside the Mul."""
    follower = plan.follower(node.outputs[0])
    if follower is None or not is_onnx(follower, "Mul"):
        return False
    source = other_operand(plan, follower, node.outputs[0])
    absorbed = [node]
    if source is not plan.origin(node.inputs[0]):
        scale = plan.producer(node.inputs[0])
        if scale is None or not _scales(plan, scale, source):
            return False
        absorbed.append(scale)
    made = follower.outputs[0]
    plan.kernels[follower] = Kernel("QuickGelu", (source,), (made,), formula=(MICROSOFT_DOMAIN, "QuickGelu"))
    if source in plan.blocked:
        plan.blocked.add(made)
    plan.absorb(absorbed, follower)
    return True


def _scales(plan: Plan, node: ir.Node, source: ir.Value | None) -> bool:
    """Whether `node` multiplies `source` by one constant number, for one user."""
    if source is None or not is_onnx(node, "Mul") or sole_consumer(node.outputs[0]) is None:
        return False
    factor = other_operand(plan, node, source)
    tensor = constant_tensor(factor)
    return tensor is not None and tensor.size == 1


def plain(plan: Plan, node: ir.Node) -> Kernel:
    """The node's own kernel on its own inputs and outputs."""
    return Kernel(node.op_type, plan.reads(node), tuple(v for v in node.outputs if v.name))
