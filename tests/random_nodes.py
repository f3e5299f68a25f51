"""Makers of random nodes: each adds a node or a few, where the values at hand allow it."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st
from onnx import helper
from random_kit import BOOL, FLOAT, INT, Grower, Maker, Shape, Value


def _unary(g: Grower) -> None:
    if (x := g.one(FLOAT)) is not None:
        op = g.pick(["Relu", "Neg", "Abs", "Identity", "Floor", "Sign", "LeakyRelu"])
        g.emit(str(op), [x.name], x.shape)


def _dropout(g: Grower) -> None:
    if (x := g.one(FLOAT)) is not None:
        g.emit("Dropout", [x.name], x.shape)


def _clip(g: Grower) -> None:
    if (x := g.one(FLOAT)) is not None:
        low, high = (g.constant(np.array(v, np.float32)) if g.draw(st.booleans()) else "" for v in (-1.0, 2.0))
        g.emit("Clip", [x.name, low, high] if high else [x.name, low], x.shape)


def _operand(g: Grower, shape: Shape, kind: int) -> tuple[str, Shape]:
    """Something that broadcasts with `shape`: a constant of some of its dimensions, or an existing value."""
    other = g.one(kind)
    if other is not None and g.draw(st.booleans()) and _broadcasts(shape, other.shape):
        return other.name, other.shape
    dims = tuple(d if g.draw(st.booleans()) else 1 for d in shape)[g.draw(st.integers(0, len(shape))) :]
    if g.draw(st.integers(0, 5)) == 0:
        dims = (1, *dims)
    return g.constant(g.numbers(dims, kind), keep=True), dims


def _broadcasts(one: Shape, other: Shape) -> bool:
    try:
        return math.prod(np.broadcast_shapes(one, other)) <= 200
    except ValueError:
        return False


def _binary(g: Grower) -> None:
    kind = FLOAT if g.draw(st.integers(0, 3)) else INT
    if (x := g.one(kind)) is None:
        return
    other, shape = _operand(g, x.shape, kind)
    op = str(g.pick(["Add", "Sub", "Mul", "Max", "Min"] if kind == FLOAT else ["Add", "Sub", "Mul"]))
    names = [x.name, other] if g.draw(st.booleans()) else [other, x.name]
    g.emit(op, names, np.broadcast_shapes(x.shape, shape), kind)


def _scale(g: Grower) -> None:
    if (x := g.one(FLOAT)) is not None:
        op = str(g.pick(["Div", "Mul", "Add", "Sub"]))
        g.emit(op, [x.name, g.constant(np.array(g.pick([1.0, 2.0, 0.5, 0.0]) if op != "Div" else 2.0, np.float32))], x.shape)


def _transpose(g: Grower) -> None:
    if (x := g.one(FLOAT, 1)) is not None:
        perm = list(g.draw(st.permutations(range(len(x.shape)))))
        g.emit("Transpose", [x.name], tuple(x.shape[i] for i in perm), perm=perm)


def _unsqueeze(g: Grower) -> None:
    x = g.one(FLOAT)
    if x is not None and len(x.shape) < 5:
        axis = g.draw(st.integers(0, len(x.shape)))
        shape = (*x.shape[:axis], 1, *x.shape[axis:])
        g.emit("Unsqueeze", [x.name, g.constant(np.array([axis], np.int64))], shape)


def _squeeze(g: Grower) -> None:
    x = g.one(FLOAT, 1)
    if x is not None and 1 in x.shape:
        axis = x.shape.index(1)
        shape = x.shape[:axis] + x.shape[axis + 1 :]
        g.emit("Squeeze", [x.name, g.constant(np.array([axis - len(x.shape)], np.int64))], shape)


def _flatten(g: Grower) -> None:
    if (x := g.one(FLOAT, 1)) is not None:
        axis = int(g.draw(st.integers(0, len(x.shape))))
        g.emit("Flatten", [x.name], (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])), axis=axis)


def _reshape(g: Grower) -> None:
    """To a constant with a 0 or -1, or back to its own computed shape."""
    if (x := g.one(FLOAT, 1)) is None:
        return
    if g.draw(st.booleans()):
        shape = g.emit("Shape", [x.name], (len(x.shape),), INT)
        g.emit("Reshape", [x.name, shape.name], x.shape)
    elif math.prod(x.shape):
        target = [0, -1] if len(x.shape) > 1 else [-1, 1]
        head = x.shape[0] if len(x.shape) > 1 else math.prod(x.shape)
        g.emit("Reshape", [x.name, g.constant(np.array(target, np.int64))], (head, math.prod(x.shape) // head))


def _shape_arithmetic(g: Grower) -> None:
    """Keep the first dimension as it is computed, and flatten the rest."""
    x = g.one(FLOAT, 2)
    if x is None or not math.prod(x.shape):
        return
    shape = g.emit("Shape", [x.name], (len(x.shape),), INT)
    first = g.emit("Gather", [shape.name, g.constant(np.array([0], np.int64))], (1,), INT)
    rest = g.constant(np.array([g.pick([-1, math.prod(x.shape[1:])])], np.int64))
    target = g.emit("Concat", [first.name, rest], (2,), INT, axis=0)
    g.emit("Reshape", [x.name, target.name], (x.shape[0], math.prod(x.shape[1:])))


def _slice(g: Grower) -> None:
    if (x := g.one(FLOAT, 1)) is None:
        return
    axis = int(g.draw(st.integers(0, len(x.shape) - 1)))
    start, end, step = g.pick([(0, 2**63 - 1, 1), (1, 3, 1), (-1, -(2**63), -1), (0, 1, 1), (5, 2, 1), (0, 9, 2)])
    length = len(range(x.shape[axis])[slice(start, None if end == -(2**63) else end, step)])
    bounds = [g.constant(np.array([v], np.int64)) for v in (start, end, axis, step)]
    g.emit("Slice", [x.name, *bounds], (*x.shape[:axis], length, *x.shape[axis + 1 :]))


def _concat(g: Grower) -> None:
    x = g.one(FLOAT, 1)
    if x is not None and math.prod(x.shape) < 60:
        axis, count = int(g.draw(st.integers(0, len(x.shape) - 1))), int(g.draw(st.integers(1, 2)))
        shape = (*x.shape[:axis], x.shape[axis] * count, *x.shape[axis + 1 :])
        g.emit("Concat", [x.name] * count, shape, axis=axis)


def _pad(g: Grower) -> None:
    x = g.one(FLOAT, 1)
    if x is None or math.prod(x.shape) > 60:
        return
    pads = [g.pick([0, 0, 1, 2]) for _ in range(2 * len(x.shape))]
    half = len(x.shape)
    shape = tuple(int(d + a + b) for d, a, b in zip(x.shape, pads[:half], pads[half:], strict=True))
    value = [g.constant(np.array(g.pick([0.0, 1.0]), np.float32))] if g.draw(st.booleans()) else []
    g.emit("Pad", [x.name, g.constant(np.array(pads, np.int64)), *value], shape)


def _expand(g: Grower) -> None:
    x = g.one(FLOAT)
    if x is not None and math.prod(x.shape) < 60:
        target = [1, *x.shape] if g.draw(st.booleans()) else [d if g.draw(st.booleans()) else 1 for d in x.shape]
        shape = np.broadcast_shapes(x.shape, tuple(target))
        g.emit("Expand", [x.name, g.constant(np.array(target, np.int64))], shape)


def _reduce(g: Grower) -> None:
    x = g.one(FLOAT, 1)
    if x is None or not math.prod(x.shape):
        return
    axis, keep = int(g.draw(st.integers(0, len(x.shape) - 1))), int(g.draw(st.integers(0, 1)))
    shape = (*x.shape[:axis], *([1] if keep else []), *x.shape[axis + 1 :])
    op = str(g.pick(["ReduceSum", "ReduceMean", "ReduceMax"]))
    if op == "ReduceSum" or g.opset >= 18:
        g.emit(op, [x.name, g.constant(np.array([axis], np.int64))], shape, keepdims=keep)
    else:
        g.emit(op, [x.name], shape, keepdims=keep, axes=[axis])


def _where(g: Grower) -> None:
    if (x := g.one(FLOAT)) is not None:
        condition = g.emit("Greater", [x.name, g.constant(np.array(0.0, np.float32))], x.shape, BOOL)
        g.emit("Where", [condition.name, x.name, x.name], x.shape)


def _whole(g: Grower, shape: Shape) -> np.ndarray:
    size = math.prod(shape)
    flat = g.draw(st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5]), min_size=size, max_size=size))
    return np.array(flat, np.float32).reshape(shape)


def _matmul(g: Grower) -> None:
    x = g.one(FLOAT, 1)
    if x is None or not 0 < x.shape[-1] <= 6:
        return
    columns = int(g.draw(st.integers(1, 3)))
    weight = g.constant(_whole(g, (x.shape[-1], columns)), keep=True)
    out = g.emit("MatMul", [x.name, weight], (*x.shape[:-1], columns))
    if g.draw(st.booleans()):
        bias = g.constant(_whole(g, (columns,)), keep=True)
        g.emit("Add", [out.name, bias] if g.draw(st.booleans()) else [bias, out.name], out.shape)


def _gemm(g: Grower) -> None:
    x = g.one(FLOAT, 2)
    if x is None or len(x.shape) != 2 or not 0 < x.shape[1] <= 6:
        return
    columns, trans = int(g.draw(st.integers(1, 3))), int(g.draw(st.integers(0, 1)))
    shape = (columns, x.shape[1]) if trans else (x.shape[1], columns)
    names = [x.name, g.constant(_whole(g, shape))]
    if g.draw(st.booleans()):
        names.append(g.constant(_whole(g, (columns,))))
    g.emit("Gemm", names, (x.shape[0], columns), transB=trans, alpha=float(g.pick([1.0, 0.5])), beta=float(g.pick([1.0, 2.0])))


def _conv(g: Grower) -> None:
    """A convolution of an NCHW value, with what often stands before and behind one."""
    images = [v for v in [*g.outer, *g.values] if v.kind == FLOAT and len(v.shape) == 4 and 0 < v.shape[1] <= 4 and min(v.shape[2:]) > 0]
    if not images:
        return
    x: Value = images[-1] if g.draw(st.booleans()) else g.pick(images)
    if g.draw(st.booleans()):
        _affine(g, x)
        x = g.values[-1]
    if g.draw(st.booleans()):
        x = _spatial_pad(g, x)
    if x.shape[1] > 4 or math.prod(x.shape) > 120:
        return
    out, pad = int(g.draw(st.integers(1, 2))), int(g.draw(st.integers(0, 1)))
    groups = x.shape[1] if g.draw(st.booleans()) else 1
    kernel = 2 if min(x.shape[2:]) + 2 * pad >= 2 else 1
    names = [x.name, g.constant(_whole(g, (out * groups, x.shape[1] // groups, kernel, kernel)), keep=True)]
    if g.draw(st.booleans()):
        names.append(g.constant(_whole(g, (out * groups,))))
    shape = (x.shape[0], out * groups, *(d + 2 * pad - kernel + 1 for d in x.shape[2:]))
    result = g.emit("Conv", names, shape, pads=[pad] * 4, group=groups)
    if g.draw(st.booleans()):
        _affine(g, result)


def _spatial_pad(g: Grower, x: Value) -> Value:
    pads = np.array([0, 0, 1, 0, 0, 0, int(g.pick([0, 1])), 1], np.int64)
    shape = tuple(int(d + a + b) for d, a, b in zip(x.shape, pads[:4], pads[4:], strict=True))
    return g.emit("Pad", [x.name, g.constant(pads)], shape)


def _channels_last(g: Grower) -> None:
    """A convolution as tf2onnx writes it, between two Transposes, and something between it and the second."""
    images = [v for v in [*g.outer, *g.values] if v.kind == FLOAT and len(v.shape) == 4 and 0 < v.shape[3] <= 4 and min(v.shape[1:3]) > 0]
    if not images:
        return
    x: Value = images[-1] if g.draw(st.booleans()) else g.pick(images)
    n, h, w, c = x.shape
    g.emit("Transpose", [x.name], (n, c, h, w), perm=[0, 3, 1, 2])
    weight = g.constant(_whole(g, (2, c, 1, 1)))
    here = g.emit("Conv", [g.values[-1].name, weight], (n, 2, h, w))
    if g.draw(st.booleans()):
        here = g.emit(str(g.pick(["Relu", "Abs", "Neg"])), [here.name], here.shape)
    out = g.emit("Transpose", [here.name], (n, h, w, 2), perm=[0, 2, 3, 1])
    if g.draw(st.booleans()):
        bias = g.constant(_whole(g, (int(g.pick([1, 2])),)))
        g.emit(str(g.pick(["Add", "Mul"])), [out.name, bias], out.shape)


def _join(g: Grower) -> None:
    """Two values of one shape, concatenated or added: residual connections and multi-branch blocks."""
    if (x := g.one(FLOAT, 1)) is None or math.prod(x.shape) > 60:
        return
    same = [v for v in [*g.outer, *g.values] if v.kind == FLOAT and v.shape == x.shape]
    y: Value = g.pick(same)
    axis = int(g.draw(st.integers(-len(x.shape), len(x.shape) - 1)))
    if g.draw(st.booleans()):
        g.emit("Add", [x.name, y.name], x.shape)
        return
    shape = list(x.shape)
    shape[axis] *= 2
    g.emit("Concat", [x.name, y.name], tuple(shape), axis=axis)


def _split(g: Grower) -> None:
    if (x := g.one(FLOAT, 1)) is None:
        return
    axis = int(g.draw(st.integers(-len(x.shape), len(x.shape) - 1)))
    if x.shape[axis] < 2:
        return
    sizes = [1, x.shape[axis] - 1]
    shapes = [tuple(size if i == axis % len(x.shape) else d for i, d in enumerate(x.shape)) for size in sizes]
    outs = [Value(g.fresh(f"split{i}"), FLOAT, shape) for i, shape in enumerate(shapes)]
    parts = g.constant(np.array(sizes, np.int64))
    g.nodes.append(helper.make_node("Split", [x.name, parts], [v.name for v in outs], axis=axis))
    g.values += outs


def _along(g: Grower) -> None:
    """Operators with an axis, which a moved Transpose has to move too."""
    if (x := g.one(FLOAT, 1)) is None or not math.prod(x.shape):
        return
    axis = int(g.draw(st.integers(-len(x.shape), len(x.shape) - 1)))
    at = axis % len(x.shape)
    op = str(g.pick(["Softmax", "ArgMax", "Gather", "CumSum"]))
    if op == "Gather":
        indices = np.array(g.pick([[0], [-1], [0, 0], 0]), np.int64)
        g.emit("Gather", [x.name, g.constant(indices)], (*x.shape[:at], *indices.shape, *x.shape[at + 1 :]), axis=axis)
    elif op == "CumSum":
        g.emit("CumSum", [x.name, g.constant(np.array(axis, np.int64))], x.shape)
    elif op == "ArgMax":
        shape = tuple(1 if i == at else d for i, d in enumerate(x.shape))
        g.emit("ArgMax", [x.name], shape, INT, axis=axis)
    elif op == "Softmax":
        g.emit("Softmax", [x.name], x.shape, axis=axis)


def _affine(g: Grower, x: Value) -> None:
    channels = x.shape[1]
    if g.draw(st.booleans()):
        gamma, beta, mean = (g.constant(_whole(g, (channels,))) for _ in range(3))
        variance = g.constant(np.full(channels, 4.0, np.float32))
        g.emit("BatchNormalization", [x.name, gamma, beta, mean, variance], x.shape, epsilon=0.0)
        return
    width = int(g.pick([channels, channels, 1, 3]))
    if width not in (1, channels) and channels != 1:
        width = channels
    operand = g.constant(_whole(g, (width, 1, 1)))
    names = [x.name, operand] if g.draw(st.booleans()) else [operand, x.name]
    g.emit(str(g.pick(["Mul", "Add", "Sub"])), names, (x.shape[0], max(width, channels) if channels else 0, *x.shape[2:]))


def _if(g: Grower) -> None:
    """An If whose condition is fed, constant, or computed from a shape; its branches capture what is there."""
    result = g.one(FLOAT)
    if result is None:
        return
    name = g.fresh("if")
    branches = {}
    for branch in ("then_branch", "else_branch"):
        inner = g.body(f"{name}{branch[0]}")
        inner.grow(int(g.draw(st.integers(0, 3))), PLAIN if g.outer else ALL)
        same = [v for v in inner.values if v.kind == FLOAT and v.shape == result.shape]
        if same:
            out: Value = g.pick(same)
        else:
            out = inner.emit(str(g.pick(["Identity", "Neg"])), [result.name], result.shape)
        info = helper.make_tensor_value_info(out.name, FLOAT, [None] * len(out.shape))
        branches[branch] = helper.make_graph(inner.nodes, f"{name}{branch}", [], [info], inner.initializers)
    fed = [v for v in [*g.outer, *g.values] if v.kind == BOOL and v.shape == ()]
    condition = fed[0].name if fed and g.draw(st.booleans()) else g.constant(np.array(g.draw(st.booleans())))
    g.emit("If", [condition], result.shape, **branches)


def _loop(g: Grower) -> None:
    """A Loop that carries one value a few times, or never, through a body that captures what is there."""
    start = g.one(FLOAT)
    if start is None or math.prod(start.shape) > 60:
        return
    name = g.fresh("loop")
    body = g.body(f"{name}b")
    step, go, carried = (Value(f"{name}{part}", kind, shape) for part, kind, shape in (
        ("i", INT, ()), ("k", BOOL, ()), ("p", FLOAT, start.shape)))  # fmt: skip
    body.values.append(carried)
    body.grow(int(g.draw(st.integers(0, 3))), PLAIN if g.outer else ALL)
    same = [v for v in body.values if v.kind == FLOAT and v.shape == start.shape and v is not carried]
    out = g.pick(same) if same else body.emit("Neg", [carried.name], start.shape)
    kept = body.emit("Identity", [go.name], (), BOOL)
    inputs = [helper.make_tensor_value_info(v.name, v.kind, list(v.shape)) for v in (step, go, carried)]
    outputs = [helper.make_tensor_value_info(v.name, v.kind, list(v.shape)) for v in (kept, out)]
    graph = helper.make_graph(body.nodes, f"{name}body", inputs, outputs, body.initializers)
    times = g.constant(np.array(g.pick([0, 1, 2]), np.int64))
    g.emit("Loop", [times, "", start.name], start.shape, body=graph)


PLAIN: list[Maker] = [
    _unary, _dropout, _clip, _binary, _binary, _scale, _transpose, _transpose, _unsqueeze, _squeeze, _flatten, _reshape,
    _shape_arithmetic, _slice, _concat, _pad, _expand, _reduce, _where, _matmul, _matmul, _gemm, _conv, _conv, _conv, _channels_last, _channels_last, _channels_last, _join, _join, _split, _along, _along,
]  # fmt: skip
ALL: list[Maker] = [*PLAIN, _if, _loop]
