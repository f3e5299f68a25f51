"""Makers of nodes for `random_typed`: by schema where any operands will do, by recipe where sizes depend on numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from random_typed import Typed, Value
from random_typed_moves import (
    axes_moves,
    concat,
    expand,
    flatten,
    gather,
    generate,
    pad,
    reshape,
    sizes,
    slicing,
    split,
    transpose,
)
from random_types import ALL_TYPES, FLOATS, SIGNED, UNSIGNED

Maker = Callable[[Typed], None]
NUMBERS = (*FLOATS, *SIGNED, *UNSIGNED)

SIMPLE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Celu Clip Cos
    Cosh Div Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN
    LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or Pow PRelu Reciprocal Relu Round Selu
    Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor Shape Size NonZero Swish
    StringConcat RegexFullMatch MeanVarianceNormalization Unique Det Trilu SequenceConstruct SequenceLength Optional
    OptionalHasElement OptionalGetElement StringNormalizer
""".split()
"""Operators whose operands only have to have the right types and to broadcast."""

MIXED = """
    Add Mul Sub Div Max Min Where Equal Identity Neg Relu Clip Cast Pow Mod Not And Greater
""".split()
"""Those are drawn more often: exact rewrites are about them."""

ATTRIBUTES: dict[str, dict[str, Sequence[Any]]] = {
    "BitShift": {"direction": ["LEFT", "RIGHT"]},
    "Mod": {"fmod": [0, 1]},
    "IsInf": {"detect_negative": [0, 1], "detect_positive": [0, 1]},
    "LeakyRelu": {"alpha": [0.0, 0.5, 1.0]},
    "HardSigmoid": {"alpha": [0.5, 0.2], "beta": [0.5, 0.0]},
    "Shape": {"start": [None, 0, 1, -1], "end": [None, 1, -1, 5]},
    "Trilu": {"upper": [0, 1]},
    "Unique": {"sorted": [1]},
    "RegexFullMatch": {"pattern": ["a.*", ".*"]},
    "Gelu": {"approximate": ["none", "tanh"]},
    "ThresholdedRelu": {"alpha": [0.0, 1.0]},
}
SINCE = {"Shape": 15}
"""Attributes that came later than their operator."""


