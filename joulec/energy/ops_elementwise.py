"""Work of elementwise operators: operations per output element.

The counts are vector instructions per element of the usual kernels: 1 for an add, multiply, compare or select; a
division or square root as the number of simple operations that take the same time on a server core; functions such as
exp as range reduction plus a minimax polynomial or rational (degree 6 to 13), each multiply-add counting as two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from joulec.energy.view import Cost, View
from joulec.ir.values import constant_tensor, input_at

SIMPLE, DIVIDE, ROOT = 1, 4, 9
EXPONENTIAL = 16
"""Range reduction (4), a degree-5 polynomial (10), scaling by a power of two (2)."""
RATIONAL = 24
"""tanh and logistic as odd rationals of about degree 9/8, and one division."""
ERROR = 40
"""erf: a polynomial for small arguments and an exponential of one for large ones, both computed."""
PASS = 12
"""A pass over a buffer more than the arithmetic needs, in operations."""
LIBRARY = 50
"""A call into the C library, one number at a time."""

PER_ELEMENT: Mapping[str, int] = {
    **dict.fromkeys(
        ["Abs", "Add", "And", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast",
         "CastLike", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual",
         "Mul", "Neg", "Not", "Or", "Relu", "Round", "Sign", "Sub", "Where", "Xor"], SIMPLE),
    **dict.fromkeys(["Clip", "LeakyRelu", "PRelu", "ThresholdedRelu", "Shrink"], 2 * SIMPLE),
    "HardSigmoid": 3, "HardSwish": 4,
    **dict.fromkeys(["Div", "Reciprocal", "Mod"], DIVIDE),
    "Softsign": DIVIDE + 2,
    "Sqrt": ROOT,
    **dict.fromkeys(["Exp", "Log", "Sin", "Cos"], EXPONENTIAL),
    **dict.fromkeys(["Elu", "Selu", "Celu"], EXPONENTIAL + 3),
    "Softplus": 2 * LIBRARY, "Mish": 2 * LIBRARY + RATIONAL,
    "Erf": ERROR,
    **dict.fromkeys(["Sigmoid", "Tanh", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh",
                     "Atanh"], RATIONAL),
    "Gelu": ERROR + 4, "Swish": RATIONAL + 2,
    "Pow": LIBRARY,
    "Bernoulli": 20, "RandomNormal": 40, "RandomNormalLike": 40, "RandomUniform": 20, "RandomUniformLike": 20,
    **dict.fromkeys(["HannWindow", "HammingWindow", "BlackmanWindow"], EXPONENTIAL + 3),
    "Scale": SIMPLE, "Affine": 2, "ImageScaler": 2, "ScaledTanh": RATIONAL + 2,
    "ParametricSoftplus": 2 * EXPONENTIAL + 4,
}  # fmt: skip

MICROSOFT_PER_ELEMENT: Mapping[str, int] = {
    "Gelu": ERROR + 4, "BiasGelu": ERROR + 5, "FastGelu": RATIONAL + 8, "QuickGelu": RATIONAL + 2 + PASS,
    "ScaledSiLU": RATIONAL + 3, "GatedAdd": 3, "BiasDropout": 2, "BiasAdd": 2, "BiasSplitGelu": RATIONAL + 6,
}  # fmt: skip


def per_output(operations: int) -> Callable[[View], Cost]:
    """`operations` per element of the first output (after broadcasting)."""

    def formula(view: View) -> Cost:
        return view.cost(operations * view.m())

    return formula


def power(view: View) -> Cost:
    """Pow: products for exponents 2 and 3 (special-cased by kernels, number by number), a root for 0.5, else pow()."""
    exponent = _scalar(view)
    known = {1.0: 1, 2.0: PASS, 3.0: PASS + 1, 0.5: ROOT, -1.0: DIVIDE}
    per = known.get(exponent, PER_ELEMENT["Pow"]) if exponent is not None else PER_ELEMENT["Pow"]
    return view.cost(per * view.m())


def _scalar(view: View) -> float | None:
    tensor = constant_tensor(input_at(view.node, 1))
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def variadic(view: View) -> Cost:
    """Sum, Max, Min, Mean: one operation per output element and operand after the first; Mean scales once more."""
    operands = len(view.inputs())
    extra = 1 if view.node.op_type == "Mean" else 0
    return view.cost(view.m() * max(operands - 1 + extra, 0))


def swiglu(view: View) -> Cost:
    """SwiGLU: a logistic and two products per output element."""
    return view.cost((RATIONAL + 2) * view.m())


def hard_swish(view: View) -> Cost:
    """HardSwish runs as HardSigmoid and Mul: x is read twice, and what is between them written and read."""
    return view.cost(PER_ELEMENT["HardSwish"] * view.m(), touched={0: 3 * view.nbytes(0)}, write=2 * view.out_bytes())


def _table(counts: Mapping[str, int]) -> dict[str, Callable[[View], Cost]]:
    return {op: per_output(count) for op, count in counts.items()}


TABLE = _table(PER_ELEMENT) | {
    "HardSwish": hard_swish, "Pow": power, "Sum": variadic, "Max": variadic, "Min": variadic, "Mean": variadic,
    "SwiGLU": swiglu,
}  # fmt: skip
MICROSOFT = _table(MICROSOFT_PER_ELEMENT)
