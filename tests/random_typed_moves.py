"""Makers of nodes for `random_typed` that move, cut, join and make elements."""

from __future__ import annotations

import math

import numpy as np
import onnx
from random_typed import Typed, Value
from random_types import ALL_TYPES, FLOATS, SIGNED


def transpose(g: Typed) -> None:
    x = g.some(ALL_TYPES)
    if x is None:
        return
    perm = list(range(len(x.shape)))
    g.choose.source.shuffle(perm)
    made = g.add("Transpose", [x], perm=None if g.choose.one_in(5) else perm)
    if made and g.choose.one_in(3) and perm:
        g.add("Transpose", [made[0]], perm=[int(i) for i in np.argsort(perm)])


def reshape(g: Typed) -> None:
    """To a constant target, a computed one, or through a flattening and back."""
    x = g.some(ALL_TYPES)
    if x is None:
        return
    target = _target(g, x.shape)
    allow = g.choose.pick([None, None, 0, 1]) if g.opset >= 14 else None
    if g.choose.one_in(3):
        shape = g.add("Shape", [x])
        if shape is None:
            return
        flat = g.add("Reshape", [x, g.ints(-1)])
        if flat:
            g.add("Reshape", [flat[0], shape[0]], allowzero=allow)
        return
    g.add("Reshape", [x, g.ints(*target)], allowzero=allow)


