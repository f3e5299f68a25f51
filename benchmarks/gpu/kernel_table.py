"""Write joulec/ir/kernels.tsv: which execution provider has a kernel for which operator, opsets and types.

    make gpu-env && build/gpu/env/bin/python benchmarks/gpu/kernel_table.py      # or: make kernel-table

CPU and CUDA rows are the kernel registries that onnxruntime-gpu reports itself (its CUDA provider starts under the
libraries of standins.py). TensorRT has no registry: its rows are the operators that the ONNX parser of TensorRT-RTX
says it imports, with the opsets and types that TensorRT documents.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
TABLE = HERE.parents[1] / "joulec" / "ir" / "kernels.tsv"
STANDINS = HERE.parents[1] / "build" / "gpu" / "standins"
BUILD_STANDINS = HERE.parents[1] / "joulec" / "backends" / "evidence" / "standins.py"

NEWEST = (1 << 31) - 1
DOMAINS = {"": "onnx", "com.microsoft": "com.microsoft", "ai.onnx.ml": "ai.onnx.ml"}
PROVIDERS = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}

TENSORRT_OPSETS = "9-25"
TENSORRT_TYPES = "*=bfloat16,bool,float,float16,float8e4m3fn,int32,int4,int64,int8"
TENSORRT_MORE = {"Cast": ",uint8"}
"""TensorRT takes uint8 as inputs and outputs of a network, in a Cast only."""

"""Of the support matrix and the opset guide in TensorRT's documentation; double is not computed."""

Kernel = dict[str, frozenset[str]]


def main() -> None:
    if os.environ.get("JOULEC_STANDINS") != "1":  # LD_LIBRARY_PATH is read when a process starts
        subprocess.run([sys.executable, str(BUILD_STANDINS), str(STANDINS)], check=True)
        again = {**os.environ, "LD_LIBRARY_PATH": str(STANDINS), "JOULEC_STANDINS": "1"}
        sys.exit(subprocess.run([sys.executable, __file__], env=again, check=False).returncode)
    rows = sorted([*onnxruntime_rows(), *tensorrt_rows()])
    head = [
        "# Written by benchmarks/gpu/kernel_table.py; do not edit.",
        f"# onnxruntime-gpu {version('onnxruntime-gpu')}: cpu, cuda",
        f"# tensorrt-rtx-cu13 {version('tensorrt-rtx-cu13')}: tensorrt",
        "# provider, domain, operator, opsets, types by type parameter; alternatives end in ' | '",
    ]
    TABLE.write_text("\n".join([*head, *("\t".join(row) for row in rows)]) + "\n", encoding="ascii")
    sys.stdout.write(f"{len(rows)} rows in {TABLE}\n")


def onnxruntime_rows() -> list[tuple[str, ...]]:
    import onnxruntime.capi.onnxruntime_pybind11_state as state

    kernels: dict[tuple[str, str, str, int, int], list[Kernel]] = defaultdict(list)
    for one in state.get_all_opkernel_def():
        if one.provider in PROVIDERS and one.domain in DOMAINS:
            key = (PROVIDERS[one.provider], DOMAINS[one.domain], one.op_name, *one.version_range)
            kernels[key].append({name: frozenset(map(short, types)) for name, types in one.type_constraints.items()})
    if not any(key[0] == "cuda" for key in kernels):
        sys.exit("the CUDA provider reported no kernels")
    return [(*key[:3], span(*key[3:]), spelled(found)) for key, found in kernels.items()]


def short(kind: str) -> str:
    """`tensor(float)` -> `float`; sequences and optionals stay as they are."""
    return kind[7:-1] if kind.startswith("tensor(") else kind.replace(" ", "")


def span(since: int, until: int) -> str:
    return f"{since}+" if until == NEWEST else f"{since}-{until}"


def spelled(kernels: list[Kernel]) -> str:
    """Alternatives, merged where they differ in one type parameter only, which changes nothing."""
    for parameter in sorted({name for kernel in kernels for name in kernel}):
        kernels = merged(kernels, parameter)
    return " | ".join(sorted(";".join(f"{n}={','.join(sorted(t))}" for n, t in sorted(k.items())) for k in kernels))


def merged(kernels: list[Kernel], parameter: str) -> list[Kernel]:
    groups: dict[tuple[tuple[str, frozenset[str]], ...], Kernel] = {}
    for kernel in kernels:
        rest = tuple(sorted(((n, t) for n, t in kernel.items() if n != parameter), key=lambda pair: pair[0]))
        rest = (*rest, ("", frozenset(kernel) & {parameter}))
        known = groups.setdefault(rest, dict(kernel))
        if parameter in kernel:
            known[parameter] = known[parameter] | kernel[parameter]
    return list(groups.values())


def tensorrt_rows() -> list[tuple[str, ...]]:
    import onnx
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    parser = trt.OnnxParser(builder.create_network(0), logger)
    names = sorted({schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""})
    supported = [name for name in names if parser.supports_operator(name)]
    types = {name: TENSORRT_TYPES + TENSORRT_MORE.get(name, "") for name in supported}
    return [("tensorrt", "onnx", name, TENSORRT_OPSETS, types[name]) for name in supported]


if __name__ == "__main__":
    main()
