"""ONNX Runtime's CUDA and TensorRT execution providers.

What these artefacts claim is only what was checked, rung by rung, on a machine without a GPU; the ladder says where it
ends.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from joulec.backends import checks, compilers, triton_config
from joulec.backends.base import ENGINE_SCRIPT, MODEL_FILE, Artefact, Backend, Rung, SessionSettings, Shapes
from joulec.backends.profiles import PROFILE_OPTIONS, profile
from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.ir.verify import checker_problem
from joulec.passes._qdq_lint import has_sparse_weights
from joulec.passes.base import Pass
from joulec.passes.eliminate_dead_code import EliminateDeadCode
from joulec.passes.eliminate_identity import EliminateIdentity
from joulec.passes.fit_kernels import FitKernels
from joulec.passes.fuse_attention import FuseAttention
from joulec.passes.legalize_qdq import LegalizeQdq
from joulec.passes.schemes import TENSORRT_SCHEME
from joulec.passes.target import Target
from joulec.passes.upgrade_opset import UpgradeOpset

QDQ_OPSET = 13
"""Opset of per-channel QuantizeLinear and DequantizeLinear."""

HALF_TYPES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

HALVES = frozenset({"float16", "bfloat16"})


class GpuBackend(Backend):
    """What CUDA and TensorRT share."""

    fixes_sizes = True

    def fitting(self) -> list[Pass]:
        """Operators that the provider has kernels for, where an equal one is known."""
        return [FitKernels(), EliminateDeadCode()]

    def check(self, emitted: Artefact) -> list[Rung]:
        written = read(emitted.directory / MODEL_FILE)
        options = self.settings(1).options(emitted.module.origin.custom_ops)
        return [
            checks.checker(emitted.directory, checker_problem(emitted.module)),
            checks.pinned(emitted.module, emitted.directory, self.target),
            checks.linted(written, self),
            checks.kernel_table_lookup(written, self),
            checks.opens(written, emitted.runner, options, emitted.obstacle),
            checks.numerics(written, emitted, options),
            self.compiled(emitted, written),
            triton_config.read_back(emitted, written, self),
            Rung("real device", "skipped", f"nothing was run on {self.target.provider}"),
        ]

    @abstractmethod
    def compiled(self, emitted: Artefact, written: Module) -> Rung:
        """What the provider's own compiler makes of the artefact."""


class CudaBackend(GpuBackend):
    """Float32: the CUDA provider has no integer kernels for Q/DQ graphs and computes them in float."""

    target = Target("cuda", "CUDAExecutionProvider", 19, 9, None, "h100", halves=HALVES, channel_block=8)
    provider_options = frozenset(
        {"cudnn_conv_algo_search", "use_tf32", "prefer_nhwc", "enable_cuda_graph", "fuse_conv_bias"}
    )

    def settings_for(self, module: Module, threads: int, shapes: Shapes) -> SessionSettings:
        """Convolutions in 16 bits run on matrix units in the layout NHWC only. No CUDA graph: it replays on the
        addresses that it was captured with, so that who switches it on must bind inputs and outputs (IOBinding).
        """
        found = self.settings(threads)
        convolves = any(walk.is_onnx(node, "Conv") and node.outputs[0].dtype in HALF_TYPES for node in module.graph)
        layout = {"prefer_nhwc": "1"} if convolves else {}
        return replace(found, provider_options={**found.provider_options, **layout})

    def settings(self, threads: int) -> SessionSettings:
        return SessionSettings("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}, threads)

    def fitting(self) -> list[Pass]:
        """Attention as one kernel, too."""
        return [FuseAttention(), *super().fitting()]

    def compiled(self, emitted: Artefact, written: Module) -> Rung:
        """Where ONNX Runtime places the nodes, with the artefact's own options."""
        options = self.settings_for(emitted.module, 1, emitted.shapes).provider_options
        return compilers.cuda_placement(emitted, options)

    def describe(self) -> str:
        return "float16 or float32; INT8 is not emitted (no Q/DQ kernels on this provider)"


class TensorRtBackend(GpuBackend):
    """Float32, or symmetric s8 Q/DQ with float bias, the form that TensorRT accepts."""

    target = Target(
        "tensorrt", "TensorrtExecutionProvider", 19, 9, TENSORRT_SCHEME, "h100", frozenset({"2:4"}), HALVES, 32
    )
    provider_options = frozenset(
        {
            "trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable", "trt_builder_optimization_level",
            "trt_cuda_graph_enable", "trt_op_types_to_exclude", "trt_max_workspace_size", "trt_sparsity_enable",
            *PROFILE_OPTIONS,
        }
    )  # fmt: skip

    def settings_for(self, module: Module, threads: int, shapes: Shapes) -> SessionSettings:
        """With optimization profiles for what stays open. No flag of a precision: under one, TensorRT 10 chooses types
        itself and lowers what was kept float32. Without any, ONNX Runtime (1.18 and later; its pull request 18707)
        has it take every type from the graph, as later versions always do.
        """
        found = self.settings(threads)
        sparse = {"trt_sparsity_enable": "1"} if has_sparse_weights(module) else {}
        return replace(found, provider_options={**found.provider_options, **sparse, **profile(module, shapes)})

    def settings(self, threads: int) -> SessionSettings:
        """ORT's WeightBiasQuantization would turn a float bias into int32 Q/DQ, which TensorRT refuses."""
        options = {"trt_builder_optimization_level": "3"}
        return SessionSettings(self.target.provider, options, threads, {}, ("WeightBiasQuantization",))

    def emit(
        self, module: Module, directory: Path, threads: int, shapes: Shapes | None = None,
        session: SessionSettings | None = None,
    ) -> None:  # fmt: skip
        """With the script that compiles an engine on the machine that will serve: engines fit one GPU only."""
        super().emit(module, directory, threads, shapes, session)
        shutil.copyfile(Path(__file__).with_name(ENGINE_SCRIPT), directory / ENGINE_SCRIPT)

    def fitting(self) -> list[Pass]:
        """Q/DQ by TensorRT's rules, whoever put it there."""
        return [*super().fitting(), LegalizeQdq()]

    def mending(self) -> list[Pass]:
        """What other tools quantized, in TensorRT's form; scales for each channel need opset 13."""
        return [UpgradeOpset(to=QDQ_OPSET), EliminateIdentity(), LegalizeQdq()]

    def compiled(self, emitted: Artefact, written: Module) -> Rung:
        """The engine that TensorRT-RTX builds."""
        options = self.settings_for(emitted.module, 1, emitted.shapes).provider_options
        return compilers.engine(emitted, written, options)

    def describe(self) -> str:
        return "float16 or float32, and INT8 (s8 symmetric, float bias) when ordered with --int8"

