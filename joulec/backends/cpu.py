"""ONNX Runtime's CPU execution provider."""

from __future__ import annotations

from pathlib import Path

from joulec.backends import checks
from joulec.backends.base import MODEL_FILE, Backend, Rung, SessionSettings
from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.ir.runner import Runner
from joulec.ir.verify import checker_problem
from joulec.passes.schemes import CPU_SCHEME
from joulec.passes.target import Target


class CpuBackend(Backend):
    """Float32, or u8 x s8 Q/DQ that ONNX Runtime fuses into its QLinear kernels."""

    target = Target("cpu", "CPUExecutionProvider", 19, 9, CPU_SCHEME, "generic-server-cpu")

    def settings(self, threads: int) -> SessionSettings:
        """One thread that does not spin: idle threads that spin burn a core between calls (docs/architecture.md)."""
        return SessionSettings("CPUExecutionProvider", threads=threads, config={"session.intra_op.allow_spinning": "0"})

    def describe(self) -> str:
        return "float32, or INT8 (u8 activations x s8 per-channel weights) where it pays"

    def check(self, module: Module, directory: Path, runner: Runner, obstacle: str | None = None) -> list[Rung]:
        emitted = read(directory / MODEL_FILE)
        options = self.settings(1).options(module.origin.custom_ops)
        return [
            checks.checker(directory, checker_problem(module)),
            checks.pinned(module, directory, self.target),
            checks.opens(emitted, runner, options, obstacle),
            checks.quantized_kernels(emitted, runner, options, ours=bool(module.ranges)),
        ]
