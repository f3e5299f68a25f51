"""What is kept float stays float on ONNX Runtime.

The runtime quantizes float weights by itself, with one scale in all, where a Conv, ConvTranspose or Gemm stands between
a DequantizeLinear of one scale and a QuantizeLinear (its WeightBiasQuantization, since 1.21). A DequantizeLinear with a
scale for every channel, all of them equal, gives the same numbers and is left alone.

It also moves a QuantizeLinear in front of a MaxPool, which then runs on eight bits. Between integer convolutions that
is what is wanted. Behind a float one the integers are not in the layout that the fast kernel takes, and the other is
11 to 20 times as slow as that for floats (`python benchmarks/pooling.py`; ONNX Runtime 1.32, one thread, AMD EPYC). A
Clip to what the integers hold changes no number; nothing is moved past it, and later the runtime drops it, because
QuantizeLinear saturates.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, constant_tensor, input_at, sole_consumer

_CLAMPS = ("Relu", "Clip")


def shield(rewriter: Rewriter) -> None:
    """Put a DequantizeLinear with a scale for every channel, or a Clip, where the runtime would turn floats into
    integers. O(nodes).
    """
    for node in list(walk.nodes(rewriter.module.model)):
        _shield_weights(rewriter, node)
        if walk.is_onnx(node, "QuantizeLinear"):
            _shield_pooling(rewriter, node)


def _shield_pooling(rewriter: Rewriter, quantize: ir.Node) -> None:
    pooled, scale, zero_point = quantize.inputs[0], constant(quantize.inputs[1]), constant(input_at(quantize, 2))
    pool = None if pooled is None else pooled.producer()
    if pool is None or not walk.is_onnx(pool, "MaxPool") or scale is None or zero_point is None or scale.ndim:
        return
    source = None if pool.inputs[0] is None else pool.inputs[0].producer()
    if source is not None and walk.is_onnx(source, "DequantizeLinear"):
        return
    held = np.iinfo(zero_point.dtype)
    with rewriter.rewriting("shield-float", pool):
        ends = {said: (end - int(zero_point)) * scale for said, end in (("lowest", held.min), ("highest", held.max))}
        bounds = [
            rewriter.constant(np.asarray(bound, scale.dtype), f"{pool.name}_{said}", at=quantize)
            for said, bound in ends.items()
        ]
        (clipped,) = rewriter.add("Clip", [pooled, *bounds], before=quantize, name=f"{pool.name}_shield", like=pooled)
        rewriter.set_input(quantize, 0, clipped)


def _shield_weights(rewriter: Rewriter, node: ir.Node) -> None:
    value = input_at(node, 0)
    dequantize, channels = None if value is None else value.producer(), _channels(node)
    if channels is None or dequantize is None or not walk.is_onnx(dequantize, "DequantizeLinear"):
        return
    scale, zero_point = constant(input_at(dequantize, 1)), constant(input_at(dequantize, 2))
    if scale is not None and scale.size == 1 and zero_point is not None and _is_quantized_behind(node):
        _widen(rewriter, node, dequantize, (scale, zero_point), channels)


def _widen(
    rewriter: Rewriter, node: ir.Node, dequantize: ir.Node, numbers: tuple[Array, Array], channels: tuple[int, int]
) -> None:
    integers, (axis, count) = input_at(dequantize, 0), channels
    name = "x" if integers is None else integers.name
    with rewriter.rewriting("shield-float", node):
        wide = [
            rewriter.constant(np.full(count, one.reshape(-1)[0], one.dtype), f"{name}_{said}_each", at=node)
            for one, said in zip(numbers, ("scale", "zero_point"), strict=True)
        ]
        (value,) = rewriter.add(
            "DequantizeLinear", [integers, *wide], {"axis": axis}, before=node, name=f"{node.name}_shield",
            like=node.inputs[0],
        )  # fmt: skip
        rewriter.set_input(node, 0, value)


def _channels(node: ir.Node) -> tuple[int, int] | None:
    """The axis of the channels of what `node` reads, and how many there are; None for what the runtime leaves alone."""
    if not walk.is_onnx(node, "Conv", "ConvTranspose", "Gemm"):
        return None
    weight = constant_tensor(node.inputs[1])
    if weight is None or weight.dtype != ir.DataType.FLOAT or len(weight.shape) < 2:
        return None
    rows, columns, *_ = (int(dim) for dim in weight.shape.numpy())
    if node.op_type == "Gemm":
        return (0 if attribute(node, "transA", 0) else 1), (columns if attribute(node, "transB", 0) else rows)
    return 1, rows if node.op_type == "ConvTranspose" else columns * int(attribute(node, "group", 1))


def _is_quantized_behind(node: ir.Node) -> bool:
    """Whether nothing but clamps stands between `node` and one QuantizeLinear."""
    following: ir.Node | None = node
    while following is not None:
        following = sole_consumer(following.outputs[0])
        if following is not None and walk.is_onnx(following, "QuantizeLinear"):
            return True
        if following is not None and not walk.is_onnx(following, *_CLAMPS):
            return False
    return False
