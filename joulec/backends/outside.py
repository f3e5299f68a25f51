"""Running the programs of `joulec.backends.evidence`, which need an environment of their own.

`make gpu-env` builds it; `JOULEC_GPU_ENV` names its folder: `env/bin/python` holds onnxruntime-gpu and
tensorrt-rtx-cu13, `standins/` the libraries that stand in for CUDA's. Where it is not named, these rungs are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulec.ir.shapes import first_line

VARIABLE = "JOULEC_GPU_ENV"
SECONDS = 600
"""How long a compiler may take over one model."""

PROGRAMS = Path(__file__).with_name("evidence")


@dataclass(frozen=True)
class Outcome:
    """What came of running a program: what it found, or why it was skipped, or why it failed."""

    found: Mapping[str, Any] | None = None
    skipped: str | None = None
    failed: str | None = None


def run(program: str, arguments: Sequence[str]) -> Outcome:
    """Run one program on a model, and read the JSON that it prints."""
    named = os.environ.get(VARIABLE)
    if not named:
        return Outcome(skipped=f"needs onnxruntime-gpu and TensorRT-RTX: 'make gpu-env', then set {VARIABLE}")
    python = Path(named).absolute() / "env" / "bin" / "python"
    if not python.is_file():
        return Outcome(skipped=f"{VARIABLE}={named}: no env/bin/python there ('make gpu-env' builds it)")
    command = [str(python), "-W", "ignore", str(PROGRAMS / f"{program}.py"), *arguments]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(Path(named).absolute() / "standins")}
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment, errors="replace"
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return Outcome(failed=first_line(error))
    return _read(done)


def _read(done: subprocess.CompletedProcess[str]) -> Outcome:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 0:
        return Outcome(failed=(lines[-1] if lines else f"ended with status {done.returncode}")[:500])
    try:
        return Outcome(found=json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        return Outcome(failed="printed no JSON")
