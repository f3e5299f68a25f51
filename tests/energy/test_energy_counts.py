"""Hand-derived operation and byte counts: formulas written out beside each case, one operator a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
import onnx_ir as ir
import pytest

from joulec.energy.bind import infer_all
from joulec.energy.kernels import plan_kernels
from joulec.energy.view import Sizes
from joulec.energy.work import Work, work_of
from joulec.ir.module import Module

Parse = Callable[..., Module]
DOMAINS = '"": 19, "com.microsoft": 1'


def work(text: str, domains: str = DOMAINS) -> Work:
    """The work of the only node of a model."""
    text = f"<ir_version: 9, opset_import: [{domains}]> " + text.replace("<>", "")
    module = Module(ir.from_proto(onnx.parser.parse_model(text)))
    infer_all(module)
    plan, sizes = plan_kernels(module), Sizes()
    (node,) = [node for node in module.graph if node.op_type != "Constant"]
    return work_of(node, plan.kernels[node], sizes, plan.constants)


def flops(text: str, domains: str = DOMAINS) -> Mapping[str, int]:
    return work(text, domains).flops


# -- convolutions: 2 * outputs * C_in / groups * kernel ------------------------------------------------------

CONVOLUTIONS = [
    # x, w, y, attributes, multiply-adds
    ("2,8,9,9", "6,8,3,3", "2,6,7,7", "", 2 * 6 * 49 * 8 * 9),
    ("2,8,9,9", "6,8,3,3", "2,6,4,4", "strides=[2,2]", 2 * 6 * 16 * 8 * 9),
    ("2,8,9,9", "6,8,3,3", "2,6,5,5", "dilations=[2,2]", 2 * 6 * 25 * 8 * 9),
    ("2,8,9,9", "6,8,3,3", "2,6,9,9", "pads=[1,1,1,1]", 2 * 6 * 81 * 8 * 9),
    ("2,8,9,9", "6,8,3,3", "2,6,5,5", 'strides=[2,2], auto_pad="SAME_UPPER"', 2 * 6 * 25 * 8 * 9),
    ("2,8,9,9", "6,4,3,3", "2,6,7,7", "group=2", 2 * 6 * 49 * 4 * 9),
    ("2,8,20", "6,8,5", "2,6,16", "", 2 * 6 * 16 * 8 * 5),
    ("1,4,5,5,5", "3,4,2,2,2", "1,3,4,4,4", "", 3 * 64 * 4 * 8),
]


@pytest.mark.parametrize(("x", "w", "y", "attributes", "products"), CONVOLUTIONS)
def test_convolutions(x: str, w: str, y: str, attributes: str, products: int) -> None:
    found = flops(f"g (float[{x}] x, float[{w}] w) => (float[{y}] y) {{ y = Conv<{attributes}>(x, w) }}")
    assert found == {"fp32-matrix": 2 * products}


@pytest.mark.parametrize(
    ("w", "y", "attributes", "products"),
    [
        ("4,3,3,3", "1,3,7,7", "", 4 * 25 * 3 * 9),
        ("4,3,3,3", "1,3,11,11", "strides=[2,2]", 4 * 25 * 3 * 9),
        ("4,3,2,2", "1,6,6,6", "group=2", 4 * 25 * 3 * 4),
    ],
)
def test_transposed_convolutions(w: str, y: str, attributes: str, products: int) -> None:
    """Every input element meets every weight of its channel's row, whatever the stride."""
    text = f"g (float[1,4,5,5] x, float[{w}] w) => (float[{y}] y) {{ y = ConvTranspose<{attributes}>(x, w) }}"
    assert flops(text) == {"fp32-matrix": 2 * products}