def _target(g: Typed, shape: tuple[int, ...]) -> list[int]:
    count = math.prod(shape)
    options = [[-1], [0] * len(shape), [*shape[::-1]], [1, *shape], [*shape, 1], [-1, *shape[1:]], [0, -1], list(shape)]
    options += [[d, count // d] for d in (2, 3) if count % d == 0]
    return list(g.choose.pick(options))


def axes_moves(g: Typed) -> None:
    """Squeeze and Unsqueeze, with axes where the opset wants them."""
    x = g.some(ALL_TYPES)
    if x is None:
        return
    if g.choose.one_in(2):
        op, rank = "Unsqueeze", len(x.shape) + 1
        axes = sorted({g.choose.number(0 if g.opset < 11 else -rank, rank - 1)})
    else:
        op = "Squeeze"
        axes = [
            i - (len(x.shape) if g.opset >= 11 and g.choose.one_in(2) else 0) for i, d in enumerate(x.shape) if d == 1
        ][:2]
        if not axes:
            return
    if g.opset < 13:
        g.add(op, [x], axes=axes)
    else:
        g.add(op, [x, g.ints(*axes)] if op == "Unsqueeze" or not g.choose.one_in(3) else [x])


def flatten(g: Typed) -> None:
    if (x := g.some(ALL_TYPES)) is not None:
        g.add("Flatten", [x], axis=g.choose.number(0 if g.opset < 11 else -len(x.shape), len(x.shape)))


def slicing(g: Typed) -> None:
    x = g.some(ALL_TYPES, (1, 2, 3, 4))
    if x is None:
        return
    axes = list(range(len(x.shape))) if g.choose.one_in(2) else [g.choose.number(0, len(x.shape) - 1)]
    bounds = [
        g.choose.pick(
            [(0, 2**63 - 1, 1), (1, 3, 1), (-1, -(2**63), -1), (0, 1, 1), (5, 2, 1), (0, 9, 2), (-2, 2**31 - 1, 1)]
        )
        for _ in axes
    ]
    starts, ends, steps = ([b[i] for b in bounds] for i in range(3))
    if g.opset < 10:
        if all(step == 1 for step in steps):
            g.add("Slice", [x], starts=starts, ends=ends, axes=axes)
        return
    inputs: list[Value | str | None] = [x, g.ints(*starts), g.ints(*ends), g.ints(*axes)]
    if any(step != 1 for step in steps) or g.choose.one_in(2):
        inputs.append(g.ints(*steps))
    g.add("Slice", inputs)


def concat(g: Typed) -> None:
    x = g.some(ALL_TYPES, (1, 2, 3, 4))
    if x is None:
        return
    axis = g.choose.number(0, len(x.shape) - 1)
    rest = (x.shape[:axis], x.shape[axis + 1 :])
    same = [v for v in g.seen() if v.type == x.type and not v.tainted and len(v.shape) == len(x.shape)]
    same = [v for v in same if (v.shape[:axis], v.shape[axis + 1 :]) == rest] or [x]
    g.add("Concat", [g.choose.pick(same) if i else x for i in range(g.choose.number(1, 3))], axis=axis)


def split(g: Typed) -> None:
    x = g.some(ALL_TYPES, (1, 2, 3))
    if x is None:
        return
    axis = g.choose.number(0, len(x.shape) - 1)
    if (size := x.shape[axis]) < 2:
        return
    parts = [1, size - 1]
    if g.opset >= 13:
        made = g.add("Split", [x, g.ints(*parts)], 2, axis=axis)
    else:
        made = g.add("Split", [x], 2, axis=axis, split=parts)
    if made and g.choose.one_in(2):
        g.add("Concat", [made[0], made[1]], axis=axis)


def pad(g: Typed) -> None:
    x = g.some(FLOATS + SIGNED, (1, 2, 3, 4))
    if x is None:
        return
    pads = [g.choose.pick([0, 0, 0, 1, 2, -1]) for _ in range(2 * len(x.shape))]
    mode = g.choose.pick(["constant", "constant", "reflect", "edge"])
    if g.opset < 11:
        g.add("Pad", [x], pads=pads, mode=mode, value=g.choose.pick([None, 1.0]))
        return
    value = g.constant(g.choose.array(x.elem, ())) if g.choose.one_in(2) else None
    g.add("Pad", [x, g.ints(*pads), value], mode=mode)


def expand(g: Typed) -> None:
    x = g.some(ALL_TYPES)
    if x is None:
        return
    target = [d if d != 1 or g.choose.one_in(2) else 2 for d in x.shape][g.choose.number(0, len(x.shape)) :]
    if g.opset >= 8 and g.choose.one_in(2):
        g.add("Expand", [x, g.ints(*[1, *target] if g.choose.one_in(3) else target)])
    else:
        g.add("Tile", [x, g.ints(*(g.choose.pick([1, 1, 2, 0]) for _ in x.shape))])


def gather(g: Typed) -> None:
    x = g.some(ALL_TYPES, (1, 2, 3))
    if x is None or not math.prod(x.shape):
        return
    axis = g.choose.number(0, len(x.shape) - 1)
    low = -x.shape[axis] if g.opset >= 11 else 0
    kind = g.choose.pick([np.int64, np.int32])
    op = g.choose.pick(["Gather", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"])
    if op == "Gather":
        shape = g.choose.pick([(), (1,), (2,), (1, 2)])
        indices = np.array([g.choose.number(low, x.shape[axis] - 1) for _ in range(math.prod(shape))], kind).reshape(
            shape
        )
        g.add("Gather", [x, g.constant(indices)], axis=axis)
    elif op == "GatherND":
        g.add("GatherND", [x, g.constant(np.array([[0] * g.choose.number(1, len(x.shape))], np.int64))])
    elif op == "ScatterND":
        index = np.array([[0] * len(x.shape)], np.int64)
        g.add("ScatterND", [x, g.constant(index), g.constant(g.choose.array(x.elem, (1,)))])
    else:
        indices = np.array([g.choose.number(low, x.shape[axis] - 1) for _ in range(math.prod(x.shape))], kind).reshape(
            x.shape
        )
        extra = [g.constant(g.choose.array(x.elem, x.shape))] if op == "ScatterElements" else []
        g.add(op, [x, g.constant(indices), *extra], axis=axis)


def generate(g: Typed) -> None:
    """Range, ConstantOfShape, EyeLike and OneHot, of constants or of computed sizes."""
    op = g.choose.pick(["Range", "ConstantOfShape", "EyeLike", "OneHot"])
    if op == "Range":
        numbers = g.choose.pick([(0, 4, 1), (3, 0, -1), (0, 0, 1), (2, 9, 3)])
        kind = g.choose.pick([np.int64, np.float32, np.int32])
        g.add("Range", [g.constant(np.array(n, kind)) for n in numbers])
        return
    if op == "EyeLike":
        if (x := g.some(("float", "int64", "double"), (2,))) is not None:
            g.add(op, [x], k=g.choose.pick([None, 1]))
        return
    if op == "OneHot":
        index = g.constant(np.array([1, 0, 3]))  # before opset 11 there may be no negative ones
        values = g.constant(g.choose.array(g.choose.pick(["float", "int64"]), (2,)))
        g.add(op, [index, g.constant(np.array(4, np.int64)), values])
        return
    x = g.some(ALL_TYPES)
    shape = g.add("Shape", [x]) if g.choose.one_in(2) else None
    kind = g.choose.pick(["float", "int64", "bool", "float16", "uint8", "double"])
    value = onnx.numpy_helper.from_array(g.choose.array(kind, (1,), g.odd), "v")
    g.add(op, [shape[0] if shape else g.constant(np.array(g.choose.shape((0, 1, 2)), np.int64))], value=value)


def sizes(g: Typed) -> None:
    """Shape arithmetic that ends in a Reshape, Expand or ConstantOfShape."""
    x = g.find([v.type for v in g.values if v.type.startswith("tensor")], (2, 3, 4))
    if x is None or (shape := g.add("Shape", [x])) is None:
        return
    index = g.choose.number(0, len(x.shape) - 1)
    first = g.add("Gather", [shape[0], g.constant(np.array([index], np.int64))], axis=0)
    rest = g.choose.pick([[-1], [1], [math.prod(x.shape) // max(1, x.shape[index])]])
    joint = first and g.add("Concat", [first[0], g.ints(*rest)], axis=0)
    if joint:
        g.add(g.choose.pick(["Reshape", "Expand"] if g.opset >= 8 else ["Reshape"]), [x, joint[0]])
