"""fuse-pad: zero padding moves into the convolution or the pooling behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule, apply_rules
from joulec.ir.values import attribute, constant, input_at, rank
from joulec.passes._zerosigns import ZeroSigns
from joulec.passes.base import Context, Pass, PassResult


@dataclass(frozen=True)
class FusePad(Pass):
    """Move a Pad with zeros on spatial dimensions into the Conv behind it, or the MaxPool of no negatives."""

    def run(self, module: Module, context: Context) -> PassResult:
        """Apply both rules everywhere: main graph, subgraphs and functions."""
        rewriter = Rewriter(module, self.pass_name())
        apply_rules(rewriter, [PadIntoConv(), PadIntoMaxPool(ZeroSigns(module))])
        return PassResult.of(rewriter)


class PadIntoConv(Rule):
    """Conv(Pad(x, zeros)) -> Conv(x) with larger pads, if every user of the Pad is such a Conv."""

    ops = ("Pad",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        users = [usage.node for usage in node.outputs[0].uses()]
        if not users or not any(walk.is_onnx(user, "Conv") for user in users):
            return
        if node.outputs[0].is_graph_output() or not all(_is_data_of_conv(user, node.outputs[0]) for user in users):
            raise Refused("the padded tensor is used by other operators too")
        _give(node, users, [_wider(user, _zeros_around(node)) for user in users], rewriter)


class PadIntoMaxPool(Rule):
    """MaxPool(Pad(x, zeros)) -> MaxPool(x) with larger pads, where x is nowhere below zero.

    What MaxPool pads by itself never wins, and neither does a zero beside numbers from 0 up, of which every window
    holds one as long as pads are smaller than the kernel. Only the sign of a zero can differ, which must not show.
    """

    ops = ("Pad",)

    def __init__(self, zeros: ZeroSigns) -> None:
        self._zeros = zeros

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        users = [usage.node for usage in node.outputs[0].uses()]
        if not users or not all(walk.is_onnx(user, "MaxPool") for user in users) or node.outputs[0].is_graph_output():
            return
        if not _never_negative(node.inputs[0]):
            raise Refused("MaxPool reads numbers that may be below the zeros around them")
        added = _zeros_around(node)
        wider = [_wider(user, added) for user in users]
        for user, pads in zip(users, wider, strict=True):
            self._check(user, pads)
        _give(node, users, wider, rewriter)

    def _check(self, pool: ir.Node, pads: list[int]) -> None:
        kernel = attribute(pool, "kernel_shape", ())
        if len(pool.outputs) > 1 or attribute(pool, "ceil_mode", 0) or set(attribute(pool, "dilations", (1,))) != {1}:
            raise Refused("the MaxPool has indices, dilations or rounds its size up")
        if any(pad >= size for pad, size in zip(pads, [*kernel, *kernel], strict=True)):
            raise Refused("a window could hold nothing but padding")
        if not self._zeros.hidden(pool.outputs[0]):
            raise Refused("somebody may see the sign of a zero")


def _never_negative(value: ir.Value | None) -> bool:
    """Whether the operator that makes `value`, of float numbers, gives none below zero."""
    made = None if value is None else value.producer()
    if made is None or value is None or value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return False
    if walk.is_onnx(made, "Clip"):
        low = attribute(made, "min") if "min" in made.attributes else constant(input_at(made, 1))
        return low is not None and bool(np.all(np.asarray(low) >= 0))
    return walk.is_onnx(made, "Relu", "Sigmoid", "HardSigmoid", "Abs", "Softplus")


def _give(node: ir.Node, users: list[ir.Node], pads: list[list[int]], rewriter: Rewriter) -> None:
    for user, wider in zip(users, pads, strict=True):
        rewriter.set_attribute(user, "pads", wider)
        rewriter.set_attribute(user, "auto_pad", None)
        rewriter.set_input(user, 0, node.inputs[0])
    rewriter.erase(node)


def _zeros_around(node: ir.Node) -> list[int]:
    """How many zeros the Pad puts at the begin and at the end of each spatial dimension.

    Raises:
        Refused: it does something else.
    """
    if attribute(node, "mode", "constant") != "constant":
        raise Refused(f"it pads in mode '{attribute(node, 'mode')}'")
    if not _pads_zero(node):
        raise Refused("it pads with another value than zero")
    begins, ends = _spatial_pads(node)
    return begins + ends


def _is_data_of_conv(user: ir.Node, value: ir.Value) -> bool:
    return walk.is_onnx(user, "Conv") and user.inputs[0] is value and value not in list(user.inputs[1:])


def _wider(conv: ir.Node, added: list[int]) -> list[int]:
    """The pads of `conv` with `added` to them.

    Raises:
        Refused: it chooses its pads by itself.
    """
    name, auto = conv.op_type, attribute(conv, "auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID"):
        raise Refused(f"the {name} pads by itself (auto_pad {auto})")
    own = attribute(conv, "pads") if auto == "NOTSET" else None
    return [int(a + b) for a, b in zip([0] * len(added) if own is None else own, added, strict=True)]


def _pads_zero(node: ir.Node) -> bool:
    if "value" in node.attributes:
        return float(attribute(node, "value")) == 0.0
    given = input_at(node, 2)
    if given is None:
        return True
    value = constant(given)
    return value is not None and not np.any(value)


def _spatial_pads(node: ir.Node) -> tuple[list[int], list[int]]:
    """Begin and end pads of the spatial dimensions.

    Raises:
        Refused: pads are computed or negative, or batch or channels are padded.
    """
    given = attribute(node, "pads")
    pads = np.asarray(given) if given is not None else constant(input_at(node, 1))
    all_axes = input_at(node, 3) is None
    dims = pads.size // 2 if pads is not None and all_axes else rank(node.inputs[0])
    if pads is None or dims is None or rank(node.inputs[0]) not in (None, dims):
        raise Refused("its pads or its input's rank are not known")
    whole = np.zeros(2 * dims, np.int64)
    axes = np.arange(dims) if all_axes else constant(input_at(node, 3))
    if axes is None or pads.size != 2 * axes.size:
        raise Refused("its axes are not known")
    axes = axes % dims
    whole[axes], whole[axes + dims] = pads[: axes.size], pads[axes.size :]
    if np.any(whole < 0):
        raise Refused("it crops")
    if whole[0] or whole[1] or whole[dims] or whole[dims + 1]:
        raise Refused("it pads the batch or the channels")
    return [int(p) for p in whole[2:dims]], [int(p) for p in whole[dims + 2 :]]