def test_quantized_convolution() -> None:
    made = work(
        """g (uint8[1,8,6,6] x, float s, uint8 z, int8[4,8,3,3] w, float t, int8 v, float u, uint8 q, int32[4] b)
        => (uint8[1,4,4,4] y) { y = QLinearConv(x, s, z, w, t, v, u, q, b) }"""
    )
    outputs = 4 * 16
    assert made.flops == {"int8-matrix": 2 * outputs * 8 * 9, "fp32": 3 * outputs, "int32": outputs}
    assert made.bytes == 8 * 36 + 4 * 8 * 9 + 4 * 4 + 3 * 4 + 3 + outputs


# -- matrix products -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transposes", "a", "b"),
    [("", "3,7", "7,5"), ("transA=1", "7,3", "7,5"), ("transB=1", "3,7", "5,7"), ("transA=1, transB=1", "7,3", "5,7")],
)
def test_gemm(transposes: str, a: str, b: str) -> None:
    text = f"g (float[{a}] a, float[{b}] b, float[5] c) => (float[3,5] y) {{ y = Gemm<{transposes}>(a, b, c) }}"
    assert flops(text) == {"fp32-matrix": 2 * 3 * 5 * 7, "fp32": 15}


def test_matrix_product_moves_each_operand_once() -> None:
    made = work("g (float[6,3,4] a, float[4,5] b) => (float[6,3,5] y) { y = MatMul(a, b) }")
    assert (made.flops, made.bytes) == ({"fp32-matrix": 2 * 6 * 3 * 4 * 5}, 4 * (72 + 20 + 90))


def test_half_precision_products() -> None:
    made = work("g (float16[3,4] a, float16[4,5] b) => (float16[3,5] y) { y = MatMul(a, b) }")
    assert (made.flops, made.bytes) == ({"fp16-matrix": 120}, 2 * (12 + 20 + 15))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "g (uint8[2,3,4] a, int8[4,5] b) => (int32[2,3,5] y) { y = MatMulInteger(a, b) }",
            {"int8-matrix": 2 * 2 * 60},
        ),
        (
            """g (uint8[3,4] a, float s, uint8 z, int8[4,5] b, float t, int8 v, float u, uint8 q) => (uint8[3,5] y)
            { y = QLinearMatMul(a, s, z, b, t, v, u, q) }""",
            {"int8-matrix": 2 * 60, "fp32": 3 * 15},
        ),
        (
            """g (float[3,4] a, int8[4,5] b, float s, int8 z, float[5] c) => (float[3,5] y)
            { y = com.microsoft.DynamicQuantizeMatMul(a, b, s, z, c) }""",
            {"int8-matrix": 2 * 60, "fp32": 5 * 12 + 2 * 15},
        ),
        (
            """g (uint8[3,4] a, int8[4,5] b, float s, float t) => (float[3,5] y)
            { y = com.microsoft.MatMulIntegerToFloat(a, b, s, t) }""",
            {"int8-matrix": 2 * 60, "fp32": 15},
        ),
    ],
    ids=["MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"],
)
def test_integer_products(text: str, expected: Mapping[str, int]) -> None:
    assert flops(text) == expected


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0, {"fp32-matrix": 2 * 3 * 8 * 64, "fp32": 2 * 8 * 64}),
        (4, {"int8-matrix": 2 * 3 * 8 * 64, "fp32": 5 * 3 * 64 + 3 * 8 + 2 * 8 * 64}),
    ],
)
def test_four_bit_weights(level: int, expected: Mapping[str, int]) -> None:
    made = work(
        f"""g (float[3,64] a, uint8[8,2,16] b, float[16] s) => (float[3,8] y)
        {{ y = com.microsoft.MatMulNBits<K=64, N=8, bits=4, block_size=32, accuracy_level={level}>(a, b, s) }}"""
    )
    assert made.flops == expected
    assert made.bytes == 4 * 3 * 64 + 8 * 64 // 2 + 4 * 16 + 4 * 24