def _schema(op: str, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None


def simple(g: Typed) -> None:
    """An operator drawn from its schema: operands of allowed types that broadcast with the first."""
    op = g.choose.pick(MIXED if g.choose.one_in(2) else SIMPLE)
    if op == "Cast":
        return cast(g)
    schema = _schema(op, g.opset)
    if schema is None:
        return None
    inputs = _operands(g, schema)
    if inputs is None:
        return None
    wanted = {} if SINCE.get(op, 0) > g.opset else ATTRIBUTES.get(op, {})
    chosen = {name: g.choose.pick(options) for name, options in wanted.items()}
    if op == "Clip" and g.opset < 11:
        chosen = {"min": g.choose.pick([None, -1.0, 0.0]), "max": g.choose.pick([None, 2.0])}
    g.add(op, inputs, 4 if op == "Unique" else 1, **chosen)
    return None


def _operands(g: Typed, schema: Any) -> list[Value | None] | None:
    constraints = {one.type_param_str: sorted(one.allowed_type_strs) for one in schema.type_constraints}
    bound: dict[str, str] = {}
    found: list[Value | None] = []
    kinds = onnx.defs.OpSchema.FormalParameterOption
    for formal in schema.inputs:
        times = g.choose.number(1, 3) if formal.option == kinds.Variadic else 1
        if formal.option == kinds.Optional and g.choose.one_in(2):
            found.append(None)
            continue
        for _ in range(times):
            name = formal.type_str
            types = [bound[name]] if name in bound else constraints.get(name, [name])
            value = _operand(g, schema.name, types, found)
            if value is None:
                return None
            found.append(value)
            if name in constraints and formal.is_homogeneous:
                bound[name] = value.type
    return found


def _operand(g: Typed, op: str, types: Sequence[str], before: Sequence[Value | None]) -> Value | None:
    first = next((v for v in before if v is not None), None)
    if first is None or (op != "Clip" and g.choose.one_in(2)):
        value = g.find(types, tainted=True)
        if value is not None and (first is None or _broadcasts(first, value)):
            return value
    plain = [t.removeprefix("tensor(").removesuffix(")") for t in types if t.startswith("tensor")]
    usable = [kind for kind in plain if g.usable(kind)]
    if not usable:
        return g.find(types)
    common = [kind for kind in ("float", "int64", "bool", "string") if kind in usable]
    kind = g.choose.pick(common if common and g.choose.one_in(2) else usable)
    shape = (2, 3) if first is None else () if op == "Clip" else _smaller(g, first.shape)
    return g.constant(g.choose.array(kind, shape, g.odd and g.choose.one_in(3)))


def _broadcasts(one: Value, other: Value) -> bool:
    if not (one.type.startswith("tensor") and other.type.startswith("tensor")):
        return True
    try:
        return math.prod(np.broadcast_shapes(one.shape, other.shape)) <= 200
    except ValueError:
        return False


def _smaller(g: Typed, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Something that broadcasts with `shape`; one in four times with a dimension in front."""
    dims = tuple(1 if g.choose.one_in(3) else d for d in shape)[g.choose.number(0, len(shape)) :]
    return (g.choose.pick([1, 1, 2]), *dims) if g.choose.one_in(6) else dims


def cast(g: Typed) -> None:
    """To any type, there and back, or to its own."""
    if (x := g.some(ALL_TYPES)) is None:
        return
    kind = g.choose.pick([x.elem, *NUMBERS, *ALL_TYPES])
    if not g.usable(kind) or (kind == "string" and x.elem not in (*SIGNED, *UNSIGNED, "string")):
        return  # how a float is spelled is a runtime's own business
    from random_types import elem

    if g.opset >= 15 and g.choose.one_in(4):
        like = g.some([kind])
        made = g.add("CastLike", [x, like])
    else:
        made = g.add(
            "Cast", [x], to=elem(kind), saturate=g.choose.pick([None, 0]) if g.opset >= 19 and "8" in kind else None
        )
    if made and g.choose.one_in(3):
        g.add("Cast", [made[0]], to=elem(x.elem))


# -- numbers --------------------------------------------------------------------------------------------------------


def reduction(g: Typed) -> None:
    x = g.some(NUMBERS, (1, 2, 3, 4))
    if x is None:
        return
    op = g.choose.pick(
        ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"]
    )
    if op in ("ReduceL1", "ReduceL2", "ReduceSumSquare") and x.elem not in FLOATS:
        op = "ReduceMin"  # how the others overflow is a runtime's own business
    axes = sorted({g.choose.number(0 if g.opset < 11 else -1, len(x.shape) - 1) for _ in range(g.choose.number(1, 2))})
    keep = g.choose.pick([None, 0, 1])
    if (op == "ReduceSum" and g.opset >= 13) or g.opset >= 18:
        noop = g.choose.pick([None, 0, 1])
        none = g.choose.one_in(5)
        g.add(
            op,
            [x, None if none else g.constant(np.array([] if g.choose.one_in(6) else axes, np.int64))],
            keepdims=keep,
            noop_with_empty_axes=noop,
        )
    else:
        g.add(op, [x], keepdims=keep, axes=None if g.choose.one_in(5) else axes)


def along(g: Typed) -> None:
    """Operators with an axis."""
    x = g.some(NUMBERS, (1, 2, 3))
    if x is None:
        return
    op = g.choose.pick(["Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin", "CumSum", "TopK", "ReverseSequence"])
    axis = g.choose.number(0 if g.opset < 11 else -len(x.shape), len(x.shape) - 1)
    if op == "CumSum":
        g.add(
            op,
            [x, g.constant(np.array(axis, g.choose.pick([np.int64, np.int32])))],
            exclusive=g.choose.pick([0, 1]),
            reverse=g.choose.pick([0, 1]),
        )
    elif op == "TopK":
        if g.opset >= 10:
            g.add(op, [x, g.ints(1)], 2, axis=axis)
    elif op.startswith("Arg"):
        g.add(
            op,
            [x],
            axis=axis,
            keepdims=g.choose.pick([0, 1]),
            select_last_index=g.choose.pick([None, 1]) if g.opset >= 12 else None,
        )
    elif op != "ReverseSequence":
        g.add(op, [x], axis=None if g.choose.one_in(4) else axis)


def linear(g: Typed) -> None:
    """MatMul, Gemm, Conv and BatchNormalization with small whole weights."""
    op = g.choose.pick(["MatMul", "Gemm", "Conv", "BatchNormalization", "LayerNormalization", "Einsum"])
    kinds = ("float", "float", "float", "double", "float16", "bfloat16", "int32")
    x = g.some(kinds, {"Gemm": (2,), "Conv": (3, 4), "BatchNormalization": (2, 3, 4)}.get(op, (1, 2, 3)))
    if x is None:
        return
    if op == "MatMul":
        g.add(op, [x, g.constant(g.choose.array(x.elem, (x.shape[-1], 2)))])
    elif op == "Gemm":
        bias = (
            g.constant(g.choose.array(x.elem, g.choose.pick([(2,), (1, 2), (), (1,)])))
            if g.opset < 11 or g.choose.one_in(2)
            else None
        )
        g.add(
            op,
            [x, g.constant(g.choose.array(x.elem, (2, x.shape[-1]))), bias],
            transB=1,
            alpha=g.choose.pick([None, 2.0]),
            beta=g.choose.pick([None, 0.5, 0.0]),
        )
    elif op == "Conv":
        kernel = [g.choose.pick([1, 1, 2])] * (len(x.shape) - 2)
        bias = g.constant(g.choose.array(x.elem, (2,))) if g.choose.one_in(2) else None
        g.add(op, [x, g.constant(g.choose.array(x.elem, (2, x.shape[1], *kernel))), bias])
    elif op == "BatchNormalization":
        several = [g.constant(g.choose.array(x.elem, (x.shape[1],))) for _ in range(3)]
        variance = g.constant(np.full(x.shape[1], 4).astype(several[0].held.dtype))
        g.add(op, [x, *several, variance], epsilon=g.choose.pick([None, 0.0]))
    elif op == "LayerNormalization":
        g.add(op, [x, g.constant(g.choose.array(x.elem, x.shape[-1:]))], axis=-1)
    elif len(x.shape) == 2:
        g.add(op, [x, g.constant(g.choose.array(x.elem, (x.shape[-1], 2)))], equation="ij,jk->ik")


def quantized(g: Typed) -> None:
    """To a narrow type and back, with a scale for all or for each channel."""
    x = g.some(("float", "float16"), (1, 2, 3, 4))
    if x is None:
        return
    narrow = g.choose.pick(
        ["uint8", "int8", "uint8", "int8", "float8e4m3fn", "float8e5m2", "int4", "uint4", "int16", "uint2"]
    )
    if not g.usable(narrow) or g.opset < 10:
        return
    axis = g.choose.number(0, len(x.shape) - 1)
    each = g.opset >= 13 and g.choose.one_in(2)
    scale = g.constant(np.full((x.shape[axis],) if each else (), 0.5).astype(x.held.dtype))
    zero = g.constant(np.zeros(scale.shape).astype(g.choose.array(narrow, ()).dtype))
    at = axis if g.opset >= 13 else None
    made = g.add("QuantizeLinear", [x, scale, zero], axis=at)
    if made and not g.choose.one_in(4):
        g.add("DequantizeLinear", [made[0], scale, zero], axis=at)


def neutral(g: Typed) -> None:
    """Arithmetic with the numbers that rewrites look for, in shapes that keep the other operand's and that do not."""
    x = g.some(("float",) if g.choose.one_in(2) else NUMBERS)
    if x is None:
        return
    number = g.choose.pick([0, 0, 1, 1, -1, 2] if x.elem not in UNSIGNED else [0, 1, 2])
    shape = g.choose.pick([(), (), (1,), (1,) * len(x.shape), (1,) * (len(x.shape) + 1)])
    held = np.full(shape, number).astype(x.held.dtype)
    op = g.choose.pick(
        ["Add", "Sub", "Sub", "Max", "Mul"] if number == 0 else ["Mul", "Div", "Pow", "Min", "Mod", "Sub"]
    )
    if x.elem in FLOATS and number == 0 and (op == "Sub" or g.choose.one_in(2)):
        held = np.asarray(np.negative(held))  # of an array without dimensions numpy makes a number
    constant = g.constant(held)
    g.add(op, [constant, x] if g.choose.one_in(3) else [x, constant])


def twice(g: Typed) -> None:
    """One operator on its own result, or on what undoes it."""
    x = g.some(ALL_TYPES)
    if x is None:
        return
    op = g.choose.pick(
        ["Neg", "Abs", "Relu", "Not", "Identity", "Sign", "Floor", "Clip", "Where", "Flatten", "Reciprocal"]
    )
    if op == "Where":
        g.add(op, [g.some(("bool",)), x, x])
        return
    made = g.add(op, [x])
    if made:
        g.add(op, [made[0]])


def drawn(g: Typed) -> None:
    """Operators that return something else every time."""
    x = g.find(["tensor(float)"])
    op = g.choose.pick(
        [
            "RandomNormal",
            "RandomUniform",
            "RandomNormalLike",
            "RandomUniformLike",
            "Bernoulli",
            "Multinomial",
            "Dropout",
        ]
    )
    seed = g.choose.pick([None, None, 7.0])
    if op in ("RandomNormal", "RandomUniform"):
        _pair(g, op, [], shape=[2, 3], seed=seed)
    elif op == "Dropout":
        if g.opset >= 12 and x is not None:
            training = [x, g.constant(np.array(0.5, np.float32)), g.constant(np.array(True))]
            g.add(op, training, 2)
    elif op == "Multinomial":
        _pair(g, op, [g.constant(np.array([[0.5, 0.5]], np.float32))], sample_size=4, seed=seed)
    elif op == "Bernoulli":
        if g.opset >= 15:
            _pair(g, op, [g.constant(np.full((2, 2), 0.5, np.float32))], seed=seed)
    else:
        _pair(g, op, [x if x is not None else g.constant(np.ones(2, np.float32))], seed=seed)


def _pair(g: Typed, op: str, inputs: list[Value], **attributes: Any) -> None:
    """Two draws that look the same, and a use of both."""
    one, other = (g.add(op, inputs, **attributes) for _ in range(2))
    if one and other and g.choose.one_in(2):
        g.add("Sub", [one[0], other[0]])


# -- sequences and optionals ----------------------------------------------------------------------------------------


def sequence(g: Typed) -> None:
    """SequenceConstruct, Insert, Erase, At, ConcatFromSequence, SplitToSequence, and Optional around them."""
    if g.opset < 11:
        return
    held = g.find([v.type for v in g.seen() if v.type.startswith("seq")])
    if held is None or g.choose.one_in(3):
        x = g.some(ALL_TYPES)
        if x is None:
            return
        if g.choose.one_in(3) and x.shape:
            g.add(
                "SplitToSequence",
                [x, g.constant(np.array(1, np.int64)) if g.choose.one_in(2) else None],
                axis=0,
                keepdims=g.choose.pick([0, 1]),
            )
        else:
            g.add("SequenceConstruct", [x] * g.choose.number(1, 3))
        return
    op = g.choose.pick(
        [
            "SequenceAt",
            "SequenceErase",
            "SequenceInsert",
            "ConcatFromSequence",
            "SequenceLength",
            "Identity",
            "Optional",
        ]
    )
    at = g.constant(np.array(g.choose.pick([0, -1]), np.int64))
    if op == "SequenceAt":
        g.add(op, [held, at])
    elif op == "SequenceErase":
        g.add(op, [held, at if g.choose.one_in(2) else None])
    elif op == "SequenceInsert" and held.held:
        kind = held.type.removeprefix("seq(").removesuffix(")")
        value = g.find([kind])
        g.add(op, [held, value, at if g.choose.one_in(2) else None])
    elif op == "ConcatFromSequence":
        g.add(op, [held], axis=0, new_axis=g.choose.pick([0, 1]))
    elif op == "Optional" and g.opset >= 15:
        made = g.add("Optional", [held])
        if made and g.choose.one_in(2):
            g.add("OptionalGetElement", [made[0]])
    elif op == "SequenceLength" or (op == "Identity" and g.opset >= 14):
        g.add(op, [held])


PLAIN: list[Maker] = [
    *[simple] * 12, *[cast] * 2, *[transpose] * 3, *[reshape] * 3, *[axes_moves] * 3, flatten, *[slicing] * 2, *[concat] * 2,
    split, pad, *[expand] * 2, *[gather] * 2, generate, sizes, *[reduction] * 2, along, *[linear] * 3, quantized, drawn, drawn, sequence, *[neutral] * 5, *[twice] * 2,
]  # fmt: skip
