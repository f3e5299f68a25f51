"""An artefact's config.pbtxt for Triton Inference Server, and the rung that reads it back.

What Triton's onnxruntime backend and its core take, and what they refuse, is from their sources
(triton-inference-server: onnxruntime_backend/src/onnxruntime.cc, core/src/model_config_utils.cc, June 2026).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from joulec.backends import outside
from joulec.backends.base import MODEL_FILE, SESSION_FILE, Artefact, Backend, Rung, SessionSettings
from joulec.backends.triton_schema import parsed
from joulec.errors import InputError
from joulec.ir.module import Module

TYPES = {
    ir.DataType.FLOAT: "TYPE_FP32", ir.DataType.FLOAT16: "TYPE_FP16", ir.DataType.DOUBLE: "TYPE_FP64",
    ir.DataType.BOOL: "TYPE_BOOL", ir.DataType.STRING: "TYPE_STRING",
    ir.DataType.INT8: "TYPE_INT8", ir.DataType.INT16: "TYPE_INT16", ir.DataType.INT32: "TYPE_INT32",
    ir.DataType.INT64: "TYPE_INT64", ir.DataType.UINT8: "TYPE_UINT8", ir.DataType.UINT16: "TYPE_UINT16",
    ir.DataType.UINT32: "TYPE_UINT32", ir.DataType.UINT64: "TYPE_UINT64",
}  # fmt: skip
"""Element types as config.pbtxt spells them. Triton has a TYPE_BF16 too, but its onnxruntime backend takes none."""

PRECISIONS = {"trt_fp16_enable": "FP16", "trt_bf16_enable": "BF16", "trt_int8_enable": "INT8"}
"""Options that are one `precision_mode` there, so that only one of them can be asked for."""

RENAMED = {"trt_max_workspace_size": "max_workspace_size_bytes"}
UNKNOWN = frozenset({"trt_op_types_to_exclude"})
"""Options of ONNX Runtime's TensorRT provider for which Triton has no parameter: it refuses the model."""

SEARCHES = {"EXHAUSTIVE": "0", "HEURISTIC": "1", "DEFAULT": "2"}
"""cuDNN's search among its algorithms: a parameter of the model, a number; whatever is said of it among those of the
accelerator, Triton overrides."""

ACCELERATORS = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}


def config(module: Module, found: SessionSettings, name: str) -> str:
    """The config.pbtxt of a model: signature, where it runs, and the provider's options.

    Batching is left to the caller (`max_batch_size: 0`): dimensions are the model's own, batch included.

    Raises:
        InputError: an input, output or option that Triton does not take.
    """
    lines = [f"name: {_quoted(name)}", 'backend: "onnxruntime"', "max_batch_size: 0"]
    lines += [line for value in module.inputs() for line in _tensor("input", value)]
    lines += [line for value in module.graph.outputs for line in _tensor("output", value)]
    accelerator = ACCELERATORS.get(found.provider)
    lines.append(f"instance_group [ {{ count: 1 kind: {'KIND_CPU' if accelerator is None else 'KIND_GPU'} }} ]")
    if accelerator is not None:
        lines += _accelerated(accelerator, found)
    entries = _parameters(found).items()
    lines += [f"parameters {{ key: {_quoted(k)} value: {{ string_value: {_quoted(v)} }} }}" for k, v in entries]
    return "\n".join(lines) + "\n"


def _tensor(place: str, value: ir.Value) -> Iterator[str]:
    kind = None if value.dtype is None else TYPES.get(value.dtype)
    if kind is None or value.shape is None:
        raise InputError(f"{place} '{value.name}': Triton takes tensors of known rank and of types that it knows only")
    sizes = [dim if isinstance(dim, int) else -1 for dim in value.shape] or [1]  # so it spells a scalar
    if 0 in sizes:
        raise InputError(f"{place} '{value.name}': Triton takes no dimension of size 0")
    dims = ", ".join(map(str, sizes))
    yield f"{place} [ {{ name: {_quoted(value.name or '')} data_type: {kind} dims: [ {dims} ] }} ]"


def _accelerated(name: str, found: SessionSettings) -> Iterator[str]:
    """The provider with its options. What ONNX Runtime must not do before TensorRT sees the graph cannot be named
    one by one there, so all its graph optimizations are off (level 2): TensorRT does its own.
    """
    yield "optimization {"
    if found.disabled_optimizers:
        yield "  graph { level: 2 }"
    yield f"  execution_accelerators {{ gpu_execution_accelerator [ {{ name: {_quoted(name)}"
    for key, value in _options(found).items():
        yield f"    parameters {{ key: {_quoted(key)} value: {_quoted(value)} }}"
    yield "  } ] }"
    yield "}"


def _options(found: SessionSettings) -> dict[str, str]:
    """The provider's options by the names that Triton gives them."""
    given = {key: value for key, value in sorted(found.provider_options.items()) if key != "cudnn_conv_algo_search"}
    refused = next((key for key in given if key in UNKNOWN), None)
    if refused is not None:
        raise InputError(f"{refused}: Triton has no such parameter")
    modes = [PRECISIONS[key] for key, value in given.items() if key in PRECISIONS and value != "0"]
    if len(modes) > 1:
        raise InputError(f"Triton takes one precision_mode, and this is {' and '.join(modes)}")
    mode = {"precision_mode": modes[0]} if modes else {}
    return {**mode, **{RENAMED.get(key, key): value for key, value in given.items() if key not in PRECISIONS}}


