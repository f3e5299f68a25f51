"""Work of dense contractions: convolutions, matrix products, Einsum. A multiply-add counts as two operations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from joulec.energy.view import Cost, Unpriced, View, at, flops

REQUANTIZE = 3
"""Operations that turn one int32 sum into int8: multiply by the scale, round and add the zero point, clamp."""

MATRIX_CHANNELS = 4
"""Input channels per group from which a grouped convolution is worth a matrix product."""


def _products(view: View, weight: int) -> int:
    """2 * outputs * (C_in / groups) * prod(kernel): W is (C_out, C_in / groups, *kernel)."""
    return 2 * view.m() * math.prod(view.dims(weight)[1:])


def conv(view: View) -> Cost:
    """Conv, FusedConv, NCHWc Conv: 2 * outputs * C_in/groups * prod(kernel), plus one add per output for a bias.

    Depthwise convolutions (fewer than 4 channels a group) run on vector, not on matrix units.
    """
    kind = view.matrix if view.dim(1, 1) >= MATRIX_CHANNELS or view.integer("group", 1) == 1 else view.vector
    return Cost(flops((kind, _products(view, 1)), (view.vector, view.m() * view.has(2))))


def conv_transpose(view: View) -> Cost:
    """ConvTranspose: each input element meets C_out/groups * prod(kernel) weights; W is (C_in, C_out/groups, *k)."""
    work = 2 * view.n() * math.prod(view.dims(1)[1:])
    return Cost(flops((view.matrix, work), (view.vector, view.m() * view.has(2))))


def deform_conv(view: View) -> Cost:
    """DeformConv: a Conv, and a bilinear sample (8 operations) per gathered input element."""
    sampled = math.prod(view.out_dims()[2:]) * view.dim(0, 0) * view.dim(0, 1) * math.prod(view.dims(1)[2:])
    return Cost(flops((view.matrix, _products(view, 1)), (view.vector, view.m() * view.has(3) + 8 * sampled)))


def conv_integer(view: View) -> Cost:
    """ConvInteger: a Conv in int8 with int32 sums."""
    return Cost(flops(("int8-matrix", _products(view, 1))))


def qlinear_conv(view: View) -> Cost:
    """QLinearConv (x, sx, zx, w, sw, zw, sy, zy, bias): a Conv in int8, then one requantization per output."""
    bias = view.m() * view.has(8)
    return Cost(flops(("int8-matrix", _products(view, 3)), ("fp32", REQUANTIZE * view.m()), ("int32", bias)))


def causal_conv(view: View) -> Cost:
    """CausalConvWithState: depthwise along the last axis, 2 * outputs * kernel."""
    return Cost(flops((view.matrix, 2 * view.m() * at(view.dims(1), -1)), (view.vector, view.m() * view.has(2))))


def product_flops(a: Sequence[int], b: Sequence[int], trans_a: bool = False) -> tuple[int, int]:
    """(2 * outputs * K, outputs) of the batched product of shapes `a` (..., M, K) and `b` (..., K, N).

    numpy's rules: a vector on the left is (1, K), on the right (K, 1); leading dimensions broadcast.
    """
    left = (1, *a) if len(a) == 1 else tuple(a)
    right = (*b, 1) if len(b) == 1 else tuple(b)
    rows, inner = (at(left, -1), at(left, -2)) if trans_a else (at(left, -2), at(left, -1))
    outputs = math.prod(_broadcast(left[:-2], right[:-2])) * rows * at(right, -1)
    return 2 * outputs * inner, outputs


def _broadcast(a: Sequence[int], b: Sequence[int]) -> list[int]:
    size = max(len(a), len(b))
    left, right = [1] * (size - len(a)) + list(a), [1] * (size - len(b)) + list(b)
    return [y if x == 1 else x for x, y in zip(left, right, strict=True)]


def matmul(view: View) -> Cost:
    """MatMul: 2 * batch * M * N * K."""
    return Cost(flops((view.matrix, product_flops(view.dims(0), view.dims(1))[0])))


def fused_matmul(view: View) -> Cost:
    """FusedMatMul, TransposeMatMul: 2 * outputs * K with optional transposes, plus the scale alpha."""
    a = view.dims(0)
    inner = at(a, -2) if view.integer("transA", 0) else at(a, -1)
    return Cost(flops((view.matrix, 2 * view.m() * inner), (view.vector, view.m())))


def gemm(view: View) -> Cost:
    """Gemm, FusedGemm: 2 * M * N * K, plus one add per output for C (and one multiply for alpha or beta not 1)."""
    inner = view.dim(0, 0) if view.integer("transA", 0) else view.dim(0, -1)
    scaled = sum(float(view.attr(name, 1.0)) != 1.0 for name in ("alpha", "beta"))
    extra = view.m() * (view.has(2) + scaled)
    return Cost(flops((view.matrix, 2 * view.m() * inner), (view.vector, extra)))


def matmul_integer(view: View) -> Cost:
    """MatMulInteger: a MatMul in int8 with int32 sums."""
    return Cost(flops(("int8-matrix", product_flops(view.dims(0), view.dims(1))[0])))


def matmul_integer_to_float(view: View) -> Cost:
    """MatMulIntegerToFloat (a, b, sa, sb, za, zb, bias): int8 products, then scale (and bias) per output."""
    work, outputs = product_flops(view.dims(0), view.dims(1))
    return Cost(flops(("int8-matrix", work), ("fp32", outputs * (1 + view.has(6)))))


def dynamic_quantize_matmul(view: View) -> Cost:
    """DynamicQuantizeMatMul (a, b, sb, zb, bias): quantize a at run time (5 per element), int8 products, scale."""
    work, outputs = product_flops(view.dims(0), view.dims(1))
    return Cost(flops(("int8-matrix", work), ("fp32", 5 * view.n() + outputs * (1 + view.has(4)))))


def qlinear_matmul(view: View) -> Cost:
    """QLinearMatMul (a, sa, za, b, sb, zb, sy, zy): int8 products, then one requantization per output."""
    work, outputs = product_flops(view.dims(0), view.dims(3))
    return Cost(flops(("int8-matrix", work), ("fp32", REQUANTIZE * outputs)))


def qgemm(view: View) -> Cost:
    """QGemm (a, sa, za, b, sb, zb, C, sy, zy): 2 * M * N * K in int8, then bias and (re)scaling per output."""
    inner = view.dim(0, 0) if view.integer("transA", 0) else view.dim(0, -1)
    after = REQUANTIZE if view.has(7) else 1
    return Cost(
        flops(("int8-matrix", 2 * view.m() * inner), ("fp32", after * view.m()), ("int32", view.m() * view.has(6)))
    )


def matmul_nbits(view: View) -> Cost:
    """MatMulNBits, MatMulBnb4, MatMulFpQ4: weights unpacked once per run (2 per weight), then float products.

    With accuracy_level 4, A is quantized at run time (5 per element) and the products are int8, scaled per output.
    """
    inner, columns = view.integer("K", 0), view.integer("N", 0)
    if not inner or not columns:
        raise Unpriced("attributes K and N are missing")
    if view.integer("accuracy_level", 0) == 4:
        around = 5 * view.n() + view.m() + 2 * inner * columns
        return Cost(flops(("int8-matrix", 2 * view.m() * inner), ("fp32", around)))
    return Cost(flops((view.matrix, 2 * view.m() * inner), (view.vector, 2 * inner * columns)))


def sparse_matmul(view: View) -> Cost:
    """SparseToDenseMatMul: priced dense; the number of stored values is not known before the run."""
    return Cost(flops((view.matrix, product_flops(view.dims(0), view.dims(1))[0])))


def einsum(view: View) -> Cost:
    """Einsum: pairwise from left to right; each step costs 2 * product of all its indices, or 1 * for no reduction."""
    terms, output = _equation(view)
    sizes = _index_sizes(view, terms)
    total, current = 0, list(dict.fromkeys(terms[0]))
    if len(terms) == 1:
        return view.cost(math.prod(sizes[i] for i in current))
    for position, term in enumerate(terms[1:], 1):
        merged = list(dict.fromkeys([*current, *term]))
        needed = set(output).union(*terms[position + 1 :])
        current = [index for index in merged if index in needed]
        reduces = len(current) < len(merged)
        total += (2 if reduces else 1) * math.prod(sizes[index] for index in merged)
    return Cost(flops((view.matrix, total)))


def _equation(view: View) -> tuple[list[str], str]:
    """The operands' index letters and the output's; `...` is spelled out as upper-case Greek letters."""
    text = str(view.attr("equation", "")).replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(view.inputs()) or not text:
        raise Unpriced(f"equation '{text[:60]}' does not match the inputs")
    widest = max((len(view.dims(i)) - len(t.replace("...", "")) for i, t in enumerate(terms) if "..." in t), default=0)
    dots = "".join(chr(0x391 + i) for i in range(widest))
    spelled = [_spell(t, dots, len(view.dims(i))) for i, t in enumerate(terms)]
    if arrow:
        return spelled, right.replace("...", dots)
    letters = "".join(spelled)
    return spelled, dots + "".join(sorted(c for c in set(letters) - set(dots) if letters.count(c) == 1))


def _spell(term: str, dots: str, rank: int) -> str:
    if "..." not in term:
        return term
    width = rank - len(term.replace("...", ""))
    return term.replace("...", dots[len(dots) - width :] if width > 0 else "")


def _index_sizes(view: View, terms: Sequence[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for position, term in enumerate(terms):
        for axis, index in enumerate(term):
            sizes[index] = max(sizes.get(index, 1), view.dim(position, axis))
    return sizes


def nhwc_conv(view: View) -> Cost:
    """NhwcConv, NhwcFusedConv: a Conv of channels-last X; W is (C_out, *kernel, C_in / groups)."""
    dense = view.dim(1, -1) >= MATRIX_CHANNELS or view.integer("group", 1) == 1
    kind = view.matrix if dense else view.vector
    return Cost(flops((kind, _products(view, 1)), (view.vector, view.m() * view.has(2))))


def qmoe(view: View) -> Cost:
    """QMoE: a MoE whose expert weights (inputs 2, 5, 8: E, N, K packed) are unpacked, 2 per weight of k experts."""
    rows, chosen = math.prod(view.dims(0)[:-1]), view.integer("k", 1)
    packed = 8 // max(view.integer("expert_weight_bits", 4), 1)
    experts = sum(math.prod(view.dims(i)[1:]) * packed for i in (2, 5, 8) if len(view.dims(i)) == 3)
    return Cost(flops((view.matrix, 2 * rows * chosen * experts), (view.vector, 2 * chosen * experts)))


def moe(view: View) -> Cost:
    """MoE: each row visits k experts; expert weights are (E, H, I) and (E, I, H): 2 * rows * k * (H*I + I*H)."""
    rows = math.prod(view.dims(0)[:-1])
    experts = [math.prod(view.dims(i)[1:]) for i in (2, 4, 6) if len(view.dims(i)) == 3]
    return Cost(flops((view.matrix, 2 * rows * view.integer("k", 1) * sum(experts))))


TABLE = {
    "Conv": conv, "ConvTranspose": conv_transpose, "DeformConv": deform_conv, "ConvInteger": conv_integer,
    "QLinearConv": qlinear_conv, "CausalConvWithState": causal_conv, "MatMul": matmul, "Gemm": gemm,
    "MatMulInteger": matmul_integer, "QLinearMatMul": qlinear_matmul, "Einsum": einsum,
}  # fmt: skip
MICROSOFT = {
    "FusedConv": conv, "ConvTransposeWithDynamicPads": conv_transpose, "QLinearConv": qlinear_conv,
    "FusedMatMul": fused_matmul, "TransposeMatMul": fused_matmul, "FusedGemm": gemm, "QGemm": qgemm,
    "MatMulIntegerToFloat": matmul_integer_to_float, "DynamicQuantizeMatMul": dynamic_quantize_matmul,
    "MatMulInteger16": matmul, "MatMulNBits": matmul_nbits, "MatMulBnb4": matmul_nbits, "MatMulFpQ4": matmul_nbits,
    "SparseToDenseMatMul": sparse_matmul, "MoE": moe, "QMoE": qmoe, "FusedMatMulActivation": fused_matmul,
    "NhwcConv": nhwc_conv, "NhwcFusedConv": nhwc_conv, "CausalConvWithState": causal_conv,
}  # fmt: skip
NCHWC = {"Conv": conv}
