"""An artefact in the form that a server or a small device wants: a Triton model repository, an .ort file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from joulec.backends.artefact import cached, settings, verified
from joulec.backends.base import MODEL_FILE, SessionSettings
from joulec.backends.triton_config import config
from joulec.errors import InputError, UnavailableError
from joulec.ir.onnx_file import read

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def triton(artefact: Path, out: Path, name: str, engines: str | None = None) -> list[Path]:
    """Write `out`/`name`/config.pbtxt and `out`/`name`/1/model.onnx: one model of a Triton model repository.

    Args:
        artefact: what `joulec optimize -o` wrote.
        out: the repository; made where it is not there.
        name: the model's name in it.
        engines: a folder of the serving machine where TensorRT keeps engines and timings from start to start.

    Raises:
        InputError: no artefact, a name, tensor or option that Triton does not take, or something is there already.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"--name {name!r}: letters, digits, '.', '_' and '-' only, for it is a folder's name")
    found, module = settings(verified(artefact)), read(artefact / MODEL_FILE)
    if engines is not None:
        found = _keeping(found, engines)
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


def _keeping(found: SessionSettings, engines: str) -> SessionSettings:
    kept = cached(found, engines)
    if not kept:
        raise InputError(f"--engines: {found.provider} builds none; it is for artefacts for tensorrt")
    return replace(found, provider_options={**found.provider_options, **kept})


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


FORMS = ("triton", "edge")
"""What an artefact can be packaged as."""
