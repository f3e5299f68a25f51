"""ONNX Runtime's CPU execution provider."""

from __future__ import annotations

from collections.abc import Container

from joulec.backends import checks, triton_config
from joulec.backends.base import MODEL_FILE, Artefact, Backend, Rung, SessionSettings
from joulec.ir.equal_sizes import declare_equal_sizes
from joulec.ir.machine import cpu_flags
from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.ir.shapes import forget_shapes
from joulec.ir.verify import checker_problem
from joulec.passes.align_channels import AlignChannels
from joulec.passes.base import Pass
from joulec.passes.eliminate_dead_code import EliminateDeadCode
from joulec.passes.lower_pooled import LowerPooled
from joulec.passes.schemes import CPU_SCHEME
from joulec.passes.target import Target
from joulec.passes.upgrade_opset import UpgradeOpset
from joulec.passes.widen_convolutions import WidenConvolutions

QDQ_OPSET = 13
"""Opset of per-channel QuantizeLinear and DequantizeLinear."""


def channel_block(flags: Container[str]) -> int:
    """Channels in a block of ONNX Runtime's blocked layout (NCHWc): as many floats as a vector register holds, 16
    with AVX-512 and 8 with AVX2. A CPU that names neither is taken to have 16, which is a multiple of both.
    """
    return 8 if "avx2" in flags and "avx512f" not in flags else 16


class CpuBackend(Backend):
    """Float32, or u8 x s8 Q/DQ that ONNX Runtime fuses into its QLinear kernels."""

    target = Target(
        "cpu", "CPUExecutionProvider", 19, 9, CPU_SCHEME, "generic-server-cpu", channel_block=channel_block(cpu_flags())
    )

    def legalization(self) -> list[Pass]:
        """The CPU provider runs every opset; 13 is the first whose Q/DQ has an axis, which INT8 needs."""
        return [UpgradeOpset(to=QDQ_OPSET)]

    def preferences(self) -> list[Pass]:
        """The opset of the other targets, where that is no slower: ONNX Runtime fuses some patterns by opset."""
        return [UpgradeOpset()]

    def layouts(self) -> list[Pass]:
        """Images of height 1 instead of sequences, also at the cost of a few relayouts; and whole blocks of channels:
        convolutions compute in them, and leave that layout where they are not filled; around pooled images, of one
        pixel, they need not enter it.
        """
        aligned = AlignChannels(block=self.target.channel_block)
        return [WidenConvolutions(added=4), aligned, LowerPooled(), EliminateDeadCode()]

    def finished(self, module: Module) -> Module:
        """Without shapes of intermediate values: ONNX Runtime infers its own. Where the file declares them, it fuses
        residual Adds into SkipLayerNormalization, whose CPU kernel is slower than the two that it replaces. Images of
        unknown size keep theirs: only so does it see that a convolution can add its residual.
        """
        final = super().finished(module)
        kept = [(value, value.type, value.shape) for value in declare_equal_sizes(final)]
        forget_shapes(final)
        for value, kind, shape in kept:
            value.type, value.shape = kind, shape
        return final

    def settings(self, threads: int) -> SessionSettings:
        """One thread that does not spin: idle threads that spin burn a core between calls (docs/architecture.md)."""
        return SessionSettings("CPUExecutionProvider", threads=threads, config={"session.intra_op.allow_spinning": "0"})

    def describe(self) -> str:
        return "float32, or INT8 (u8 activations x s8 per-channel weights) where it pays"

    def check(self, emitted: Artefact) -> list[Rung]:
        module, runner, written = emitted.module, emitted.runner, read(emitted.directory / MODEL_FILE)
        options = self.settings(1).options(module.origin.custom_ops)
        return [
            checks.checker(emitted.directory, checker_problem(module)),
            checks.pinned(module, emitted.directory, self.target),
            checks.linted(written, self),
            checks.kernel_table_lookup(written, self),
            checks.opens(written, runner, options, emitted.obstacle),
            checks.numerics(written, emitted, options),
            checks.quantized_kernels(written, runner, options, ours=bool(module.ranges)),
            triton_config.read_back(emitted, written, self),
        ]
