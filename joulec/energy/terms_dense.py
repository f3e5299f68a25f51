"""Terms of dense contractions, as MLAS computes them: matrix products in register tiles, convolutions in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from joulec.energy.view import Cost, View, at

BLOCK = 16
"""Channels of a block, and columns of a tile: one AVX-512 register of float32."""
TILE_ROWS, TILE_PIXELS = 12, 6
"""Rows of a matrix product's tile; pixels of a convolution's."""
FILTERS = 4
"""Blocks of output channels that a convolution's kernel computes at once."""
DEPTH, POINT_DEPTH = 256, 128
"""Depth over which a matrix product, and a pointwise convolution, sums before it writes."""
INT8_DEPTH = 4
"""Products that one integer instruction sums."""


def up(number: int, step: int) -> int:
    """`number` rounded up to a multiple of `step`."""
    return -(-number // step) * step


class Product(NamedTuple):
    """`times` products of (rows, inner) and (inner, columns); `packed` if the right matrix was laid out at load."""

    times: int
    rows: int
    columns: int
    inner: int
    packed: bool = True


def product_terms(one: Product, integer: bool = False) -> dict[str, float]:
    """The terms of a matrix product."""
    times, rows, columns, inner, packed = one
    wide, deep = up(columns, BLOCK), up(inner, INT8_DEPTH) if integer else inner
    repacked = (rows * inner if integer else 0) + (0 if packed or rows == 1 else inner * columns)
    return {
        "flop": 2.0 * times * rows * wide * deep,
        "load": float(times * wide * deep * -(-rows // TILE_ROWS)),
        "store": float(times * rows * wide * -(-inner // DEPTH)),
        "pack": float(times * repacked),
        "call": float(times),
    }


# -- matrix products --------------------------------------------------------------------------------------------------


def matmul(op: str, view: View, cost: Cost) -> dict[str, float]:
    """MatMul, Gemm and their integer and fused forms; whatever else is a product by its operations alone."""
    integer = "int8-matrix" in cost.flops
    one = product_of(op, view)
    if one is None:
        return {"flop": float(sum(n for kind, n in cost.flops.items() if kind.endswith("-matrix")))}
    return product_terms(one, integer)


def product_of(op: str, view: View) -> Product | None:
    """The product that `op` computes, or None where it is none, or several."""
    if op in ("MatMulNBits", "MatMulBnb4", "MatMulFpQ4"):
        return Product(1, math.prod(view.dims(0)[:-1]), view.integer("N", 1), view.integer("K", 1))
    if "MatMul" not in op and op not in ("Gemm", "FusedGemm", "QGemm"):
        return None
    where = 3 if op == "QLinearMatMul" or view.node.op_type in ("QLinearMatMul", "QGemm") else 1
    left, right = view.dims(0), view.dims(where)
    if not left or not right:
        return None
    rows, inner = (at(left, -2), at(left, -1)) if len(left) > 1 else (1, at(left, -1))
    if view.integer("transA", 0):
        rows, inner = inner, rows
    columns = at(right, -2) if view.integer("transB", 0) else at(right, -1) if len(right) > 1 else 1
    return _batched(view, where, left, right, Product(1, rows, columns, inner))


def _batched(view: View, where: int, left: tuple[int, ...], right: tuple[int, ...], one: Product) -> Product:
    """One tall product where the right matrix is shared by the batch, else one for each of it."""
    packed = where in view.fixed
    if math.prod(right[:-2]) == 1:
        return one._replace(rows=one.rows * math.prod(left[:-2]), packed=packed)
    return one._replace(times=max(math.prod(left[:-2]), math.prod(right[:-2])), packed=packed)


def recurrent(op: str, view: View, cost: Cost) -> dict[str, float]:
    """LSTM, GRU, RNN: one product for all steps' inputs, one a step for the state, then gates number by number."""
    steps, batch, width = (view.dim(0, axis) for axis in (0, 1, 2))
    gated, hidden = _gates(op, view)
    directions = max(at(view.dims(1), 0), 1)
    found: dict[str, float] = {}
    for one in (Product(directions, steps * batch, gated, width), Product(directions * steps, batch, gated, hidden)):
        for name, amount in product_terms(one).items():
            found[name] = found.get(name, 0.0) + amount
    return found | {"element": float(directions * steps * batch * gated)}


def _gates(op: str, view: View) -> tuple[int, int]:
    """(gates * hidden, hidden) of the weights; DynamicQuantizeLSTM keeps them transposed."""
    weight = view.dims(2)
    return (at(weight, 2), at(weight, 1)) if op == "DynamicQuantizeLSTM" else (at(weight, 1), at(weight, 2))


# -- convolutions -----------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """A convolution: per group, over `pixels` of `lines` lines in all of a batch."""

    batch: int
    groups: int
    inputs: int
    outputs: int
    taps: int
    lines: int
    across: int
    unit: bool

    @property
    def pixels(self) -> int:
        """Pixels of one image."""
        return self.lines * self.across


def window_of(op: str, view: View) -> Window:
    """The convolution that a node computes; channels may be last."""
    last = op.startswith("Nhwc")
    weight = view.dims(3 if view.node.op_type == "QLinearConv" else 1)
    out, group = view.out_dims(), max(view.integer("group", 1), 1)
    space = out[1:-1] if last else out[2:]
    taps = weight[1:-1] if last else weight[2:]
    lines, across = math.prod(space[:-1]), at(space, -1)
    strides = view.attr("strides") or (1,)
    unit = math.prod(taps) == 1 and math.prod(strides) == 1
    inputs = at(weight, -1) if last else at(weight, 1)
    return Window(at(out, 0), group, inputs, at(weight, 0) // group, math.prod(taps), lines, across, unit)


def _groups_of_pixels(one: Window) -> int:
    return -(-one.pixels // TILE_PIXELS) if one.unit else one.lines * -(-one.across // TILE_PIXELS)


def conv(op: str, view: View, cost: Cost) -> dict[str, float]:
    """Blocks of channels in and out; sums are written once for each block of input channels."""
    one = window_of(op, view)
    if "int8-matrix" in cost.flops:
        return _integer_conv(one)
    inner, outer = up(one.inputs, BLOCK), up(one.outputs, BLOCK)
    passes = -(-inner // (POINT_DEPTH if one.taps == 1 else BLOCK))
    times = one.batch * one.groups
    return {
        "flop": 2.0 * times * one.pixels * outer * inner * one.taps,
        "load": float(times * _groups_of_pixels(one) * outer * inner * one.taps),
        "store": float(times * one.pixels * outer * passes),
        "call": float(times * (1 if one.unit else one.lines) * passes * -(-outer // (BLOCK * FILTERS))),
    }


def _integer_conv(one: Window) -> dict[str, float]:
    """A matrix product of pixels and filters; pixels are gathered (im2col or pointers to them) unless each is a row."""
    product = Product(one.batch * one.groups, one.pixels, one.outputs, one.inputs * one.taps)
    found = product_terms(product, integer=True)
    gathered = 0 if one.unit else one.pixels * one.taps * one.inputs
    return found | {"pack": float(one.batch * one.groups * gathered)}


def narrow(op: str, view: View, cost: Cost) -> dict[str, float]:
    """Fewer input channels than a block: read as they are."""
    one = window_of(op, view)
    if "int8-matrix" in cost.flops:
        return _integer_conv(one)
    outer, times = up(one.outputs, BLOCK), one.batch * one.groups
    return {
        "flop": 2.0 * times * one.pixels * outer * one.inputs * one.taps,
        "load": float(times * _groups_of_pixels(one) * outer * one.inputs * one.taps),
        "store": float(times * one.pixels * outer),
        "call": float(times * one.lines * -(-outer // (BLOCK * FILTERS))),
    }


def depthwise(op: str, view: View, cost: Cost) -> dict[str, float]:
    """One channel a group: a block of channels at once."""
    one = window_of(op, view)
    wide = one.batch * up(one.groups * one.outputs, BLOCK)
    return {
        "flop": 2.0 * wide * one.pixels * one.taps,
        "load": float(wide * _groups_of_pixels(one) * one.taps),
        "store": float(wide * one.pixels),
        "call": float(wide // BLOCK * one.lines),
    }


def gathered(op: str, view: View, cost: Cost) -> dict[str, float]:
    """Convolutions outside the blocked layout (1-D, odd groups): im2col, then a product of filters and pixels."""
    one = window_of(op, view)
    product = Product(one.batch * one.groups, one.outputs, one.pixels, one.inputs * one.taps, packed=False)
    found = product_terms(product)
    copied = 0 if one.unit else one.pixels * one.inputs * one.taps
    return found | {"element": float(one.batch * one.groups * copied)}


def transposed(op: str, view: View, cost: Cost) -> dict[str, float]:
    """ConvTranspose: a product per pixel of the input, then sums scattered over the output."""
    dims, weight = view.dims(0), view.dims(1)
    group = max(view.integer("group", 1), 1)
    pixels, columns = math.prod(dims[2:]), math.prod(weight[1:])
    one = Product(at(dims, 0) * group, columns, pixels, at(weight, 0) // group, packed=False)
    return product_terms(one) | {"element": float(at(dims, 0) * group * pixels * columns)}


BY_FAMILY: Mapping[str, Callable[[str, View, Cost], dict[str, float]]] = {
    "conv": conv, "conv-1x1": conv, "conv-narrow": narrow, "conv-depthwise": depthwise, "conv-gathered": gathered,
    "conv-transposed": transposed, "matmul": matmul, "matvec": matmul, "recurrent": recurrent,
}  # fmt: skip
