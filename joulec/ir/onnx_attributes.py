"""Attributes of standard operators, checked against the standard once, so that nobody behind has to doubt them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import onnx

from joulec.errors import InputError
from joulec.ir.walk import ONNX_DOMAINS

_KINDS = onnx.AttributeProto.AttributeType
_ELEMENTS = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


def check_attributes(nodes: Iterable[onnx.NodeProto], version: int, name: str) -> None:
    """Check the attributes of `nodes` that are standard operators. O(nodes + attributes).

    What is checked is what every runtime checks when it loads a model: types, attributes that must be there, element
    types that exist, and no more outputs of a Split than it has (onnx's shape inference allocates what that says).

    Args:
        nodes: of one graph; graphs inside them are not looked at.
        version: of the standard operators that the graph imports.
        name: what messages call the model.

    Raises:
        InputError: the node and the attribute.
    """
    for node in nodes:
        if node.domain not in ONNX_DOMAINS or (known := _described(node.op_type, version)) is None:
            continue
        kinds, required = known
        for attribute in node.attribute:
            wanted = kinds.get(attribute.name)
            if wanted is not None and attribute.type not in wanted:
                said = f"is of type {_spelled(attribute.type)}, the standard says {' or '.join(map(_spelled, wanted))}"
                raise InputError(f"{name}: {_label(node)}: attribute '{attribute.name}' {said}")
        if required and (missing := required - {attribute.name for attribute in node.attribute}):
            raise InputError(f"{name}: {_label(node)} lacks its attribute '{min(missing)}'")
        if node.op_type in ("Cast", "Split"):
            _check_value(node, name)


def _check_value(node: onnx.NodeProto, name: str) -> None:
    for attribute in node.attribute:
        casts = attribute.name == "to" and attribute.type == _KINDS.INT and not attribute.ref_attr_name
        if casts and attribute.i not in _ELEMENTS:
            raise InputError(f"{name}: {_label(node)} casts to {attribute.i}, which is no element type")
        if attribute.name == "num_outputs" and attribute.i > len(node.output):
            raise InputError(f"{name}: {_label(node)} claims {attribute.i} outputs, it has {len(node.output)}")


def _label(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{node.name or next(iter(node.output), '')}'"


def _spelled(kind: int) -> str:
    return _KINDS.Name(kind) if kind in _KINDS.values() else str(kind)


@cache
def _described(op_type: str, version: int) -> tuple[Mapping[str, tuple[int, ...]], frozenset[str]] | None:
    """The types of each attribute, and which must be there; of an operator that came later, the types in any version.

    None for an unknown operator.
    """
    schemas = _schemas().get(op_type, ())
    exact = max((s for s in schemas if s.since_version <= version), key=lambda s: s.since_version, default=None)
    kinds: dict[str, tuple[int, ...]] = {}
    for schema in schemas if exact is None else (exact,):
        for attribute, described in schema.attributes.items():
            kind = int(described.type)  # type: ignore[call-overload]  # an enumeration that its stub calls a class
            kinds[attribute] = tuple(dict.fromkeys((*kinds.get(attribute, ()), kind)))
    required = () if exact is None else (name for name, described in exact.attributes.items() if described.required)
    return (kinds, frozenset(required)) if schemas else None


@cache
def _schemas() -> Mapping[str, list[onnx.defs.OpSchema]]:
    found: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found.setdefault(schema.name, []).append(schema)
    return found
