"""Every operator that ONNX defines or ONNX Runtime's CPU provider runs has a price, or is listed here as unknown."""

from __future__ import annotations

import importlib
import json
import warnings

import onnx
import onnx_ir as ir
import onnxruntime.capi.onnxruntime_pybind11_state as runtime
import pytest

from joulec.energy import EnergyModel, load_profile
from joulec.energy.table import FORMULAS, formula_of
from joulec.ir.module import Module

MODEL = EnergyModel(load_profile())

ONNX_UNKNOWN = {
    ("", "ImageDecoder"),  # decodes files; no kernel in the CPU provider
    ("ai.onnx.preview", "FlexAttention"),  # its work is that of user-given bodies
    *(("ai.onnx.preview.training", op) for op in ("Adagrad", "Adam", "Gradient", "Momentum")),
}
RUNTIME_UNKNOWN = {
    # generation loops: how often their decoder runs depends on what it says
    "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch",
    # work that depends on the data
    "BifurcationDetector", "NGramRepeatBlock", "GatherPacked", "SparseAttention", "VarlenCausalConvWithState",
    "VarlenNGramHashMapping", "NGramHashMapping", "GatedDeltaNet",
    # parts of single research models
    "AttnLSTM", "DynamicTimeWarping", "EngramGate", "HyperConnectionPostMix", "HyperConnectionPreMix",
    "LinearAttentionGate", "MoEGroupRouter", "SampleOp", "WordConvEmbedding",
}  # fmt: skip
EMITTED = {
    "com.microsoft": (
        "Attention", "BiasGelu", "BiasSoftmax", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul",
        "EmbedLayerNormalization", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation",
        "GatherBlockQuantized", "Gelu", "GroupQueryAttention", "MatMulIntegerToFloat", "MatMulNBits",
        "MultiHeadAttention", "NhwcFusedConv", "NhwcMaxPool", "QAttention", "QGemm", "QLinearAdd",
        "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul",
        "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QuantizeLinear", "QuickGelu", "RotaryEmbedding",
        "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    ),
    "com.microsoft.nchwc": (
        "AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReorderInput", "ReorderOutput",
        "Upsample",
    ),
}  # fmt: skip
"""What ONNX Runtime's optimizer writes on the CPU, and what joulec writes itself."""


def is_priced(domain: str, op: str) -> bool:
    return formula_of(ir.node(op, [], domain=domain)) is not None


def test_every_onnx_operator_is_priced_or_listed() -> None:
    schemas = {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    assert {one for one in schemas if not is_priced(*one)} == ONNX_UNKNOWN


def test_every_kernel_of_the_cpu_provider_is_priced_or_listed() -> None:
    kernels = {(k.domain, k.op_name) for k in runtime.get_all_opkernel_def() if k.provider == "CPUExecutionProvider"}
    assert len(kernels) > 250
    assert {one for one in kernels if not is_priced(*one)} <= {("com.microsoft", op) for op in RUNTIME_UNKNOWN}


@pytest.mark.parametrize(("domain", "op"), [(domain, op) for domain, ops in EMITTED.items() for op in ops])
def test_what_the_optimizer_writes_is_priced(domain: str, op: str) -> None:
    assert is_priced(domain, op)


@pytest.mark.parametrize("op", sorted(RUNTIME_UNKNOWN))
def test_unknown_operators_are_null_never_zero(op: str) -> None:
    text = f'<ir_version: 9, opset_import: ["": 19, "com.microsoft": 1]> g (float[4] x) => (float[4] y) {{ y = com.microsoft.{op}(x) }}'
    estimate = MODEL.estimate(Module(ir.from_onnx_text(text)))
    assert estimate.unknown == (op,)
    assert [node.energy.joules for node in estimate.nodes] == [None]


CASES = (
    "if_", "loop", "scan", "sequence_map", "sequenceinsert", "optionalgetelement", "optionalhaselement", "identity",
    "string_concat", "string_split", "stringnormalizer", "attention", "layernormalization", "rotaryembedding", "einsum",
    "resize", "lstm", "gru", "qlinearmatmul", "dynamicquantizelinear", "matmulinteger", "nonmaxsuppression", "rangeop",
    "center_crop_pad", "reduce_log_sum_exp", "affinegrid", "unique", "dft", "split", "trilu", "reshape", "gathernd",
)  # fmt: skip
"""Modules of ONNX's node test suite: all control flow, sequences, optionals and strings, and functions once expanded.

The whole suite takes ten seconds to make; it was run in full when this was written, and holds.
"""


def node_cases() -> list[tuple[str, onnx.ModelProto]]:
    import onnx.backend.test.case.node as suite

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases compute infinities on purpose
        for name in CASES:
            importlib.import_module(f"{suite.__name__}.{name}")
    made = suite._NodeTestCases
    return [(case.name, case.model) for case in made if case.model is not None]


def test_onnx_node_cases_are_estimated() -> None:
    known = {op for ops in FORMULAS.values() for op in ops}
    cases = node_cases()
    assert len(cases) > 200
    for name, model in cases:
        estimate = MODEL.estimate(Module(ir.from_proto(model)))
        json.dumps(estimate.to_json(), allow_nan=False)
        for node in estimate.nodes:
            assert node.energy.joules is not None or node.op not in known, f"{name}: {node.op} {node.kernel}"
