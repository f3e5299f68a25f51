"""An artefact in the form that a server or a small device wants: a Triton model repository, an .ort file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from joulec.backends.artefact import settings, verified
from joulec.backends.base import MODEL_FILE, SessionSettings
from joulec.errors import InputError, UnavailableError
from joulec.ir.module import Module
from joulec.ir.onnx_file import read

TRITON_TYPES = {
    ir.DataType.FLOAT: "TYPE_FP32", ir.DataType.FLOAT16: "TYPE_FP16", ir.DataType.BFLOAT16: "TYPE_BF16",
    ir.DataType.DOUBLE: "TYPE_FP64", ir.DataType.BOOL: "TYPE_BOOL", ir.DataType.STRING: "TYPE_STRING",
    ir.DataType.INT8: "TYPE_INT8", ir.DataType.INT16: "TYPE_INT16", ir.DataType.INT32: "TYPE_INT32",
    ir.DataType.INT64: "TYPE_INT64", ir.DataType.UINT8: "TYPE_UINT8", ir.DataType.UINT16: "TYPE_UINT16",
    ir.DataType.UINT32: "TYPE_UINT32", ir.DataType.UINT64: "TYPE_UINT64",
}  # fmt: skip
"""Element types as Triton's config.pbtxt spells them."""

TRITON_NAMES = {"trt_max_workspace_size": "max_workspace_size_bytes"}
"""Options of the TensorRT provider that Triton calls otherwise; all others have ONNX Runtime's names."""

ACCELERATORS = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def triton(artefact: Path, out: Path, name: str) -> list[Path]:
    """Write `out`/`name`/config.pbtxt and `out`/`name`/1/model.onnx: one model of a Triton model repository.

    Args:
        artefact: what `joulec optimize -o` wrote.
        out: the repository; made where it is not there.
        name: the model's name in it.

    Raises:
        InputError: no artefact, or a name or element type that Triton does not take, or something is there already.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"--name {name!r}: letters, digits, '.', '_' and '-' only, for it is a folder's name")
    found, module = settings(verified(artefact)), read(artefact / MODEL_FILE)
    text = config(module, found, name)
    place = out / name
    if place.exists():
        raise InputError(f"{place}: is there already; choose another --name or remove it")
    (place / "1").mkdir(parents=True)
    for file in (MODEL_FILE, f"{MODEL_FILE}.data"):
        if (artefact / file).is_file():
            shutil.copyfile(artefact / file, place / "1" / file)
    (place / "config.pbtxt").write_text(text, encoding="utf-8")
    return sorted(path for path in place.rglob("*") if path.is_file())


def config(module: Module, found: SessionSettings, name: str) -> str:
    """The config.pbtxt of a model: signature, where it runs, and the provider's options.

    Batching is left to the caller (`max_batch_size: 0`): dimensions are the model's own, batch included.
    """
    lines = [f"name: {_quoted(name)}", 'backend: "onnxruntime"', "max_batch_size: 0"]
    lines += [line for value in module.inputs() for line in _tensor("input", value)]
    lines += [line for value in module.graph.outputs for line in _tensor("output", value)]
    accelerator = ACCELERATORS.get(found.provider)
    lines.append(f"instance_group [ {{ count: 1 kind: {'KIND_CPU' if accelerator is None else 'KIND_GPU'} }} ]")
    if accelerator is not None:
        lines += _accelerated(accelerator, found)
    threads = {"intra_op_thread_count": str(found.threads)} if accelerator is None else {}
    lines += [f"parameters {{ key: {_quoted(k)} value: {{ string_value: {_quoted(v)} }} }}" for k, v in threads.items()]
    return "\n".join(lines) + "\n"


def _tensor(place: str, value: ir.Value) -> Iterator[str]:
    kind = None if value.dtype is None else TRITON_TYPES.get(value.dtype)
    if kind is None or value.shape is None:
        raise InputError(f"{place} '{value.name}': Triton takes tensors of known rank and of types that it knows only")
    dims = ", ".join(str(dim) if isinstance(dim, int) else "-1" for dim in value.shape)
    yield f"{place} [ {{ name: {_quoted(value.name or '')} data_type: {kind} dims: [ {dims} ] }} ]"


def _accelerated(name: str, found: SessionSettings) -> Iterator[str]:
    """The provider with its options. What ONNX Runtime must not do before TensorRT sees the graph cannot be named
    one by one there, so all its graph optimizations are off (level 2): TensorRT does its own.
    """
    yield "optimization {"
    if found.disabled_optimizers:
        yield "  graph { level: 2 }"
    yield f"  execution_accelerators {{ gpu_execution_accelerator [ {{ name: {_quoted(name)}"
    for key, value in sorted(found.provider_options.items()):
        yield f"    parameters {{ key: {_quoted(TRITON_NAMES.get(key, key))} value: {_quoted(value)} }}"
    yield "  } ] }"
    yield "}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format: its escapes are those of JSON, but for what is not ASCII."""
    return '"' + "".join(_escaped(byte) for byte in text.encode()) + '"'


def _escaped(byte: int) -> str:
    plain = 32 <= byte < 127 and chr(byte) not in '"\\'
    return chr(byte) if plain else f"\\{byte:03o}"


def edge(artefact: Path, out: Path, name: str) -> list[Path]:
    """Write `out`/`name`.ort and the list of operators that a minimal build of ONNX Runtime must have.

    Args:
        artefact: one for the CPU.
        out: a folder; made where it is not there.
        name: of the file.

    Raises:
        InputError: no artefact, one for another provider, or one that ONNX Runtime does not convert.
        UnavailableError: onnxruntime is not installed.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"--name {name!r}: letters, digits, '.', '_' and '-' only, for it is a file's name")
    found = settings(verified(artefact))
    if found.provider != "CPUExecutionProvider":
        raise InputError(f"{artefact}: made for {found.provider}; .ort files are for builds of ONNX Runtime for CPUs")
    out.mkdir(parents=True, exist_ok=True)
    staged = out / f"{name}.onnx"
    if staged.exists() or (out / f"{name}.ort").exists():
        raise InputError(f"{out / name}: is there already; choose another --name or folder")
    shutil.copyfile(artefact / MODEL_FILE, staged)
    try:
        _convert(staged, out)
    finally:
        staged.unlink(missing_ok=True)
    return sorted(path for path in out.iterdir() if path.name.startswith(name))


def _convert(model: Path, out: Path) -> None:
    tool = "onnxruntime.tools.convert_onnx_models_to_ort"
    command = [sys.executable, "-m", tool, str(model), "--output_dir", str(out), "--optimization_style", "Fixed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if "No module named" in done.stderr:
        raise UnavailableError("writing an .ort file needs onnxruntime: pip install 'joulec[cpu]'")
    if done.returncode != 0 or not model.with_suffix(".ort").is_file():
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise InputError(f"ONNX Runtime does not convert the model: {lines[-1][:300] if lines else 'no reason given'}")


FORMS: Mapping[str, Callable[[Path, Path, str], list[Path]]] = {"triton": triton, "edge": edge}
"""What an artefact can be packaged as."""


