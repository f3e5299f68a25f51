"""Work of pooling, reductions, softmax and normalizations."""

from __future__ import annotations

import math
from collections.abc import Callable

from joulec.energy.ops_elementwise import DIVIDE, EXPONENTIAL, RATIONAL, ROOT
from joulec.energy.view import Cost, View, at


def pool(view: View) -> Cost:
    """MaxPool, AveragePool: one operation per window element (padding not subtracted), and one scale for an average."""
    window = math.prod(view.attr("kernel_shape", ()) or view.dims(0)[2:])
    average = 1 if view.node.op_type in ("AveragePool", "QLinearAveragePool") else 0
    return view.cost(view.m() * (window + average))


def nhwc_pool(view: View) -> Cost:
    """NhwcMaxPool: a MaxPool whose channels are the last dimension."""
    window = math.prod(view.attr("kernel_shape", ()) or view.dims(0)[1:-1])
    return view.cost(view.m() * window)


def lp_pool(view: View) -> Cost:
    """LpPool: |x|^p and a sum per window element (3), a root per output."""
    window = math.prod(view.attr("kernel_shape", ()) or view.dims(0)[2:])
    return view.cost(view.m() * (3 * window + ROOT))


def global_pool(view: View) -> Cost:
    """Global pools: one operation per input element, one scale per output."""
    per = 3 if view.node.op_type == "GlobalLpPool" else 1
    return view.cost(per * view.n() + view.m())


def region_pool(view: View) -> Cost:
    """MaxRoiPool, RoiAlign, CropAndResize: sampling_ratio^2 (2 if adaptive) bilinear samples of 8 per output."""
    ratio = view.integer("sampling_ratio", 0) or 2
    return view.cost(view.m() * 8 * ratio * ratio)


def reduce(per_element: int, per_output: int = 0) -> Callable[[View], Cost]:
    """`per_element` operations per input element and `per_output` per output element."""

    def formula(view: View) -> Cost:
        return view.cost(per_element * view.n() + per_output * view.m())

    return formula


def per_input(operations: int) -> Callable[[View], Cost]:
    """`operations` per element of the first input."""
    return reduce(operations)


def batch_norm(view: View) -> Cost:
    """BatchNormalization at inference: scale and shift per element (2), a root and 3 per channel to prepare them."""
    return view.cost(2 * view.n() + (ROOT + DIVIDE + 3) * view.n(1))


def lrn(view: View) -> Cost:
    """LRN: square, a window of `size` adds, scale and bias, x^beta (exp and log), one product."""
    per = 1 + view.integer("size", 1) + 2 + 2 * EXPONENTIAL + 1
    return view.cost(per * view.n())


def skip_norm(view: View) -> Cost:
    """SkipLayerNormalization, SkipSimplifiedLayerNormalization: the adds, then a layer norm (8 per element)."""
    return view.cost((8 + max(len(view.inputs()) - 3, 1)) * view.n())


def embed_norm(view: View) -> Cost:
    """EmbedLayerNormalization: sum of two or three embeddings and a layer norm (10 per output); reads only its rows."""
    rows = view.out_bytes()
    touched = {i: min(rows, view.nbytes(i)) for i in (2, 3, 4)}
    return Cost({"fp32": 10 * view.m()}, touched=touched)


def top_k(view: View) -> Cost:
    """TopK: a heap of k, so 1 + log2(k) comparisons per input element."""
    chosen = at(view.out_dims(), view.integer("axis", -1))
    return view.cost(view.n() * (1 + max(chosen, 1).bit_length()))


def unique(view: View) -> Cost:
    """Unique: a sort, n * log2(n) comparisons."""
    return view.cost(view.n() * max(view.n(), 1).bit_length())


SOFTMAX = EXPONENTIAL + 4
"""Maximum, subtract, exp, sum and scale by the reciprocal."""
MOMENTS = 8
"""Mean (1), centred square and sum (3), normalize (2), scale and shift (2)."""

TABLE = {
    "MaxPool": pool, "AveragePool": pool, "LpPool": lp_pool, "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool, "GlobalLpPool": global_pool, "MaxRoiPool": region_pool, "RoiAlign": region_pool,
    "MaxUnpool": per_input(1),
    **dict.fromkeys(["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ArgMax", "ArgMin", "Hardmax"], reduce(1)),
    "ReduceMean": reduce(1, 1), "ReduceL1": reduce(2), "ReduceSumSquare": reduce(2), "ReduceL2": reduce(2, ROOT),
    "ReduceLogSum": reduce(1, EXPONENTIAL), "ReduceLogSumExp": reduce(EXPONENTIAL + 3, EXPONENTIAL),
    "Softmax": per_input(SOFTMAX), "LogSoftmax": per_input(SOFTMAX + 1),
    "SoftmaxCrossEntropyLoss": per_input(SOFTMAX + 2), "NegativeLogLikelihoodLoss": per_input(1),
    "BatchNormalization": batch_norm, "LRN": lrn,
    **dict.fromkeys(["LayerNormalization", "InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization"],
                    per_input(MOMENTS)),
    "RMSNormalization": per_input(4), "SimplifiedLayerNormalization": per_input(4), "LpNormalization": per_input(4),
    "CumSum": per_input(1), "CumProd": per_input(1), "TopK": top_k, "Unique": unique,
}  # fmt: skip
MICROSOFT = {
    "SkipLayerNormalization": skip_norm, "SkipSimplifiedLayerNormalization": skip_norm,
    "SimplifiedLayerNormalization": per_input(4), "EmbedLayerNormalization": embed_norm,
    "QEmbedLayerNormalization": embed_norm, "GroupNorm": per_input(MOMENTS), "GatedRMSNorm": per_input(RATIONAL + 6),
    "BiasSoftmax": per_input(SOFTMAX + 1), "SkipGroupNorm": skip_norm, "BranchwiseRMSNorm": per_input(4),
    "NhwcMaxPool": nhwc_pool, "MaxpoolWithMask": pool, "CropAndResize": region_pool, "Unique": unique,
}  # fmt: skip
NCHWC = {
    "MaxPool": pool, "AveragePool": pool, "GlobalAveragePool": global_pool, "GlobalMaxPool": global_pool,
}  # fmt: skip