@pytest.mark.parametrize(
    ("equation", "shapes", "y", "expected"),
    [
        ("ij,jk->ik", ("3,4", "4,5"), "3,5", 2 * 60),
        ("bhqd,bhkd->bhqk", ("2,3,4,5", "2,3,6,5"), "2,3,4,6", 2 * 2 * 3 * 4 * 6 * 5),
        ("i,j->ij", ("3", "4"), "3,4", 12),
        ("bij,bjk", ("2,3,4", "2,4,5"), "2,3,5", None),
        ("i,i->", ("7", "7"), "", 2 * 7),
    ],
)
def test_einsum(equation: str, shapes: tuple[str, str], y: str, expected: int | None) -> None:
    """Without an arrow the output has the letters that stand once: b stands twice and is summed."""
    a, b = shapes
    if expected is None:
        expected, y = 2 * 2 * 3 * 4 * 5, "3,5"
    output = f"float[{y}]" if y else "float"
    text = f'g (float[{a}] a, float[{b}] b) => ({output} y) {{ y = Einsum<equation="{equation}">(a, b) }}'
    assert flops(text) == {"fp32-matrix": expected}


# -- recurrent: per step, sample and direction, gates * H * (I + H) multiply-adds ------------------------------


@pytest.mark.parametrize(
    ("op", "gates", "elementwise"), [("RNN", 1, 24), ("GRU", 3, 3 * 24 + 5), ("LSTM", 4, 5 * 24 + 4)]
)
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent(op: str, gates: int, elementwise: int, layout: int, directions: int) -> None:
    steps, batch, width, hidden = 7, 3, 10, 6
    x = f"{steps},{batch},{width}" if layout == 0 else f"{batch},{steps},{width}"
    y = f"{steps},{directions},{batch},{hidden}" if layout == 0 else f"{batch},{steps},{directions},{hidden}"
    direction = "bidirectional" if directions == 2 else "forward"
    text = (
        f"g (float[{x}] x, float[{directions},{gates * hidden},{width}] w, "
        f"float[{directions},{gates * hidden},{hidden}] r, float[{directions},{2 * gates * hidden}] b) "
        f'=> (float[{y}] y) {{ y = {op}<hidden_size={hidden}, layout={layout}, direction="{direction}">(x, w, r, b) }}'
    )
    units = steps * batch * directions * hidden
    assert flops(text) == {
        "fp32-matrix": 2 * units * gates * (width + hidden), "fp32": (2 * gates + elementwise) * units,
    }  # fmt: skip


def test_lstm_peepholes_add_three_products() -> None:
    head = "g (float[5,1,4] x, float[1,8,4] w, float[1,8,2] r, float[1,6] p) => (float[5,1,1,2] y)"
    without = flops(f"{head} {{ y = LSTM<hidden_size=2>(x, w, r) }}")
    peeping = flops(f"{head} {{ y = LSTM<hidden_size=2>(x, w, r, , , , , p) }}")
    assert peeping["fp32"] - without["fp32"] == 6 * 5 * 2


# -- attention: Q.K^T and P.V, 2 * B * H * Sq * Skv * D each ---------------------------------------------------

B, HEADS, SQ, SKV, D = 2, 4, 5, 7, 8
SCORES = B * HEADS * SQ * SKV


@pytest.mark.parametrize(
    ("text", "domains"),
    [
        (
            f"g (float[{B},{HEADS},{SQ},{D}] q, float[{B},{HEADS},{SKV},{D}] k, float[{B},{HEADS},{SKV},{D}] v) "
            f"=> (float[{B},{HEADS},{SQ},{D}] y) {{ y = Attention(q, k, v) }}",
            '"": 23',
        ),
        (
            f"g (float[{B},{SQ},{HEADS * D}] q, float[{B},{SKV},{2 * D}] k, float[{B},{SKV},{2 * D}] v) "
            f"=> (float[{B},{SQ},{HEADS * D}] y) {{ y = Attention<q_num_heads={HEADS}, kv_num_heads=2>(q, k, v) }}",
            '"": 23',
        ),
        (
            f"g (float[{B},{SQ},{HEADS * D}] q, float[{B},{SKV},{HEADS * D}] k, float[{B},{SKV},{HEADS * D}] v) "
            f"=> (float[{B},{SQ},{HEADS * D}] y) "
            f"{{ y = com.microsoft.MultiHeadAttention<num_heads={HEADS}>(q, k, v) }}",
            DOMAINS,
        ),
    ],
    ids=["four dimensions", "grouped queries", "com.microsoft"],
)
def test_attention(text: str, domains: str) -> None:
    assert flops(text, domains) == {"fp32-matrix": 2 * 2 * SCORES * D, "fp32": 21 * SCORES}


