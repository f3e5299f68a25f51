"""Rules that raise normalizations to LayerNormalization, InstanceNormalization and RMSNormalization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import Array, constant, constant_tensor, rank, sole_consumer, static_shape
from joulec.passes._norms import Norm, read_norm
from joulec.passes._spelled import erase_backwards

LAYER_NORM_OPSET, RMS_NORM_OPSET = 17, 23
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)

Fit = Callable[[ir.Value | None], bool]
"""Whether a scale or shift can be handed to the operator."""


class RaiseNormalization(Rule):
    """(x - mean(x)) / sqrt(var(x) + e) * scale + shift -> Layer- or InstanceNormalization; also RMSNormalization."""

    ops = ("Div", "Mul", "Add")

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        norm = read_norm(node)
        if norm is None:
            return
        _guard(norm, rewriter)
        axes, dims = norm.moments.axes, rank(norm.moments.x) or 0
        instance = _as_instance(norm, dims, rewriter)
        if axes != tuple(range(dims - len(axes), dims)):
            _recentre(norm, rewriter)
        elif instance is None or (dims == 3 and (instance.last is norm.last and norm.scale is None)):
            _raise_last(norm, dims, rewriter)
        else:
            _raise_instance(instance, rewriter)


def _guard(norm: Norm, rewriter: Rewriter) -> None:
    if norm.moments.x.dtype not in FLOATS:
        raise Refused("the operator computes in float32, and this is not known to be float32 or float16")
    if rewriter.in_function(norm.last):
        raise Refused("functions import opsets of their own")
    inner = {id(one): one for one in (*norm.moments.inner, *norm.inner) if one is not norm.last}
    allowed = {*inner, id(norm.last)}
    for one in inner.values():
        users = [usage.node for output in one.outputs for usage in output.uses()]
        if any(id(user) not in allowed for user in users) or any(out.is_graph_output() for out in one.outputs):
            raise Refused(f"{walk.label(one)} inside it is used elsewhere too")


def _with_tail(norm: Norm, fit: Fit, *, shifts: bool = True) -> Norm:
    """The norm with the scale and the shift behind it, each the other operand of the only reader."""
    if norm.scale is None and norm.shift is None:
        scale, last = _behind(norm.last, "Mul", fit)
        norm = replace(norm, scale=scale, last=last)
    if norm.shift is None and shifts:
        shift, last = _behind(norm.last, "Add", fit)
        norm = replace(norm, shift=shift, last=last)
    return norm


def _behind(node: ir.Node, op: str, fit: Fit) -> tuple[ir.Value | None, ir.Node]:
    """The other operand of the only `op` behind `node`, and that node; (None, `node`) where there is none that fits."""
    user = sole_consumer(node.outputs[0])
    if user is None or not walk.is_onnx(user, op) or user.attributes or user.graph is not node.graph:
        return None, node
    others = [value for value in user.inputs if value is not node.outputs[0]]
    return (others[0], user) if len(others) == 1 and fit(others[0]) else (None, node)


def _fits(norm: Norm, fit: Fit) -> bool:
    return all(value is None or fit(value) for value in (norm.scale, norm.shift))


# -- over the last axes -----------------------------------------------------------------------------------------------


def _raise_last(norm: Norm, dims: int, rewriter: Rewriter) -> None:
    """LayerNormalization or RMSNormalization, or where the opset lacks it the spelling that runtimes fuse."""
    x, count = norm.moments.x, len(norm.moments.axes)
    width = static_shape(ir.Value(name="", shape=ir.Shape(list(x.shape or ())[dims - count :])))
    if width is None:
        raise Refused("the sizes that it normalizes over are not known")

    def fit(value: ir.Value | None) -> bool:
        return _is_vector(value, width, dims, rewriter)

    if not _fits(norm, fit):
        raise Refused("its scale or shift is not one number for each normalized element")
    centred = norm.moments.centred is not None
    whole = _with_tail(norm, fit, shifts=centred)
    op, since = ("LayerNormalization", LAYER_NORM_OPSET) if centred else ("RMSNormalization", RMS_NORM_OPSET)
    if not centred and whole.shift is not None:
        raise Refused("RMSNormalization has no shift")
    if rewriter.module.opset < since:
        _respell(norm, whole, width, f"{op} needs opset {since}, the model has {rewriter.module.opset}", rewriter)
        return
    last, hint = whole.last, f"{norm.last.name or 'norm'}_{op.lower()}"
    kind = x.dtype.numpy() if x.dtype is not None else np.float32
    scale = _vector(whole.scale, width, last, rewriter)
    if scale is None:
        scale = rewriter.constant(np.ones(width, kind), f"{norm.last.name or 'norm'}_ones", at=last)
    shift = _vector(whole.shift, width, last, rewriter)
    given = {"axis": -count, "epsilon": norm.moments.epsilon}
    operands = [x, scale] if shift is None else [x, scale, shift]
    (raised,) = rewriter.add(op, operands, given, before=last, name=hint, like=last.outputs[0])
    rewriter.replace(last.outputs[0], raised)
    erase_backwards(last, rewriter)


def _is_vector(value: ir.Value | None, width: tuple[int, ...], dims: int, rewriter: Rewriter) -> bool:
    """Whether `value` has the shape `width`, or is a constant with ones before it, no longer than x."""
    shape = static_shape(value)
    if shape == width or value is None or shape is None:
        return shape == width
    count = len(width)
    laid = count < len(shape) <= dims and shape[-count:] == width and all(dim == 1 for dim in shape[:-count])
    return laid and constant_tensor(value) is not None and (value.name or "") not in rewriter.module.masks


def _vector(value: ir.Value | None, width: tuple[int, ...], at: ir.Node, rewriter: Rewriter) -> ir.Value | None:
    """`value` in the shape `width`."""
    numbers = None if value is None or static_shape(value) == width else constant(value)
    if value is None or numbers is None:
        return value
    return rewriter.constant(numbers.reshape(width), f"{value.name or 'scale'}_vector", at=at)


def _respell(norm: Norm, whole: Norm, width: tuple[int, ...], reason: str, rewriter: Rewriter) -> None:
    """Pow, ReduceMean, Add, Sqrt, Div, Mul, Add, in this order: what ONNX Runtime fuses at load."""
    square, variance, padded = norm.moments.inner[-3:]
    if (norm.last.op_type == "Div" and square.op_type == "Pow") or norm.moments.x.dtype != ir.DataType.FLOAT:
        raise Refused(reason)
    data = norm.moments.x if norm.moments.centred is None else norm.moments.centred
    last, hint = whole.last, norm.last.name or "norm"
    if square.op_type != "Pow":
        two = rewriter.constant(np.array(2.0, np.float32), f"{hint}_two", at=square)
        power = rewriter.add("Pow", [data, two], before=square, name=f"{hint}_square", like=square.outputs[0])
        rewriter.replace(square.outputs[0], power[0])
        rewriter.erase(square)
    (root,) = rewriter.add("Sqrt", [padded.outputs[0]], before=last, name=f"{hint}_root", like=variance.outputs[0])
    (found,) = rewriter.add("Div", [data, root], before=last, name=f"{hint}_quotient", like=last.outputs[0])
    for op, given in (("Mul", whole.scale), ("Add", whole.shift)):
        operand = _vector(given, width, last, rewriter)
        if operand is not None:
            (found,) = rewriter.add(op, [found, operand], before=last, name=f"{hint}_{op}", like=last.outputs[0])
    rewriter.replace(last.outputs[0], found)
    erase_backwards(last, rewriter)


# -- over other axes --------------------------------------------------------------------------------------------------


def _as_instance(norm: Norm, dims: int, rewriter: Rewriter) -> Norm | None:
    """The norm with what stands behind it as InstanceNormalization takes it; None where it is over other axes, or its
    scale and shift are not one constant number a channel."""
    x = norm.moments.x
    channels = x.shape[1] if x.shape is not None and dims > 2 else None
    if norm.moments.centred is None or norm.moments.axes != tuple(range(2, dims)) or x.dtype != ir.DataType.FLOAT:
        return None
    if not isinstance(channels, int) or channels == 0:
        return None

    def fit(value: ir.Value | None) -> bool:
        shape, tensor = static_shape(value), constant_tensor(value)
        if value is None or tensor is None or shape is None or len(shape) > dims:
            return False
        wide = (1,) * (dims - len(shape)) + shape
        return wide == (1, channels) + (1,) * (dims - 2) and (value.name or "") not in rewriter.module.masks

    return _with_tail(norm, fit) if _fits(norm, fit) else None


def _raise_instance(norm: Norm, rewriter: Rewriter) -> None:
    """InstanceNormalization, with one number a channel."""
    x, last, hint = norm.moments.x, norm.last, norm.last.name or "norm"
    channels = 0 if x.shape is None else int(x.shape[1])  # type: ignore[arg-type]  # asked before
    numbers = [
        np.full(channels, missing, np.float32) if value is None else np.ravel(_numbers(value))
        for value, missing in ((norm.scale, 1.0), (norm.shift, 0.0))
    ]
    names = ("scale", "shift")
    held = [rewriter.constant(array, f"{hint}_{name}", at=last) for array, name in zip(numbers, names, strict=True)]
    given, name = {"epsilon": norm.moments.epsilon}, f"{hint}_instancenormalization"
    (raised,) = rewriter.add("InstanceNormalization", [x, *held], given, before=last, name=name, like=last.outputs[0])
    rewriter.replace(last.outputs[0], raised)
    erase_backwards(last, rewriter)


def _numbers(value: ir.Value) -> Array:
    found = constant(value)
    return np.zeros(0) if found is None else found


def _recentre(norm: Norm, rewriter: Rewriter) -> None:
    """x * k + (shift - mean * k) -> (x - mean) * k + shift: x - mean is there anyway."""
    last, centred = norm.last, norm.moments.centred
    if last.op_type != "Add" or centred is None:
        raise Refused("it normalizes over axes that are not the last ones")
    hint, padded = last.name or "norm", norm.moments.inner[-1].outputs[0]
    (root,) = rewriter.add("Sqrt", [padded], before=last, name=f"{hint}_root", like=padded)
    if norm.scale is not None:
        (slope,) = rewriter.add("Div", [norm.scale, root], before=last, name=f"{hint}_slope")
        slope.dtype = norm.moments.x.dtype or ir.DataType.FLOAT
        (found,) = rewriter.add("Mul", [centred, slope], before=last, name=f"{hint}_scaled", like=last.outputs[0])
    else:
        (found,) = rewriter.add("Div", [centred, root], before=last, name=f"{hint}_scaled", like=last.outputs[0])
    if norm.shift is not None:
        (found,) = rewriter.add("Add", [found, norm.shift], before=last, name=f"{hint}_shifted", like=last.outputs[0])
    rewriter.replace(last.outputs[0], found)
    erase_backwards(last, rewriter)
