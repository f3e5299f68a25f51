"""What a pass may know of the target: facts a backend states, so that passes never import backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class QuantizationScheme:
    """The INT8 form that a target's kernels execute.

    Attributes:
        activation: `uint8` (asymmetric) or `int8` (symmetric, zero-point 0).
        bias: `int32` (quantized with scale x * scale w) or `float` (left alone).
        quantize_outputs: whether Q/DQ pairs also stand behind the quantized operators, so that kernels hand
            integers to each other; otherwise only the inputs are quantized.
        compute: operators with integer arithmetic.
        carry: operators that pass integers through and profit when their neighbours are quantized.
        spares: whether operators that are slower in integers there (narrow convolutions, products with a single row or
            column) are left alone.
    """

    activation: Literal["uint8", "int8"]
    bias: Literal["int32", "float"]
    quantize_outputs: bool
    compute: frozenset[str]
    carry: frozenset[str] = frozenset()
    spares: bool = False


@dataclass(frozen=True)
class Target:
    """An execution provider as the passes see it.

    Attributes:
        name: `cpu`, `cuda` or `tensorrt`.
        provider: ONNX Runtime's name of the execution provider.
        opset: the standard opset that artefacts are raised to, never lowered.
        ir_version: the ONNX IR version that artefacts carry (at least; newer opsets may need more).
        quantization: its INT8 form, or None where it has no integer kernels for ONNX graphs.
        sparse_kernels: weight patterns whose zeros its kernels skip, e.g. `2:4`; empty for none.
        device: the device profile that prices it unless the user names another.
        halves: the 16-bit floats that its kernels compute in.
        channel_block: how many channels its kernels take at once, so that widths are best whole multiples of it.
    """

    name: str
    provider: str
    opset: int
    ir_version: int
    quantization: QuantizationScheme | None
    device: str
    sparse_kernels: frozenset[str] = frozenset()
    halves: frozenset[str] = frozenset()
    channel_block: int = 16
