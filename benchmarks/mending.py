"""Models that other tools quantized, given to `joulec lint --target tensorrt --fix`; writes docs/mending.md.

    make bench-int8                     # makes the tools' models (an hour), and `make gpu-env` the compiler
    JOULEC_GPU_ENV=build/gpu python benchmarks/mending.py [--only NAME] [--no-write]

Every quantizer of `benchmarks/int8` is at its defaults, most of which aim at CPUs; ONNX Runtime's static one is there
in four more forms. For each: what the rules have against it, whether the TensorRT-RTX compiler takes it as it came,
what the rules still say of the mended one, and in how many of its quantized operators the engine computes on integers.
`off` is how far the outputs are from the float model's, as norms over up to 64 batches of calibration data: as it came,
in ONNX Runtime's integer kernels, and mended, in what its Q/DQ say.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "evidence"))
from models import Model, models, rows

from joulec.backends import compilers
from joulec.backends.base import Artefact, Rung
from joulec.backends.profiles import fixed_sizes
from joulec.energy.bind import fix_in_place, infer_all
from joulec.errors import JoulecError
from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.ir.runner import LocalRunner
from joulec.ir.session import SessionOptions
from joulec.linting import check
from joulec.passes._outputs import distance, outputs_of
from joulec.passes._qdq_lint import NOTE, Finding
from joulec.shapespec import parse_shapes

ROOT = Path(__file__).resolve().parents[1]
QUANTIZED = ROOT / "build" / "bench-int8"
WORK = ROOT / "build" / "mending"
RESULTS = ROOT / "benchmarks" / "results" / "mending.json"
PAGE = ROOT / "docs" / "mending.md"
PLAIN = SessionOptions(optimization="none")
KINDS = ("digits wide", "transformer", "orientation", "MobileNetV2")
"""Models of four kinds: a small CNN, attention, a residual CNN with HardSwish, depthwise convolutions."""

LEFT_OUT = frozenset({"joulec", "optimized"})
"""Folders of `benchmarks/int8` that hold joulec's own models."""

REMARKS = """
Nothing ran on a GPU. Notes of the linter are not counted. Signed integers around 0 reach as far as the asymmetric ones
did, in up to twice the steps: where `off` grows, that is why, and quantizing the float model for TensorRT
(`joulec optimize --int8`, docs/evidence.md) does better. MobileNetV2 has random weights (no model hub is reached).
"""

FORMS: Mapping[str, Mapping[str, Any]] = {
    "onnxruntime, int8 activations": {"activation_type": "QInt8", "per_channel": True},
    "onnxruntime, int8 symmetric": {
        "activation_type": "QInt8", "per_channel": True, "extra_options": {"ActivationSymmetric": True},
    },
    "onnxruntime, uint8 weights": {"weight_type": "QUInt8"},
    "onnxruntime, QOperator": {"quant_format": "QOperator", "per_channel": True},
}  # fmt: skip
"""More forms of ONNX Runtime's static quantization; else Q/DQ, uint8 activations and int8 weights with one scale."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="a model's name, or part of it; repeatable")
    parser.add_argument("--no-write", action="store_true", help="leave the results and docs/mending.md alone")
    given = parser.parse_args()
    if not os.environ.get("JOULEC_GPU_ENV"):
        sys.exit("set JOULEC_GPU_ENV to the folder that `make gpu-env` builds")
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if given.only and RESULTS.is_file() else {}
    for model in models():
        wanted = any(part.lower() in model.name.lower() for part in given.only or KINDS)
        if not wanted:
            continue
        known[model.name] = {}
        for tool, file in quantized(model):
            known[model.name][tool] = found = mended(model, file)
            sys.stdout.write(f"{model.name}, {tool}: {json.dumps(found)}\n")
            sys.stdout.flush()
        if not given.no_write:
            RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            PAGE.write_text("\n".join(page(known)) + "\n", encoding="utf-8")


# -- models that others quantized -----------------------------------------------------------------------------------


def quantized(model: Model) -> Iterator[tuple[str, Path]]:
    """Every quantized form of a model that is at hand."""
    folder = model.case.folder(QUANTIZED)
    for file in sorted(folder.glob("*/model.onnx")):
        if file.parent.name not in LEFT_OUT:
            yield file.parent.name, file
    for name, options in FORMS.items():
        file = WORK / folder.name / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.onnx"
        if file.is_file() or static(folder, file, options):
            yield name, file


def static(folder: Path, out: Path, options: Mapping[str, Any]) -> bool:
    """ONNX Runtime's static quantization; False where it fails."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(rows(folder, 1, 32))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rest, None)

    given = {"activation_type": "QUInt8", "weight_type": "QInt8", "quant_format": "QDQ", **options}
    kinds = {name: getattr(QuantType, given.pop(name)) for name in ("activation_type", "weight_type")}
    form = getattr(QuantFormat, given.pop("quant_format"))
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        quantize_static(str(folder / "float.onnx"), str(out), Rows(), quant_format=form, **kinds, **given)
    except Exception as error:  # noqa: BLE001 (whatever it raises: the tool has no model to mend then)
        sys.stdout.write(f"{out.stem}: onnxruntime: {str(error)[:200]}\n")
    return out.is_file()


