"""Who can see whether a zero is -0.0: what allows x + 0 to be x, though it turns -0.0 into 0.0."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.partial import ShapeFacts
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.values import Array, attribute, constant, constant_tensor, input_at
from joulec.passes._affine import is_normalized
from joulec.passes._broadcasts import uniform
from joulec.passes._reshapes import ShapeRule

MASKING = frozenset(
    (
        "Abs ArgMax ArgMin Cos Cosh Equal Exp Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Log QuantizeLinear "
        "Sigmoid Softmax Softplus"
    ).split()
)
"""Operators whose result is the same for 0.0 and -0.0."""

CARRYING = frozenset(
    (
        "Add Atan AveragePool BatchNormalization Cast Ceil Celu Clip Concat Conv Div Dropout Elu Erf Expand "
        "Flatten Floor Gather Gelu Gemm GlobalAveragePool GlobalMaxPool HardSwish Identity "
        "InstanceNormalization LayerNormalization LeakyRelu LogSoftmax MatMul Max MaxPool Mean Min Mish Mul "
        "Neg PRelu Pad ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Round Selu Sin Slice Softsign "
        "Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Unsqueeze Where"
    ).split()
)
"""Operators of whose result at most the sign of a zero changes where the sign of a zero changes in an operand."""

FIRST_ONLY = frozenset({"Div", "Pad", "Gather", "Slice", "Expand", "Reshape", "Tile", "BatchNormalization"})
"""Of these only as the first operand: a divisor's sign is seen, and the others hold no data."""

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
_UNSIGNED_ZERO = (
    ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64,
    ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
)  # fmt: skip

MAX_READ = 1 << 16
"""Elements of a constant that are looked through for zeros."""


class ZeroSigns:
    """For each value of the main graph: whether no output can depend on the signs of its zeros. O(nodes), once."""

    def __init__(self, module: Module) -> None:
        self._main = module.graph
        self._hidden: dict[int, bool] = {}
        self._zeros: dict[int, tuple[bool, bool]] = {}
        for node in reversed(list(module.graph)):
            for output in node.outputs:
                self._hidden[id(output)] = self._is_hidden(output)

    def hidden(self, value: ir.Value) -> bool:
        """Whether 0.0 in `value` may as well be -0.0, or the other way round."""
        return self._hidden.get(id(value), False)

    def _is_hidden(self, value: ir.Value) -> bool:
        return not value.is_graph_output() and all(self._hides(usage.node, usage.idx) for usage in value.uses())

    def _hides(self, user: ir.Node, index: int) -> bool:
        """Whether `user` itself masks the sign, or hands it on to nobody who sees it."""
        if user.graph is not self._main or not walk.is_onnx(user):
            return False
        if user.op_type in MASKING or self._masks(user, index):
            return True
        if user.op_type == "Cast" and ir.DataType(attribute(user, "to")) not in _FLOATS:
            return False
        if user.op_type not in CARRYING or (user.op_type in FIRST_ONLY and index != 0):
            return False
        return all(self._hidden.get(id(output), False) for output in user.outputs)

    def _masks(self, user: ir.Node, index: int) -> bool:
        match user.op_type:
            case "Add":
                return self._has_no(user.inputs[1 - index], negative=True)
            case "Sub":
                return self._has_no(user.inputs[1 - index], negative=index == 1)
            case "Cast":
                return ir.DataType(attribute(user, "to")) in _UNSIGNED_ZERO
            case "Pow":
                return index == 1 or self._is_even(user.inputs[1])
            case "Gemm":
                plain = index < 2 and attribute(user, "beta", 1.0) == 1.0
                return plain and self._has_no(input_at(user, 2), negative=True)
            case "Conv":
                return index < 2 and self._has_no(input_at(user, 2), negative=True)
            case "LayerNormalization":
                alone = not any(output.uses() or output.is_graph_output() for output in user.outputs[1:])
                return index == 0 and alone and self._has_no(input_at(user, 2), negative=True)
            case _:
                return False

    def _is_even(self, value: ir.Value | None) -> bool:
        exponent = constant(value) if (tensor := constant_tensor(value)) is not None and tensor.size == 1 else None
        return exponent is not None and float(exponent.item()) in (2.0, 4.0, 6.0)

    def _has_no(self, value: ir.Value | None, *, negative: bool) -> bool:
        """Whether a constant operand holds no -0.0 (or no 0.0)."""
        if value is None:
            return False
        if id(value) not in self._zeros:
            self._zeros[id(value)] = _zeros_in(value)
        return not self._zeros[id(value)][1 if negative else 0]


def _zeros_in(value: ir.Value) -> tuple[bool, bool]:
    """Whether there is a 0.0 and a -0.0 in a constant; both, where it is none or cannot be read cheaply."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size > MAX_READ or tensor.dtype == ir.DataType.STRING:
        return True, True
    array: Array = tensor.numpy()
    if array.dtype.kind != "f":
        return True, True
    signs = np.signbit(array[array == 0])
    return bool(np.any(~signs)), bool(np.any(signs))


class AddedZero(ShapeRule):
    """x + 0 -> x, where nobody sees the sign of a zero, or the zero is an integer or -0.0."""

    ops = ("Add", "Sub")

    def __init__(self, facts: ShapeFacts, module: Module) -> None:
        super().__init__(facts)
        self._module = module
        self._found: ZeroSigns | None = None

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        output = node.outputs[0]
        for index in (1, 0) if node.op_type == "Add" else (1,):
            zero, kept = node.inputs[index], node.inputs[1 - index]
            if kept is None or uniform(zero) != 0 or self.dims(kept) is None or self.dims(kept) != self.dims(output):
                continue
            if not self._is_exact(node, zero) and not self._signs().hidden(output):
                raise Refused("adding 0 turns -0.0 into 0.0, which an output may show")
            scaled = kept.producer()
            if scaled is not None and any(v is not None and is_normalized(v) for v in (kept, *scaled.inputs)):
                raise Refused("runtimes fuse it with the normalization before it")
            self.remove(node, kept, rewriter)
            return

    def _is_exact(self, node: ir.Node, zero: ir.Value | None) -> bool:
        if zero is None or zero.dtype is None or not zero.dtype.is_floating_point():
            return True
        number = uniform(zero)  # -0.0 is false
        return number is not None and bool(np.signbit(number)) == (node.op_type == "Add")

    def _signs(self) -> ZeroSigns:
        if self._found is None:
            self._found = ZeroSigns(self._module)
        return self._found