def test_attention_with_past_keys() -> None:
    past = 3
    kv = f"float[{B},{HEADS},{SQ},{D}]"
    before = f"float[{B},{HEADS},{past},{D}]"
    text = (
        f"g ({kv} q, {kv} k, {kv} v, {before} pk, {before} pv) => ({kv} y, float[a,b,c,d] nk, float[e,f,g,h] nv) "
        "{ y, nk, nv = Attention(q, k, v, , pk, pv) }"
    )
    assert flops(text, '"": 23')["fp32-matrix"] == 2 * 2 * B * HEADS * SQ * (SQ + past) * D


def test_projected_attention() -> None:
    """com.microsoft Attention: X (B, S, I) times W (I, 3 * D), then attention."""
    width = HEADS * D
    text = (
        f"g (float[{B},{SQ},16] x, float[16,{3 * width}] w, float[{3 * width}] b) => (float[{B},{SQ},{width}] y) "
        f"{{ y = com.microsoft.Attention<num_heads={HEADS}>(x, w, b) }}"
    )
    found = flops(text)
    assert found["fp32-matrix"] == 2 * B * SQ * 16 * 3 * width + 2 * 2 * B * HEADS * SQ * SQ * D


def test_linear_attention_updates_and_reads_one_state_per_head() -> None:
    text = (
        f"g (float[{B},{SQ},{HEADS * D}] q, float[{B},{SQ},{2 * D}] k, float[{B},{SQ},{2 * 3}] v) "
        f"=> (float[{B},{SQ},{HEADS * 3}] y, float[{B},2,{D},3] s) "
        f'{{ y, s = com.microsoft.LinearAttention<q_num_heads={HEADS}, kv_num_heads=2, update_rule="linear">(q, k, v) }}'
    )
    assert flops(text) == {"fp32-matrix": B * SQ * (2 * HEADS + 2 * 2) * D * 3}


# -- pooling, normalization, reduction, resizing, looking up ---------------------------------------------------

