"""The INT8 forms of the targets, found by running them: which operators fuse into integer kernels, and how."""

from __future__ import annotations

from joulec.passes.blocks import ARITHMETIC, MOVEMENT, RESCALE
from joulec.passes.target import QuantizationScheme

CPU_SCHEME = QuantizationScheme(
    activation="uint8",
    bias="int32",
    quantize_outputs=True,
    compute=frozenset({"Conv", "Gemm", "MatMul"}),
    carry=ARITHMETIC | MOVEMENT | RESCALE,
)
"""ONNX Runtime's CPU provider: u8 x s8 becomes QLinearConv, QGemm, QLinearMatMul; their neighbours QLinear* too."""

TENSORRT_SCHEME = QuantizationScheme(
    activation="int8",
    bias="float",
    quantize_outputs=False,
    compute=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    carry=frozenset({"Add"}),
    spares=True,
)
"""TensorRT: symmetric, zero-point 0, Q/DQ on the inputs only; of a residual Add, on the skip input."""