def _parameters(found: SessionSettings) -> dict[str, str]:
    """What is asked of the session, and of cuDNN."""
    if found.provider in ACCELERATORS:
        search = found.provider_options.get("cudnn_conv_algo_search")
        return {} if search is None else {"cudnn_conv_algo_search": SEARCHES[search]}
    arena = {} if found.arena else {"enable_mem_arena": "0"}
    return {"intra_op_thread_count": str(found.threads), **arena}


def _quoted(text: str) -> str:
    """A string of protobuf's text format: its escapes are those of JSON, but for what is not ASCII."""
    return '"' + "".join(_escaped(byte) for byte in text.encode()) + '"'


def _escaped(byte: int) -> str:
    plain = 32 <= byte < 127 and chr(byte) not in '"\\'
    return chr(byte) if plain else f"\\{byte:03o}"


# -- the rung --------------------------------------------------------------------------------------------------------


def read_back(emitted: Artefact, written: Module, backend: Backend) -> Rung:
    """The config.pbtxt of the emitted files, parsed by Triton's definition, says what model.onnx and session.json say.

    Read by joulec's own copy of the definition, and by tritonclient's where JOULEC_GPU_ENV has it.
    """
    session = json.loads((emitted.directory / SESSION_FILE).read_text(encoding="utf-8"))
    found = SessionSettings.from_json(session, SESSION_FILE, backend.provider_options)
    try:
        text = config(written, found, "model")
    except InputError as why:
        return Rung("Triton config", "skipped", f"not for Triton: {why}")
    proto = onnx.load(emitted.directory / MODEL_FILE, load_external_data=False)
    try:
        readings = {"joulec's copy of its definition": parsed(text), **_by_triton(text)}
    except InputError as why:
        return Rung("Triton config", "failed", str(why))
    for reader, read in readings.items():
        problem = disagreement(read, proto.graph, found)
        if problem is not None:
            return Rung("Triton config", "failed", f"{problem} (read by {reader})")
    sides = f"{len(read.get('input', ()))} inputs, {len(read.get('output', ()))} outputs"
    return Rung("Triton config", "passed", f"{sides} and all options read back by {' and by '.join(readings)}")


def _by_triton(text: str) -> dict[str, dict[str, Any]]:
    """What Triton's own definition reads; nothing where it is not at hand.

    Raises:
        InputError: it refuses the text.
    """
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "config.pbtxt"
        file.write_text(text, encoding="utf-8")
        outcome = outside.run("triton", [str(file)])
    if outcome.failed is not None:
        raise InputError(f"tritonclient: {outcome.failed}")
    answer = outcome.found or {}
    return {f"tritonclient {answer['version']}": answer["config"]} if "config" in answer else {}


def disagreement(read: Mapping[str, Any], graph: onnx.GraphProto, found: SessionSettings) -> str | None:
    """What a configuration says otherwise than the model's file and its session settings, or None."""
    weights = {one.name for one in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    for place, values in (("input", inputs), ("output", graph.output)):
        said = [(one["name"], one["data_type"], [int(dim) for dim in one["dims"]]) for one in read.get(place, ())]
        wanted = [(value.name, *_signature(value.type.tensor_type)) for value in values]
        if said != wanted:
            return f"{place}s {said} are in the file {wanted}"
    return _other_options(read, found)


def _signature(tensor: onnx.TypeProto.Tensor) -> tuple[str, list[int]]:
    """Type and sizes as Triton's core wants them; its names of types are numpy's kind and the bits."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    numbers = {"f": "FP", "i": "INT", "u": "UINT"}
    bits = f"{8 * kind.itemsize}" if kind.kind in numbers else ""
    name = {**numbers, "b": "BOOL"}.get(kind.kind, "STRING") + bits
    return f"TYPE_{name}", [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim] or [1]


def _other_options(read: Mapping[str, Any], found: SessionSettings) -> str | None:
    optimization = read.get("optimization", {})
    accelerators = optimization.get("execution_accelerators", {}).get("gpu_execution_accelerator", [])
    names = [one["name"] for one in accelerators]
    wanted = [ACCELERATORS[found.provider]] if found.provider in ACCELERATORS else []
    if names != wanted:
        return f"accelerators {names}, for {found.provider}"
    said = {key: value for one in accelerators for key, value in one.get("parameters", {}).items()}
    said |= {key: one["string_value"] for key, one in read.get("parameters", {}).items()}
    missing = [f"{key}={value}" for key, value in found.provider_options.items() if not _holds(said, key, value)]
    return f"options that are lost: {', '.join(missing)}" if missing else None


def _holds(said: Mapping[str, str], key: str, value: str) -> bool:
    """Whether the configuration asks for an option of ONNX Runtime's."""
    if key in PRECISIONS:
        return (said.get("precision_mode") == PRECISIONS[key]) == (value != "0")
    wanted = SEARCHES[value] if key == "cudnn_conv_algo_search" else value
    return said.get(RENAMED.get(key, key)) == wanted
