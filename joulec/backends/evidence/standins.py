"""Build stand-ins for the CUDA and TensorRT libraries, so that ONNX Runtime's GPU build starts without a GPU.

    python standins.py build/gpu/standins     # in a venv with onnxruntime-gpu and CUDA's headers
    LD_LIBRARY_PATH=build/gpu/standins python placement.py model.onnx

The names that a provider library wants and does not have are read from it with `nm`; each becomes a function that
succeeds and does nothing, except those in standins.c, which must answer. With them a session partitions its graph for
the CUDA provider as on a real machine. It must never be run: no kernel computes anything.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROVIDERS = ("libonnxruntime_providers_cuda.so", "libonnxruntime_providers_tensorrt.so")
CUDA_VERSION = 13000

OURS = re.compile(r"(__cuda|cuda|cublas|cudnn|curand|cu[A-Z]|create(Infer|NvOnnx)|getInferLib|getPluginRegistry)")
UNVERSIONED = (
    (re.compile("curand"), "libcurand.so.10"),
    (re.compile("cudnn"), "libcudnn.so.9"),
    (re.compile("createNvOnnx"), "libnvonnxparser.so.10"),
    (re.compile("createInfer|getInferLib|getPluginRegistry"), "libnvinfer.so.10"),
    (re.compile("cu[A-Z]"), "libcuda.so.1"),
)
"""Where a symbol without a version belongs."""

ANSWERS = {"libcudart": HERE / "standins.c", "libcudnn": HERE / "standins_cudnn.c"}
"""The functions of a library that must really answer."""

NEEDED = ("libcurand.so.10", "libcuda.so.1", "libnvinfer.so.10", "libnvonnxparser.so.10")
"""Libraries that are linked even where nothing of theirs is used."""

MAKES = re.compile(r"Create(_v2)?$|CreateWithFlags$")
"""Functions whose first argument is the place of a new handle."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the libraries")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for library, names in wanted().items():
        compile_library(out, library, names)
    sys.stdout.write(f"stand-ins in {out}\n")


def wanted() -> dict[str, set[str]]:
    """Library -> the functions that ONNX Runtime's providers want from it."""
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        sys.exit("onnxruntime-gpu is not installed here")
    capi = Path(spec.origin).parent / "capi"
    found: dict[str, set[str]] = {library: set() for library in NEEDED}
    for name in PROVIDERS:
        for symbol, library in undefined(capi / name):
            found.setdefault(library, set()).add(symbol)
    found["libcudnn.so.9"] |= asked_by_name(capi / PROVIDERS[0])
    return found


def asked_by_name(provider: Path) -> set[str]:
    """Functions of cuDNN that the provider looks up when it needs them, so that they are no symbols of its own."""
    return {word.decode() for word in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes())}


def undefined(provider: Path) -> Iterator[tuple[str, str]]:
    """(Symbol, library) of every undefined symbol of CUDA's or TensorRT's."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", str(provider)], capture_output=True, text=True, check=True
    ).stdout
    for line in listing.splitlines():
        name, _, version = line.split()[-1].partition("@")
        if OURS.match(name):
            guessed = next((library for pattern, library in UNVERSIONED if pattern.match(name)), "libcuda.so.1")
            yield name, version or guessed


def compile_library(out: Path, library: str, names: set[str]) -> None:
    """One shared object whose symbols carry the version that the provider asks for."""
    answers = next((text.read_text() for start, text in ANSWERS.items() if library.startswith(start)), "")
    answered = set(re.findall(r"(?:ANSWER\(|\*\*)(\w+)", answers))
    source = [answers or "#include <stddef.h>", *(filler(name) for name in sorted(names - answered))]
    file = out / f"{library}.c"
    file.write_text("\n".join(source) + "\n")
    flags = ["-w", "-O1", "-std=gnu11", "-shared", "-fPIC", f"-DCUDA_STANDIN_VERSION={CUDA_VERSION}"]
    flags += [f"-Wl,-soname,{library}", *(f"-I{folder}" for folder in headers())]
    if not library.startswith(("libcuda.so", "libnvinfer", "libnvonnx")):
        versions = out / f"{library}.map"
        versions.write_text(f"{library} {{ global: *; }};\n")
        flags.append(f"-Wl,--version-script={versions}")
    subprocess.run(["gcc", *flags, "-o", str(out / library), str(file)], check=True)


def filler(name: str) -> str:
    """C for a function that succeeds."""
    if MAKES.search(name):
        return f"int {name}(void **handle) {{ *handle = (void *)0x1000; return 0; }}"
    if "String" in name or "Name" in name:
        return f'const char *{name}(int which) {{ return "stand-in"; }}'
    return f"int {name}(void) {{ return 0; }}"


def headers() -> list[Path]:
    """CUDA's headers: of the packages nvidia-cuda-runtime and nvidia-cuda-crt."""
    spec = find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return [folder for root in roots for folder in sorted(root.glob("cu*/include")) if folder.is_dir()]


if __name__ == "__main__":
    main()
