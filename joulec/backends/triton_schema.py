"""Triton's ModelConfig, as far as joulec writes it, so that a config.pbtxt can be read back without Triton.

Names, numbers and types are those of its published definition (model_config.proto of triton-inference-server/common).
tritonclient has the whole of it, but holds protobuf below 7 and brings gRPC: `make gpu-env` installs it apart, and the
ladder of evidence then reads with it too.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    text_format,
)

from joulec.errors import InputError
from joulec.ir.shapes import first_line

_FIELD = descriptor_pb2.FieldDescriptorProto
_TEXT, _INTEGER, _SMALL = _FIELD.TYPE_STRING, _FIELD.TYPE_INT64, _FIELD.TYPE_INT32
_ONE, _MANY, _MAP = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED, "map"

ENUMS = {
    "DataType": (
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8",
        "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ),
    "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU"),
}  # fmt: skip
"""Members of each enumeration, by number."""

MESSAGES: dict[str, tuple[tuple[str, int, Any, Any], ...]] = {
    "Parameter": (("string_value", 1, _TEXT, _ONE),),
    "Input": (("name", 1, _TEXT, _ONE), ("data_type", 2, "DataType", _ONE), ("dims", 4, _INTEGER, _MANY)),
    "Output": (("name", 1, _TEXT, _ONE), ("data_type", 2, "DataType", _ONE), ("dims", 3, _INTEGER, _MANY)),
    "Group": (("count", 2, _SMALL, _ONE), ("kind", 4, "Kind", _ONE)),
    "Accelerator": (("name", 1, _TEXT, _ONE), ("parameters", 2, _TEXT, _MAP)),
    "Accelerators": (("gpu_execution_accelerator", 1, "Accelerator", _MANY),),
    "Graph": (("level", 1, _SMALL, _ONE),),
    "Optimization": (("graph", 1, "Graph", _ONE), ("execution_accelerators", 4, "Accelerators", _ONE)),
    "ModelConfig": (
        ("name", 1, _TEXT, _ONE), ("backend", 17, _TEXT, _ONE), ("max_batch_size", 4, _SMALL, _ONE),
        ("input", 5, "Input", _MANY), ("output", 6, "Output", _MANY), ("instance_group", 7, "Group", _MANY),
        ("optimization", 12, "Optimization", _ONE), ("parameters", 14, "Parameter", _MAP),
    ),
}  # fmt: skip
"""(Name, number, type, label) of each field, by message; a type is a message or an enumeration where it is named. The
keys of maps are text."""


def parsed(text: str) -> dict[str, Any]:
    """A config.pbtxt as JSON spells protobuf: absent fields are left out, 64-bit integers are text.

    Raises:
        InputError: it is not the text form of a ModelConfig, or has fields that joulec does not write.
    """
    try:
        message = text_format.Parse(text, _model_config()())
    except text_format.ParseError as error:
        raise InputError(f"config.pbtxt: not a model configuration: {first_line(error)}") from error
    return dict(json_format.MessageToDict(message, preserving_proto_field_name=True))


@cache
def _model_config() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="triton", syntax="proto3")
    for name, members in ENUMS.items():
        made = file.enum_type.add(name=name)
        for number, member in enumerate(members):
            made.value.add(name=member, number=number)
    for name, fields in MESSAGES.items():
        made = file.message_type.add(name=name)
        for field in fields:
            _add(made, *field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.ModelConfig"))


def _add(message: Any, name: str, number: int, kind: Any, label: Any) -> None:
    if label == _MAP:
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add(entry, "key", 1, _TEXT, _ONE)
        _add(entry, "value", 2, kind, _ONE)
        kind, label = f"{message.name}.{entry.name}", _MANY
    if not isinstance(kind, str):
        message.field.add(name=name, number=number, type=kind, label=label)
        return
    named = _FIELD.TYPE_ENUM if kind in ENUMS else _FIELD.TYPE_MESSAGE
    message.field.add(name=name, number=number, type=named, label=label, type_name=f".triton.{kind}")
