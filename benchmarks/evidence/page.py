"""docs/evidence.md, from the results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evidence.md"
COMMON = ("onnx checker", "opset and IR", "lint", "kernel table", "opens on CPU", "CPU numerics", "Triton config")
RUNGS = {
    "cpu": (*COMMON, "integer kernels"),
    "cuda": (*COMMON, "CUDA placement"),
    "tensorrt": (*COMMON, "TensorRT-RTX engine"),
}
HEAD = """# How far the artefacts are proven

Written by `make bench-evidence` on a machine without a GPU. Each model became three artefacts by one command,

    joulec optimize float.onnx -o out --target cpu --target cuda --target tensorrt --int8 \\
        --data calibration.npz --shape ...

and what follows is read from their `manifest.json`. joulec VERSION, onnxruntime ORT; the CUDA partitioning is that of
onnxruntime-gpu under stand-ins for CUDA's libraries, the engines are those of the TensorRT-RTX compiler. Nothing ran
on a GPU, so no latency and no energy of one is stated here; `python benchmarks/gpu` measures both where there is one.

The digits, the transformer, Magika and the OCR classifier are trained and judged by their accuracy on held-out data;
the three of keras.applications have seeded random weights (no model hub is reached) and are judged by fidelity,
`1 - ||y - y0|| / ||y0||`, to the float model's outputs.

`numbers off by` is that of the worst output, as norms, on the first four batches of calibration data; where those are
beyond the rung's limit, 64 decide: among four, one classification on the border weighs more than the model.

Results are kept from run to run, some renewed alone: rows may come from neighbouring commits. `not run`
means that no result of the current form is at hand, not that a rung failed.
"""


def write(results: Mapping[str, Any], names: Sequence[str]) -> None:
    head = HEAD.replace("VERSION", version("joulec")).replace("ORT", version("onnxruntime"))
    lines = [head, *_summary(results, names), *_peers(results, names), *_failures(results, names)]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _summary(results: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    yield "## joulec's artefacts\n"
    yield "| model | target | form | rungs passed | accuracy, float to artefact | numbers off by | compiler |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name in names:
        found = results.get(name, {})
        if "joulec" not in found or "error" in found["joulec"]:
            yield f"| {name} | - | {found.get('missing') or found.get('joulec', {}).get('error', 'not run')} | | | | |"
            continue
        for target, one in found["joulec"].items():
            yield f"| {name} | {target} | {' | '.join(_row(target, one))} |"
    yield ""


def _row(target: str, one: Mapping[str, Any]) -> Iterator[str]:
    chosen = [form for form in ("INT8", "float16") if one["choices"].get(form)]
    yield " beside ".join(chosen) or "float32"
    climbed = [rung for rung in RUNGS[target] if one["rungs"].get(rung, ["skipped"])[0] == "passed"]
    yield f"{len(climbed)} of {len(RUNGS[target])}"
    kind, before, after = one["accuracy"]
    yield "-" if before is None else f"{kind} {before:.4f} to {after:.4f}"
    yield _off(one["rungs"])
    yield _compiler(one["rungs"])


def _off(rungs: Mapping[str, Any]) -> str:
    found = re.search(r"off by ([^(]*)\(", rungs.get("CPU numerics", ["", ""])[1])
    return found.group(1).strip() if found else "-"


def _compiler(rungs: Mapping[str, Any]) -> str:
    for rung in ("CUDA placement", "TensorRT-RTX engine", "integer kernels"):
        if rung in rungs:
            status, detail = rungs[rung]
            said = re.sub(r"parsed and built \(.*?\);? ?|\(onnxruntime-gpu.*?\)", "", detail)
            return (said if status == "passed" else f"{status}: {said}").replace("|", "/").strip() or "built"
    return "-"


def _peers(results: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    yield "## Beside NVIDIA ModelOpt\n"
    yield (
        "The TensorRT artefact and what ModelOpt's ONNX quantization makes, at its defaults (INT8 with float16 beside "
        "it), of the same float model and calibration data, with the same sizes fixed. `lint` counts joulec's rules.\n"
    )
    yield "| model | tool | lint | numbers off by | TensorRT-RTX | weights, MiB |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name in names:
        found = results.get(name, {})
        for tool, one in (("joulec", found.get("joulec", {}).get("tensorrt")), ("ModelOpt", found.get("modelopt"))):
            if one is None or "error" in one:
                yield f"| {name} | {tool} | {(one or {}).get('error', 'not run')} | | | |"
                continue
            rungs = one["rungs"]
            lint = rungs["lint"][1] if rungs["lint"][0] == "passed" else f"fails: {rungs['lint'][1]}"
            size = f"{one['bytes'] / 2**20:.2f}"
            yield f"| {name} | {tool} | {lint.replace('|', '/')} | {_off(rungs)} | {_compiler(rungs)} | {size} |"
    yield ""


def _failures(results: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    yield "## Rungs of joulec's that did not pass\n"
    rows = [
        f"- {name}, {target}, {rung}: {status}: {detail}"
        for name in names for target, one in results.get(name, {}).get("joulec", {}).items() if isinstance(one, dict)
        for rung, (status, detail) in one["rungs"].items() if status != "passed" and rung != "real device"
    ]  # fmt: skip
    yield "\n".join(rows) if rows else "None but `real device`, which is skipped everywhere."
