"""What the time of a kernel is a sum of: counts that follow from its shapes and from how the CPU kernels are built.

    T = sum over terms(amount x seconds per unit)

A profile that was calibrated on a machine has the seconds per unit, family by family. The amounts are those of ONNX
Runtime's kernels (MLAS), as its public sources lay them out: matrix products in tiles of registers, convolutions over
blocks of 16 channels, elementwise loops over spans that broadcasting leaves contiguous, copies of contiguous pieces.
Few terms, each with a cause, hold for shapes that nobody timed; a constant per operator does not.

Terms:
    flop: multiply-adds in whole vectors, two operations each: what padding to a block wastes counts.
    load: numbers loaded into registers that are used for few rows or pixels only (weights, mostly).
    store: sums that are written, once for each pass over them.
    pack: numbers rearranged before the product (im2col, packing of a right matrix that is no constant).
    call: inner kernels started.
    operation: elementwise arithmetic, counted as `joulec.energy.ops_elementwise` counts it.
    element: numbers made, or looked at.
    span: contiguous runs of a loop or a copy, each with a start of its own.
    byte: bytes read and written.
    far_read, far_write, dram_read, dram_write: those of them that are in the last cache only, or in none.
    launch: kernels started.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from joulec.energy import terms_dense
from joulec.energy.view import Cost, View, at

Terms = Mapping[str, float]

UNITS: Mapping[str, str] = {
    "flop": "s/op", "load": "s", "store": "s", "pack": "s", "call": "s", "operation": "s/op", "element": "s",
    "span": "s", "byte": "s/B", "far_read": "s/B", "far_write": "s/B", "dram_read": "s/B", "dram_write": "s/B",
    "launch": "s",
}  # fmt: skip
"""Terms and the units of their coefficients."""


def terms_of(family: str, op: str, view: View, cost: Cost) -> Terms:
    """The terms of a kernel that follow from its shapes; bytes and launches are added where caches are known.

    Args:
        family: the kernel's family.
        op: the operator whose formula prices it.
        view: the node.
        cost: its arithmetic, that of what is fused behind it included.
    """
    dense = terms_dense.BY_FAMILY.get(family.removeprefix("int8-"))
    if dense is not None:
        return dense(op, view, cost)
    light = _LIGHT.get(family.removeprefix("blocked-"), _per_operation)
    return light(op, view, cost)


def _operations(cost: Cost) -> int:
    return sum(cost.flops.values())


def _per_operation(op: str, view: View, cost: Cost) -> Terms:
    return {"operation": _operations(cost)}


def _elementwise(op: str, view: View, cost: Cost) -> Terms:
    """Operations, and spans: what broadcasting leaves contiguous is one loop, each with a start of its own."""
    return {"operation": _operations(cost), "span": broadcast_spans(view)}


def broadcast_spans(view: View) -> int:
    """Contiguous runs of the inner loop of a broadcast; 1 where shapes are equal or one operand is a single number."""
    out = view.out_dims()
    shapes = [view.sizes.dims(value) for value in view.inputs()[:2]]
    if len(shapes) < 2 or all(math.prod(shape) == 1 or shape == out for shape in shapes):
        return 1
    return _spans(out, shapes)


def _integer_elementwise(op: str, view: View, cost: Cost) -> Terms:
    """As in float; images lie channels last there, so one number a channel repeats pixel by pixel."""
    spans, out = broadcast_spans(view), view.out_dims()
    if spans > 1 and len(out) == 4:
        spans = math.prod(out) // max(out[1], 1)
    return {"operation": _operations(cost), "span": spans}


def _spans(out: tuple[int, ...], shapes: list[tuple[int, ...]]) -> int:
    """Runs of trailing dimensions over which each operand either has all of them or repeats one number."""
    padded = [(1,) * (len(out) - len(shape)) + tuple(shape) for shape in shapes]
    inner, runs = 1, None
    for axis in range(len(out) - 1, -1, -1):
        if out[axis] == 1:
            continue
        whole = [shape[axis] == out[axis] for shape in padded]
        if runs is not None and whole != runs:
            break
        runs, inner = whole, inner * out[axis]
    return max(math.prod(out) // max(inner, 1), 1)


def _rows(op: str, view: View, cost: Cost) -> Terms:
    """Softmax, normalizations: numbers, and rows of them."""
    dims, axis = view.dims(0), view.integer("axis", -1)
    width = math.prod(dims[axis:]) if dims and -len(dims) <= axis < len(dims) else 1
    return {"element": view.n(), "span": view.n() // max(width, 1)}


def _reduce(op: str, view: View, cost: Cost) -> Terms:
    """Numbers looked at, and results."""
    return {"element": view.n(), "span": view.m()}


def _pool(op: str, view: View, cost: Cost) -> Terms:
    return {"operation": _operations(cost), "span": view.m() // max(at(view.out_dims(), -1), 1)}


def _transpose(op: str, view: View, cost: Cost) -> Terms:
    """Contiguous pieces: the trailing dimensions that stay where they are move as one."""
    dims = view.dims(0)
    perm = [axis % max(len(dims), 1) for axis in view.attr("perm") or range(len(dims) - 1, -1, -1)]
    piece, axis = 1, len(dims) - 1
    while axis >= 0 and axis < len(perm) and perm[axis] == axis:
        piece, axis = piece * dims[axis], axis - 1
    return {"span": view.m() // max(piece, 1)}


def _copy(op: str, view: View, cost: Cost) -> Terms:
    """Contiguous pieces of a copy: those of the smallest operand behind the axis."""
    return {"span": max(_pieces(op, view), 1)}


def _pieces(op: str, view: View) -> int:
    out = view.out_dims()
    if op in ("Concat", "Split", "QLinearConcat"):
        axis = view.integer("axis", 0)
        dims = out if op != "Split" else view.dims(0)
        outer = math.prod(dims[: axis % max(len(dims), 1)])
        return outer * max(len(view.inputs()) if op != "Split" else len(view.node.outputs), 1)
    if op in ("Gather", "GatherND", "GatherElements"):
        return _gathered(op, view)
    return view.m() // max(_kept(view.dims(0), out), 1)


def _gathered(op: str, view: View) -> int:
    dims, axis = view.dims(0), view.integer("axis", 0)
    if op == "GatherElements":
        return view.m()
    if op == "GatherND":
        return max(view.n(1) // max(at(view.dims(1), -1), 1), 1)
    return math.prod(dims[: axis % max(len(dims), 1)]) * view.n(1)


def _kept(given: tuple[int, ...], made: tuple[int, ...]) -> int:
    """Numbers of the trailing dimensions that a slice, pad or tile leaves alone, and of the first that it does not."""
    piece = 1
    for a, b in zip(reversed(given), reversed(made), strict=False):
        piece *= min(a, b)
        if a != b:
            break
    return piece


_LIGHT: Mapping[str, Callable[[str, View, Cost], Terms]] = {
    "elementwise": _elementwise, "transcendental": _elementwise, "scalar": _elementwise,
    "int8-elementwise": _integer_elementwise, "softmax": _rows, "int8-softmax": _rows, "normalization": _rows,
    "skip-normalization": _rows, "reduce": _reduce, "int8-reduce": _reduce, "pool": _pool, "int8-pool": _pool,
    "transpose": _transpose, "int8-transpose": _transpose, "copy": _copy, "int8-copy": _copy,
}  # fmt: skip
