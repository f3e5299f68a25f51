"""What a target has against a model, rule by rule: found by the predicates that legalize-qdq mends by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.kernel_table import KernelTable
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.ir.values import constant, constant_tensor, input_at
from joulec.passes._integer_operators import is_integer_operator
from joulec.passes._qdq_graph import (
    EIGHT_BITS,
    Scale,
    computes,
    integer_type,
    is_dequantize,
    is_quantize,
    nodes_of,
    scale_of,
    weight_axis,
)
from joulec.passes._qdq_places import NODE_RULES, disagreements
from joulec.passes._symmetric import groups, is_stored_scalar

ERROR, WARNING, NOTE = "error", "warning", "note"
FLOAT8 = ("FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4", "FLOAT4E2M1")


@dataclass(frozen=True)
class Finding:
    """One thing that a target has against a model.

    Attributes:
        rule: its name.
        severity: `error` (the target refuses the model), `warning` (it runs slower or in float) or `note`.
        node: the node, by name; its operator where it has none.
        op_type: the operator.
        message: what is wrong, in words.
    """

    rule: str
    severity: str
    node: str
    op_type: str
    message: str


_TENSORRT, _CUDA, _CPU = frozenset({"tensorrt"}), frozenset({"cuda"}), frozenset({"cpu"})
_ALL = _TENSORRT | _CUDA | _CPU

RULES: dict[str, tuple[str, str, frozenset[str]]] = {
    "integer-operator": (ERROR, "an operator on integers: Q/DQ around a float one is the only form", _TENSORRT),
    "unsigned-integers": (ERROR, "uint8: TensorRT takes int8 only", _TENSORRT),
    "zero-point": (ERROR, "a zero-point that is not 0", _TENSORRT),
    "integer-bits": (ERROR, "integers of 16 or 32 bits", _TENSORRT),
    "quantized-bias": (ERROR, "a bias of int32: TensorRT takes it as float", _TENSORRT),
    "scale-not-constant": (ERROR, "a scale or zero-point that is computed", _TENSORRT),
    "scale-not-positive": (ERROR, "a scale that is 0, negative, NaN or infinite", _ALL),
    "channel-axis": (ERROR, "scales along another axis than the weight's output channels", _TENSORRT),
    "activation-channels": (ERROR, "an activation with a scale for each channel", _TENSORRT),
    "scale-half": (NOTE, "float16 scales: ONNX Runtime's WeightBiasQuantization must be disabled", _TENSORRT),
    "stored-integers": (ERROR, "stored integers that are moved before DequantizeLinear, or a single number", _TENSORRT),
    "integers-computed-on": (ERROR, "an operator computes on integers between Q and DQ", _TENSORRT),
    "qdq-before-activation": (WARNING, "Q/DQ between a convolution and its activation", _TENSORRT),
    "residual-both-quantized": (WARNING, "both operands of a residual Add quantized", _TENSORRT),
    "scales-differ": (WARNING, "branches of a Concat, or both sides of a MaxPool, with different scales", _TENSORRT),
    "better-in-float": (WARNING, "a narrow convolution or a matrix-vector product in INT8", _TENSORRT),
    "half-quantized": (WARNING, "only the weight, or only the activation, is quantized", _TENSORRT),
    "idle-pair": (WARNING, "Q/DQ that no integer operator reads", _TENSORRT),
    "weights-in-nodes": (NOTE, "scales, zero-points or weights in Constant nodes, not initializers", _TENSORRT),
    "sparse-weights": (NOTE, "weights with two zeros in four along the reduction: sparse kernels may pay", _TENSORRT),
    "computed-in-float": (WARNING, "Q/DQ on a provider without integer kernels for it: emit float16", _CUDA),
    "signed-activations": (WARNING, "int8 activations: the CPU kernels want uint8 with a zero-point", _CPU),
    "no-kernel": (ERROR, "no kernel in the table: TensorRT refuses it, others leave it to the CPU", _ALL),
}  # fmt: skip
"""Name -> (severity, what it means, targets it is a rule of)."""

_Found = Iterable[tuple[str, ir.Node, str]]


def lint(module: Module, table: KernelTable) -> list[Finding]:
    """Everything that the target of `table` has against `module`, in graph order within each rule. O(nodes + edges).

    Shapes and types are inferred on `module`.
    """
    infer_shapes(module)
    found: list[Finding] = []
    for check in _CHECKS:
        for rule, node, message in check(module):
            severity, _, targets = RULES[rule]
            if table.provider in targets:
                found.append(Finding(rule, severity, node.name or node.op_type, node.op_type, message))
    found += [
        Finding("no-kernel", _severity_of_fallback(table), node.name or node.op_type, node.op_type, reason)
        for node, reason in _without_kernel(module, table)
    ]
    order = {name: index for index, name in enumerate(RULES)}
    return sorted(dict.fromkeys(found), key=lambda one: order[one.rule])


def _severity_of_fallback(table: KernelTable) -> str:
    return WARNING if table.provider == "cuda" else ERROR


def _without_kernel(module: Module, table: KernelTable) -> Iterator[tuple[ir.Node, str]]:
    functions = {(function.domain, function.name) for function in module.model.functions.values()}
    for node in walk.nodes(module.model):
        named = is_integer_operator(node) or is_quantize(node) or is_dequantize(node)
        if (table.provider == "tensorrt" and named) or (node.domain, node.op_type) in functions:
            continue  # rules of their own say it better
        reason = table.refusal(node, module.model.opset_imports)
        if reason is not None:
            yield node, reason


# -- checks ---------------------------------------------------------------------------------------------------------


def _operators(module: Module) -> _Found:
    for node in nodes_of(module):
        if is_integer_operator(node):
            yield "integer-operator", node, f"{walk.label(node)} computes on integers"


def _parameters(module: Module) -> _Found:
    for node in nodes_of(module):
        if not (is_quantize(node) or is_dequantize(node)) or getattr(integer_type(node), "name", "") in FLOAT8:
            continue
        if (problem := _unreadable(node)) is not None:
            yield problem[0], node, problem[1]
        elif (found := scale_of(node)) is not None:
            yield from _form(node, found)
        if any(value is not None and _in_a_node(value) for value in node.inputs):
            yield "weights-in-nodes", node, "a Constant node feeds it"


def _in_a_node(value: ir.Value) -> bool:
    return not value.is_initializer() and constant_tensor(value) is not None


def _unreadable(node: ir.Node) -> tuple[str, str] | None:
    scale = constant(node.inputs[1])
    zero = input_at(node, 2)
    if scale is None or (zero is not None and constant_tensor(zero) is None):
        return "scale-not-constant", "its scale or zero-point is computed, or a caller may replace it"
    numbers = np.asarray(scale, np.float64)
    if numbers.size == 0 or not np.all(np.isfinite(numbers)) or np.any(numbers <= 0):
        return "scale-not-positive", f"its scale is {numbers.reshape(-1)[:1]}"
    return None


def _form(node: ir.Node, found: Scale) -> _Found:
    stored = constant_tensor(node.inputs[0]) is not None
    role = _role(node)
    if is_stored_scalar(node):
        yield "stored-integers", node, "a single number kept as an integer"
    if found.dtype == ir.DataType.INT32 or role == "bias":
        yield "quantized-bias", node, f"a bias of {found.dtype.name.lower()}"
    elif found.dtype not in EIGHT_BITS:
        yield "integer-bits", node, f"integers of type {found.dtype.name.lower()}"
    elif found.dtype == ir.DataType.UINT8:
        yield "unsigned-integers", node, f"uint8 with zero-point {int(np.max(found.zero_point))}"
    elif np.any(found.zero_point):
        yield "zero-point", node, f"zero-point {int(found.zero_point.reshape(-1)[0])}"
    elif is_dequantize(node) and not stored and _makes_signed(node):
        yield "signed-activations", node, "an activation of int8"
    if found.axis is not None and role != "bias":
        if not stored and _is_activation(node):
            yield "activation-channels", node, f"{found.scale.size} scales for an activation"
        elif role == "weight" and (wanted := _weight_axis(node)) is not None and wanted != found.axis:
            yield "channel-axis", node, f"scales along axis {found.axis}, the output channels are along {wanted}"
    if found.stored == np.float16:
        yield "scale-half", node, "its scale is float16"


def _makes_signed(node: ir.Node) -> bool:
    return any(computes(use.node) and use.idx == 0 for use in node.outputs[0].uses())


def _is_activation(node: ir.Node) -> bool:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return is_quantize(node) or producer is None or constant_tensor(producer.inputs[0]) is None


def _role(node: ir.Node) -> str | None:
    """What a DQ makes: the `weight` or the `bias` of an operator that computes."""
    places = {use.idx for use in node.outputs[0].uses() if computes(use.node)} if is_dequantize(node) else set()
    return "weight" if places == {1} else "bias" if places == {2} else None


def _weight_axis(node: ir.Node) -> int | None:
    axes = {weight_axis(use.node) for use in node.outputs[0].uses()}
    return axes.pop() if len(axes) == 1 else None


def _groups(module: Module) -> _Found:
    for group in groups(module):
        if group.obstacle is not None:
            yield "integers-computed-on", group.members[0], group.obstacle
        elif group.stored:
            yield "stored-integers", group.members[0], f"'{group.stored[0].name}' is moved before it becomes float"


def _places(module: Module) -> _Found:
    for rule in NODE_RULES:
        for node in nodes_of(module):
            if (reason := rule.broken(node)) is not None:
                yield rule.name, node, reason


def _agreement(module: Module) -> _Found:
    for found in disagreements(module):
        yield "scales-differ", found.node, f"{len(found.members)} Q and DQ nodes around it should share one scale"


def _in_float(module: Module) -> _Found:
    for node in nodes_of(module):
        if is_quantize(node) and constant_tensor(node.inputs[0]) is None:
            yield "computed-in-float", node, "its integers become floats again before anything is computed"


def _sparse(module: Module) -> Iterator[tuple[str, ir.Node, str]]:
    for node in nodes_of(module):
        if computes(node) and _has_pattern(input_at(node, 1), node):
            yield "sparse-weights", node, "two of every four weights are zero along the reduction"


def has_sparse_weights(module: Module) -> bool:
    """Whether any weight of an operator that computes has two zeros in every four along the reduction."""
    return next(_sparse(module), None) is not None


def _has_pattern(value: ir.Value | None, node: ir.Node) -> bool:
    producer = None if value is None else value.producer()
    source = producer.inputs[0] if producer is not None and is_dequantize(producer) else value
    numbers, axis = constant(source), weight_axis(node)
    if numbers is None or numbers.ndim < 2 or axis is None or not numbers.size:
        return False
    rows = np.moveaxis(numbers, axis, 0)
    rows = rows if rows.ndim == 2 else np.moveaxis(rows, 1, -1)  # input channels last: four of them are a group
    if rows.shape[-1] % 4:
        return False
    return bool(np.all(np.count_nonzero(rows.reshape(-1, 4), axis=1) <= 2))


_CHECKS: tuple[Callable[[Module], _Found], ...] = (
    _operators, _parameters, _groups, _places, _agreement, _in_float, _sparse,
)  # fmt: skip
