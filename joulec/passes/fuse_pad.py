"""fuse-pad: zero padding moves into the convolution behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import attribute, constant, input_at, rank
from joulec.passes.base import Context, RulePass


@dataclass(frozen=True)
class FusePad(RulePass):
    """Move a Pad with zeros on spatial dimensions into the pads of the Conv behind it."""

    def rules(self, context: Context) -> list[Rule]:
        """One rule."""
        return [PadIntoConv()]


class PadIntoConv(Rule):
    """Conv(Pad(x, zeros)) -> Conv(x) with larger pads, if every user of the Pad is such a Conv."""

    ops = ("Pad",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        users = [usage.node for usage in node.outputs[0].uses()]
        if not users or not any(walk.is_onnx(user, "Conv") for user in users):
            return
        if node.outputs[0].is_graph_output() or not all(_is_data_of_conv(user, node.outputs[0]) for user in users):
            raise Refused("the padded tensor is used by other operators too")
        if attribute(node, "mode", "constant") != "constant":
            raise Refused(f"it pads in mode '{attribute(node, 'mode')}'")
        if not _pads_zero(node):
            raise Refused("it pads with another value than zero")
        begins, ends = _spatial_pads(node)
        wider = [_wider(user, begins + ends) for user in users]
        for user, pads in zip(users, wider, strict=True):
            rewriter.set_attribute(user, "pads", pads)
            rewriter.set_attribute(user, "auto_pad", None)
            rewriter.set_input(user, 0, node.inputs[0])
        rewriter.erase(node)


def _is_data_of_conv(user: ir.Node, value: ir.Value) -> bool:
    return walk.is_onnx(user, "Conv") and user.inputs[0] is value and value not in list(user.inputs[1:])


def _wider(conv: ir.Node, added: list[int]) -> list[int]:
    """The pads of `conv` with `added` to them.

    Raises:
        Refused: it chooses its pads by itself.
    """
    auto = attribute(conv, "auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID"):
        raise Refused(f"the Conv pads by itself (auto_pad {auto})")
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