SIMPLE = [
    ("g (float[1,2,8,8] x) => (float[1,2,3,3] y) { y = MaxPool<kernel_shape=[3,3], strides=[2,2]>(x) }", 18 * 9),
    ("g (float[1,2,8,8] x) => (float[1,2,3,3] y) { y = AveragePool<kernel_shape=[3,3], strides=[2,2]>(x) }", 18 * 10),
    ("g (float[1,2,8,8] x) => (float[1,2,1,1] y) { y = GlobalAveragePool(x) }", 128 + 2),
    ("g (float[1,2,8,8] x) => (float[1,2,1,1] y) { y = GlobalMaxPool(x) }", 128 + 2),
    ("g (float[2,3,4] x, float[4] s) => (float[2,3,4] y) { y = LayerNormalization(x, s) }", 24 * 8),
    ("g (float[2,3,4] x, float[3] s, float[3] b) => (float[2,3,4] y) { y = InstanceNormalization(x, s, b) }", 24 * 8),
    (
        "g (float[2,3,4] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[2,3,4] y) "
        "{ y = BatchNormalization(x, s, b, m, v) }",
        24 * 2 + 3 * (9 + 4 + 3),
    ),
    ("g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax(x) }", 24 * 20),
    ("g (float[2,3,4] x) => (float[1,1,1] y) { y = ReduceSum(x) }", 24),
    ("g (float[2,3,4] x) => (float[1,1,1] y) { y = ReduceMean(x) }", 24 + 1),
    ("g (float[2,3,4] x) => (float[1,1,1] y) { y = ReduceL2(x) }", 2 * 24 + 9),
    ("g (float[2,3,4] x) => (int64[2,1,4] y) { y = ArgMax<axis=1>(x) }", 24),
    ("g (float[2,1,4] x, float[3,1] z) => (float[2,3,4] y) { y = Add(x, z) }", 24),
    ("g (float[2,3,4] x, float[2,3,4] z, float[2,3,4] u) => (float[2,3,4] y) { y = Sum(x, z, u) }", 48),
    ("g (float[1,2,4,4] x, float[4] s) => (float[1,2,8,8] y) { y = Resize(x, , s) }", 128),
    ('g (float[1,2,4,4] x, float[4] s) => (float[1,2,8,8] y) { y = Resize<mode="linear">(x, , s) }', 128 * 2 * 4),
    ('g (float[1,2,4,4] x, float[4] s) => (float[1,2,8,8] y) { y = Resize<mode="cubic">(x, , s) }', 128 * 2 * 16),
    ('g (float[1,2,4] x, float[3] s) => (float[1,2,8] y) { y = Resize<mode="linear">(x, , s) }', 16 * 2 * 2),
]


@pytest.mark.parametrize(("text", "expected"), SIMPLE, ids=[text.split("= ")[1].split(" ")[0] for text, _ in SIMPLE])
def test_elementwise_and_windows(text: str, expected: int) -> None:
    assert flops(text) == {"fp32": expected}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("g (float[1000,16] x, int64[2,3] i) => (float[2,3,16] y) { y = Gather(x, i) }", 2 * 96 * 4 + 6 * 8),
        ("g (float[100,16] x) => (float[16,100] y) { y = Transpose(x) }", 2 * 1600 * 4),
        ("g (float[2,3] x, float[4,3] z) => (float[6,3] y) { y = Concat<axis=0>(x, z) }", 2 * 18 * 4),
        ("g (uint8[2,3] x) => (float[2,3] y) { y = Cast<to=1>(x) }", 6 + 24),
        ("g (float[2,3] x) => (int64[2] y) { y = Shape(x) }", 0),
    ],
    ids=["Gather", "Transpose", "Concat", "Cast", "Shape folded"],
)
def test_bytes_moved(text: str, expected: int) -> None:
    assert work(text).bytes == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "g (float[6] x, float s, uint8 z) => (uint8[6] y) { y = QuantizeLinear(x, s, z) }",
            ({"fp32": 18}, 24 + 4 + 1 + 6),
        ),
        (
            "g (uint8[6] x, float s, uint8 z) => (float[6] y) { y = DequantizeLinear(x, s, z) }",
            ({"fp32": 12}, 6 + 4 + 1 + 24),
        ),
        (
            "g (float[6] x) => (uint8[6] y, float s, uint8 z) { y, s, z = DynamicQuantizeLinear(x) }",
            ({"fp32": 30}, 24 + 6 + 4 + 1),
        ),
        (
            """g (uint8[6] a, float s, uint8 z, uint8[6] b, float t, uint8 v, float u, uint8 q) => (uint8[6] y)
            { y = com.microsoft.QLinearAdd(a, s, z, b, t, v, u, q) }""",
            ({"fp32": 6 * (2 + 2 + 1 + 3)}, 6 + 6 + 3 * 5 + 6),
        ),
    ],
    ids=["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearAdd"],
)
def test_quantizers(text: str, expected: tuple[Mapping[str, int], int]) -> None:
    made = work(text)
    assert (made.flops, made.bytes) == expected
