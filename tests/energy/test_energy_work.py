"""Hand-derived work counts, operator by operator."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from joulec.energy.kernels import plan_kernels
from joulec.energy.view import Sizes, Unpriced
from joulec.energy.work import Work, work_of
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes

Parse = Callable[..., Module]


def works(module: Module) -> dict[str, Work]:
    """Work by operator; with several of one kind, the last."""
    infer_shapes(module)
    plan, sizes = plan_kernels(module), Sizes()
    return {node.op_type: work_of(node, plan.kernels[node], sizes, plan.constants) for node in module.graph}


def test_conv_with_stride_and_bias(parse: Parse) -> None:
    work = works(
        parse(
            "g (float[2,3,8,8] x, float[4,3,3,3] w, float[4] b) => (float[2,4,3,3] y) "
            "{ y = Conv<strides=[2,2]>(x, w, b) }"
        )
    )["Conv"]
    outputs = 2 * 4 * 3 * 3
    assert work.flops == {"fp32-matrix": 2 * outputs * 3 * 3 * 3, "fp32": outputs}
    assert work.input_bytes == 4 * (2 * 3 * 64 + 4 * 27 + 4)
    assert (work.output_bytes, work.launches) == (4 * outputs, 1)


def test_grouped_conv_divides_by_groups(parse: Parse) -> None:
    work = works(parse("g (float[1,8,5,5] x, float[8,4,3,3] w) => (float[1,8,3,3] y) { y = Conv<group=2>(x, w) }"))[
        "Conv"
    ]
    assert work.flops == {"fp32-matrix": 2 * 8 * 9 * 4 * 9}


def test_depthwise_conv_runs_on_vector_units(parse: Parse) -> None:
    work = works(parse("g (float[1,8,5,5] x, float[8,1,3,3] w) => (float[1,8,3,3] y) { y = Conv<group=8>(x, w) }"))[
        "Conv"
    ]
    assert work.flops == {"fp32": 2 * 8 * 9 * 9}


def test_conv_transpose(parse: Parse) -> None:
    work = works(
        parse("g (float[1,3,4,4] x, float[3,5,2,2] w) => (float[1,5,8,8] y) { y = ConvTranspose<strides=[2,2]>(x, w) }")
    )["ConvTranspose"]
    assert work.flops == {"fp32-matrix": 2 * 3 * 16 * 5 * 4}


@pytest.mark.parametrize(
    ("a", "b", "y", "multiply_adds"),
    [
        ("2,3,4", "2,4,5", "2,3,5", 2 * 3 * 4 * 5),
        ("7,1,3,4", "2,4,5", "7,2,3,5", 7 * 2 * 3 * 4 * 5),
        ("4", "4,5", "5", 4 * 5),
        ("3,4", "4", "3", 3 * 4),
    ],
)
def test_matmul_broadcasts_batches(parse: Parse, a: str, b: str, y: str, multiply_adds: int) -> None:
    work = works(parse(f"g (float[{a}] a, float[{b}] b) => (float[{y}] y) {{ y = MatMul(a, b) }}"))["MatMul"]
    assert work.flops == {"fp32-matrix": 2 * multiply_adds}


def test_gemm_transposed_with_bias_and_alpha(parse: Parse) -> None:
    work = works(
        parse(
            "g (float[6,4] a, float[5,6] b, float[5] c) => (float[4,5] y) "
            "{ y = Gemm<transA=1, transB=1, alpha=2.0>(a, b, c) }"
        )
    )["Gemm"]
    assert work.flops == {"fp32-matrix": 2 * 4 * 5 * 6, "fp32": 2 * 20}


def test_einsum_contraction_and_ellipsis(parse: Parse) -> None:
    plain = works(
        parse('g (float[2,3,4] a, float[2,4,5] b) => (float[2,3,5] y) { y = Einsum<equation="bij,bjk->bik">(a, b) }')
    )
    dotted = works(
        parse(
            'g (float[2,3,4] a, float[2,4,5] b) => (float[2,3,5] y) { y = Einsum<equation="...ij,...jk->...ik">(a, b) }'
        )
    )
    assert plain["Einsum"].flops == dotted["Einsum"].flops == {"fp32-matrix": 2 * 2 * 3 * 4 * 5}


def test_lstm_counts_gates_directions_and_steps(parse: Parse) -> None:
    work = works(
        parse(
            "g (float[7,2,10] x, float[2,24,10] w, float[2,24,6] r, float[2,48] b) => (float[7,2,2,6] y) "
            '{ y = LSTM<hidden_size=6, direction="bidirectional">(x, w, r, b) }'
        )
    )["LSTM"]
    units = 7 * 2 * 2 * 6
    assert work.flops["fp32-matrix"] == 2 * units * 4 * (10 + 6)
    assert work.flops["fp32"] == 2 * 4 * units + (5 * 24 + 4) * units


@pytest.mark.parametrize(("op", "gates"), [("GRU", 3), ("RNN", 1)])
def test_other_recurrent_gates(parse: Parse, op: str, gates: int) -> None:
    text = f"g (float[7,2,10] x, float[1,{gates * 6},10] w, float[1,{gates * 6},6] r) => (float[7,1,2,6] y)"
    work = works(parse(f"{text} {{ y = {op}<hidden_size=6>(x, w, r) }}"))[op]
    assert work.flops["fp32-matrix"] == 2 * 7 * 2 * 6 * gates * 16


def test_pooling_windows(parse: Parse) -> None:
    text = "g (float[1,2,8,8] x) => (float[1,2,4,4] y) {{ y = {op}<kernel_shape=[2,2], strides=[2,2]>(x) }}"
    assert works(parse(text.format(op="MaxPool")))["MaxPool"].flops == {"fp32": 32 * 4}
    assert works(parse(text.format(op="AveragePool")))["AveragePool"].flops == {"fp32": 32 * 5}


def test_attention_from_its_pieces(parse: Parse) -> None:
    module = parse(
        "g (float[2,4,9,8] q, float[2,4,8,9] k, float[2,4,9,8] v) => (float[2,4,9,8] y) "
        "{ s = MatMul(q, k) p = Softmax(s) y = MatMul(p, v) }"
    )
    infer_shapes(module)
    plan, sizes = plan_kernels(module), Sizes()
    scores, softmax, values = (work_of(n, plan.kernels[n], sizes, plan.constants) for n in module.graph)
    assert scores.flops == values.flops == {"fp32-matrix": 2 * 2 * 4 * 9 * 9 * 8}
    assert softmax.flops == {"fp32": 20 * 2 * 4 * 81}


def test_fused_attention_counts_both_products(parse: Parse) -> None:
    text = "g (float[2,4,9,8] q, float[2,4,9,8] k, float[2,4,9,8] v) => (float[2,4,9,8] y) { y = Attention(q, k, v) }"
    assert works(parse(text, opset=23))["Attention"].flops["fp32-matrix"] == 2 * 2 * 2 * 4 * 9 * 9 * 8


def test_integer_products_are_int8(parse: Parse) -> None:
    work = works(parse("g (uint8[3,4] a, int8[4,5] b) => (int32[3,5] y) { y = MatMulInteger(a, b) }"))["MatMulInteger"]
    assert work.flops == {"int8-matrix": 2 * 60}
    assert work.input_bytes == 12 + 20


def test_gather_reads_only_its_rows(parse: Parse) -> None:
    work = works(parse("g (float[1000,16] table, int64[3] i) => (float[3,16] y) { y = Gather(table, i) }"))["Gather"]
    assert work.input_bytes == 3 * 16 * 4 + 3 * 8
    assert work.flops == {}


def test_reshape_moves_nothing_but_is_launched(parse: Parse) -> None:
    work = works(parse("g (float[4,4] x) => (float[16] y) { s = Constant<value_ints=[16]>() y = Reshape(x, s) }"))[
        "Reshape"
    ]
    assert (work.bytes, work.operations, work.launches) == (0, 0, 1)


def test_transpose_of_size_one_dimensions_is_a_view(parse: Parse) -> None:
    text = "g (float[2,1,1,8] x) => (float[2,8,1,1] y) { y = Transpose<perm=[0,3,1,2]>(x) }"
    assert works(parse(text))["Transpose"].bytes == 0


def test_float16_counts_two_bytes(parse: Parse) -> None:
    work = works(parse("g (float16[8] x) => (float16[8] y) { y = Exp(x) }"))["Exp"]
    assert (work.bytes, list(work.flops)) == (32, ["fp16"])


def test_nodes_of_constants_are_folded_at_load(parse: Parse) -> None:
    found = works(
        parse("g (float[2] x) => (float[2] y) { c = Constant<value_floats=[1.0, 2.0]>() d = Exp(c) y = Add(x, d) }")
    )
    assert found["Exp"] == Work(kernel="folded at load")
    assert found["Add"].weight_bytes == 8 and found["Add"].input_bytes == 8


def test_unknown_operators_have_no_price(parse: Parse) -> None:
    module = Module(
        ir.from_onnx_text(
            '<ir_version: 9, opset_import: ["": 19, "acme": 1]> g (float[2] x) => (float[2] y) { y = acme.Mystery(x) }'
        )
    )
    with pytest.raises(Unpriced, match="no work formula for Mystery of domain 'acme'"):
        works(module)