# -- one of them ----------------------------------------------------------------------------------------------------


def mended(model: Model, file: Path) -> dict[str, Any]:
    """What the rules, the compiler and the numbers say of a quantized model, as it came and mended."""
    folder = model.case.folder(QUANTIZED)
    with tempfile.TemporaryDirectory() as place, LocalRunner() as runner:
        out = Path(place) / "mended.onnx"
        try:
            found = check(file, "tensorrt", out)
            feeds = rows(folder, model.batch)
            offs = [off(runner, folder, *one) for one in ((file, feeds, SessionOptions()), (out, feeds, PLAIN))]
            taken = [engine(one, model, runner) for one in (file, out)]
        except JoulecError as error:
            return {"error": str(error)[:300]}
    return {
        "before": counted(found.findings), "after": counted(found.left), "refused": len(found.refusals), "off": offs,
        "engines": [[one.status, one.detail] for one in taken],
    }  # fmt: skip


def counted(findings: Iterable[Finding]) -> dict[str, int]:
    """Findings by rule; notes are left out."""
    return dict(Counter(one.rule for one in findings if one.severity != NOTE))


def off(
    runner: LocalRunner, folder: Path, file: Path, feeds: list[dict[str, Any]], options: SessionOptions
) -> float:
    """How far a model's outputs are from those of the float one."""
    before = outputs_of(runner, read(folder / "float.onnx"), feeds)
    return distance(before, outputs_of(runner, read(file), feeds, options))


def engine(file: Path, model: Model, runner: LocalRunner) -> Rung:
    """What TensorRT-RTX makes of a model with the sizes of the table."""
    module = sized(read(file), model.shape)
    with tempfile.TemporaryDirectory() as place:
        module.save(Path(place) / "model.onnx")
        return compilers.engine(Artefact(module, Path(place), runner), module, {})


def sized(module: Module, shape: str) -> Module:
    fix_in_place(module, fixed_sizes(module, parse_shapes(shape)))
    infer_all(module, symbolic=True)
    return module


# -- the page -------------------------------------------------------------------------------------------------------


def page(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "# Mending what other tools quantized\n"
    yield "Written by `python benchmarks/mending.py`, which says what is compared and how.\n"
    yield from (__doc__ or "").split("\n\n")[2].strip().splitlines()
    yield REMARKS
    yield "| model | quantized by | the rules say | as it came | mended, the rules say | mended | off |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, tools in results.items():
        for tool, one in tools.items():
            yield f"| {name} | {tool} | {' | '.join(_row(one))} |"


def _row(one: Mapping[str, Any]) -> Iterator[str]:
    if "error" in one:
        yield from (one["error"].replace("|", "/"), "", "", "", "")
        return
    before, after = (", ".join(f"{count} {rule}" for rule, count in one[key].items()) for key in ("before", "after"))
    yield before or "nothing"
    yield _taken(*one["engines"][0])
    yield after or "nothing"
    yield _taken(*one["engines"][1])
    yield " to ".join(f"{value:.1e}" for value in one["off"])


def _taken(status: str, detail: str) -> str:
    if "parsed and built" not in detail:
        return "refused"
    return re.sub(r"parsed and built \(.*?\); ", "", detail).replace("|", "/").partition(", not in")[0]


if __name__ == "__main__":
    main()
