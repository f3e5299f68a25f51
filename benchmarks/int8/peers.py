"""The quantizers that joulec is compared with, each in its own environment: they ask for different onnx versions."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "build" / "peers"
WORKER = Path(__file__).with_name("quantize.py")
MEMORY = 20 << 30


@dataclass(frozen=True)
class Peer:
    """One quantizer.

    Attributes:
        name: what `quantize.py` and the table call it.
        packages: what its environment needs; empty where joulec's own has it.
        worker: the script that runs it.
    """

    name: str
    packages: tuple[str, ...] = ()
    worker: Path = WORKER

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return ENVIRONMENTS / self.name / "bin" / "python" if self.packages else Path(sys.executable)

    def install(self) -> None:
        """Make its environment, where there is none."""
        if self.packages and not self.python.is_file():
            venv.create(ENVIRONMENTS / self.name, with_pip=True)
            subprocess.run([str(self.python), "-m", "pip", "install", "-q", *self.packages], check=True)

    def made(self, model: Path, data: Path, out: Path, seconds: float) -> dict[str, Any]:
        """What the worker printed, or `{"error": why}`."""
        if not self.python.is_file():
            return {"error": "not installed"}
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [str(self.python), "-W", "ignore", str(self.worker), self.name, str(model), str(data), str(out)]
        return result(command, seconds, out.parent)

    def version(self) -> str | None:
        """The installed version."""
        ask = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
        name = self.packages[0].split("==")[0].split("[")[0] if self.packages else "onnxruntime"
        if not self.python.is_file():
            return None
        done = subprocess.run([str(self.python), "-c", ask, name], capture_output=True, text=True, check=False)
        return done.stdout.strip() or None


PEERS = (
    Peer("onnxruntime-static"),
    Peer("onnxruntime-dynamic"),
    Peer(
        "neural-compressor",
        (
            "neural-compressor==2.6", "onnx<1.17", "onnxruntime", "onnxruntime-extensions", "setuptools<80", "six",
            "pandas", "scikit-learn", "psutil", "pyyaml", "py-cpuinfo", "prettytable",
        ),
    ),
    Peer("nncf", ("nncf", "onnx", "onnxruntime")),
    Peer("quark", ("amd-quark", "torch", "onnx", "onnxruntime")),
    Peer("modelopt", ("nvidia-modelopt[onnx]",)),
    Peer("olive", ("olive-ai", "torch", "requests", "onnx", "onnxruntime")),
)  # fmt: skip


def result(command: list[str], seconds: float, folder: Path) -> dict[str, Any]:
    """Run a command under a time and a memory limit: what it printed behind RESULT, or why there is nothing."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, cwd=folder,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY)),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"no result in {seconds:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if lines and done.returncode == 0:
        return dict(json.loads(lines[-1].removeprefix("RESULT ")))
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    why = said[-1] if said else f"exit {done.returncode}"
    return {"error": why.replace(f"{ROOT}/", "")[:160]}  # results are published: no paths of this machine
