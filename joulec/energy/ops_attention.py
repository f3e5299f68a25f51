"""Work of attention operators: Q.K^T and P.V are 2 * batch * heads * S_q * S_kv * D each, softmax 20 per score."""

from __future__ import annotations

from joulec.energy.ops_reduce import SOFTMAX
from joulec.energy.view import Cost, Unpriced, View, at, flops


def scores(view: View, batch: int, queries: int, keys: int, width: int, v_width: int, heads: int) -> Cost:
    """`width` and `v_width` are heads * head size of queries and values."""
    products = 2 * batch * queries * keys * (width + v_width)
    return Cost(flops((view.matrix, products), (view.vector, (SOFTMAX + 1) * batch * heads * queries * keys)))


def attention(view: View) -> Cost:
    """Attention (opset 23): Q (B, Hq, Sq, D) or (B, Sq, Hq*D); K, V alike; past key (B, Hkv, P, D) is input 4."""
    q, k, v = view.dims(0), view.dims(1), view.dims(2)
    past = at(view.dims(4), 2) if view.has(4) else 0
    if len(q) == 4:
        heads = q[1]
        return scores(view, q[0], q[2], at(k, 2) + past, heads * q[3], heads * at(v, 3), heads)
    heads, kv_heads = view.integer("q_num_heads", 1), max(view.integer("kv_num_heads", 1), 1)
    return scores(view, at(q, 0), at(q, 1), at(k, 1) + past, at(q, 2), heads * at(v, 2) // kv_heads, heads)


def packed_attention(view: View) -> Cost:
    """com.microsoft Attention: X (B, S, I) times W (I, 3*D) with bias, then attention over D."""
    batch, steps, width = (view.dim(0, axis) for axis in (0, 1, 2))
    columns, inner = view.dim(1, -1), view.out_dims()
    projected = 2 * batch * steps * width * columns
    after = scores(view, batch, steps, steps + _past(view), at(inner, -1), at(inner, -1), view.integer("num_heads", 1))
    return Cost(flops((view.matrix, projected), (view.vector, batch * steps * columns), *after.flops.items()))


def quantized_attention(view: View) -> Cost:
    """QAttention: the projection in int8, scaled per output, then attention in float; past is input 8."""
    batch, steps, width = (view.dim(0, axis) for axis in (0, 1, 2))
    projected = batch * steps * view.dim(1, -1)
    past = view.dim(8, 3) if view.has(8) else 0
    inner, heads = at(view.out_dims(), -1), view.integer("num_heads", 1)
    plain = View(view.node, view.sizes, "fp32")
    after = scores(plain, batch, steps, steps + past, inner, inner, heads)
    return Cost(flops(("int8-matrix", 2 * projected * width), ("fp32", 2 * projected), *after.flops.items()))


def _past(view: View) -> int:
    """The length of the past state (2, batch, heads, past, head size), input 4."""
    return view.dim(4, 3) if view.has(4) else 0


def multi_head(view: View) -> Cost:
    """MultiHeadAttention, DecoderMaskedMultiHeadAttention: Q (B, Sq, D), K (B, Skv, D) or (B, H, Skv, D/H), V alike."""
    q, k, v = view.dims(0), view.dims(1), view.dims(2)
    heads = view.integer("num_heads", 1)
    if not view.has(1):
        if len(q) != 5:
            raise Unpriced("keys are missing and the query is not packed")
        width = q[2] * q[4]
        return scores(view, q[0], q[1], q[1], width, width, heads)
    keys = at(k, 1) if len(k) != 4 else k[2]
    v_width = at(v, 2) if len(v) == 3 else heads * at(v, 3) if v else at(q, 2)
    return scores(view, at(q, 0), at(q, 1), keys, at(q, 2), v_width, heads)


def group_query(view: View) -> Cost:
    """GroupQueryAttention: Q (B, S, Hq*D), K and V new rows; past key (B, Hkv, P, D) is input 3."""
    q = view.dims(0)
    heads, kv_heads = view.integer("num_heads", 1), view.integer("kv_num_heads", 1)
    packed = not view.has(1)
    width = at(q, 2) * heads // (heads + 2 * kv_heads) if packed else at(q, 2)
    keys = at(q, 1) + (view.dim(3, 2) if view.has(3) else 0)
    return scores(view, at(q, 0), at(q, 1), keys, width, width, heads)


def rotary(view: View) -> Cost:
    """RotaryEmbedding: two products and an add per element."""
    return view.cost(3 * view.n())


def linear_attention(view: View) -> Cost:
    """LinearAttention: Q (B, T, Hq*Dk), V (B, T, Hkv*Dv), a state of Dk x Dv per key head.

    Per step: 2 * Dk * Dv per query head to read the state, 2 per key head to update it; the delta rules read it once
    more (2), the gated ones decay it (1).
    """
    q, v = view.dims(0), view.dims(2)
    heads, kv_heads = view.integer("q_num_heads", 0), view.integer("kv_num_heads", 0)
    if len(q) != 3 or len(v) != 3 or heads < 1 or kv_heads < 1:
        raise Unpriced("Q and V must have rank 3, and q_num_heads and kv_num_heads be given")
    rule = view.attr("update_rule", b"gated_delta")
    name = rule.decode() if isinstance(rule, bytes) else str(rule)
    per_key = 2 + 2 * ("delta" in name) + ("gated" in name)
    state = (q[2] // heads) * (v[2] // kv_heads)
    return Cost(flops((view.matrix, q[0] * q[1] * state * (2 * heads + per_key * kv_heads))))


TABLE = {"Attention": attention, "RotaryEmbedding": rotary, "LinearAttention": linear_attention}
MICROSOFT = {
    "Attention": packed_attention, "QAttention": quantized_attention, "MultiHeadAttention": multi_head,
    "DecoderMaskedMultiHeadAttention": multi_head, "GroupQueryAttention": group_query, "RotaryEmbedding": rotary,
    "MRotaryEmbedding": rotary, "LinearAttention": linear_attention,
}  # fmt: skip
